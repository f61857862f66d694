/* Operators that torch_npu starts from its own C++ (the aclop interface): descriptions of tensors
 * and attributes, and the one entry point, which hands the call to a handler in Python. An operator
 * without a handler fails by name. */
#define _GNU_SOURCE
#include "runtime.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DIMENSIONS 32

typedef struct {
    int32_t dtype; /* aclDataType */
    int32_t format;
    int32_t placement; /* 0 device; 1 host, 2 host whatever its value was at compile time */
    int32_t dimensions;
    int64_t sizes[MAX_DIMENSIONS];
} aclTensorDesc;

typedef struct {
    void *data;
    size_t size;
} aclDataBuffer;

/* Attributes as the inside of a JSON object: what the handler reads. */
typedef struct {
    char *text;
    size_t length, capacity;
    bool failed;
} aclopAttr;

/* One input or output as the handler sees it; `data` is the host's view. */
typedef struct {
    void *data;
    uint64_t size;
    int32_t dtype;
    int32_t dimensions;
    const int64_t *sizes;
} SimTensor;

typedef int (*SimHandler)(const char *name, int inputs, const SimTensor *input, int outputs,
                          const SimTensor *output, const char *attributes);

static SimHandler handler;

EXPORT void sim_set_operator_handler(SimHandler function) {
    handler = function;
}

/* --- tensors ------------------------------------------------------------------------------- */

EXPORT aclError aclSetTensorShape(aclTensorDesc *desc, int dimensions, const int64_t *sizes) {
    if (dimensions < 0 || dimensions > MAX_DIMENSIONS)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "a tensor of %d dimensions", dimensions);
    desc->dimensions = dimensions;
    if (dimensions) memcpy(desc->sizes, sizes, sizeof *sizes * (size_t)dimensions);
    return ACL_SUCCESS;
}

EXPORT aclTensorDesc *aclCreateTensorDesc(int dtype, int dimensions, const int64_t *sizes,
                                          int format) {
    aclTensorDesc *desc = calloc(1, sizeof *desc);
    if (!desc) return NULL;
    desc->dtype = dtype;
    desc->format = format;
    if (aclSetTensorShape(desc, dimensions, sizes) == ACL_SUCCESS) return desc;
    free(desc);
    return NULL;
}

EXPORT void aclDestroyTensorDesc(const aclTensorDesc *desc) {
    free((void *)(uintptr_t)desc);
}

EXPORT int aclGetTensorDescType(const aclTensorDesc *desc) {
    return desc->dtype;
}

EXPORT int aclGetTensorDescFormat(const aclTensorDesc *desc) {
    return desc->format;
}

EXPORT size_t aclGetTensorDescNumDims(const aclTensorDesc *desc) {
    return (size_t)desc->dimensions;
}

EXPORT aclError aclGetTensorDescDimV2(const aclTensorDesc *desc, size_t index, int64_t *size) {
    if (index >= (size_t)desc->dimensions)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "dimension %zu of %d", index, desc->dimensions);
    *size = desc->sizes[index];
    return ACL_SUCCESS;
}

EXPORT aclError aclSetTensorFormat(aclTensorDesc *desc, int format) {
    desc->format = format;
    return ACL_SUCCESS;
}

EXPORT aclError aclSetTensorPlaceMent(aclTensorDesc *desc, int placement) {
    desc->placement = placement;
    return ACL_SUCCESS;
}

/* Names serve operators with optional inputs, which are told apart by their position here. */
EXPORT void aclSetTensorDescName(aclTensorDesc *desc, const char *name) {
    (void)desc, (void)name;
}

EXPORT aclDataBuffer *aclCreateDataBuffer(void *data, size_t size) {
    aclDataBuffer *buffer = malloc(sizeof *buffer);
    if (buffer) *buffer = (aclDataBuffer){data, size};
    return buffer;
}

EXPORT aclError aclDestroyDataBuffer(const aclDataBuffer *buffer) {
    free((void *)(uintptr_t)buffer);
    return ACL_SUCCESS;
}

/* --- attributes ---------------------------------------------------------------------------- */

EXPORT aclopAttr *aclopCreateAttr(void) {
    return calloc(1, sizeof(aclopAttr));
}

EXPORT void aclopDestroyAttr(const aclopAttr *attributes) {
    if (!attributes) return;
    free(attributes->text);
    free((void *)(uintptr_t)attributes);
}

static void add(aclopAttr *attributes, const char *text) {
    size_t length = strlen(text);
    if (attributes->length + length + 1 > attributes->capacity) {
        size_t capacity = 2 * (attributes->length + length) + 64;
        char *grown = realloc(attributes->text, capacity);
        if (!grown) {
            attributes->failed = true;
            return;
        }
        attributes->text = grown;
        attributes->capacity = capacity;
    }
    memcpy(attributes->text + attributes->length, text, length + 1);
    attributes->length += length;
}

static void add_string(aclopAttr *attributes, const char *text) {
    add(attributes, "\"");
    for (; *text; text++) {
        char escaped[8] = {*text, 0};
        if (*text == '"' || *text == '\\' || (unsigned char)*text < 0x20)
            snprintf(escaped, sizeof escaped, "\\u%04x", (unsigned char)*text);
        add(attributes, escaped);
    }
    add(attributes, "\"");
}

static void add_name(aclopAttr *attributes, const char *name) {
    if (attributes->length) add(attributes, ",");
    add_string(attributes, name);
    add(attributes, ":");
}

static void add_integer(aclopAttr *attributes, int64_t value) {
    char text[32];
    snprintf(text, sizeof text, "%" PRId64, value);
    add(attributes, text);
}

static void add_float(aclopAttr *attributes, double value) {
    char text[48];
    if (isnan(value)) snprintf(text, sizeof text, "NaN");
    else if (isinf(value)) snprintf(text, sizeof text, value > 0 ? "Infinity" : "-Infinity");
    else snprintf(text, sizeof text, "%.17g", value);
    add(attributes, text);
}

static aclError added(const aclopAttr *attributes) {
    return attributes->failed
               ? sim_fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "no memory for an attribute")
               : ACL_SUCCESS;
}

EXPORT aclError aclopSetAttrBool(aclopAttr *attributes, const char *name, uint8_t value) {
    add_name(attributes, name);
    add(attributes, value ? "true" : "false");
    return added(attributes);
}

EXPORT aclError aclopSetAttrInt(aclopAttr *attributes, const char *name, int64_t value) {
    add_name(attributes, name);
    add_integer(attributes, value);
    return added(attributes);
}

EXPORT aclError aclopSetAttrDataType(aclopAttr *attributes, const char *name, int value) {
    return aclopSetAttrInt(attributes, name, value);
}

EXPORT aclError aclopSetAttrFloat(aclopAttr *attributes, const char *name, float value) {
    add_name(attributes, name);
    add_float(attributes, (double)value);
    return added(attributes);
}

EXPORT aclError aclopSetAttrString(aclopAttr *attributes, const char *name, const char *value) {
    add_name(attributes, name);
    add_string(attributes, value);
    return added(attributes);
}

EXPORT aclError aclopSetAttrListInt(aclopAttr *attributes, const char *name, int count,
                                    const int64_t *values) {
    add_name(attributes, name);
    add(attributes, "[");
    for (int i = 0; i < count; i++) {
        if (i) add(attributes, ",");
        add_integer(attributes, values[i]);
    }
    add(attributes, "]");
    return added(attributes);
}

EXPORT aclError aclopSetAttrListFloat(aclopAttr *attributes, const char *name, int count,
                                      const float *values) {
    add_name(attributes, name);
    add(attributes, "[");
    for (int i = 0; i < count; i++) {
        if (i) add(attributes, ",");
        add_float(attributes, (double)values[i]);
    }
    add(attributes, "]");
    return added(attributes);
}

EXPORT aclError aclopSetAttrListBool(aclopAttr *attributes, const char *name, int count,
                                     const uint8_t *values) {
    add_name(attributes, name);
    add(attributes, "[");
    for (int i = 0; i < count; i++) add(attributes, i ? (values[i] ? ",true" : ",false")
                                                      : (values[i] ? "true" : "false"));
    add(attributes, "]");
    return added(attributes);
}

EXPORT aclError aclopSetAttrListListInt(aclopAttr *attributes, const char *name, int count,
                                        const int *lengths, const int64_t *const values[]) {
    add_name(attributes, name);
    add(attributes, "[");
    for (int i = 0; i < count; i++) {
        add(attributes, i ? ",[" : "[");
        for (int j = 0; j < lengths[i]; j++) {
            if (j) add(attributes, ",");
            add_integer(attributes, values[i][j]);
        }
        add(attributes, "]");
    }
    add(attributes, "]");
    return added(attributes);
}

/* --- execution ----------------------------------------------------------------------------- */

static bool describe(SimTensor *tensor, const aclTensorDesc *desc, const aclDataBuffer *buffer,
                     const char *name) {
    *tensor = (SimTensor){.dtype = desc->dtype, .dimensions = desc->dimensions,
                          .sizes = desc->sizes, .size = buffer ? buffer->size : 0};
    if (!buffer || !buffer->data || !buffer->size) return true;
    bool on_host = desc->placement != 0;
    tensor->data = on_host ? buffer->data : sim_bytes(buffer->data, buffer->size, name);
    return tensor->data != NULL;
}

static aclError execute(const char *name, int inputs, const aclTensorDesc *const *input_desc,
                        const aclDataBuffer *const *input, int outputs,
                        const aclTensorDesc *const *output_desc, aclDataBuffer *const *output,
                        const aclopAttr *attributes) {
    __atomic_fetch_add(&sim_counters.operators, 1, __ATOMIC_RELAXED);
    if (!handler)
        return sim_fail(ACL_ERROR_OP_NOT_FOUND, "operator %s: no operators are loaded", name);
    size_t count = (size_t)(inputs + outputs);
    SimTensor *tensors = calloc(count ? count : 1, sizeof *tensors);
    char *json = NULL;
    aclError error = ACL_ERROR_INTERNAL_ERROR;
    const char *inside = attributes && attributes->text ? attributes->text : "";
    bool described = tensors && asprintf(&json, "{%s}", inside) >= 0;
    for (int i = 0; described && i < inputs; i++)
        described = describe(&tensors[i], input_desc[i], input[i], name);
    for (int i = 0; described && i < outputs; i++)
        described = describe(&tensors[inputs + i], output_desc[i], output[i], name);
    if (described) error = handler(name, inputs, tensors, outputs, tensors + inputs, json);
    free(json);
    free(tensors);
    return error;
}

EXPORT aclError aclopCompileAndExecute(const char *name, int inputs,
                                       const aclTensorDesc *const input_desc[],
                                       const aclDataBuffer *const input[], int outputs,
                                       const aclTensorDesc *const output_desc[],
                                       aclDataBuffer *const output[], const aclopAttr *attributes,
                                       int engine, int compile, const char *path,
                                       aclrtStream stream) {
    (void)engine, (void)compile, (void)path, (void)stream;
    return execute(name, inputs, input_desc, input, outputs, output_desc, output, attributes);
}

EXPORT aclError aclopCompileAndExecuteV2(const char *name, int inputs, aclTensorDesc *input_desc[],
                                         aclDataBuffer *input[], int outputs,
                                         aclTensorDesc *output_desc[], aclDataBuffer *output[],
                                         aclopAttr *attributes, int engine, int compile,
                                         const char *path, aclrtStream stream) {
    (void)engine, (void)compile, (void)path, (void)stream;
    return execute(name, inputs, (const aclTensorDesc *const *)input_desc,
                   (const aclDataBuffer *const *)input, outputs,
                   (const aclTensorDesc *const *)output_desc, output, attributes);
}

/* Options of the operator compiler: kept and read back; nothing is compiled here. */
#define MAX_OPTIONS 64
static char options[MAX_OPTIONS][256];

EXPORT aclError aclSetCompileopt(int option, const char *value) {
    if (option < 0 || option >= MAX_OPTIONS || strlen(value) >= sizeof options[0])
        return sim_fail(ACL_ERROR_INVALID_PARAM, "compile option %d=%s", option, value);
    snprintf(options[option], sizeof options[0], "%s", value);
    return ACL_SUCCESS;
}

EXPORT size_t aclGetCompileoptSize(int option) {
    return option < 0 || option >= MAX_OPTIONS ? 0 : strlen(options[option]) + 1;
}

EXPORT aclError aclGetCompileopt(int option, char *value, size_t length) {
    if (option < 0 || option >= MAX_OPTIONS || length < strlen(options[option]) + 1)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "compile option %d into %zu bytes", option, length);
    snprintf(value, length, "%s", options[option]);
    return ACL_SUCCESS;
}
