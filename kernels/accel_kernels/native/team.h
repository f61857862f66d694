// The same function on several threads at once, the caller's among them.
#ifndef ACCEL_TEAM_H
#define ACCEL_TEAM_H

#include <pthread.h>
#include <stddef.h>

enum { MOST_THREADS = 256 };

typedef void starter(void (*)(void *), void *, unsigned, unsigned);

// GOMP_parallel of torch's OpenMP runtime, whose threads are there already and, in the first
// milliseconds after an operator of torch, awake and on a core of their own. NULL: new threads.
static starter *team;

__attribute__((visibility("default"))) void accel_use_team(starter *found) { team = found; }

struct member {
    void (*run)(void *);
    void *data;
};

static void *be_member(void *given) {
    struct member *member = given;
    member->run(member->data);
    return NULL;
}

// Fewer threads than asked for may come, so none must wait for another to begin.
static void run_team(void (*run)(void *), void *data, long threads) {
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    if (threads < 2) {
        run(data);
    } else if (team) {
        team(run, data, (unsigned)threads, 0);
    } else {
        struct member member = {run, data};
        pthread_t others[MOST_THREADS];
        long started = 0;
        while (started < threads - 1 &&
               !pthread_create(others + started, NULL, be_member, &member))
            started++;
        run(data);
        for (long i = 0; i < started; i++) pthread_join(others[i], NULL);
    }
}

#endif
