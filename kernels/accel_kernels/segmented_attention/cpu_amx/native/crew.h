// Threads that take numbered tasks in ascending order, phase by phase.
//
// Which thread does a task must not matter to its result. A task may wait for tasks of its phase
// with lower numbers: these were taken before, so somebody is at them.
#ifndef ACCEL_CREW_H
#define ACCEL_CREW_H

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "team.h"
#include "vector.h"

enum { MOST_PHASES = 2 };

struct phase {
    void (*task)(void *job, char *scratch, long index);
    long count;
    atomic_long next, done;
};

struct crew {
    void *job;
    struct phase phases[MOST_PHASES];
    char *scratch;
    size_t bytes;  // of one thread
    atomic_long members;
};

INLINE void pause_for(long *rounds) {
    if (++*rounds % 64) _mm_pause();
    else sched_yield();
}

static void work(void *given) {
    struct crew *crew = given;
    char *scratch = crew->scratch + crew->bytes * (size_t)atomic_fetch_add(&crew->members, 1);
    for (int p = 0; p < MOST_PHASES; p++) {
        struct phase *phase = crew->phases + p;
        long index, rounds = 0;
        while ((index = atomic_fetch_add(&phase->next, 1)) < phase->count) {
            phase->task(crew->job, scratch, index);
            atomic_fetch_add(&phase->done, 1);
        }
        while (atomic_load(&phase->done) < phase->count) pause_for(&rounds);
    }
}

static void *aligned(size_t bytes) { return aligned_alloc(64, (bytes + 64) / 64 * 64); }

// Take the next bytes of scratch memory.
static void *carve(char **at, long bytes) {
    void *here = *at;
    *at += rounded_up(bytes, 64);
    return here;
}

// Returns 0, or -1 if there is no memory. Fewer threads than asked for only take longer.
static int run_crew(struct crew *crew, long threads) {
    threads = threads < 1 ? 1 : at_most(threads, MOST_THREADS);
    crew->bytes = (size_t)rounded_up((long)crew->bytes, 4096);
    crew->scratch = aligned(crew->bytes * (size_t)threads);
    if (!crew->scratch) return -1;
    run_team(work, crew, threads);
    free(crew->scratch);
    return 0;
}

#endif
