// Attention for bfloat16 or, with ACCEL_FLOAT32, float32 on CPUs with AVX512(-BF16), forward and
// backward, with sums in float32.
//
// The same bits for any number of threads and whatever else is in the batch: blocks have fixed
// sizes and every sum has one order. Tasks are blocks of query rows (forward) or of keys (backward)
// of one head, so that few heads use all cores too.
#include "backward.h"
#include "forward.h"

#define EXPORT __attribute__((visibility("default")))

static int see(struct visible *seen, const struct call *call, long rows) {
    seen->kind = call->kind;
    seen->count = call->intervals;
    seen->batch = call->mask_batch;
    seen->queries = call->queries;
    seen->keys = call->keys;
    seen->bounds = call->bounds;
    seen->dense = call->dense;
    seen->rows = rows;
    seen->blocks = (call->queries + rows - 1) / rows;
    seen->hulls = aligned((size_t)(seen->batch * seen->blocks * seen->count) * sizeof(struct hull));
    if (!seen->hulls) return -1;
    find_hulls(seen);
    return 0;
}

static void set_phase(struct phase *phase, void (*task)(void *, char *, long), long count) {
    phase->task = task;
    phase->count = count;
    atomic_init(&phase->next, 0);
    atomic_init(&phase->done, 0);
}

static int run_phases(void *job, size_t bytes, void (*first)(void *, char *, long), long firsts,
                      void (*second)(void *, char *, long), long seconds, long threads) {
    struct crew crew = {.job = job, .bytes = bytes};
    atomic_init(&crew.members, 0);
    set_phase(crew.phases, first, firsts);
    set_phase(crew.phases + 1, second, seconds);
    return run_crew(&crew, at_most(threads, firsts > seconds ? firsts : seconds));
}

static int forward_panels(struct forward *job, long panels) {
    job->keys = aligned((size_t)(panels * job->steps * PANEL) * 4);
    job->values = aligned((size_t)(panels * job->value_padded * (PANEL / PAIR)) * 4);
    job->values_wrong = aligned((size_t)panels);
    return job->keys && job->values && job->values_wrong ? 0 : -1;
}

// Few rows are one task a head, which many keys would keep busy alone. By lengths only, so that the
// bits depend on nothing else.
static void split_keys(struct forward *job) {
    enum { LEAST_PANELS = 32, MOST_SPLITS = 16 };
    const long most = job->panels / LEAST_PANELS;
    const int few = job->call->queries <= PART_ROWS && !job->keys;
    job->splits = few && most > 1 ? at_most(most, MOST_SPLITS) : 1;
    job->split_panels = (job->panels + job->splits - 1) / job->splits;
    job->splits = job->panels ? (job->panels + job->split_panels - 1) / job->split_panels : 1;
}

static int forward_phases(struct forward *job, long packs) {
    struct forward_block none;
    const size_t bytes = forward_block(job, NULL, &none);
    const struct call *call = job->call;
    const long heads = call->batch * call->heads, tasks = heads * job->seen.blocks * job->splits;
    if (job->splits == 1)
        return run_phases(job, bytes, forward_pack, packs, forward_rows, tasks, call->threads);
    const long states = job->splits * heads * PART_ROWS;
    job->parts = aligned((size_t)(states * (job->value_padded + 3)) * 4);
    if (!job->parts) return -1;
    return run_phases(job, bytes, forward_rows, tasks, forward_merge, heads, call->threads);
}

// Few blocks are halved, so that threads share them evenly; a row's numbers are the same in either.
static long rows_of_block(const struct call *call) {
    const long blocks = (call->queries + FORWARD_ROWS - 1) / FORWARD_ROWS;
    return call->batch * call->heads * blocks < FEW_BLOCKS ? FORWARD_ROWS / 2 : FORWARD_ROWS;
}

// Writes out and lse. Returns 0, or -1 if there is no memory for copies of keys and values.
EXPORT int accel_attention_forward(const struct call *call) {
    struct forward job = {.call = call, .shape = shape_of(call)};
    job.panels = (call->keys + PANEL - 1) / PANEL;
    job.steps = words_of(call->width);
    job.value_padded = rounded_up(call->value_width, LANES);
    const long heads = call->batch * call->key_heads;
    int failed = see(&job.seen, call, rows_of_block(call));
    const int shared = job.seen.blocks * (call->heads / call->key_heads) > 2;
    const long groups = shared ? (job.panels + PANELS_AT_ONCE - 1) / PANELS_AT_ONCE : 0;
    if (!failed && shared) failed = forward_panels(&job, heads * job.panels);
    split_keys(&job);
    if (!failed) failed = forward_phases(&job, heads * groups);
    free(job.parts);
    free(job.keys);
    free(job.values);
    free(job.values_wrong);
    free(job.seen.hulls);
    return failed ? -1 : 0;
}

// Keys of a block: what it keeps should fit into the second-level cache, beside the tile; and a few
// keys of one head should be work for two threads.
static long key_block(long widths, long keys) {
    const long most = widths <= 160 ? 256 : widths <= 320 ? 128 : PANEL;
    return keys <= 256 ? at_most(most, 128) : most;
}

// Writes grad_query, grad_key and grad_value. Returns 0, or -1 if there is no memory.
EXPORT int accel_attention_backward(const struct call *call) {
    struct backward job = {.call = call, .shape = shape_of(call)};
    struct tile none;
    job.steps = words_of(call->width);
    job.value_steps = words_of(call->value_width);
    job.padded = rounded_up(call->width, LANES);
    job.value_padded = rounded_up(call->value_width, LANES);
    job.key_block = key_block(job.padded + job.value_padded, call->keys);
    job.key_blocks = (call->keys + job.key_block - 1) / job.key_block;
    job.delta_tasks = (call->queries + DELTA_ROWS - 1) / DELTA_ROWS;
    int failed = see(&job.seen, call, BACKWARD_ROWS);
    const long heads = call->batch * call->heads, rows = heads * call->queries;
    const long blocks = heads * job.seen.blocks;
    job.lse = aligned((size_t)rows * 8);
    job.delta = aligned((size_t)rows * 4);
    job.grad_query = aligned((size_t)(blocks * BACKWARD_ROWS * job.padded) * 4);
    job.added = aligned((size_t)blocks * sizeof(atomic_long));
    failed = failed || !job.lse || !job.delta || !job.grad_query || !job.added;
    for (long n = 0; !failed && n < blocks; n++) atomic_init(job.added + n, -1);
    if (!failed)
        failed = run_phases(&job, carve_tile(&job, NULL, &none), backward_delta,
                            heads * job.delta_tasks, backward_keys,
                            call->batch * call->key_heads * job.key_blocks, call->threads);
    free(job.lse);
    free(job.delta);
    free(job.grad_query);
    free(job.added);
    free(job.seen.hulls);
    return failed ? -1 : 0;
}
