// Weights of the softmax for a strip of query rows, 6 or 2, and a panel of 64 keys.
//
// Scores of a strip and 64 keys stay in registers until they are weights. A row's shift is not its
// running maximum but at most 8 (in base 2) below it: weights up to 2^8 are as exact as those up to
// 1, and sums are rescaled only when a row's maximum has outgrown that, which is rare (the idea of
// FlashAttention-4).
#ifndef ACCEL_WEIGH_H
#define ACCEL_WEIGH_H

#include <math.h>

#include "call.h"
#include "crew.h"
#include "dropout.h"
#include "scores.h"
#include "visible.h"

enum { FORWARD_ROWS = 16 * STRIP, PART_ROWS = FORWARD_ROWS / 3, NARROW = 2 };
static const float SLACK = 8.0f;

struct forward {
    const struct call *call;
    struct visible seen;
    // [batch][key_heads][panels], packed, if more than a few blocks of rows share them; else NULL.
    uint32_t *keys, *values;
    char *values_wrong;       // of each panel: something is not finite
    long panels, steps, value_padded;
    // Few rows against many keys: tasks of `split_panels` panels, whose states are merged.
    long splits, split_panels;
    float *parts;             // [splits][batch][heads][PART_ROWS][value_padded + 3]: see `part_of`
    struct shape shape;
};

// One thread's block of rows.
struct forward_block {
    uint32_t *query;          // [FORWARD_ROWS][steps]
    float *total;             // [FORWARD_ROWS][value_padded]
    float *sums;              // [FORWARD_ROWS][LANES]
    float *shift, *limit;     // [FORWARD_ROWS]; limit: -inf where nothing was seen
    uint32_t *weights;        // [STRIP][PANEL / PAIR]
    uint32_t *keys, *values;  // a packed panel of its own
    float slope;
    long batch, head, row;    // first row
};

static void multiply_row(float *row, long width, float factor) {
    for (long d = 0; d < width; d += LANES)
        _mm512_storeu_ps(row + d, _mm512_mul_ps(_mm512_loadu_ps(row + d), _mm512_set1_ps(factor)));
}

INLINE f32x16 greatest(const f32x16 s[COLUMNS]) {
    return _mm512_max_ps(_mm512_max_ps(s[0], s[1]), _mm512_max_ps(s[2], s[3]));
}

// The row has met a score above its limit.
static __attribute__((noinline)) void raise_shift(const struct forward_block *block, long row,
                                                  long width, float most) {
    const float factor =
        block->limit[row] == -INFINITY ? 0.0f : exp2f(block->shift[row] - most);
    multiply_row(block->total + row * width, width, factor);
    multiply_row(block->sums + row * LANES, LANES, factor);
    block->shift[row] = most;
    block->limit[row] = most + SLACK;
}

// The weights of a strip and a panel; added to the rows' sums before dropout. bits[rows]: what the
// rows see, if masked.
INLINE void weigh(const struct forward *job, const struct forward_block *block, long first,
                  const uint32_t *keys, long key, const uint64_t *bits, int rows, int variant) {
    f32x16 s[STRIP][COLUMNS];
    unsigned above = 0;
    clear(s);
    multiply(rows, COLUMNS, job->steps, block->query + first * job->steps, job->steps, 1, keys,
             PANEL, s);
    const f32x16 none = _mm512_set1_ps(-INFINITY);
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int c = 0; c < COLUMNS; c++) {
            f32x16 unused;
            if (variant & SHAPED)
                s[r][c] = shaped(&job->shape, block->slope, s[r][c], block->row + first + r,
                                 key + c * LANES, &unused);
            else s[r][c] = scaled(&job->shape, s[r][c], _mm512_setzero_ps());
            if (variant & MASKED)
                s[r][c] = _mm512_mask_mov_ps(none, (__mmask16)(bits[r] >> (c * LANES)), s[r][c]);
        }
        const f32x16 limit = _mm512_set1_ps(block->limit[first + r]);
        above |= (unsigned)(_mm512_cmp_ps_mask(greatest(s[r]), limit, _CMP_GT_OQ) != 0) << r;
    }
    if (__builtin_expect(above != 0, 0)) {
        UNROLL for (int r = 0; r < rows; r++)
            if (above >> r & 1)
                raise_shift(block, first + r, job->value_padded,
                            _mm512_reduce_max_ps(greatest(s[r])));
    }
    UNROLL for (int r = 0; r < rows; r++) {
        const f32x16 shift = _mm512_set1_ps(block->shift[first + r]);
        UNROLL for (int c = 0; c < COLUMNS; c++) s[r][c] = exp2_of(_mm512_sub_ps(s[r][c], shift));
        float *sums = block->sums + (first + r) * LANES;
        const f32x16 sum =
            _mm512_add_ps(_mm512_add_ps(s[r][0], s[r][1]), _mm512_add_ps(s[r][2], s[r][3]));
        _mm512_storeu_ps(sums, _mm512_add_ps(_mm512_loadu_ps(sums), sum));
        if (variant & DROPPED) {
            const uint64_t kept = kept_bits(&job->call->dropout, block->batch, block->head,
                                            block->row + first + r, key);
            UNROLL for (int c = 0; c < COLUMNS; c++)
                s[r][c] = _mm512_maskz_mov_ps((__mmask16)(kept >> (c * LANES)), s[r][c]);
        }
        store_panel(block->weights + r * (PANEL / PAIR), s[r]);
    }
}

typedef void weigh_strip(const struct forward *, const struct forward_block *, long,
                         const uint32_t *, long, const uint64_t *);

#define WEIGH(name, variant)                                                                      \
    static void name(const struct forward *job, const struct forward_block *block, long first,    \
                     const uint32_t *keys, long key, const uint64_t *bits) {                      \
        weigh(job, block, first, keys, key, bits, STRIP, variant);                                \
    }                                                                                             \
    static void narrow_##name(const struct forward *job, const struct forward_block *block,       \
                              long first, const uint32_t *keys, long key, const uint64_t *bits) { \
        weigh(job, block, first, keys, key, bits, NARROW, variant);                               \
    }
WEIGH(weigh_plain, PLAIN)
WEIGH(weigh_masked, MASKED)
WEIGH(weigh_shaped, SHAPED)
WEIGH(weigh_shaped_masked, SHAPED | MASKED)
WEIGH(weigh_dropped, DROPPED)
WEIGH(weigh_dropped_masked, DROPPED | MASKED)
WEIGH(weigh_dropped_shaped, DROPPED | SHAPED)
WEIGH(weigh_dropped_shaped_masked, DROPPED | SHAPED | MASKED)
#undef WEIGH
#define VARIANTS(prefix)                                                                          \
    {prefix##plain,   prefix##masked,         prefix##shaped,         prefix##shaped_masked,      \
     prefix##dropped, prefix##dropped_masked, prefix##dropped_shaped, prefix##dropped_shaped_masked}
static weigh_strip *const weigh_variants[2][8] = {VARIANTS(weigh_), VARIANTS(narrow_weigh_)};
#undef VARIANTS

#endif
