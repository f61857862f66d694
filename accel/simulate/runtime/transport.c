/* Memory shared by the ranks of a communicator, and waiting for one another through it.
 *
 * The memory is a memfd that the first rank keeps open until all have mapped it; the others find it
 * below /proc. It therefore has no name: nothing collides, nothing is left behind by a crash, and
 * only processes of the same user can open it. A rank sleeps on its own `bell`, which the others
 * move after each change that may concern it. Every wait also looks whether the rank it waits for
 * still runs, whether the communicator has failed and whether its time is over.
 */
#define _GNU_SOURCE
#include "transport.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "runtime.h"

#define MAGIC "simHCCL1"
#define PAGE 65536ULL /* a multiple of every page size of x86-64 and aarch64 */
#define SPINS 200
#define NAP 0.1 /* seconds between two looks at the other processes */
#define NEVER 1e18

enum { SEAT_EMPTY, SEAT_TAKING, SEAT_TAKEN, SEAT_LEFT };
enum { FAILURE_NONE, FAILURE_WRITING, FAILURE_KNOWN };

/* Files behind addresses that this process offers. */
typedef struct Offered {
    int file;
    uint64_t token[2];
    struct Offered *next;
} Offered;

static Offered *offered;
static pthread_mutex_t offered_lock = PTHREAD_MUTEX_INITIALIZER;

/* --- time and processes ---------------------------------------------------------------------- */

double monotonic_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* When process `pid` was started, in clock ticks; 0 if it has ended, waited for or not. */
static uint64_t process_started(int32_t pid) {
    char path[40], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    if (length <= 0) return 0;
    text[length] = '\0';
    char *field = strrchr(text, ')'); /* the name before it may hold anything */
    if (!field || field[1] == '\0' || strchr("ZXx", field[2])) return 0;
    for (int skipped = 0; skipped < 20; skipped++) {
        field = strchr(field + 1, ' ');
        if (!field) return 0;
    }
    return strtoull(field, NULL, 10);
}

static bool process_runs(int32_t pid, uint64_t started) {
    return pid == getpid() || process_started(pid) == started;
}

/* --- offers ---------------------------------------------------------------------------------- */

HcclResult transport_offer(const char *call, Address *address) {
    memset(address, 0, sizeof *address);
    Offered *entry = calloc(1, sizeof *entry);
    if (!entry) return HCCL_E_MEMORY;
    entry->file = memfd_create("simulated-hccl", MFD_CLOEXEC);
    Segment *segment = MAP_FAILED;
    if (entry->file >= 0 && ftruncate(entry->file, sizeof *segment) == 0 &&
        getrandom(entry->token, sizeof entry->token, 0) == sizeof entry->token)
        segment = mmap(NULL, sizeof *segment, PROT_READ | PROT_WRITE, MAP_SHARED, entry->file, 0);
    if (segment == MAP_FAILED) {
        sim_fail(ACL_ERROR_INTERNAL_ERROR, "%s: cannot make shared memory: %s", call,
                 strerror(errno));
        if (entry->file >= 0) close(entry->file);
        free(entry);
        return HCCL_E_SYSCALL;
    }
    memcpy(segment->token, entry->token, sizeof entry->token);
    munmap(segment, sizeof *segment);
    memcpy(address->magic, MAGIC, sizeof address->magic);
    memcpy(address->token, entry->token, sizeof entry->token);
    address->pid = getpid();
    address->file = entry->file;
    address->started = process_started(address->pid);
    pthread_mutex_lock(&offered_lock);
    entry->next = offered;
    offered = entry;
    pthread_mutex_unlock(&offered_lock);
    return HCCL_SUCCESS;
}

void transport_withdraw(const Address *address) {
    if (address->pid != getpid()) return;
    pthread_mutex_lock(&offered_lock);
    for (Offered **link = &offered; *link; link = &(*link)->next) {
        Offered *entry = *link;
        if (memcmp(entry->token, address->token, sizeof entry->token) != 0) continue;
        close(entry->file);
        *link = entry->next;
        free(entry);
        break;
    }
    pthread_mutex_unlock(&offered_lock);
}

/* --- attaching ------------------------------------------------------------------------------- */

static size_t whole_pages(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

static HcclResult open_segment(const char *call, const Address *address, Communicator *comm) {
    if (memcmp(address->magic, MAGIC, sizeof address->magic) != 0) {
        sim_fail(ACL_ERROR_INTERNAL_ERROR,
                 "%s: the root info was not made by HcclGetRootInfo of this runtime", call);
        return HCCL_E_PARA;
    }
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", address->pid, address->file);
    int file = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    struct stat state;
    if (file < 0 || !process_runs(address->pid, address->started) || fstat(file, &state) != 0 ||
        (size_t)state.st_size < sizeof(Segment)) {
        sim_fail(ACL_ERROR_INTERNAL_ERROR,
                 "%s: cannot open the memory that process %d made for this communicator (%s): it "
                 "has to run, on this machine and as the same user, until all ranks have joined",
                 call, address->pid, file < 0 ? strerror(errno) : "it is not there any more");
        if (file >= 0) close(file);
        return HCCL_E_REMOTE;
    }
    size_t slots = (size_t)comm->ranks * 2 * SLOT_BYTES;
    size_t buffers = (size_t)comm->ranks * comm->ranks * RING_BYTES;
    comm->bytes = whole_pages(sizeof(Segment)) + slots + buffers;
    /* More than the file may have yet, but the common part is there. */
    int shared = MAP_SHARED | MAP_NORESERVE;
    void *memory = mmap(NULL, comm->bytes, PROT_READ | PROT_WRITE, shared, file, 0);
    if (memory == MAP_FAILED) {
        sim_fail(ACL_ERROR_INTERNAL_ERROR, "%s: cannot map %zu bytes of shared memory: %s", call,
                 comm->bytes, strerror(errno));
        close(file);
        return HCCL_E_MEMORY;
    }
    if (memcmp(((Segment *)memory)->token, address->token, sizeof address->token) != 0) {
        sim_fail(ACL_ERROR_INTERNAL_ERROR,
                 "%s: the root info is of a communicator that is complete already or has failed",
                 call);
        munmap(memory, comm->bytes);
        close(file);
        return HCCL_E_PARA;
    }
    comm->segment = memory;
    comm->slots = (char *)memory + whole_pages(sizeof(Segment));
    comm->buffers = comm->slots + slots;
    HcclResult result = HCCL_SUCCESS;
    uint32_t agreed = 0;
    if (!atomic_compare_exchange_strong(&comm->segment->ranks, &agreed, comm->ranks) &&
        agreed != comm->ranks)
        result = transport_fail(comm, HCCL_E_PARA,
                                "%s: rank %u says that there are %u ranks, another says %u", call,
                                comm->rank, comm->ranks, agreed);
    /* All agree on the size, so that nobody shrinks what another has made. */
    if (result == HCCL_SUCCESS && ftruncate(file, (off_t)comm->bytes) != 0)
        result = transport_fail(comm, HCCL_E_SYSCALL, "%s: cannot make %zu bytes of memory: %s",
                                call, comm->bytes, strerror(errno));
    close(file);
    return result;
}

static void ring_all(Communicator *comm) {
    for (uint32_t rank = 0; rank < comm->ranks; rank++)
        if (rank != comm->rank) transport_ring(comm, rank);
}

static HcclResult take_seat(Communicator *comm, const char *call) {
    Seat *seat = &comm->segment->seats[comm->rank];
    uint32_t empty = SEAT_EMPTY;
    if (!atomic_compare_exchange_strong(&seat->state, &empty, SEAT_TAKING)) {
        return transport_fail(comm, HCCL_E_PARA,
                              "%s: rank %u joined twice, from the processes %d and %d", call,
                              comm->rank, seat->pid, comm->pid);
    }
    comm->seated = true;
    seat->pid = comm->pid;
    seat->started = process_started(comm->pid);
    atomic_store(&seat->state, SEAT_TAKEN);
    atomic_fetch_add(&comm->segment->present, 1);
    ring_all(comm);
    return HCCL_SUCCESS;
}

/* The first rank without a seat; `ranks` if there is none. */
static uint32_t first_missing(Communicator *comm) {
    uint32_t rank = 0;
    const Seat *seats = comm->segment->seats;
    while (rank < comm->ranks && atomic_load(&seats[rank].state) >= SEAT_TAKEN) rank++;
    return rank;
}

/* An error if the process that began, or one that has joined, has ended. */
static HcclResult check_joined(Communicator *comm, const char *call, const Address *address) {
    for (uint32_t rank = 0; rank < comm->ranks; rank++) {
        Seat *seat = &comm->segment->seats[rank];
        if (atomic_load(&seat->state) == SEAT_TAKEN && !process_runs(seat->pid, seat->started))
            return transport_fail(comm, HCCL_E_REMOTE,
                                  "%s on rank %u: rank %u (process %d) has died", call, comm->rank,
                                  rank, seat->pid);
    }
    if (process_runs(address->pid, address->started)) return HCCL_SUCCESS;
    return transport_fail(comm, HCCL_E_REMOTE,
                          "%s on rank %u: the process %d that began it has died", call, comm->rank,
                          address->pid);
}

HcclResult transport_complete(Communicator *comm, const char *call, const Address *address,
                              double seconds) {
    Wait wait = transport_wait(call, seconds);
    for (;;) {
        transport_look(comm, &wait);
        if (atomic_load(&comm->segment->present) == comm->ranks) return HCCL_SUCCESS;
        HcclResult result = wait.spins < SPINS ? HCCL_SUCCESS : check_joined(comm, call, address);
        if (result == HCCL_SUCCESS && monotonic_seconds() > wait.deadline)
            result = transport_fail(comm, HCCL_E_TIMEOUT,
                                    "%s on rank %u of %u: rank %u did not join within %g s "
                                    "(HCCL_CONNECT_TIMEOUT)",
                                    call, comm->rank, comm->ranks, first_missing(comm), seconds);
        if (result != HCCL_SUCCESS) return result;
        result = transport_pause(comm, &wait, NONE);
        if (result != HCCL_SUCCESS) return result;
    }
}

HcclResult transport_join(const char *call, const Address *address, uint32_t ranks, uint32_t rank,
                          const char *name, Communicator **joined) {
    Communicator *comm = calloc(1, sizeof *comm);
    if (!comm) return HCCL_E_MEMORY;
    comm->rank = rank;
    comm->ranks = ranks;
    comm->pid = getpid();
    pthread_mutex_init(&comm->turn, NULL);
    if (name && *name)
        snprintf(comm->name, sizeof comm->name, "%s", name);
    else
        snprintf(comm->name, sizeof comm->name, "simulated_%016llx",
                 (unsigned long long)address->token[0]);
    HcclResult result = open_segment(call, address, comm);
    if (result == HCCL_SUCCESS) result = take_seat(comm, call);
    if (result == HCCL_SUCCESS)
        *joined = comm;
    else
        transport_detach(comm);
    return result;
}

void transport_detach(Communicator *comm) {
    if (comm->segment) {
        if (comm->seated && comm->pid == getpid()) {
            atomic_store(&comm->segment->seats[comm->rank].state, SEAT_LEFT);
            ring_all(comm);
        }
        munmap(comm->segment, comm->bytes);
    }
    pthread_mutex_destroy(&comm->turn);
    free(comm);
}

/* --- failing --------------------------------------------------------------------------------- */

HcclResult transport_fail(Communicator *comm, HcclResult code, const char *format, ...) {
    Segment *segment = comm->segment;
    char text[sizeof segment->failure];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    uint32_t none = FAILURE_NONE;
    if (atomic_compare_exchange_strong(&segment->failed, &none, FAILURE_WRITING)) {
        memcpy(segment->failure, text, sizeof text);
        segment->code = code;
        atomic_store(&segment->failed, FAILURE_KNOWN);
    }
    ring_all(comm);
    sim_fail(ACL_ERROR_INTERNAL_ERROR, "%s", text);
    return code;
}

HcclResult transport_healthy(Communicator *comm, const char *call) {
    if (atomic_load(&comm->aborted)) {
        sim_fail(ACL_ERROR_INTERNAL_ERROR, "%s on rank %u: the communicator %s was destroyed", call,
                 comm->rank, comm->name);
        return HCCL_E_SUSPENDING;
    }
    if (atomic_load(&comm->segment->failed) != FAILURE_KNOWN) return HCCL_SUCCESS;
    sim_fail(ACL_ERROR_INTERNAL_ERROR, "%s", comm->segment->failure);
    return comm->segment->code;
}

/* --- waiting --------------------------------------------------------------------------------- */

static long futex(_Atomic uint32_t *word, int operation, uint32_t value,
                  const struct timespec *limit) {
    return syscall(SYS_futex, word, operation, value, limit, NULL, 0);
}

void transport_ring(Communicator *comm, uint32_t rank) {
    Seat *seat = &comm->segment->seats[rank];
    atomic_fetch_add(&seat->bell, 1);
    if (atomic_load(&seat->asleep)) futex(&seat->bell, FUTEX_WAKE, INT_MAX, NULL);
}

Wait transport_wait(const char *call, double seconds) {
    double now = monotonic_seconds();
    return (Wait){.call = call, .deadline = seconds > 0 ? now + seconds : NEVER, .checked = now};
}

void transport_look(Communicator *comm, Wait *wait) {
    wait->bell = atomic_load(&comm->segment->seats[comm->rank].bell);
}

/* An error if `peer` cannot or will not do what is waited for. */
static HcclResult check_peer(Communicator *comm, Wait *wait, uint32_t peer) {
    if (peer == comm->rank) return HCCL_SUCCESS;
    Seat *seat = &comm->segment->seats[peer];
    Seat *own = &comm->segment->seats[comm->rank];
    uint32_t theirs = atomic_load(&seat->activity), mine = atomic_load(&own->activity);
    bool left = atomic_load(&seat->state) == SEAT_LEFT;
    bool dead = !process_runs(seat->pid, seat->started);
    bool crossed = mine > LAST_COLLECTIVE && theirs != IDLE && theirs <= LAST_COLLECTIVE;
    bool suspected = wait->stuck && wait->suspect == peer;
    wait->stuck = left || dead || crossed;
    wait->suspect = peer;
    /* What it did before may have arrived after the caller looked: once more. */
    if (!wait->stuck || !suspected) return HCCL_SUCCESS;
    if (dead)
        return transport_fail(comm, HCCL_E_REMOTE,
                              "%s on rank %u: rank %u (process %d) has died", wait->call,
                              comm->rank, peer, seat->pid);
    if (left)
        return transport_fail(comm, HCCL_E_REMOTE,
                              "%s on rank %u: rank %u has destroyed its communicator", wait->call,
                              comm->rank, peer);
    return transport_fail(comm, HCCL_E_PARA,
                          "the ranks do not call the same: rank %u waits in %s for rank %u, which "
                          "waits in %s for all ranks",
                          comm->rank, wait->call, peer, operation_name(theirs));
}

HcclResult transport_pause(Communicator *comm, Wait *wait, uint32_t peer) {
    HcclResult result = transport_healthy(comm, wait->call);
    if (result != HCCL_SUCCESS) return result;
    if (wait->spins < SPINS) {
        wait->spins++;
        sched_yield();
        return HCCL_SUCCESS;
    }
    Seat *own = &comm->segment->seats[comm->rank];
    struct timespec limit = {.tv_nsec = (long)(NAP * 1e9)};
    if (wait->stuck) limit.tv_nsec = 1000000;
    atomic_fetch_add(&own->asleep, 1);
    futex(&own->bell, FUTEX_WAIT, wait->bell, &limit);
    atomic_fetch_sub(&own->asleep, 1);
    double now = monotonic_seconds();
    if (!wait->stuck && now - wait->checked < NAP) return HCCL_SUCCESS;
    wait->checked = now;
    if (peer == NONE) return HCCL_SUCCESS;
    result = check_peer(comm, wait, peer);
    if (result == HCCL_SUCCESS && now > wait->deadline)
        result = transport_fail(comm, HCCL_E_TIMEOUT,
                                "%s on rank %u: no answer from rank %u within %g s "
                                "(HCCL_EXEC_TIMEOUT)",
                                wait->call, comm->rank, peer, comm->timeout);
    return result;
}
