/* Devices: how many there are, which one a thread uses, what they say of themselves; errors. */
#define _GNU_SOURCE
#include "runtime.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

SimConfig sim_config;
SimCounters sim_counters;

static bool initialized;
static __thread int current_device = -1;
static __thread char last_error[1024];
static char soc_name[64];
static int used[MAX_DEVICES];
static int saturation_mode = 1;

aclError sim_fail(aclError code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int used_bytes = snprintf(last_error, sizeof last_error, "simulated Ascend: ");
    vsnprintf(last_error + used_bytes, sizeof last_error - used_bytes, format, arguments);
    va_end(arguments);
    return code;
}

/* For the Python side, which runs operators and may refuse them. */
EXPORT void sim_set_error(const char *message) {
    snprintf(last_error, sizeof last_error, "simulated Ascend: %s", message);
}

EXPORT const char *aclGetRecentErrMsg(void) {
    return last_error;
}

EXPORT int sim_configure(const SimConfig *config) {
    if (initialized) return sim_fail(ACL_ERROR_INVALID_PARAM, "the machine is already in use");
    if (config->devices < 1 || config->devices > MAX_DEVICES)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "%d devices; 1 to %d are possible",
                        config->devices, MAX_DEVICES);
    sim_config = *config;
    snprintf(soc_name, sizeof soc_name, "%s", config->soc_name);
    sim_config.soc_name = soc_name;
    return ACL_SUCCESS;
}

EXPORT void sim_read_counters(SimCounters *counters) {
    *counters = sim_counters;
}

/* Copies and waits that an operator run by the Python side makes itself. */
EXPORT void sim_note_copy(int direction, uint64_t bytes) {
    __atomic_fetch_add(&sim_counters.copies[direction & 3], 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&sim_counters.copied_bytes[direction & 3], bytes, __ATOMIC_RELAXED);
}

EXPORT void sim_note_synchronization(void) {
    __atomic_fetch_add(&sim_counters.synchronizations, 1, __ATOMIC_RELAXED);
}

int sim_current_device(void) {
    return current_device;
}

static aclError check_device(int64_t device, const char *caller) {
    if (device < 0 || device >= sim_config.devices)
        return sim_fail(ACL_ERROR_RT_INVALID_DEVICEID,
                        "%s: device %" PRId64 " does not exist; there are %d", caller, device,
                        sim_config.devices);
    return ACL_SUCCESS;
}

EXPORT aclError aclInit(const char *config_path) {
    (void)config_path;
    if (sim_config.devices == 0)
        return sim_fail(ACL_ERROR_UNINITIALIZE, "the runtime was loaded but not configured");
    initialized = true;
    return ACL_SUCCESS;
}

EXPORT aclError aclFinalize(void) {
    initialized = false;
    return ACL_SUCCESS;
}

EXPORT aclError aclrtGetDeviceCount(uint32_t *count) {
    *count = (uint32_t)sim_config.devices;
    return ACL_SUCCESS;
}

EXPORT aclError aclrtSetDevice(int32_t device) {
    aclError error = check_device(device, "aclrtSetDevice");
    if (error) return error;
    current_device = device;
    __atomic_store_n(&used[device], 1, __ATOMIC_RELAXED);
    return ACL_SUCCESS;
}

EXPORT aclError aclrtResetDevice(int32_t device) {
    aclError error = check_device(device, "aclrtResetDevice");
    if (error) return error;
    __atomic_store_n(&used[device], 0, __ATOMIC_RELAXED);
    if (current_device == device) current_device = -1;
    return ACL_SUCCESS;
}

EXPORT aclError aclrtGetDevice(int32_t *device) {
    if (current_device < 0)
        return sim_fail(ACL_ERROR_RT_CONTEXT_NULL, "aclrtGetDevice: this thread has no device");
    *device = current_device;
    return ACL_SUCCESS;
}

/* A context stands for its device: device index + 1, so that none is NULL. */
EXPORT aclError aclrtGetCurrentContext(void **context) {
    if (current_device < 0)
        return sim_fail(ACL_ERROR_RT_CONTEXT_NULL, "this thread has no context");
    *context = (void *)(uintptr_t)(current_device + 1);
    return ACL_SUCCESS;
}

EXPORT aclError aclrtSetCurrentContext(void *context) {
    return aclrtSetDevice((int32_t)(uintptr_t)context - 1);
}

EXPORT aclError aclrtGetPrimaryCtxState(int32_t device, uint32_t *flags, int32_t *active) {
    aclError error = check_device(device, "aclrtGetPrimaryCtxState");
    if (error) return error;
    if (flags) *flags = 0;
    *active = __atomic_load_n(&used[device], __ATOMIC_RELAXED);
    return ACL_SUCCESS;
}

EXPORT const char *aclrtGetSocName(void) {
    return soc_name;
}

EXPORT aclError aclGetDeviceCapability(uint32_t device, int what, int64_t *value) {
    aclError error = check_device(device, "aclGetDeviceCapability");
    if (error) return error;
    switch (what) {
    case 0: *value = sim_config.cube_cores; return ACL_SUCCESS;
    case 1: *value = sim_config.vector_cores; return ACL_SUCCESS;
    case 2: *value = sim_config.l2_bytes; return ACL_SUCCESS;
    default: return sim_fail(ACL_ERROR_INVALID_PARAM, "device capability %d is unknown", what);
    }
}

EXPORT aclError aclrtGetDeviceInfo(uint32_t device, int attribute, int64_t *value) {
    aclError error = check_device(device, "aclrtGetDeviceInfo");
    if (error) return error;
    switch (attribute) {
    case 101:
    case 102: *value = sim_config.cube_cores; return ACL_SUCCESS;
    case 201: *value = sim_config.vector_cores; return ACL_SUCCESS;
    case 301: *value = (int64_t)sim_config.memory_bytes; return ACL_SUCCESS;
    case 302: *value = sim_config.l2_bytes; return ACL_SUCCESS;
    case 402: *value = device; return ACL_SUCCESS;
    case 501: *value = 0; return ACL_SUCCESS;
    default:
        return sim_fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "device attribute %d is not modelled",
                        attribute);
    }
}

EXPORT aclError aclrtDeviceGetUuid(int32_t device, char *uuid) {
    aclError error = check_device(device, "aclrtDeviceGetUuid");
    if (error) return error;
    memset(uuid, 0, 16);
    snprintf(uuid, 16, "simulated-%d", device);
    return ACL_SUCCESS;
}

EXPORT aclError aclrtDeviceGetBareTgid(int32_t *pid) {
    *pid = getpid();
    return ACL_SUCCESS;
}

EXPORT aclError aclrtDeviceCanAccessPeer(int32_t *possible, int32_t device, int32_t peer) {
    aclError error = check_device(device, "aclrtDeviceCanAccessPeer");
    if (!error) error = check_device(peer, "aclrtDeviceCanAccessPeer");
    if (error) return error;
    *possible = device != peer;
    return ACL_SUCCESS;
}

EXPORT aclError aclrtDeviceEnablePeerAccess(int32_t peer, uint32_t flags) {
    (void)flags;
    return check_device(peer, "aclrtDeviceEnablePeerAccess");
}

EXPORT aclError aclrtSetDeviceSatMode(int mode) {
    if (mode != 0 && mode != 1)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "overflow mode %d is neither 0 nor 1", mode);
    saturation_mode = mode;
    return ACL_SUCCESS;
}

EXPORT aclError aclrtGetDeviceSatMode(int *mode) {
    *mode = saturation_mode;
    return ACL_SUCCESS;
}

/* Limits on the time an operator may take have no meaning for one that has ended on return. */
EXPORT aclError aclrtSetOpExecuteTimeOut(uint32_t seconds) {
    (void)seconds;
    return ACL_SUCCESS;
}

EXPORT aclError aclrtSetOpWaitTimeout(uint32_t seconds) {
    (void)seconds;
    return ACL_SUCCESS;
}

/* Determinism switches: kept and read back; everything that runs here is deterministic. */
#define PARAMETERS 3
static int64_t parameters[PARAMETERS];

static aclError check_parameter(int option) {
    if (option >= 0 && option < PARAMETERS) return ACL_SUCCESS;
    return sim_fail(ACL_ERROR_INVALID_PARAM, "system parameter %d is unknown", option);
}

EXPORT aclError aclrtSetSysParamOpt(int option, int64_t value) {
    aclError error = check_parameter(option);
    if (!error) parameters[option] = value;
    return error;
}

EXPORT aclError aclrtGetSysParamOpt(int option, int64_t *value) {
    aclError error = check_parameter(option);
    if (!error) *value = parameters[option];
    return error;
}

EXPORT aclError aclrtCtxSetSysParamOpt(int option, int64_t value) {
    return aclrtSetSysParamOpt(option, value);
}

EXPORT aclError aclrtCtxGetSysParamOpt(int option, int64_t *value) {
    return aclrtGetSysParamOpt(option, value);
}
