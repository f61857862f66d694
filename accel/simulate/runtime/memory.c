/* Device memory, pinned host memory and copies.
 *
 * Each device has one range of addresses that the host can neither read nor write, and at a fixed
 * distance the memory itself: what operators and copies of this runtime use. A program that touches a device pointer on the host therefore stops
 * with a segmentation fault, which is explained, as it would on a machine with a chip.
 */
#define _GNU_SOURCE
#include "runtime.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096ULL
#define GIB (1ULL << 30)

typedef struct {
    uintptr_t start;
    size_t size;
} Block;

typedef struct {
    Block *blocks; /* sorted by address, never overlapping */
    size_t count, capacity;
} Blocks;

typedef struct {
    uintptr_t base;     /* device addresses start here */
    uintptr_t mirror;   /* the host's view of the same memory */
    size_t span;        /* length of both */
    int file;
    uint64_t used, peak;
    Blocks live;
} Arena;

static Arena arenas[MAX_DEVICES];
static Blocks pinned;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction previous_fault;
static bool forked; /* this process is a fork of the one that used the devices */

/* --- sorted blocks ------------------------------------------------------------------------- */

static size_t position_after(const Blocks *all, uintptr_t address) {
    size_t low = 0, high = all->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (all->blocks[middle].start <= address) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* The block that holds `address`, or NULL. */
static Block *block_at(const Blocks *all, uintptr_t address) {
    size_t after = position_after(all, address);
    if (after == 0) return NULL;
    Block *block = &all->blocks[after - 1];
    return address < block->start + block->size ? block : NULL;
}

static bool insert(Blocks *all, uintptr_t start, size_t size) {
    if (all->count == all->capacity) {
        size_t capacity = all->capacity ? 2 * all->capacity : 64;
        Block *grown = realloc(all->blocks, capacity * sizeof *grown);
        if (!grown) return false;
        all->blocks = grown;
        all->capacity = capacity;
    }
    size_t at = position_after(all, start);
    memmove(all->blocks + at + 1, all->blocks + at, (all->count - at) * sizeof *all->blocks);
    all->blocks[at] = (Block){start, size};
    all->count++;
    return true;
}

static void erase(Blocks *all, Block *block) {
    size_t at = (size_t)(block - all->blocks);
    memmove(block, block + 1, (all->count - at - 1) * sizeof *block);
    all->count--;
}

/* --- arenas -------------------------------------------------------------------------------- */

static Arena *arena_of(uintptr_t address) {
    for (int device = 0; device < sim_config.devices; device++) {
        Arena *arena = &arenas[device];
        if (arena->span && address - arena->base < arena->span) return arena;
    }
    return NULL;
}

static void explain_fault(int signal_number, siginfo_t *info, void *context) {
    Arena *arena = arena_of((uintptr_t)info->si_addr);
    if (arena) {
        static const char text[] =
            "simulated Ascend: the host touched device memory directly (a device pointer was used "
            "as if it were host memory); copy the tensor with .cpu() first\n";
        ssize_t ignored = write(STDERR_FILENO, text, sizeof text - 1);
        (void)ignored;
    }
    if (previous_fault.sa_flags & SA_SIGINFO) {
        previous_fault.sa_sigaction(signal_number, info, context);
    } else if (previous_fault.sa_handler != SIG_DFL && previous_fault.sa_handler != SIG_IGN) {
        previous_fault.sa_handler(signal_number);
    }
    signal(signal_number, SIG_DFL); /* the faulting instruction runs again and ends the process */
}

static void watch_faults(void) {
    static bool watching;
    if (watching) return;
    watching = true;
    struct sigaction action = {0};
    action.sa_sigaction = explain_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &previous_fault);
}

/* As on a machine with a chip, a fork cannot use the devices of the process it came from: it does
 * not get their memory either, which it would otherwise share with its parent. */
static void after_fork(void) {
    forked = true;
    pthread_mutex_init(&lock, NULL);
}

static aclError check_not_forked(const char *caller) {
    if (!forked) return ACL_SUCCESS;
    return sim_fail(ACL_ERROR_RT_CONTEXT_NULL,
                    "%s: the devices were used before this process was forked; start it with the "
                    "method \"spawn\"", caller);
}

/* Four times the device's memory in addresses, so that fragmentation never runs out of them. */
static aclError open_arena(Arena *arena) {
    size_t span = 4 * ((sim_config.memory_bytes + GIB - 1) / GIB) * GIB;
    int file = memfd_create("simulated-ascend", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, (off_t)span) != 0)
        return sim_fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "cannot make %zu bytes of shared memory: %s",
                        span, strerror(errno));
    void *base = mmap(NULL, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    void *mirror = mmap(NULL, span, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
    if (base == MAP_FAILED || mirror == MAP_FAILED) {
        close(file);
        return sim_fail(ACL_ERROR_RT_MEMORY_ALLOCATION,
                        "cannot reserve %zu bytes of address space (see ulimit -v): %s", span,
                        strerror(errno));
    }
    madvise(mirror, span, MADV_DONTDUMP);
    madvise(mirror, span, MADV_DONTFORK);
    *arena = (Arena){.base = (uintptr_t)base, .mirror = (uintptr_t)mirror, .span = span,
                     .file = file};
    static bool watching_forks;
    if (!watching_forks) pthread_atfork(NULL, NULL, after_fork);
    watching_forks = true;
    watch_faults();
    return ACL_SUCCESS;
}

/* The first gap of `size` bytes, with a page after each block that belongs to nobody. */
static uintptr_t find_gap(const Arena *arena, size_t size) {
    uintptr_t start = arena->base + PAGE;
    for (size_t i = 0; i < arena->live.count; i++) {
        const Block *block = &arena->live.blocks[i];
        if (start + size + PAGE <= block->start) return start;
        start = (block->start + block->size + 2 * PAGE - 1) / PAGE * PAGE;
    }
    return start + size <= arena->base + arena->span ? start : 0;
}

static void give_back(Arena *arena, uintptr_t start, size_t size) {
    size_t pages = (size + PAGE - 1) / PAGE * PAGE;
    fallocate(arena->file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
              (off_t)(start - arena->base), (off_t)pages);
}

static aclError charge(Arena *arena, size_t size) {
    if (arena->used + size > sim_config.memory_bytes)
        return sim_fail(ACL_ERROR_RT_MEMORY_ALLOCATION,
                        "%zu bytes do not fit: %lu of %lu are in use on this device", size,
                        (unsigned long)arena->used, (unsigned long)sim_config.memory_bytes);
    arena->used += size;
    if (arena->used > arena->peak) arena->peak = arena->used;
    return ACL_SUCCESS;
}

static Arena *current_arena(const char *caller, aclError *error) {
    *error = check_not_forked(caller);
    if (*error) return NULL;
    int device = sim_current_device();
    if (device < 0) {
        *error = sim_fail(ACL_ERROR_RT_CONTEXT_NULL, "%s: this thread has no device", caller);
        return NULL;
    }
    Arena *arena = &arenas[device];
    *error = arena->span ? ACL_SUCCESS : open_arena(arena);
    return *error ? NULL : arena;
}

/* --- device memory ------------------------------------------------------------------------- */

static aclError allocate(Arena *arena, void **pointer, size_t size) {
    aclError error = charge(arena, size);
    if (error) return error;
    uintptr_t start = find_gap(arena, size);
    if (!start || !insert(&arena->live, start, size)) {
        arena->used -= size;
        return sim_fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "no room for %zu bytes", size);
    }
    if (sim_config.poison) memset((void *)(start - arena->base + arena->mirror), 0x7f, size);
    *pointer = (void *)start;
    return ACL_SUCCESS;
}

EXPORT aclError aclrtMalloc(void **pointer, size_t size, int policy) {
    (void)policy;
    if (size == 0) return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtMalloc: 0 bytes");
    aclError error;
    pthread_mutex_lock(&lock);
    Arena *arena = current_arena("aclrtMalloc", &error);
    if (arena) error = allocate(arena, pointer, size);
    pthread_mutex_unlock(&lock);
    return error;
}

EXPORT aclError aclrtMallocAlign32(void **pointer, size_t size, int policy) {
    return aclrtMalloc(pointer, size, policy);
}

static aclError release(uintptr_t start) {
    aclError error = check_not_forked("aclrtFree");
    if (error) return error;
    Arena *arena = arena_of(start);
    Block *block = arena ? block_at(&arena->live, start) : NULL;
    if (!block || block->start != start)
        return sim_fail(ACL_ERROR_RT_PARAM_INVALID,
                        "aclrtFree: %p is not the start of a live allocation", (void *)start);
    give_back(arena, block->start, block->size);
    arena->used -= block->size;
    erase(&arena->live, block);
    return ACL_SUCCESS;
}

EXPORT aclError aclrtFree(void *pointer) {
    pthread_mutex_lock(&lock);
    aclError error = release((uintptr_t)pointer);
    pthread_mutex_unlock(&lock);
    return error;
}

EXPORT aclError aclrtGetMemInfo(int kind, size_t *available, size_t *total) {
    (void)kind;
    aclError error;
    pthread_mutex_lock(&lock);
    Arena *arena = current_arena("aclrtGetMemInfo", &error);
    if (arena) {
        *total = sim_config.memory_bytes;
        *available = sim_config.memory_bytes - arena->used;
    }
    pthread_mutex_unlock(&lock);
    return error;
}

/* Most bytes that were ever allocated at once on a device; 0 where it was never used. */
EXPORT uint64_t sim_peak_bytes(int32_t device) {
    return device >= 0 && device < MAX_DEVICES ? arenas[device].peak : 0;
}

static void *locate(uintptr_t start, size_t size, const char *caller) {
    Arena *arena = arena_of(start);
    if (!arena) {
        sim_fail(ACL_ERROR_RT_PARAM_INVALID, "%s: %p is not a device address", caller,
                 (void *)start);
        return NULL;
    }
    if (check_not_forked(caller)) return NULL;
    Block *block = block_at(&arena->live, start);
    if (!block || size > block->start + block->size - start) {
        sim_fail(ACL_ERROR_RT_PARAM_INVALID,
                 "%s: %zu bytes at %p are not inside a live device allocation%s", caller, size,
                 (void *)start, block ? " (they reach past its end)" : "");
        return NULL;
    }
    return (void *)(start - arena->base + arena->mirror);
}

EXPORT void *sim_bytes(const void *pointer, size_t size, const char *caller) {
    pthread_mutex_lock(&lock);
    void *found = locate((uintptr_t)pointer, size, caller);
    pthread_mutex_unlock(&lock);
    return found;
}

/* --- pinned host memory -------------------------------------------------------------------- */

EXPORT aclError aclrtMallocHost(void **pointer, size_t size) {
    if (size == 0) return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtMallocHost: 0 bytes");
    if (posix_memalign(pointer, PAGE, size) != 0)
        return sim_fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "no %zu bytes of host memory", size);
    if (sim_config.poison) memset(*pointer, 0x7f, size);
    pthread_mutex_lock(&lock);
    bool kept = insert(&pinned, (uintptr_t)*pointer, size);
    pthread_mutex_unlock(&lock);
    if (kept) return ACL_SUCCESS;
    free(*pointer);
    return sim_fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "no memory to note a pinned block");
}

EXPORT aclError aclrtFreeHost(void *pointer) {
    pthread_mutex_lock(&lock);
    Block *block = block_at(&pinned, (uintptr_t)pointer);
    bool known = block && block->start == (uintptr_t)pointer;
    if (known) erase(&pinned, block);
    pthread_mutex_unlock(&lock);
    if (!known)
        return sim_fail(ACL_ERROR_RT_PARAM_INVALID,
                        "aclrtFreeHost: %p is not the start of a live pinned block", pointer);
    free(pointer);
    return ACL_SUCCESS;
}

typedef struct {
    uint32_t device;
    int32_t kind; /* 0 pinned host, 1 device, 2 unregistered host */
    uint32_t page_size;
    uint32_t reserved[4];
} PointerAttributes;

EXPORT aclError aclrtPointerGetAttributes(const void *pointer, PointerAttributes *attributes) {
    memset(attributes, 0, sizeof *attributes);
    pthread_mutex_lock(&lock);
    Arena *arena = arena_of((uintptr_t)pointer);
    if (arena) attributes->device = (uint32_t)(arena - arenas);
    bool is_pinned = block_at(&pinned, (uintptr_t)pointer) != NULL;
    pthread_mutex_unlock(&lock);
    attributes->kind = arena ? 1 : is_pinned ? 0 : 2;
    attributes->page_size = PAGE;
    return ACL_SUCCESS;
}

/* --- copies -------------------------------------------------------------------------------- */

static const char *const DIRECTIONS[] = {"host to host", "host to device", "device to host",
                                         "device to device"};

/* The host's view of one side of a copy; NULL with the error recorded. */
static void *side(const void *pointer, size_t size, bool on_device) {
    if (on_device) return sim_bytes(pointer, size, "aclrtMemcpy");
    if (pointer) return (void *)(uintptr_t)pointer;
    sim_fail(ACL_ERROR_RT_PARAM_INVALID, "aclrtMemcpy: a null host address");
    return NULL;
}

EXPORT aclError aclrtMemcpy(void *to, size_t room, const void *from, size_t size, int kind) {
    if (size == 0) return ACL_SUCCESS;
    if (room < size)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtMemcpy: %zu bytes into room for %zu", size,
                        room);
    bool to_device = arena_of((uintptr_t)to) != NULL;
    bool from_device = arena_of((uintptr_t)from) != NULL;
    int direction = from_device * 2 + to_device;
    if (kind >= 0 && kind <= 3 && kind != direction)
        return sim_fail(ACL_ERROR_RT_PARAM_INVALID,
                        "aclrtMemcpy: asked to copy %s, but the addresses are %s", DIRECTIONS[kind],
                        DIRECTIONS[direction]);
    void *target = side(to, size, to_device);
    void *source = target ? side(from, size, from_device) : NULL;
    if (!source) return ACL_ERROR_RT_PARAM_INVALID;
    memmove(target, source, size);
    sim_note_copy(direction, size);
    return ACL_SUCCESS;
}

EXPORT aclError aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t size, int kind,
                                 aclrtStream stream) {
    (void)stream;
    return aclrtMemcpy(to, room, from, size, kind);
}

EXPORT aclError aclrtMemset(void *pointer, size_t room, int32_t value, size_t size) {
    if (room < size)
        return sim_fail(ACL_ERROR_INVALID_PARAM, "aclrtMemset: %zu bytes into room for %zu", size,
                        room);
    void *target = sim_bytes(pointer, size, "aclrtMemset");
    if (!target) return ACL_ERROR_RT_PARAM_INVALID;
    memset(target, value, size);
    return ACL_SUCCESS;
}

EXPORT aclError aclrtMemsetAsync(void *pointer, size_t room, int32_t value, size_t size,
                                 aclrtStream stream) {
    (void)stream;
    return aclrtMemset(pointer, room, value, size);
}
