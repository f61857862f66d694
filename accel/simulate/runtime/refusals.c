/* Entry points that torch_npu is linked against and that this runtime does not implement: each
 * fails and says so; and the profiler's, which have nothing to report and are no computation. */
#define _GNU_SOURCE
#include "runtime.h"

#include <time.h>

#define REFUSE(name)                                                                              \
    EXPORT aclError name(void) {                                                                  \
        return sim_fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, #name " is not simulated");             \
    }

/* Compiled kernels of the chip's own instruction set. */
REFUSE(aclrtBinaryGetFunction)
REFUSE(aclrtBinaryLoadFromData)
REFUSE(aclrtGetFunctionAddr)
REFUSE(rtDevBinaryRegister)
REFUSE(rtFunctionRegister)
REFUSE(rtGetC2cCtrlAddr)
REFUSE(rtKernelLaunch)

/* Virtual memory (expandable segments) and memory shared with other processes. */
REFUSE(aclrtFreePhysical)
REFUSE(aclrtMallocPhysical)
REFUSE(aclrtMapMem)
REFUSE(aclrtMemExportToShareableHandle)
REFUSE(aclrtMemImportFromShareableHandle)
REFUSE(aclrtMemSetPidToShareableHandle)
REFUSE(aclrtReleaseMemAddress)
REFUSE(aclrtReserveMemAddress)
REFUSE(aclrtUnmapMem)

/* Dumps of operators' inputs and outputs by CANN: `accel.numerics` records instead. */
REFUSE(aclmdlFinalizeDump)
REFUSE(aclmdlInitDump)
REFUSE(aclmdlSetDump)

/* CANN's log. */
EXPORT void aclAppLog(int level, const char *function, const char *file, uint32_t line,
                      const char *format, ...) {
    (void)level, (void)function, (void)file, (void)line, (void)format;
}

/* Profiling: no profiler is attached, so reports are dropped. */
EXPORT uint64_t MsprofGetHashId(const char *text, size_t length) {
    uint64_t hash = 1469598103934665603ULL; /* FNV-1a */
    for (size_t i = 0; i < length; i++) hash = (hash ^ (unsigned char)text[i]) * 1099511628211ULL;
    return hash;
}

EXPORT int32_t MsprofRegisterCallback(uint32_t module, void *callback) {
    (void)module, (void)callback;
    return 0;
}

EXPORT int32_t MsprofReportAdditionalInfo(uint32_t flag, const void *data, uint32_t length) {
    (void)flag, (void)data, (void)length;
    return 0;
}

EXPORT int32_t MsprofReportApi(uint32_t flag, const void *data) {
    (void)flag, (void)data;
    return 0;
}

EXPORT int32_t MsprofReportCompactInfo(uint32_t flag, const void *data, uint32_t length) {
    (void)flag, (void)data, (void)length;
    return 0;
}

EXPORT uint64_t MsprofSysCycleTime(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec;
}
