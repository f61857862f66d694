// Numbered tasks on several threads; which thread does a task does not matter to its result.
#ifndef ACCEL_THREADS_H
#define ACCEL_THREADS_H

#include <pthread.h>
#include <stdatomic.h>

enum { MOST_THREADS = 256 };

struct tasks {
    void (*run)(const void *job, long index);
    const void *job;
    long count;
    atomic_long next;
};

static void *take_tasks(void *given) {
    struct tasks *tasks = given;
    long index;
    while ((index = atomic_fetch_add(&tasks->next, 1)) < tasks->count)
        tasks->run(tasks->job, index);
    return NULL;
}

// Fewer threads than asked for only take longer.
static void run_tasks(void (*run)(const void *, long), const void *job, long count, long threads) {
    struct tasks tasks = {.run = run, .job = job, .count = count};
    pthread_t others[MOST_THREADS];
    long started = 0;
    atomic_init(&tasks.next, 0);
    if (threads > count) threads = count;
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    while (started < threads - 1 && !pthread_create(others + started, NULL, take_tasks, &tasks))
        started++;
    take_tasks(&tasks);
    for (long i = 0; i < started; i++) pthread_join(others[i], NULL);
}

#endif
