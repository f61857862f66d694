/* What the parts of the stand-in HCCL share: communicators and the memory between their ranks. */
#ifndef ACCEL_SIMULATE_TRANSPORT_H
#define ACCEL_SIMULATE_TRANSPORT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MAX_RANKS 64
#define NAME_BYTES 128
#define SLOT_BYTES (1u << 20) /* what one rank shows to the others in one step of a collective */
#define RING_BYTES (1u << 21) /* what one rank can send to another before that one receives */
#define OFFERS 8

typedef int HcclResult;
typedef void *HcclComm;

/* Codes are HCCL's own (hccl_types.h). */
enum {
    HCCL_SUCCESS = 0,
    HCCL_E_PARA = 1,
    HCCL_E_PTR = 2,
    HCCL_E_MEMORY = 3,
    HCCL_E_INTERNAL = 4,
    HCCL_E_NOT_SUPPORT = 5,
    HCCL_E_UNAVAIL = 7,
    HCCL_E_SYSCALL = 8,
    HCCL_E_TIMEOUT = 9,
    HCCL_E_REMOTE = 21,
    HCCL_E_SUSPENDING = 22,
};

typedef enum {
    IDLE,
    ALL_REDUCE,
    BROADCAST,
    ALL_GATHER,
    ALL_GATHER_V,
    REDUCE_SCATTER,
    REDUCE_SCATTER_V,
    REDUCE,
    SCATTER,
    ALL_TO_ALL,
    ALL_TO_ALL_V,
    ALL_TO_ALL_VC,
    BARRIER,
    LAST_COLLECTIVE = BARRIER,
    SEND,
    RECEIVE,
    BATCH_SEND_RECEIVE,
    GROUP,
} Operation;

/* What a rank asks for; in a collective all have to ask for the same. NONE: not applicable. */
#define NONE UINT32_MAX
typedef struct {
    uint32_t operation, dtype, reduction, root;
    uint64_t count;
} Call;

/* Where the memory of a communicator is found, on this machine and by this user only. */
typedef struct {
    char magic[8];
    int32_t pid, file;
    uint64_t started;
    uint64_t token[2];
} Address;

typedef struct {
    _Atomic uint32_t open;
    uint64_t id, members;
    Address address;
} Offer;

/* One rank, as the others see it. */
typedef struct {
    _Alignas(64) _Atomic uint32_t state;
    int32_t pid;
    uint64_t started;
    _Alignas(64) _Atomic uint32_t step; /* of the collectives; it has read all earlier ones */
    _Atomic uint32_t bell;              /* moves whenever this rank has to look again */
    _Atomic uint32_t asleep;
    _Atomic uint32_t activity; /* Operation */
    Call calls[2];
    Offer offers[OFFERS];
} Seat;

/* Bytes from one rank to another, both counted from the beginning of time. */
typedef struct {
    _Alignas(64) _Atomic uint64_t written;
    _Alignas(64) _Atomic uint64_t read;
} Ring;

typedef struct {
    uint64_t token[2];
    _Atomic uint32_t ranks, present;
    _Atomic uint32_t failed; /* FAILURE_* */
    int32_t code;
    char failure[512];
    Seat seats[MAX_RANKS];
    Ring rings[MAX_RANKS * MAX_RANKS];
} Segment;

typedef struct Communicator {
    Segment *segment;
    char *slots, *buffers; /* of the segment: [ranks][2][SLOT_BYTES], [ranks][ranks][RING_BYTES] */
    size_t bytes;
    uint32_t rank, ranks, step;
    int32_t pid;
    bool seated;
    double timeout; /* seconds a call waits for others; 0: for ever */
    pthread_mutex_t turn;
    atomic_bool aborted;
    uint32_t users; /* guarded by the registry's lock */
    struct Communicator *next;
    char name[NAME_BYTES];
} Communicator;

/* A wait for other ranks, with its limits. */
typedef struct {
    const char *call;
    uint32_t bell, spins, suspect;
    bool stuck; /* `suspect` could not answer at the last look */
    double deadline, checked;
} Wait;

/* Memory for a new communicator, found by `address` until it is withdrawn. */
HcclResult transport_offer(const char *call, Address *address);
void transport_withdraw(const Address *address);

/* Take the seat of `rank`. */
HcclResult transport_join(const char *call, const Address *address, uint32_t ranks, uint32_t rank,
                          const char *name, Communicator **joined);
/* Wait at most `seconds` until all ranks have theirs. */
HcclResult transport_complete(Communicator *comm, const char *call, const Address *address,
                              double seconds);
void transport_detach(Communicator *comm);

/* Record a failure that ends the communicator on every rank; returns `code`. */
HcclResult transport_fail(Communicator *comm, HcclResult code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* HCCL_SUCCESS unless the communicator has failed or is being destroyed. */
HcclResult transport_healthy(Communicator *comm, const char *call);

/* A wait that begins now; seconds == 0: for ever. */
Wait transport_wait(const char *call, double seconds);
void transport_look(Communicator *comm, Wait *wait);
/* Sleep until something may have changed since the last look; an error if `peer` cannot answer or
 * the time is over. Nobody's answer is checked for NONE. */
HcclResult transport_pause(Communicator *comm, Wait *wait, uint32_t peer);
void transport_ring(Communicator *comm, uint32_t rank);

/* communicator.c
 *
 * Show `call` and what was put into the own slot, and wait until all ranks have done the same. */
void *transport_own_slot(Communicator *comm);
HcclResult transport_step(Communicator *comm, const char *name, const Call *call);
const void *transport_slot(const Communicator *comm, uint32_t rank);

/* Communicators behind handles. Between hold and release one is not freed; between lock and unlock
 * it works for one call only. `hold` is NULL, with the error recorded, if there is no such one. */
void comm_register(Communicator *comm);
Communicator *comm_hold(HcclComm handle, const char *call);
void comm_release(Communicator *comm);
HcclResult comm_lock(Communicator *comm, const char *call, Operation operation);
void comm_unlock(Communicator *comm);
HcclResult comm_destroy(HcclComm handle);

const char *operation_name(uint32_t operation);

double monotonic_seconds(void);

#endif
