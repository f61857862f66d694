/* What the parts of the stand-in Ascend runtime share. */
#ifndef ACCEL_SIMULATE_RUNTIME_H
#define ACCEL_SIMULATE_RUNTIME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))
#define MAX_DEVICES 16

typedef int aclError;
typedef void *aclrtStream;
typedef void *aclrtEvent;

/* Codes are CANN's own (acl_base_rt.h); torch_npu turns some of them into exceptions of their own. */
enum {
    ACL_SUCCESS = 0,
    ACL_ERROR_INVALID_PARAM = 100000,
    ACL_ERROR_UNINITIALIZE = 100001,
    ACL_ERROR_OP_NOT_FOUND = 100024,
    ACL_ERROR_API_NOT_SUPPORT = 200001,
    ACL_ERROR_RT_PARAM_INVALID = 107000,
    ACL_ERROR_RT_INVALID_DEVICEID = 107001,
    ACL_ERROR_RT_CONTEXT_NULL = 107002,
    ACL_ERROR_RT_INVALID_HANDLE = 107017,
    ACL_ERROR_RT_FEATURE_NOT_SUPPORT = 207000,
    ACL_ERROR_RT_MEMORY_ALLOCATION = 207001,
    ACL_ERROR_INTERNAL_ERROR = 500000,
};

/* What the simulated machine is; set once, before the first device is used. */
typedef struct {
    const char *soc_name;
    int32_t devices;
    int32_t cube_cores;
    int32_t vector_cores;
    int32_t poison; /* fill what is allocated with 0x7f bytes */
    int64_t l2_bytes;
    uint64_t memory_bytes; /* of each device */
} SimConfig;

/* What happened so far in this process; read by the porting report. */
typedef struct {
    uint64_t copies[4]; /* by direction: host-host, host-device, device-host, device-device */
    uint64_t copied_bytes[4];
    uint64_t synchronizations;
    uint64_t operators;
} SimCounters;

extern SimConfig sim_config;
extern SimCounters sim_counters;

/* Record a message for aclGetRecentErrMsg (per thread) and return `code`. */
aclError sim_fail(aclError code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The host's view of `size` bytes at device address `pointer`; NULL, with the error recorded for
 * `caller`, unless all of them lie inside one live allocation. Device addresses themselves are not
 * readable by the host, as on the chip. */
void *sim_bytes(const void *pointer, size_t size, const char *caller);

/* The device chosen by the calling thread; -1 if none is. */
int sim_current_device(void);

void sim_note_copy(int direction, uint64_t bytes);
void sim_note_synchronization(void);

#endif
