/* Collectives of the stand-in HCCL.
 *
 * All are one exchange: each rank shows pieces of its input in its slot, takes a step together with
 * the others, and copies or reduces what the slots hold for it; in rounds, until all is through.
 * Calls finish before they return, so the stream has no part in them.
 */
#include <string.h>

#include "reduce.h"
#include "runtime.h"
#include "transport.h"

/* Element counts and offsets, by the other rank. */
typedef struct {
    Operation operation;
    HcclComm handle;
    const void *input;
    void *output;
    uint32_t dtype, reduction, root;
    uint64_t count;           /* compared between the ranks */
    bool shared;              /* every rank gets the same piece of the input */
    bool reduces;             /* pieces for this rank are combined */
    bool uneven;              /* counts differ by rank; compared between the ranks */
    uint64_t longest;         /* of all pieces of all ranks */
    uint64_t sends[MAX_RANKS], send_at[MAX_RANKS];
    uint64_t takes[MAX_RANKS], take_at[MAX_RANKS];
} Exchange;

static HcclResult refuse(const Exchange *one, const char *what, uint64_t given) {
    sim_fail(ACL_ERROR_INTERNAL_ERROR, "%s: unsupported %s %llu", operation_name(one->operation),
             what, (unsigned long long)given);
    return HCCL_E_PARA;
}

/* --- checks ---------------------------------------------------------------------------------- */

static HcclResult check_call(const Exchange *one, const Communicator *comm) {
    if (type_size(one->dtype) == 0) return refuse(one, "data type", one->dtype);
    if (one->root != NONE && one->root >= comm->ranks) return refuse(one, "root rank", one->root);
    if (one->reduction == NONE) return HCCL_SUCCESS;
    if (one->reduction > REDUCE_MIN) return refuse(one, "reduction", one->reduction);
    if (type_reduces(one->dtype)) return HCCL_SUCCESS;
    sim_fail(ACL_ERROR_INTERNAL_ERROR, "%s: %s cannot be reduced", operation_name(one->operation),
             type_name(one->dtype));
    return HCCL_E_NOT_SUPPORT;
}

/* The host's view of what the pieces touch; an error if they do not fit in memory. */
static HcclResult view(const Exchange *one, uint32_t ranks, const uint64_t *counts,
                       const uint64_t *offsets, const void *device, void **host) {
    uint64_t end = 0, size = type_size(one->dtype), bytes;
    for (uint32_t rank = 0; rank < ranks; rank++) {
        uint64_t stop;
        if (counts[rank] == 0) continue;
        if (__builtin_add_overflow(offsets[rank], counts[rank], &stop))
            return refuse(one, "count", counts[rank]);
        if (stop > end) end = stop;
    }
    if (__builtin_mul_overflow(end, size, &bytes)) return refuse(one, "count", end);
    *host = NULL;
    if (bytes == 0) return HCCL_SUCCESS;
    *host = sim_bytes(device, bytes, operation_name(one->operation));
    return *host ? HCCL_SUCCESS : HCCL_E_PTR;
}

/* All ranks show what they send to and take from each other: the two have to agree. */
static HcclResult agree_on_counts(Exchange *one, Communicator *comm, const Call *call) {
    const char *name = operation_name(one->operation);
    uint64_t (*own)[MAX_RANKS] = transport_own_slot(comm);
    memcpy(own[0], one->sends, sizeof one->sends);
    memcpy(own[1], one->takes, sizeof one->takes);
    HcclResult result = transport_step(comm, name, call);
    if (result != HCCL_SUCCESS) return result;
    one->longest = 0;
    for (uint32_t from = 0; from < comm->ranks; from++) {
        const uint64_t(*sender)[MAX_RANKS] = transport_slot(comm, from);
        for (uint32_t to = 0; to < comm->ranks; to++) {
            const uint64_t(*taker)[MAX_RANKS] = transport_slot(comm, to);
            if (sender[0][to] > one->longest) one->longest = sender[0][to];
            if (sender[0][to] == taker[1][from]) continue;
            return transport_fail(comm, HCCL_E_PARA,
                                  "the ranks do not call the same: in %s rank %u sends %llu to "
                                  "rank %u, which expects %llu",
                                  name, from, (unsigned long long)sender[0][to], to,
                                  (unsigned long long)taker[1][from]);
        }
    }
    return HCCL_SUCCESS;
}

/* --- the exchange ---------------------------------------------------------------------------- */

/* Elements of a piece of `count` that belong to the round that begins at `done`. */
static size_t part(uint64_t count, uint64_t done, size_t room) {
    uint64_t left = count > done ? count - done : 0;
    return left < room ? (size_t)left : room;
}

static void show(const Exchange *one, Communicator *comm, const char *input, uint64_t done,
                 size_t room, size_t stride) {
    size_t size = type_size(one->dtype);
    char *slot = transport_own_slot(comm);
    for (uint32_t to = 0; to < (one->shared ? 1 : comm->ranks); to++) {
        size_t many = part(one->sends[to], done, room);
        if (many) memcpy(slot + to * stride, input + (one->send_at[to] + done) * size, many * size);
    }
}

static void take(const Exchange *one, Communicator *comm, char *output, uint64_t done, size_t room,
                 size_t stride) {
    size_t size = type_size(one->dtype), skip = one->shared ? 0 : comm->rank * stride;
    const void *pieces[MAX_RANKS];
    for (uint32_t from = 0; from < comm->ranks; from++) {
        size_t many = part(one->takes[from], done, room);
        pieces[from] = (const char *)transport_slot(comm, from) + skip;
        if (many && !one->reduces)
            memcpy(output + (one->take_at[from] + done) * size, pieces[from], many * size);
    }
    size_t many = part(one->takes[0], done, room);
    if (many && one->reduces)
        reduce_elements(output + done * size, pieces, comm->ranks, many, one->dtype,
                        one->reduction);
}

static HcclResult in_turn(Exchange *one, Communicator *comm) {
    void *input, *output;
    HcclResult result = view(one, comm->ranks, one->sends, one->send_at, one->input, &input);
    if (result != HCCL_SUCCESS) return result;
    result = view(one, comm->ranks, one->takes, one->take_at, one->output, &output);
    if (result != HCCL_SUCCESS) return result;
    const char *name = operation_name(one->operation);
    Call call = {one->operation, one->dtype, one->reduction, one->root, one->count};
    if (one->uneven) {
        result = agree_on_counts(one, comm, &call);
        if (result != HCCL_SUCCESS) return result;
    }
    size_t stride = (one->shared ? SLOT_BYTES : SLOT_BYTES / comm->ranks) & ~(size_t)63;
    size_t room = stride / type_size(one->dtype);
    uint64_t done = 0;
    do {
        show(one, comm, input, done, room, stride);
        result = transport_step(comm, name, &call);
        if (result != HCCL_SUCCESS) return result;
        take(one, comm, output, done, room, stride);
        done += room;
    } while (done < one->longest);
    return HCCL_SUCCESS;
}

static HcclResult run(Exchange *one, Communicator *comm) {
    const char *name = operation_name(one->operation);
    HcclResult result = check_call(one, comm);
    if (result == HCCL_SUCCESS) result = comm_lock(comm, name, one->operation);
    if (result != HCCL_SUCCESS) return result;
    result = in_turn(one, comm);
    comm_unlock(comm);
    return result;
}

/* A communicator that is held until `finish`; NULL if there is none. */
static Communicator *begin(const Exchange *one) {
    return comm_hold(one->handle, operation_name(one->operation));
}

static HcclResult finish(Exchange *one, Communicator *comm) {
    HcclResult result = run(one, comm);
    comm_release(comm);
    return result;
}

static Exchange exchange(Operation operation, HcclComm handle, const void *input, void *output,
                         uint64_t count, uint32_t dtype) {
    return (Exchange){.operation = operation, .handle = handle, .input = input, .output = output,
                      .dtype = dtype, .reduction = NONE, .root = NONE, .count = count,
                      .longest = count};
}

static void fill(uint64_t *counts, const Communicator *comm, uint64_t count) {
    for (uint32_t rank = 0; rank < comm->ranks; rank++) counts[rank] = count;
}

/* Equal pieces, one after the other. */
static void fill_pieces(uint64_t *counts, uint64_t *offsets, const Communicator *comm,
                        uint64_t count) {
    fill(counts, comm, count);
    for (uint32_t rank = 0; rank < comm->ranks; rank++) offsets[rank] = rank * count;
}

static HcclResult copy_counts(const Exchange *one, const Communicator *comm, uint64_t *counts,
                              const void *given) {
    if (given) {
        memcpy(counts, given, comm->ranks * sizeof *counts);
        return HCCL_SUCCESS;
    }
    sim_fail(ACL_ERROR_INTERNAL_ERROR, "%s: no counts or displacements given",
             operation_name(one->operation));
    return HCCL_E_PTR;
}

/* --- entry points ---------------------------------------------------------------------------- */

EXPORT HcclResult HcclAllReduce(void *input, void *output, uint64_t count, uint32_t dtype,
                                uint32_t reduction, HcclComm handle, aclrtStream stream) {
    (void)stream;
    Exchange one = exchange(ALL_REDUCE, handle, input, output, count, dtype);
    Communicator *comm = begin(&one);
    if (!comm) return HCCL_E_PARA;
    one.reduction = reduction;
    one.shared = one.reduces = true;
    fill(one.sends, comm, count);
    fill(one.takes, comm, count);
    return finish(&one, comm);
}

EXPORT HcclResult HcclReduce(void *input, void *output, uint64_t count, uint32_t dtype,
                             uint32_t reduction, uint32_t root, HcclComm handle,
                             aclrtStream stream) {
    (void)stream;
    Exchange one = exchange(REDUCE, handle, input, output, count, dtype);
    Communicator *comm = begin(&one);
    if (!comm) return HCCL_E_PARA;
    one.reduction = reduction;
    one.root = root;
    one.shared = one.reduces = true;
    fill(one.sends, comm, count);
    fill(one.takes, comm, comm->rank == root ? count : 0);
    return finish(&one, comm);
}

EXPORT HcclResult HcclBroadcast(void *buffer, uint64_t count, uint32_t dtype, uint32_t root,
                                HcclComm handle, aclrtStream stream) {
    (void)stream;
    Exchange one = exchange(BROADCAST, handle, buffer, buffer, count, dtype);
    Communicator *comm = begin(&one);
    if (!comm) return HCCL_E_PARA;
    one.root = root;
    one.shared = true;
    if (comm->rank == root)
        fill(one.sends, comm, count);
    else if (root < comm->ranks)
        one.takes[root] = count;
    return finish(&one, comm);
}

EXPORT HcclResult HcclAllGather(void *input, void *output, uint64_t count, uint32_t dtype,
                                HcclComm handle, aclrtStream stream) {
    (void)stream;
    Exchange one = exchange(ALL_GATHER, handle, input, output, count, dtype);
    Communicator *comm = begin(&one);
    if (!comm) return HCCL_E_PARA;
    one.shared = true;
    fill(one.sends, comm, count);
    fill_pieces(one.takes, one.take_at, comm, count);
    return finish(&one, comm);
}

EXPORT HcclResult HcclAllGatherV(void *input, uint64_t count, void *output, const void *counts,
                                 const void *offsets, uint32_t dtype, HcclComm handle,
                                 aclrtStream stream) {
    (void)stream;
    Exchange one = exchange(ALL_GATHER_V, handle, input, output, 0, dtype);
    Communicator *comm = begin(&one);
    if (!comm) return HCCL_E_PARA;
    one.shared = one.uneven = true;
    fill(one.sends, comm, count);
    HcclResult result = copy_counts(&one, comm, one.takes, counts);
    if (result == HCCL_SUCCESS) result = copy_counts(&one, comm, one.take_at, offsets);
    if (result == HCCL_SUCCESS) return finish(&one, comm);
    comm_release(comm);
    return result;
}

EXPORT HcclResult HcclReduceScatter(void *input, void *output, uint64_t count, uint32_t dtype,
                                    uint32_t reduction, HcclComm handle, aclrtStream stream) {
    (void)stream;
    Exchange one = exchange(REDUCE_SCATTER, handle, input, output, count, dtype);
    Communicator *comm = begin(&one);
    if (!comm) return HCCL_E_PARA;
    one.reduction = reduction;
    one.reduces = true;
    fill_pieces(one.sends, one.send_at, comm, count);
    fill(one.takes, comm, count);
    return finish(&one, comm);
}

EXPORT HcclResult HcclReduceScatterV(void *input, const void *counts, const void *offsets,
                                     void *output, uint64_t count, uint32_t dtype,
                                     uint32_t reduction, HcclComm handle, aclrtStream stream) {
    (void)stream;
    Exchange one = exchange(REDUCE_SCATTER_V, handle, input, output, 0, dtype);
    Communicator *comm = begin(&one);
    if (!comm) return HCCL_E_PARA;
    one.reduction = reduction;
    one.reduces = one.uneven = true;
    fill(one.takes, comm, count);
    HcclResult result = copy_counts(&one, comm, one.sends, counts);
    if (result == HCCL_SUCCESS) result = copy_counts(&one, comm, one.send_at, offsets);
    if (result == HCCL_SUCCESS) return finish(&one, comm);
    comm_release(comm);
    return result;
}

EXPORT HcclResult HcclScatter(void *input, void *output, uint64_t count, uint32_t dtype,
                              uint32_t root, HcclComm handle, aclrtStream stream) {
    (void)stream;
    Exchange one = exchange(SCATTER, handle, input, output, count, dtype);
    Communicator *comm = begin(&one);
    if (!comm) return HCCL_E_PARA;
    one.root = root;
    if (comm->rank == root) fill_pieces(one.sends, one.send_at, comm, count);
    if (root < comm->ranks) one.takes[root] = count;
    return finish(&one, comm);
}

EXPORT HcclResult HcclBarrier(HcclComm handle, aclrtStream stream) {
    (void)stream;
    Exchange one = exchange(BARRIER, handle, NULL, NULL, 0, TYPE_INT8);
    Communicator *comm = begin(&one);
    return comm ? finish(&one, comm) : HCCL_E_PARA;
}

/* --- all to all ------------------------------------------------------------------------------ */

static HcclResult same_types(const Exchange *one, uint32_t sent, uint32_t taken) {
    if (sent == taken) return HCCL_SUCCESS;
    sim_fail(ACL_ERROR_INTERNAL_ERROR, "%s: what is sent is %s, what is received is %s",
             operation_name(one->operation), type_name(sent), type_name(taken));
    return HCCL_E_PARA;
}

EXPORT HcclResult HcclAlltoAll(const void *input, uint64_t sends, uint32_t sent, void *output,
                               uint64_t takes, uint32_t taken, HcclComm handle,
                               aclrtStream stream) {
    (void)stream;
    Exchange one = exchange(ALL_TO_ALL, handle, input, output, sends, sent);
    HcclResult result = same_types(&one, sent, taken);
    if (result != HCCL_SUCCESS) return result;
    if (sends != takes) return refuse(&one, "count of received elements", takes);
    Communicator *comm = begin(&one);
    if (!comm) return HCCL_E_PARA;
    fill_pieces(one.sends, one.send_at, comm, sends);
    fill_pieces(one.takes, one.take_at, comm, takes);
    return finish(&one, comm);
}

EXPORT HcclResult HcclAlltoAllV(const void *input, const void *send_counts,
                                const void *send_offsets, uint32_t sent, void *output,
                                const void *take_counts, const void *take_offsets, uint32_t taken,
                                HcclComm handle, aclrtStream stream) {
    (void)stream;
    Exchange one = exchange(ALL_TO_ALL_V, handle, input, output, 0, sent);
    HcclResult result = same_types(&one, sent, taken);
    if (result != HCCL_SUCCESS) return result;
    Communicator *comm = begin(&one);
    if (!comm) return HCCL_E_PARA;
    one.uneven = true;
    result = copy_counts(&one, comm, one.sends, send_counts);
    if (result == HCCL_SUCCESS) result = copy_counts(&one, comm, one.send_at, send_offsets);
    if (result == HCCL_SUCCESS) result = copy_counts(&one, comm, one.takes, take_counts);
    if (result == HCCL_SUCCESS) result = copy_counts(&one, comm, one.take_at, take_offsets);
    if (result == HCCL_SUCCESS) return finish(&one, comm);
    comm_release(comm);
    return result;
}

/* `matrix[from][to]` elements are sent, packed in the order of ranks on both sides. */
EXPORT HcclResult HcclAlltoAllVC(const void *input, const void *matrix, uint32_t sent, void *output,
                                 uint32_t taken, HcclComm handle, aclrtStream stream) {
    (void)stream;
    Exchange one = exchange(ALL_TO_ALL_VC, handle, input, output, 0, sent);
    HcclResult result = same_types(&one, sent, taken);
    if (result != HCCL_SUCCESS) return result;
    Communicator *comm = begin(&one);
    if (!comm) return HCCL_E_PARA;
    one.uneven = true;
    for (uint32_t other = 0; matrix && other < comm->ranks; other++) {
        const uint64_t *counts = matrix;
        one.sends[other] = counts[comm->rank * comm->ranks + other];
        one.takes[other] = counts[other * comm->ranks + comm->rank];
        if (other == 0) continue;
        one.send_at[other] = one.send_at[other - 1] + one.sends[other - 1];
        one.take_at[other] = one.take_at[other - 1] + one.takes[other - 1];
    }
    if (matrix) return finish(&one, comm);
    comm_release(comm);
    return copy_counts(&one, comm, one.sends, NULL);
}
