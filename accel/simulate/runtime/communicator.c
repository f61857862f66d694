/* Live communicators, and steps that all ranks of one take together. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "reduce.h"
#include "runtime.h"
#include "transport.h"

static Communicator *live;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t released = PTHREAD_COND_INITIALIZER;

const char *operation_name(uint32_t operation) {
    static const char *const names[] = {
        [IDLE] = "nothing",
        [ALL_REDUCE] = "HcclAllReduce",
        [BROADCAST] = "HcclBroadcast",
        [ALL_GATHER] = "HcclAllGather",
        [ALL_GATHER_V] = "HcclAllGatherV",
        [REDUCE_SCATTER] = "HcclReduceScatter",
        [REDUCE_SCATTER_V] = "HcclReduceScatterV",
        [REDUCE] = "HcclReduce",
        [SCATTER] = "HcclScatter",
        [ALL_TO_ALL] = "HcclAlltoAll",
        [ALL_TO_ALL_V] = "HcclAlltoAllV",
        [ALL_TO_ALL_VC] = "HcclAlltoAllVC",
        [BARRIER] = "HcclBarrier",
        [SEND] = "HcclSend",
        [RECEIVE] = "HcclRecv",
        [BATCH_SEND_RECEIVE] = "HcclBatchSendRecv",
        [GROUP] = "HcclGroupEnd",
    };
    return operation < sizeof names / sizeof *names ? names[operation] : "an unknown operation";
}

/* --- handles --------------------------------------------------------------------------------- */

void comm_register(Communicator *comm) {
    pthread_mutex_lock(&lock);
    comm->next = live;
    live = comm;
    pthread_mutex_unlock(&lock);
}

static Communicator **find(HcclComm handle) {
    Communicator **link = &live;
    while (*link && *link != handle) link = &(*link)->next;
    return link;
}

Communicator *comm_hold(HcclComm handle, const char *call) {
    pthread_mutex_lock(&lock);
    Communicator *comm = *find(handle);
    if (comm && comm->pid == getpid()) {
        comm->users++;
        pthread_mutex_unlock(&lock);
        return comm;
    }
    pthread_mutex_unlock(&lock);
    sim_fail(ACL_ERROR_INTERNAL_ERROR,
             comm ? "%s: the communicator was made before this process was forked; make one here"
                  : "%s: this is no communicator, or it was destroyed",
             call);
    return NULL;
}

void comm_release(Communicator *comm) {
    pthread_mutex_lock(&lock);
    if (--comm->users == 0) pthread_cond_broadcast(&released);
    pthread_mutex_unlock(&lock);
}

HcclResult comm_lock(Communicator *comm, const char *call, Operation operation) {
    pthread_mutex_lock(&comm->turn);
    HcclResult result = transport_healthy(comm, call);
    if (result != HCCL_SUCCESS)
        pthread_mutex_unlock(&comm->turn);
    else
        atomic_store(&comm->segment->seats[comm->rank].activity, operation);
    return result;
}

void comm_unlock(Communicator *comm) {
    atomic_store(&comm->segment->seats[comm->rank].activity, IDLE);
    pthread_mutex_unlock(&comm->turn);
}

/* Calls that still wait in other threads return with an error first. */
HcclResult comm_destroy(HcclComm handle) {
    Communicator *comm = comm_hold(handle, "HcclCommDestroy");
    if (!comm) return HCCL_E_PARA;
    pthread_mutex_lock(&lock);
    Communicator **link = find(handle);
    bool ours = *link != NULL; /* or another thread destroys it at the same time */
    if (ours) *link = comm->next;
    pthread_mutex_unlock(&lock);
    atomic_store(&comm->aborted, true);
    transport_ring(comm, comm->rank);
    comm_release(comm);
    if (!ours) return HCCL_SUCCESS;
    pthread_mutex_lock(&lock);
    while (comm->users) pthread_cond_wait(&released, &lock);
    pthread_mutex_unlock(&lock);
    transport_detach(comm);
    return HCCL_SUCCESS;
}

/* --- steps ----------------------------------------------------------------------------------- */

/* Slots alternate: while a slow rank still reads those of one step, the next step fills the other
 * ones, and the step after that waits for it. */
void *transport_own_slot(Communicator *comm) {
    uint32_t parity = (comm->step + 1) % 2;
    return comm->slots + ((size_t)comm->rank * 2 + parity) * SLOT_BYTES;
}

const void *transport_slot(const Communicator *comm, uint32_t rank) {
    return comm->slots + ((size_t)rank * 2 + comm->step % 2) * SLOT_BYTES;
}

static const char *reduction_name(uint32_t reduction) {
    static const char *const names[] = {"sum", "prod", "max", "min"};
    return reduction < sizeof names / sizeof *names ? names[reduction] : "an unknown reduction";
}

static void describe(const Call *call, char *text, size_t size) {
    size_t used = (size_t)snprintf(text, size, "%s(count=%llu", operation_name(call->operation),
                                   (unsigned long long)call->count);
    if (call->dtype != NONE && used < size)
        used += (size_t)snprintf(text + used, size - used, ", %s", type_name(call->dtype));
    if (call->reduction != NONE && used < size)
        used += (size_t)snprintf(text + used, size - used, ", %s", reduction_name(call->reduction));
    if (call->root != NONE && used < size)
        used += (size_t)snprintf(text + used, size - used, ", root=%u", call->root);
    if (used < size) snprintf(text + used, size - used, ")");
}

HcclResult transport_step(Communicator *comm, const char *name, const Call *call) {
    Segment *segment = comm->segment;
    uint32_t step = comm->step + 1;
    segment->seats[comm->rank].calls[step % 2] = *call;
    atomic_store(&segment->seats[comm->rank].step, step);
    for (uint32_t rank = 0; rank < comm->ranks; rank++)
        if (rank != comm->rank) transport_ring(comm, rank);
    Wait wait = transport_wait(name, comm->timeout);
    for (uint32_t rank = 0; rank < comm->ranks; rank++) {
        for (;;) {
            transport_look(comm, &wait);
            if ((int32_t)(atomic_load(&segment->seats[rank].step) - step) >= 0) break;
            HcclResult result = transport_pause(comm, &wait, rank);
            if (result != HCCL_SUCCESS) return result;
        }
    }
    comm->step = step;
    const Call *first = &segment->seats[0].calls[step % 2];
    for (uint32_t rank = 1; rank < comm->ranks; rank++) {
        const Call *other = &segment->seats[rank].calls[step % 2];
        if (memcmp(first, other, sizeof *first) == 0) continue;
        char texts[2][120];
        describe(first, texts[0], sizeof texts[0]);
        describe(other, texts[1], sizeof texts[1]);
        return transport_fail(comm, HCCL_E_PARA,
                              "the ranks do not call the same: rank 0 calls %s, rank %u calls %s",
                              texts[0], rank, texts[1]);
    }
    return HCCL_SUCCESS;
}
