/* Messages from one rank to another: HcclSend, HcclRecv, HcclBatchSendRecv and groups of them.
 *
 * Each ordered pair of ranks has a ring of bytes. A send returns once all is written, which a small
 * message is before anybody receives; the sends and receives of one batch progress together, so
 * that a batch of any size completes.
 */
#include <stdlib.h>
#include <string.h>

#include "reduce.h"
#include "runtime.h"
#include "transport.h"

/* HcclSendRecvItem (hccl_types.h). */
typedef struct {
    int32_t kind; /* 0: send, 1: receive */
    void *buffer;
    uint64_t count;
    uint32_t dtype, peer;
} Item;

/* What precedes each message in the ring. */
typedef struct {
    uint64_t count;
    uint32_t dtype, check;
} Header;

#define CHECK 0x6d657373u

typedef struct {
    Communicator *comm;
    bool receives, finished;
    uint32_t peer;
    char *bytes;
    uint64_t length, moved; /* of the message; moved counts the header too */
    Header header, arrived;
} Transfer;

typedef struct {
    Transfer *all;
    uint32_t count, capacity, depth;
} Batch;

static _Thread_local Batch group; /* what waits for HcclGroupEnd */

/* --- rings ----------------------------------------------------------------------------------- */

static Ring *ring_of(const Transfer *one, char **buffer) {
    const Communicator *comm = one->comm;
    uint32_t from = one->receives ? one->peer : comm->rank;
    uint32_t to = one->receives ? comm->rank : one->peer;
    *buffer = comm->buffers + ((size_t)from * comm->ranks + to) * RING_BYTES;
    return &comm->segment->rings[(size_t)from * comm->ranks + to];
}

static void copy_ring(char *buffer, uint64_t position, char *bytes, uint64_t length, bool out) {
    uint64_t at = position % RING_BYTES;
    uint64_t first = length < RING_BYTES - at ? length : RING_BYTES - at;
    memcpy(out ? bytes : buffer + at, out ? buffer + at : bytes, first);
    if (length > first)
        memcpy(out ? bytes + first : buffer, out ? buffer : bytes + first, length - first);
}

/* Move what can be moved of [bytes, bytes + length) and return how much that was. */
static uint64_t move(const Transfer *one, char *bytes, uint64_t length) {
    char *buffer;
    Ring *ring = ring_of(one, &buffer);
    uint64_t written = atomic_load(&ring->written), read = atomic_load(&ring->read);
    uint64_t most = one->receives ? written - read : RING_BYTES - (written - read);
    if (length > most) length = most;
    if (length == 0) return 0;
    copy_ring(buffer, one->receives ? read : written, bytes, length, one->receives);
    if (one->receives)
        atomic_store(&ring->read, read + length);
    else
        atomic_store(&ring->written, written + length);
    transport_ring(one->comm, one->peer);
    return length;
}

static HcclResult check_arrived(const Transfer *one) {
    const Header *sent = &one->arrived, *asked = &one->header;
    if (memcmp(sent, asked, sizeof *sent) == 0) return HCCL_SUCCESS;
    return transport_fail(one->comm, HCCL_E_PARA,
                          "the ranks do not call the same: rank %u receives %llu of %s from rank "
                          "%u, which sends %llu of %s",
                          one->comm->rank, (unsigned long long)asked->count,
                          type_name(asked->dtype), one->peer, (unsigned long long)sent->count,
                          type_name(sent->dtype));
}

/* Move on as far as possible; sets `moved` if there was anything. */
static HcclResult advance(Transfer *one, bool *moved) {
    const uint64_t head = sizeof(Header);
    if (one->moved < head) {
        Header *header = one->receives ? &one->arrived : &one->header;
        uint64_t bytes = move(one, (char *)header + one->moved, head - one->moved);
        one->moved += bytes;
        *moved |= bytes > 0;
        if (one->moved < head) return HCCL_SUCCESS;
        if (one->receives) {
            HcclResult result = check_arrived(one);
            if (result != HCCL_SUCCESS) return result;
        }
    }
    uint64_t done = one->moved - head;
    if (done < one->length) {
        uint64_t bytes = move(one, one->bytes + done, one->length - done);
        one->moved += bytes;
        *moved |= bytes > 0;
    }
    one->finished = one->moved == head + one->length;
    return HCCL_SUCCESS;
}

/* --- batches --------------------------------------------------------------------------------- */

/* Messages of one pair keep their order. */
static bool is_blocked(const Batch *batch, uint32_t index) {
    const Transfer *one = &batch->all[index];
    for (uint32_t i = 0; i < index; i++) {
        const Transfer *earlier = &batch->all[i];
        if (!earlier->finished && earlier->comm == one->comm && earlier->peer == one->peer &&
            earlier->receives == one->receives)
            return true;
    }
    return false;
}

static HcclResult advance_all(Batch *batch, bool *moved, uint32_t *open) {
    *open = 0;
    for (uint32_t i = 0; i < batch->count; i++) {
        Transfer *one = &batch->all[i];
        if (one->finished) continue;
        if (!is_blocked(batch, i)) {
            HcclResult result = advance(one, moved);
            if (result != HCCL_SUCCESS) return result;
        }
        *open += !one->finished;
    }
    return HCCL_SUCCESS;
}

/* The next unfinished transfer after `last`, so that each peer is looked at in turn. */
static Transfer *next_open(const Batch *batch, const Transfer *last) {
    uint32_t index = (uint32_t)(last - batch->all);
    do index = (index + 1) % batch->count;
    while (batch->all[index].finished);
    return &batch->all[index];
}

static HcclResult complete(Batch *batch, const char *name) {
    Transfer *watched = batch->all;
    Wait wait = transport_wait(name, watched->comm->timeout);
    for (;;) {
        bool moved = false;
        uint32_t open;
        transport_look(watched->comm, &wait);
        HcclResult result = advance_all(batch, &moved, &open);
        if (result != HCCL_SUCCESS || open == 0) return result;
        if (moved)
            wait = transport_wait(name, watched->comm->timeout);
        else
            result = transport_pause(watched->comm, &wait, watched->peer);
        if (result != HCCL_SUCCESS) return result;
        if (watched->finished || !wait.stuck) watched = next_open(batch, watched);
    }
}

/* --- locks of all communicators of a batch --------------------------------------------------- */

static int by_address(const void *left, const void *right) {
    Communicator *const *one = left, *const *other = right;
    return (*one > *other) - (*one < *other);
}

/* Each communicator of the batch once, in one order for all threads; returns how many. */
static uint32_t list_communicators(const Batch *batch, Communicator **list) {
    for (uint32_t i = 0; i < batch->count; i++) list[i] = batch->all[i].comm;
    qsort(list, batch->count, sizeof *list, by_address);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < batch->count; i++)
        if (kept == 0 || list[kept - 1] != list[i]) list[kept++] = list[i];
    return kept;
}

static HcclResult run(Batch *batch, const char *name, Operation operation) {
    if (batch->count == 0) return HCCL_SUCCESS;
    Communicator **list = calloc(batch->count, sizeof *list);
    if (!list) return HCCL_E_MEMORY;
    uint32_t count = list_communicators(batch, list), held = 0, locked = 0;
    HcclResult result = HCCL_SUCCESS;
    while (held < count && comm_hold(list[held], name)) held++;
    if (held < count) result = HCCL_E_PARA;
    while (locked < held && result == HCCL_SUCCESS) {
        result = comm_lock(list[locked], name, operation);
        locked += result == HCCL_SUCCESS;
    }
    if (result == HCCL_SUCCESS) result = complete(batch, name);
    while (locked) comm_unlock(list[--locked]);
    while (held) comm_release(list[--held]);
    free(list);
    return result;
}

static void clear(Batch *batch) {
    free(batch->all);
    *batch = (Batch){0};
}

/* --- requests -------------------------------------------------------------------------------- */

static HcclResult refuse(const char *name, const char *what, uint64_t given, uint64_t limit) {
    sim_fail(ACL_ERROR_INTERNAL_ERROR, "%s: %s %llu, expected less than %llu", name, what,
             (unsigned long long)given, (unsigned long long)limit);
    return HCCL_E_PARA;
}

static HcclResult check(const Communicator *comm, const Item *item, const char *name,
                        Transfer *made) {
    if (item->kind != 0 && item->kind != 1) return refuse(name, "kind", (uint32_t)item->kind, 2);
    if (item->peer >= comm->ranks) return refuse(name, "remote rank", item->peer, comm->ranks);
    size_t size = type_size(item->dtype);
    if (size == 0) return refuse(name, "data type", item->dtype, TYPE_FLOAT8_E8M0 + 1);
    if (item->count > SIZE_MAX / size) return refuse(name, "count", item->count, SIZE_MAX / size);
    void *bytes = item->count ? sim_bytes(item->buffer, item->count * size, name) : NULL;
    if (item->count && !bytes) return HCCL_E_PTR;
    *made = (Transfer){.receives = item->kind == 1, .peer = item->peer, .bytes = bytes,
                       .length = item->count * size,
                       .header = {item->count, item->dtype, CHECK}};
    return HCCL_SUCCESS;
}

static HcclResult add(Batch *batch, const Item *item, HcclComm handle, const char *name) {
    if (batch->count == batch->capacity) {
        uint32_t capacity = batch->capacity ? 2 * batch->capacity : 8;
        Transfer *grown = realloc(batch->all, capacity * sizeof *grown);
        if (!grown) return HCCL_E_MEMORY;
        batch->all = grown;
        batch->capacity = capacity;
    }
    Communicator *comm = comm_hold(handle, name);
    if (!comm) return HCCL_E_PARA;
    Transfer *made = &batch->all[batch->count];
    HcclResult result = check(comm, item, name, made);
    made->comm = comm;
    comm_release(comm);
    batch->count += result == HCCL_SUCCESS;
    return result;
}

/* In a group, keep the items for its end; otherwise run them now. */
static HcclResult submit(const Item *items, uint32_t count, HcclComm handle, Operation operation) {
    const char *name = operation_name(operation);
    Batch own = {0};
    Batch *batch = group.depth ? &group : &own;
    HcclResult result = HCCL_SUCCESS;
    for (uint32_t i = 0; i < count && result == HCCL_SUCCESS; i++)
        result = add(batch, &items[i], handle, name);
    if (result == HCCL_SUCCESS && batch == &own) result = run(&own, name, operation);
    /* A group with a faulty member never runs, or its other members would wait for ever. */
    if (result != HCCL_SUCCESS || batch == &own) clear(batch);
    return result;
}

EXPORT HcclResult HcclSend(void *buffer, uint64_t count, uint32_t dtype, uint32_t peer,
                           HcclComm comm, aclrtStream stream) {
    (void)stream;
    Item item = {0, buffer, count, dtype, peer};
    return submit(&item, 1, comm, SEND);
}

EXPORT HcclResult HcclRecv(void *buffer, uint64_t count, uint32_t dtype, uint32_t peer,
                           HcclComm comm, aclrtStream stream) {
    (void)stream;
    Item item = {1, buffer, count, dtype, peer};
    return submit(&item, 1, comm, RECEIVE);
}

EXPORT HcclResult HcclBatchSendRecv(const Item *items, uint32_t count, HcclComm comm,
                                    aclrtStream stream) {
    (void)stream;
    if (!items && count) {
        sim_fail(ACL_ERROR_INTERNAL_ERROR, "HcclBatchSendRecv: no items given");
        return HCCL_E_PTR;
    }
    return submit(items, count, comm, BATCH_SEND_RECEIVE);
}

/* Only sends and receives wait for the end of a group: they are what would block one another.
 * Collectives of a group run when they are called, in the same order on every rank. */
EXPORT HcclResult HcclGroupStart(void) {
    group.depth++;
    return HCCL_SUCCESS;
}

EXPORT HcclResult HcclGroupEnd(void) {
    if (group.depth == 0) {
        sim_fail(ACL_ERROR_INTERNAL_ERROR, "HcclGroupEnd: no group was started by this thread");
        return HCCL_E_PARA;
    }
    if (--group.depth) return HCCL_SUCCESS;
    HcclResult result = run(&group, "HcclGroupEnd", GROUP);
    clear(&group);
    return result;
}
