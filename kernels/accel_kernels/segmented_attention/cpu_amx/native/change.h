// Probabilities of 6 query rows and a panel of 64 keys, and the gradient of their scores.
#ifndef ACCEL_CHANGE_H
#define ACCEL_CHANGE_H

#include <math.h>

#include "call.h"
#include "crew.h"
#include "dropout.h"
#include "scores.h"
#include "visible.h"

enum { BACKWARD_ROWS = 16 * STRIP };

struct backward {
    const struct call *call;
    struct visible seen;
    double *lse;              // [batch][heads][queries], in base 2
    float *delta;             // [batch][heads][queries]
    float *grad_query;        // [batch][heads][blocks][BACKWARD_ROWS][padded]
    atomic_long *added;       // [batch][heads][blocks]: last block of keys that was added, or -1
    long key_block, key_blocks, delta_tasks;
    long steps, value_steps, padded, value_padded;
    struct shape shape;
};

// One thread's block of keys, and the tile it is at.
struct tile {
    uint32_t *keys, *values;              // [panels][steps][PANEL], lined up along their width
    uint32_t *key_rows;                   // [panels][PANEL / PAIR][padded], along the rows
    float *grad_key, *grad_value;         // [key_block][padded], [key_block][value_padded]
    uint32_t *query, *grad_out;           // [rows][steps], [rows][value_steps]
    uint32_t *query_rows, *grad_out_rows; // [rows / PAIR][padded], along the rows
    uint32_t *weights, *changes;          // [rows / PAIR][PANEL], along the rows
    uint32_t *change_rows;                // [rows][PANEL / PAIR]; of float32 the same
    float *kept, *kept_tanh;              // [STRIP][PANEL]: probabilities, tanh of the soft cap
    float *grad_query;                    // [rows][padded]
    float *lse, *lse_rest, *delta;        // [rows]
    uint64_t *bits;                       // [rows]: what they see, if masked
    long batch, head, row, rows;          // first row; how many
    float slope;
    int keys_wrong, query_wrong, grad_out_wrong;  // something is not finite
};

static size_t carve_tile(const struct backward *job, char *at, struct tile *tile) {
    const char *start = at;
    const long rows = BACKWARD_ROWS, panels = job->key_block / PANEL;
    tile->keys = carve(&at, panels * job->steps * PANEL * 4);
    tile->values = carve(&at, panels * job->value_steps * PANEL * 4);
    tile->key_rows = carve(&at, panels * (PANEL / PAIR) * job->padded * 4);
    tile->grad_key = carve(&at, job->key_block * job->padded * 4);
    tile->grad_value = carve(&at, job->key_block * job->value_padded * 4);
    tile->query = carve(&at, rows * job->steps * 4);
    tile->grad_out = carve(&at, rows * job->value_steps * 4);
    tile->query_rows = carve(&at, rows / PAIR * job->padded * 4);
    tile->grad_out_rows = carve(&at, rows / PAIR * job->value_padded * 4);
    tile->weights = carve(&at, rows / PAIR * PANEL * 4);
    tile->changes = carve(&at, rows / PAIR * PANEL * 4);
    tile->change_rows = PAIR == 1 ? tile->changes : carve(&at, rows * (PANEL / PAIR) * 4);
    tile->kept = carve(&at, STRIP * PANEL * 4);
    tile->kept_tanh = carve(&at, STRIP * PANEL * 4);
    tile->grad_query = carve(&at, rows * job->padded * 4);
    tile->lse = carve(&at, rows * 4);
    tile->lse_rest = carve(&at, rows * 4);
    tile->delta = carve(&at, rows * 4);
    tile->bits = carve(&at, rows * 8);
    return (size_t)(at - start);
}

#ifdef ACCEL_FLOAT32
INLINE void store_pairs(uint32_t *to, long first, f32x16 x[STRIP][COLUMNS]) {
    UNROLL for (int r = 0; r < STRIP; r++) store_panel(to + (first + r) * PANEL, x[r]);
}
#else
// Two rows of 16 columns, as words of a number of each.
INLINE __m512i paired(f32x16 even, f32x16 odd) {
    const __m512i order = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4,
        19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

INLINE void store_pairs(uint32_t *to, long first, f32x16 x[STRIP][COLUMNS]) {
    UNROLL for (int r = 0; r < STRIP; r += 2)
        UNROLL for (int c = 0; c < COLUMNS; c++)
            _mm512_storeu_si512(to + (first + r) / 2 * PANEL + c * LANES,
                                paired(x[r][c], x[r + 1][c]));
}
#endif

// Probabilities of 6 rows and a panel, and what its products must change by.
INLINE void change(const struct backward *job, const struct tile *tile, long first, long panel,
                   long key, int variant) {
    f32x16 x[STRIP][COLUMNS];
    const uint64_t *bits = tile->bits + first;
    uint64_t kept[STRIP];
    const f32x16 factor = _mm512_set1_ps((float)job->call->dropout.factor);
    clear(x);
    multiply(STRIP, COLUMNS, job->steps, tile->query + first * job->steps, job->steps, 1,
             tile->keys + panel * job->steps * PANEL, PANEL, x);
    UNROLL for (int r = 0; r < STRIP; r++) {
        if (variant & DROPPED)
            kept[r] = kept_bits(&job->call->dropout, tile->batch, tile->head,
                                tile->row + first + r, key);
        const f32x16 lse = _mm512_set1_ps(tile->lse[first + r]);
        const f32x16 lse_rest = _mm512_set1_ps(tile->lse_rest[first + r]);
        UNROLL for (int c = 0; c < COLUMNS; c++) {
            f32x16 score, tanh = _mm512_setzero_ps();
            if (variant & SHAPED) {
                score = _mm512_sub_ps(shaped(&job->shape, tile->slope, x[r][c],
                                             tile->row + first + r, key + c * LANES, &tanh), lse);
                _mm512_storeu_ps(tile->kept_tanh + r * PANEL + c * LANES, tanh);
            } else score = _mm512_sub_ps(scaled(&job->shape, x[r][c], lse), lse_rest);
            x[r][c] = exp2_of(score);
            if (variant & MASKED)
                x[r][c] = _mm512_maskz_mov_ps((__mmask16)(bits[r] >> (c * LANES)), x[r][c]);
            _mm512_storeu_ps(tile->kept + r * PANEL + c * LANES, x[r][c]);
            if (variant & DROPPED)
                x[r][c] = _mm512_maskz_mul_ps((__mmask16)(kept[r] >> (c * LANES)), x[r][c], factor);
        }
    }
    store_pairs(tile->weights, first, x);
    clear(x);
    multiply(STRIP, COLUMNS, job->value_steps, tile->grad_out + first * job->value_steps,
             job->value_steps, 1, tile->values + panel * job->value_steps * PANEL, PANEL, x);
    UNROLL for (int r = 0; r < STRIP; r++) {
        const f32x16 delta = _mm512_set1_ps(tile->delta[first + r]);
        UNROLL for (int c = 0; c < COLUMNS; c++) {
            if (variant & DROPPED)
                x[r][c] = _mm512_maskz_mul_ps((__mmask16)(kept[r] >> (c * LANES)), x[r][c], factor);
            const f32x16 p = _mm512_loadu_ps(tile->kept + r * PANEL + c * LANES);
            x[r][c] = _mm512_mul_ps(p, _mm512_sub_ps(x[r][c], delta));
            if (variant & SHAPED) {
                const f32x16 tanh = _mm512_loadu_ps(tile->kept_tanh + r * PANEL + c * LANES);
                const f32x16 slope = _mm512_fnmadd_ps(tanh, tanh, _mm512_set1_ps(1.0f));
                x[r][c] = _mm512_mul_ps(x[r][c], slope);
            }
            if (variant & MASKED)
                x[r][c] = _mm512_maskz_mov_ps((__mmask16)(bits[r] >> (c * LANES)), x[r][c]);
        }
        if (PAIR > 1) store_panel(tile->change_rows + (first + r) * (PANEL / PAIR), x[r]);
    }
    store_pairs(tile->changes, first, x);
}

#define CHANGE(name, variant)                                                                     \
    static void name(const struct backward *job, const struct tile *tile, long first, long panel, \
                     long key) {                                                                  \
        change(job, tile, first, panel, key, variant);                                            \
    }
CHANGE(change_plain, PLAIN)
CHANGE(change_masked, MASKED)
CHANGE(change_shaped, SHAPED)
CHANGE(change_shaped_masked, SHAPED | MASKED)
CHANGE(change_dropped, DROPPED)
CHANGE(change_dropped_masked, DROPPED | MASKED)
CHANGE(change_dropped_shaped, DROPPED | SHAPED)
CHANGE(change_dropped_shaped_masked, DROPPED | SHAPED | MASKED)
static void (*const change_variants[])(const struct backward *, const struct tile *, long, long,
                                       long) = {
    change_plain, change_masked, change_shaped, change_shaped_masked,
    change_dropped, change_dropped_masked, change_dropped_shaped, change_dropped_shaped_masked};

#endif
