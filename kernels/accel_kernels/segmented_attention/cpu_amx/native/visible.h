// Which keys a query sees: every key, those up to a diagonal, or row intervals; and of these, where
// there is a dense mask, those that it allows.
#ifndef ACCEL_VISIBLE_H
#define ACCEL_VISIBLE_H

#include "call.h"
#include "vector.h"

enum { EVERYTHING, CAUSAL, INTERVALS };
enum { EMPTY, PARTIAL, FULL };

// What is seen by some row of a block, [low, high), and by each, [inner_low, inner_high).
struct hull {
    long low, high, inner_low, inner_high;
};

struct visible {
    long kind, count, batch, queries, keys;  // `count` intervals a row, `batch` entries: B or 1
    const int32_t *bounds;                   // [count][2][batch][queries]
    struct dense dense;
    long rows, blocks;                       // rows of a block, blocks of a batch entry
    struct hull *hulls;                      // [batch][blocks][count]
};

INLINE long entry_of(const struct visible *seen, long b) { return seen->batch > 1 ? b : 0; }

INLINE void row_interval(const struct visible *seen, long b, long k, long row, long *low,
                         long *high) {
    *low = 0;
    *high = seen->keys;
    if (seen->kind == CAUSAL) {
        const long last = row + seen->keys - seen->queries + 1;
        *high = last < 0 ? 0 : at_most(last, seen->keys);
    } else if (seen->kind == INTERVALS) {
        const long plane = seen->batch * seen->queries;
        const int32_t *at = seen->bounds + 2 * k * plane + entry_of(seen, b) * seen->queries + row;
        *low = at[0];
        *high = at[plane];
    }
}

static uint64_t dense_bits(const struct dense *dense, long b, long h, long row, long first,
                           long count) {
    const uint8_t *at = (const uint8_t *)dense->data + b * dense->batch + h * dense->head +
                        row * dense->row + first * dense->key;
    if (!dense->key) return *at ? ~UINT64_C(0) : 0;
    const __m512i allowed =
        _mm512_maskz_loadu_epi8(~UINT64_C(0) >> (PANEL - at_most(count, PANEL)), at);
    return _mm512_test_epi8_mask(allowed, allowed);
}

// Bit j: the row sees key `first + j`. A row beyond the last sees nothing.
static uint64_t row_bits(const struct visible *seen, long b, long h, long row, long first) {
    uint64_t bits = 0;
    if (row >= seen->queries) return 0;
    for (long k = 0; k < seen->count; k++) {
        long low, high;
        row_interval(seen, b, k, row, &low, &high);
        low = low < first ? 0 : low - first;
        high = at_most(high - first, PANEL);
        if (high > low) bits |= (~UINT64_C(0) >> (PANEL - high)) & (~UINT64_C(0) << low);
    }
    if (bits && seen->dense.data)
        bits &= dense_bits(&seen->dense, b, h, row, first, seen->keys - first);
    return bits;
}

static void find_hulls(struct visible *seen) {
    for (long b = 0; b < seen->batch; b++)
        for (long block = 0; block < seen->blocks; block++)
            for (long k = 0; k < seen->count; k++) {
                struct hull found = {INT64_MAX, 0, 0, INT64_MAX};
                const long end = at_most((block + 1) * seen->rows, seen->queries);
                for (long row = block * seen->rows; row < end; row++) {
                    long low, high;
                    row_interval(seen, b, k, row, &low, &high);
                    if (low < high) {
                        found.low = at_most(found.low, low);
                        found.high = found.high > high ? found.high : high;
                    }
                    found.inner_low = found.inner_low > low ? found.inner_low : low;
                    found.inner_high = at_most(found.inner_high, high);
                }
                seen->hulls[(b * seen->blocks + block) * seen->count + k] = found;
            }
}

// Whether a block of rows sees none, some or all of the keys from `first` up to `end`.
static int block_kind(const struct visible *seen, long b, long block, long first, long end) {
    const struct hull *hull =
        seen->hulls + (entry_of(seen, b) * seen->blocks + block) * seen->count;
    int kind = EMPTY;
    for (long k = 0; k < seen->count; k++) {
        if (hull[k].inner_low <= first && hull[k].inner_high >= end)
            return seen->dense.data ? PARTIAL : FULL;
        if (hull[k].low < end && hull[k].high > first) kind = PARTIAL;
    }
    return kind;
}

#endif
