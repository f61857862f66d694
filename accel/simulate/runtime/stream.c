/* Streams and events. Work is done when it is submitted, so a stream has nothing to wait for; an
 * event notes the time at which it was recorded. Handles are numbers, never addresses, so that one
 * that was destroyed or made up is recognised. */
#define _GNU_SOURCE
#include "runtime.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

enum { STREAM = 1, EVENT = 2 };
enum { PERIOD_OF_REPORTS_MS = 100, ACL_ERROR_WAIT_CALLBACK_TIMEOUT = 100036 };

typedef struct {
    uint32_t generation;
    int kind; /* 0 if free */
    int device;
    bool recorded;
    int32_t overflow_switch;
    struct timespec time;
} Slot;

static Slot *slots;
static size_t slot_count, slot_capacity;
static size_t *free_slots, free_count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *handle_of(size_t index) {
    return (void *)(((uintptr_t)slots[index].generation << 32 | (uint32_t)index) << 3 | 1);
}

/* The slot a handle names if it is live and of that kind. Call with the lock held. */
static Slot *find(void *handle, int kind) {
    uintptr_t number = (uintptr_t)handle >> 3;
    size_t index = number & 0xffffffff;
    if (((uintptr_t)handle & 7) != 1 || index >= slot_count) return NULL;
    Slot *slot = &slots[index];
    return slot->kind == kind && slot->generation == number >> 32 ? slot : NULL;
}

static bool grow(void) {
    if (slot_count < slot_capacity) return true;
    size_t capacity = slot_capacity ? 2 * slot_capacity : 256;
    Slot *more = realloc(slots, capacity * sizeof *more);
    if (more) slots = more;
    size_t *frees = realloc(free_slots, capacity * sizeof *frees);
    if (frees) free_slots = frees;
    if (!more || !frees) return false;
    slot_capacity = capacity;
    return true;
}

static aclError create(void **handle, int kind) {
    if (sim_current_device() < 0)
        return sim_fail(ACL_ERROR_RT_CONTEXT_NULL, "this thread has no device to make a %s on",
                        kind == STREAM ? "stream" : "event");
    pthread_mutex_lock(&lock);
    bool room = free_count > 0 || grow();
    if (room) {
        size_t index = free_count > 0 ? free_slots[--free_count] : slot_count++;
        uint32_t generation = (slots[index].generation + 1) & 0x1fffffff;
        slots[index] = (Slot){.generation = generation, .kind = kind,
                              .device = sim_current_device()};
        *handle = handle_of(index);
    }
    pthread_mutex_unlock(&lock);
    return room ? ACL_SUCCESS : sim_fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "no memory for a handle");
}

static aclError unknown(const char *caller, void *handle) {
    return sim_fail(ACL_ERROR_RT_INVALID_HANDLE, "%s: %p was never created or is destroyed", caller,
                    handle);
}

static aclError destroy(void *handle, int kind, const char *caller) {
    pthread_mutex_lock(&lock);
    Slot *slot = find(handle, kind);
    if (slot) {
        slot->kind = 0;
        free_slots[free_count++] = (size_t)(slot - slots);
    }
    pthread_mutex_unlock(&lock);
    return slot ? ACL_SUCCESS : unknown(caller, handle);
}

/* NULL is the default stream of the current device. */
static aclError check_stream(aclrtStream stream, const char *caller) {
    if (!stream) return ACL_SUCCESS;
    pthread_mutex_lock(&lock);
    bool known = find(stream, STREAM) != NULL;
    pthread_mutex_unlock(&lock);
    return known ? ACL_SUCCESS : unknown(caller, stream);
}

/* --- streams ------------------------------------------------------------------------------- */

EXPORT aclError aclrtCreateStream(aclrtStream *stream) {
    return create(stream, STREAM);
}

EXPORT aclError aclrtCreateStreamWithConfig(aclrtStream *stream, uint32_t priority, uint32_t flag) {
    (void)priority, (void)flag;
    return create(stream, STREAM);
}

EXPORT aclError aclrtDestroyStream(aclrtStream stream) {
    return destroy(stream, STREAM, "aclrtDestroyStream");
}

EXPORT aclError aclrtDestroyStreamForce(aclrtStream stream) {
    return destroy(stream, STREAM, "aclrtDestroyStreamForce");
}

EXPORT aclError aclrtStreamGetId(aclrtStream stream, int32_t *id) {
    *id = (int32_t)((uintptr_t)stream >> 3 & 0x7fffffff);
    return check_stream(stream, "aclrtStreamGetId");
}

EXPORT aclError aclrtSynchronizeStream(aclrtStream stream) {
    sim_note_synchronization();
    return check_stream(stream, "aclrtSynchronizeStream");
}

EXPORT aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t milliseconds) {
    (void)milliseconds;
    return aclrtSynchronizeStream(stream);
}

EXPORT aclError aclrtSynchronizeDevice(void) {
    sim_note_synchronization();
    return ACL_SUCCESS;
}

EXPORT aclError aclrtSynchronizeDeviceWithTimeout(int32_t milliseconds) {
    (void)milliseconds;
    return aclrtSynchronizeDevice();
}

EXPORT aclError aclrtStreamQuery(aclrtStream stream, int *status) {
    *status = 0; /* complete */
    return check_stream(stream, "aclrtStreamQuery");
}

EXPORT aclError aclrtStreamWaitEvent(aclrtStream stream, aclrtEvent event) {
    aclError error = check_stream(stream, "aclrtStreamWaitEvent");
    if (error) return error;
    pthread_mutex_lock(&lock);
    bool known = find(event, EVENT) != NULL;
    pthread_mutex_unlock(&lock);
    return known ? ACL_SUCCESS : unknown("aclrtStreamWaitEvent", event);
}

EXPORT aclError aclrtSetStreamFailureMode(aclrtStream stream, uint64_t mode) {
    (void)mode;
    return check_stream(stream, "aclrtSetStreamFailureMode");
}

EXPORT aclError aclrtSetStreamOverflowSwitch(aclrtStream stream, uint32_t flag) {
    pthread_mutex_lock(&lock);
    Slot *slot = find(stream, STREAM);
    if (slot) slot->overflow_switch = (int32_t)flag;
    pthread_mutex_unlock(&lock);
    return slot ? ACL_SUCCESS : unknown("aclrtSetStreamOverflowSwitch", stream);
}

EXPORT aclError aclrtGetStreamOverflowSwitch(aclrtStream stream, uint32_t *flag) {
    pthread_mutex_lock(&lock);
    Slot *slot = find(stream, STREAM);
    if (slot) *flag = (uint32_t)slot->overflow_switch;
    pthread_mutex_unlock(&lock);
    return slot ? ACL_SUCCESS : unknown("aclrtGetStreamOverflowSwitch", stream);
}

/* --- host functions ------------------------------------------------------------------------ */

EXPORT aclError aclrtLaunchHostFunc(aclrtStream stream, void (*function)(void *), void *argument) {
    aclError error = check_stream(stream, "aclrtLaunchHostFunc");
    if (!error) function(argument);
    return error;
}

EXPORT aclError aclrtLaunchCallback(void (*function)(void *), void *argument, int blocking,
                                    aclrtStream stream) {
    (void)blocking;
    return aclrtLaunchHostFunc(stream, function, argument);
}

EXPORT aclError aclrtSubscribeReport(uint64_t thread, aclrtStream stream) {
    (void)thread;
    return check_stream(stream, "aclrtSubscribeReport");
}

EXPORT aclError aclrtUnSubscribeReport(uint64_t thread, aclrtStream stream) {
    (void)thread;
    return check_stream(stream, "aclrtUnSubscribeReport");
}

/* Callbacks have run when they were launched, so there is never one to report. */
EXPORT aclError aclrtProcessReport(int32_t milliseconds) {
    int wait = milliseconds < 0 || milliseconds > PERIOD_OF_REPORTS_MS ? PERIOD_OF_REPORTS_MS
                                                                      : milliseconds;
    nanosleep(&(struct timespec){.tv_nsec = wait * 1000000L}, NULL);
    return sim_fail(ACL_ERROR_WAIT_CALLBACK_TIMEOUT, "no callback is waiting");
}

/* --- events -------------------------------------------------------------------------------- */

EXPORT aclError aclrtCreateEventExWithFlag(aclrtEvent *event, uint32_t flag) {
    (void)flag;
    return create(event, EVENT);
}

EXPORT aclError aclrtCreateEventWithFlag(aclrtEvent *event, uint32_t flag) {
    return aclrtCreateEventExWithFlag(event, flag);
}

EXPORT aclError aclrtDestroyEvent(aclrtEvent event) {
    return destroy(event, EVENT, "aclrtDestroyEvent");
}

EXPORT aclError aclrtRecordEvent(aclrtEvent event, aclrtStream stream) {
    aclError error = check_stream(stream, "aclrtRecordEvent");
    if (error) return error;
    pthread_mutex_lock(&lock);
    Slot *slot = find(event, EVENT);
    if (slot) {
        slot->recorded = true;
        clock_gettime(CLOCK_MONOTONIC, &slot->time);
    }
    pthread_mutex_unlock(&lock);
    return slot ? ACL_SUCCESS : unknown("aclrtRecordEvent", event);
}

EXPORT aclError aclrtResetEvent(aclrtEvent event, aclrtStream stream) {
    (void)stream;
    pthread_mutex_lock(&lock);
    Slot *slot = find(event, EVENT);
    if (slot) slot->recorded = false;
    pthread_mutex_unlock(&lock);
    return slot ? ACL_SUCCESS : unknown("aclrtResetEvent", event);
}

EXPORT aclError aclrtQueryEventStatus(aclrtEvent event, int *status) {
    pthread_mutex_lock(&lock);
    Slot *slot = find(event, EVENT);
    pthread_mutex_unlock(&lock);
    *status = 1; /* complete: also before the first record, as on the chip */
    return slot ? ACL_SUCCESS : unknown("aclrtQueryEventStatus", event);
}

EXPORT aclError aclrtQueryEventWaitStatus(aclrtEvent event, int *status) {
    aclError error = aclrtQueryEventStatus(event, status);
    *status = 0; /* here 0 says complete */
    return error;
}

EXPORT aclError aclrtSynchronizeEvent(aclrtEvent event) {
    int status;
    sim_note_synchronization();
    return aclrtQueryEventStatus(event, &status);
}

EXPORT aclError aclrtEventElapsedTime(float *milliseconds, aclrtEvent start, aclrtEvent end) {
    pthread_mutex_lock(&lock);
    Slot *first = find(start, EVENT), *second = find(end, EVENT);
    bool known = first && second, recorded = known && first->recorded && second->recorded;
    if (recorded)
        *milliseconds = (float)((double)(second->time.tv_sec - first->time.tv_sec) * 1e3 +
                                (double)(second->time.tv_nsec - first->time.tv_nsec) / 1e6);
    pthread_mutex_unlock(&lock);
    if (!known) return unknown("aclrtEventElapsedTime", first ? end : start);
    return recorded ? ACL_SUCCESS
                    : sim_fail(ACL_ERROR_RT_PARAM_INVALID,
                               "aclrtEventElapsedTime: both events must have been recorded");
}
