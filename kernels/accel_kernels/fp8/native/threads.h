// Numbered tasks on several threads; which thread does a task does not matter to its result.
#ifndef ACCEL_THREADS_H
#define ACCEL_THREADS_H

#include <stdatomic.h>

#include "team.h"

struct tasks {
    void (*run)(const void *job, long index);
    const void *job;
    long count;
    atomic_long next;
};

static void take_tasks(void *given) {
    struct tasks *tasks = given;
    long index;
    while ((index = atomic_fetch_add(&tasks->next, 1)) < tasks->count)
        tasks->run(tasks->job, index);
}

static void run_tasks(void (*run)(const void *, long), const void *job, long count, long threads) {
    struct tasks tasks = {.run = run, .job = job, .count = count};
    atomic_init(&tasks.next, 0);
    run_team(take_tasks, &tasks, threads > count ? count : threads);
}

#endif
