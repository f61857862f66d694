// Output and log-sum-exp: an online softmax over panels of 64 keys, by blocks of query rows.
#ifndef ACCEL_FORWARD_H
#define ACCEL_FORWARD_H

#include "pack.h"
#include "weigh.h"

enum { PANELS_AT_ONCE = 2, FEW_BLOCKS = 16 };

// A panel of keys and values that is read.
struct panel {
    const uint32_t *keys, *values;
    long first;
    int kind, values_wrong;
};

static size_t forward_block(const struct forward *job, char *at, struct forward_block *block) {
    const char *start = at;
    const long rows = FORWARD_ROWS, own = job->keys ? 0 : PANEL;
    block->total = carve(&at, rows * job->value_padded * 4);
    block->sums = carve(&at, rows * LANES * 4);
    block->weights = carve(&at, STRIP * (PANEL / PAIR) * 4);
    block->shift = carve(&at, rows * 4);
    block->limit = carve(&at, rows * 4);
    block->query = carve(&at, rows * job->steps * 4);
    block->keys = carve(&at, own * job->steps * 4);
    block->values = carve(&at, own / PAIR * job->value_padded * 4);
    return (size_t)(at - start);
}

// Returns whether a value is not finite.
static int pack_panel(const struct forward *job, long b, long h, long p, uint32_t *keys,
                      uint32_t *values) {
    const struct call *call = job->call;
    const long first = p * PANEL, count = at_most(PANEL, call->keys - first);
    pack_transposed(keys, row_of(&call->key, b, h, first), call->key.row, count, call->width);
    return pack_pairs(values, job->value_padded, PANEL, row_of(&call->value, b, h, first),
                      call->value.row, count, call->value_width);
}

static void forward_pack(void *given, char *scratch, long index) {
    const struct forward *job = given;
    const struct call *call = job->call;
    const long groups = (job->panels + PANELS_AT_ONCE - 1) / PANELS_AT_ONCE;
    const long head = index / groups, first = index % groups * PANELS_AT_ONCE;
    (void)scratch;
    for (long p = first; p < at_most(first + PANELS_AT_ONCE, job->panels); p++) {
        const long at = head * job->panels + p;
        job->values_wrong[at] =
            (char)pack_panel(job, head / call->key_heads, head % call->key_heads, p,
                             job->keys + at * job->steps * PANEL,
                             job->values + at * job->value_padded * (PANEL / PAIR));
    }
}

// Whether a panel of values is as products read it.
INLINE int values_lie_ready(const struct forward *job, long p) {
    const struct call *call = job->call;
    return PAIR == 1 && (p + 1) * PANEL <= call->keys && call->value_width == job->value_padded &&
           call->value.row == job->value_padded;
}

// Ask for a panel of rows that will be read next; beyond the end it does nothing.
INLINE void fetch_rows(const number *rows, long stride, long width) {
    for (long r = 0; r < PANEL; r++)
        for (long d = 0; d < width; d += 64 / (long)sizeof(number))
            _mm_prefetch((const char *)(rows + r * stride + d), _MM_HINT_T0);
}

static struct panel panel_of(const struct forward *job, const struct forward_block *block, long b,
                             long h, long p, int kind) {
    struct panel panel = {block->keys, block->values, p * PANEL, kind, 0};
    if (job->keys) {
        const long at = (b * job->call->key_heads + h) * job->panels + p;
        panel.keys = job->keys + at * job->steps * PANEL;
        panel.values = job->values + at * job->value_padded * (PANEL / PAIR);
        panel.values_wrong = job->values_wrong[at];
    } else if (kind == FULL && values_lie_ready(job, p)) {
        // Whether these are finite matters only where some are not seen.
        const number *keys = row_of(&job->call->key, b, h, p * PANEL);
        const number *values = row_of(&job->call->value, b, h, p * PANEL);
        fetch_rows(keys + PANEL * job->call->key.row, job->call->key.row, job->call->width);
        fetch_rows(values + PANEL * job->call->value.row, job->call->value.row,
                   job->call->value_width);
        pack_transposed(block->keys, keys, job->call->key.row, PANEL, job->call->width);
        panel.values = (const uint32_t *)values;
    } else panel.values_wrong = pack_panel(job, b, h, p, block->keys, block->values);
    return panel;
}

// Only what is seen is multiplied: 0 * NaN would be NaN.
static void add_selected(const struct forward_block *block, long first, long rows,
                         const uint32_t *values, long width, const uint64_t *bits) {
    const number *weights = (const number *)block->weights;
    for (long r = 0; r < rows; r++) {
        struct chosen chosen = {0};
        for (uint64_t left = bits[r]; left; left &= left - 1) {
            const long k = __builtin_ctzll(left);
            choose(&chosen, k, weights[r * PANEL + k]);
        }
        add_chosen(&chosen, values, block->total + (first + r) * width, width);
    }
}

// One panel of keys for all rows of a block.
static void forward_panel(const struct forward *job, const struct forward_block *block, long rows,
                          const struct panel *panel) {
    const int variant = variant_of(&job->shape, job->call), partial = panel->kind == PARTIAL;
    long strip = STRIP;
    for (long first = 0; first < rows; first += strip) {
        const int narrow = rows - first <= 2 * NARROW;  // a strip has no other work than its rows
        strip = narrow ? NARROW : STRIP;
        uint64_t bits[STRIP], some = 0, every = ~UINT64_C(0);
        for (long r = 0; partial && r < strip; r++) {
            bits[r] = row_bits(&job->seen, block->batch, block->head, block->row + first + r,
                               panel->first);
            some |= bits[r];
            every &= bits[r];
        }
        if (partial && !some) continue;
        const int masked = partial && ~every;
        weigh_variants[narrow][variant | (masked ? MASKED : PLAIN)](
            job, block, first, panel->keys, panel->first, bits);
        float *total = block->total + first * job->value_padded;
        if (masked && panel->values_wrong)
            add_selected(block, first, strip, panel->values, job->value_padded, bits);
        else if (narrow)
            add_columns(NARROW, PANEL / PAIR, block->weights, PANEL / PAIR, 1, panel->values, total,
                        job->value_padded);
        else
            add_rows(PANEL / PAIR, block->weights, PANEL / PAIR, panel->values, total,
                     job->value_padded);
    }
}

static void forward_write(const struct forward *job, const struct forward_block *block, long b,
                          long h, long rows) {
    const struct call *call = job->call;
    const long row = block->row;
    const float kept = call->dropout.factor != 0.0 ? (float)call->dropout.factor : 1.0f;
    float *lse = call->lse + (b * call->heads + h) * call->queries + row;
    for (long r = 0; r < rows; r++) {
        const float sum = _mm512_reduce_add_ps(_mm512_loadu_ps(block->sums + r * LANES));
        const int none = block->limit[r] == -INFINITY && sum == 0.0f;
        lse[r] = none ? -INFINITY : (float)(block->shift[r] / LOG2E + log((double)sum));
        store_row(row_of(&call->out, b, h, row + r), block->total + r * job->value_padded,
                  call->value_width, none ? 0.0f : kept / sum);
    }
}

// A row's state over a split of the keys: its total, then its sum, shift and limit.
INLINE float *part_of(const struct forward *job, long split, long head, long row) {
    const long heads = job->call->batch * job->call->heads;
    return job->parts + ((split * heads + head) * PART_ROWS + row) * (job->value_padded + 3);
}

static void keep_part(const struct forward *job, const struct forward_block *block, long split,
                      long head, long rows) {
    const long width = job->value_padded;
    for (long r = 0; r < rows; r++) {
        float *part = part_of(job, split, head, r);
        for (long d = 0; d < width; d++) part[d] = block->total[r * width + d];
        part[width] = _mm512_reduce_add_ps(_mm512_loadu_ps(block->sums + r * LANES));
        part[width + 1] = block->shift[r];
        part[width + 2] = block->limit[r];
    }
}

// Merge the states of a head's rows, in the order of the splits.
static void forward_merge(void *given, char *scratch, long head) {
    const struct forward *job = given;
    const struct call *call = job->call;
    const long rows = call->queries, width = job->value_padded;
    struct forward_block block;
    forward_block(job, scratch, &block);
    block.row = 0;
    for (long r = 0; r < rows; r++) {
        float *total = block.total + r * width, *sums = block.sums + r * LANES;
        float most = -INFINITY;
        for (long s = 0; s < job->splits; s++) {
            const float *part = part_of(job, s, head, r) + width;
            if (part[2] != -INFINITY && !(part[1] <= most)) most = part[1];
        }
        for (long d = 0; d < width; d++) total[d] = 0.0f;
        for (long d = 0; d < LANES; d++) sums[d] = 0.0f;
        for (long s = 0; s < job->splits; s++) {
            const float *part = part_of(job, s, head, r);
            // Then there is nothing in it, or NaN.
            const int nothing = part[width + 2] == -INFINITY;
            const float factor = nothing ? 1.0f : exp2f(part[width + 1] - most);
            for (long d = 0; d < width; d++) total[d] += factor * part[d];
            sums[0] += factor * part[width];
        }
        block.limit[r] = most;
        block.shift[r] = most == -INFINITY ? 0.0f : most;
    }
    forward_write(job, &block, head / call->heads, head % call->heads, rows);
}

static void forward_rows(void *given, char *scratch, long index) {
    const struct forward *job = given;
    const struct call *call = job->call;
    const long heads = call->batch * call->heads, head = index % heads;
    const long split = index / heads % job->splits;
    // With a causal mask the last rows see most: they come first.
    const long i = job->seen.blocks - 1 - index / heads / job->splits, row = i * job->seen.rows;
    const long end = at_most((split + 1) * job->split_panels, job->panels);
    const long b = head / call->heads, h = head % call->heads;
    const long h_kv = h / (call->heads / call->key_heads);
    const long rows = at_most(job->seen.rows, call->queries - row);
    struct forward_block block;
    forward_block(job, scratch, &block);
    block.row = row;
    block.batch = b;
    block.head = h;
    block.slope = slope_of(&job->shape, b, h, call->heads);
    const long used = rounded_up(rows, STRIP);
    for (long n = 0; n < used * job->value_padded; n++) block.total[n] = 0.0f;
    for (long n = 0; n < used * LANES; n++) block.sums[n] = 0.0f;
    for (long n = 0; n < used; n++) block.shift[n] = 0.0f, block.limit[n] = -INFINITY;
    pack_rows(block.query, job->steps, used, row_of(&call->query, b, h, row),
              call->query.row, rows, call->width);
    for (long p = split * job->split_panels; p < end; p++) {
        const int kind = block_kind(&job->seen, b, i, p * PANEL, (p + 1) * PANEL);
        if (kind == EMPTY) continue;
        const struct panel panel = panel_of(job, &block, b, h_kv, p, kind);
        forward_panel(job, &block, rows, &panel);
    }
    if (job->splits > 1) keep_part(job, &block, split, head, rows);
    else forward_write(job, &block, b, h, rows);
}

#endif
