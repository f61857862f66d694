// What is done to each element of a tile of logits, on CPUs with AVX-512: one reading of the tile.
//
// The same bits for any number of threads: sums are taken in one order.
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>

#include "threads.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define EXPORT __attribute__((visibility("default")))

enum { LANES = 16, VECTORS = 8, STRIP = VECTORS * LANES, ROWS = 16 };

struct tile {
    float *logits;  // [rows, columns], overwritten
    int64_t rows, columns, threads;
    float shift;
    const float *row_factors, *column_factors;
    float *row_sums, *column_sums;
    float *partial;      // [strips, rows]
    double *row_totals;  // [rows]
};

// exp(x) to about one unit in the last place; 0 and infinity where float32 ends, NaN of NaN.
INLINE __m512 exponential(__m512 x) {
    // The second operand of min and max is what comes out for NaN.
    x = _mm512_max_ps(_mm512_set1_ps(-110.0f), _mm512_min_ps(_mm512_set1_ps(100.0f), x));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p+0f)), 8);
    // ln 2 in two parts, of which the first times n is exact (Cody and Waite).
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.62e400p-1f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.7f7d1cp-20f), r);
    // Taylor's series: what is left out is below 6e-9 for |r| up to ln(2) / 2.
    __m512 p = _mm512_set1_ps(1.0f / 5040);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

INLINE __mmask16 lanes(int64_t left) {
    return left >= LANES ? 0xffff : left > 0 ? (__mmask16)((1u << left) - 1) : 0;
}

// A strip of columns, all rows: its column sums, and its part of the row sums.
static void sum_strip(const void *given, long strip) {
    const struct tile *tile = given;
    const int64_t first = strip * STRIP, left = tile->columns - first;
    const __m512 shift = _mm512_set1_ps(tile->shift);
    __m512 total[VECTORS];
    __mmask16 mask[VECTORS];
    UNROLL for (int v = 0; v < VECTORS; v++) {
        mask[v] = lanes(left - v * LANES);
        total[v] = _mm512_setzero_ps();
    }
    for (int64_t start = 0; start < tile->rows; start += ROWS) {
        const int64_t end = start + ROWS < tile->rows ? start + ROWS : tile->rows;
        __m512 sum[VECTORS]; // of few rows: a long sum loses digits
        UNROLL for (int v = 0; v < VECTORS; v++) sum[v] = _mm512_setzero_ps();
        for (int64_t r = start; r < end; r++) {
            const float *at = tile->logits + r * tile->columns + first;
            __m512 row = _mm512_setzero_ps();
            UNROLL for (int v = 0; v < VECTORS; v++) {
                const __m512 z = _mm512_maskz_loadu_ps(mask[v], at + v * LANES);
                const __m512 e =
                    _mm512_maskz_mov_ps(mask[v], exponential(_mm512_sub_ps(z, shift)));
                sum[v] = _mm512_add_ps(sum[v], e);
                row = _mm512_add_ps(row, e);
            }
            tile->partial[strip * tile->rows + r] = _mm512_reduce_add_ps(row);
        }
        UNROLL for (int v = 0; v < VECTORS; v++) total[v] = _mm512_add_ps(total[v], sum[v]);
    }
    UNROLL for (int v = 0; v < VECTORS; v++) {
        float *to = tile->column_sums + first + v * LANES;
        const __m512 before = _mm512_maskz_loadu_ps(mask[v], to);
        _mm512_mask_storeu_ps(to, mask[v], _mm512_add_ps(before, total[v]));
    }
}

// Adds to row_sums [rows] and column_sums [columns]. Returns -1 if there is no memory.
EXPORT int accel_exp_sums(struct tile *tile) {
    const long strips = (tile->columns + STRIP - 1) / STRIP;
    tile->partial = malloc((size_t)(strips * tile->rows + 1) * sizeof(float));
    if (!tile->partial) return -1;
    run_tasks(sum_strip, tile, strips, tile->threads);
    for (int64_t r = 0; r < tile->rows; r++) {
        float sum = 0.0f;
        for (long s = 0; s < strips; s++) sum += tile->partial[s * tile->rows + r];
        tile->row_sums[r] += sum;
    }
    free(tile->partial);
    return 0;
}

static void weigh_rows(const void *given, long block) {
    const struct tile *tile = given;
    const __m512 shift = _mm512_set1_ps(tile->shift);
    const int64_t end = (block + 1) * ROWS < tile->rows ? (block + 1) * ROWS : tile->rows;
    for (int64_t r = block * ROWS; r < end; r++) {
        float *at = tile->logits + r * tile->columns;
        const __m512 row = _mm512_set1_ps(tile->row_factors[r]);
        for (int64_t c = 0; c < tile->columns; c += LANES) {
            const __mmask16 mask = lanes(tile->columns - c);
            const __m512 z = _mm512_maskz_loadu_ps(mask, at + c);
            const __m512 factor =
                _mm512_add_ps(row, _mm512_maskz_loadu_ps(mask, tile->column_factors + c));
            const __m512 e = exponential(_mm512_sub_ps(z, shift));
            _mm512_mask_storeu_ps(at + c, mask, _mm512_mul_ps(e, factor));
        }
    }
}

// Replaces logits by exp(logits - shift) * (row_factors[r] + column_factors[c]).
EXPORT void accel_weigh(const struct tile *tile) {
    run_tasks(weigh_rows, tile, (tile->rows + ROWS - 1) / ROWS, tile->threads);
}

// log(1 + t) for t from 0 to 1 is 2 atanh(s) with s = t / (2 + t), at most 1/3: a series in s^2.
INLINE __m512 twice_atanh(__m512 s) {
    const __m512 q = _mm512_mul_ps(s, s);
    __m512 p = _mm512_set1_ps(2.0f / 15);
    p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(2.0f / 13));
    p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(2.0f / 11));
    p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(2.0f / 9));
    p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(2.0f / 7));
    p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(2.0f / 5));
    p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(2.0f / 3));
    p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(2.0f));
    return _mm512_mul_ps(p, s);
}

static void softplus_rows(const void *given, long block) {
    const struct tile *tile = given;
    const __m512 one = _mm512_set1_ps(1.0f), two = _mm512_set1_ps(2.0f);
    const int64_t end = (block + 1) * ROWS < tile->rows ? (block + 1) * ROWS : tile->rows;
    for (int64_t r = block * ROWS; r < end; r++) {
        float *at = tile->logits + r * tile->columns;
        __m512 sum = _mm512_setzero_ps();
        for (int64_t c = 0; c < tile->columns; c += LANES) {
            const __mmask16 mask = lanes(tile->columns - c);
            const __m512 z = _mm512_maskz_loadu_ps(mask, at + c);
            const __m512 t = exponential(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(z)));
            const __m512 t1 = _mm512_add_ps(one, t), t2 = _mm512_add_ps(two, t);
            // One division for both 1 / (1 + t) and t / (2 + t).
            const __m512 inverse = _mm512_div_ps(one, _mm512_mul_ps(t1, t2));
            const __m512 upper = _mm512_mul_ps(inverse, t2); // the sigmoid of |z|
            const __mmask16 negative = _mm512_cmp_ps_mask(z, _mm512_setzero_ps(), _CMP_LT_OQ);
            const __m512 sigmoid = _mm512_mask_mul_ps(upper, negative, upper, t);
            const __m512 log1p = twice_atanh(_mm512_mul_ps(_mm512_mul_ps(t, t1), inverse));
            // NaN comes out of max as its second operand.
            const __m512 softplus =
                _mm512_add_ps(_mm512_max_ps(_mm512_setzero_ps(), z), log1p);
            sum = _mm512_mask_add_ps(sum, mask, sum, softplus);
            _mm512_mask_storeu_ps(at + c, mask, sigmoid);
        }
        tile->row_totals[r] = (double)_mm512_reduce_add_ps(sum);
    }
}

// Replaces logits by their sigmoid; total is the sum of their softplus. Returns -1 if there is no
// memory.
EXPORT int accel_softplus_sum(struct tile *tile, double *total) {
    tile->row_totals = malloc((size_t)(tile->rows + 1) * sizeof(double));
    if (!tile->row_totals) return -1;
    run_tasks(softplus_rows, tile, (tile->rows + ROWS - 1) / ROWS, tile->threads);
    *total = 0.0;
    for (int64_t r = 0; r < tile->rows; r++) *total += tile->row_totals[r];
    free(tile->row_totals);
    return 0;
}
