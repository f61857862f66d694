// Vectors of 16 words, and the products that everything here is made of.
//
// `vdpbf16ps` adds, in each of 16 lanes, two products of bfloat16 to a float32: the two of a word.
// A word of float32 is one factor. One operand is read a word at a time and broadcast, the other 16
// words at a time ("lined up").
#ifndef ACCEL_VECTOR_H
#define ACCEL_VECTOR_H

#include <immintrin.h>
#include <math.h>
#include <stddef.h>

#include "call.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef __m512 f32x16;

// 6 x 4 vectors of sums, 4 of the operand that is lined up and a broadcast: 29 of 32 registers.
enum { LANES = 16, STRIP = 6, COLUMNS = 4, PANEL = COLUMNS * LANES };

INLINE long at_most(long a, long b) { return a < b ? a : b; }
INLINE long rounded_up(long a, long unit) { return (a + unit - 1) / unit * unit; }

INLINE long words_of(long numbers) { return (numbers + PAIR - 1) / PAIR; }

INLINE __mmask16 first_lanes(long count) {
    return (__mmask16)(count >= LANES ? 0xffff : (1u << count) - 1);
}

INLINE __m512i broadcast(const uint32_t *word) { return _mm512_set1_epi32((int)*word); }

INLINE __m512i lined_up(const uint32_t *words) { return _mm512_loadu_si512(words); }

// sum + products of the words' numbers.
INLINE f32x16 add_products(f32x16 sum, __m512i a, __m512i b) {
#ifdef ACCEL_FLOAT32
    return _mm512_fmadd_ps((f32x16)a, (f32x16)b, sum);
#else
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#endif
}

// Words of `64 / PAIR`: 64 numbers that follow one another, rounded to nearest even.
INLINE void store_panel(uint32_t *to, const f32x16 x[4]) {
#ifdef ACCEL_FLOAT32
    UNROLL for (int c = 0; c < 4; c++) _mm512_storeu_ps(to + c * 16, x[c]);
#else
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(x[1], x[0]));
    _mm512_storeu_si512(to + 16, (__m512i)_mm512_cvtne2ps_pbh(x[3], x[2]));
#endif
}

// 2^x to 1e-7: 2^f by a polynomial of degree 5 on [-1/2, 1/2], least in the largest relative error,
// then the exponent. 0 below 2^-126; x must be less than 127.
INLINE f32x16 exp2_of(f32x16 x) {
    const f32x16 magic = _mm512_set1_ps(12582912.0f);  // 1.5 * 2^23: leaves the integer below
    const f32x16 shifted = _mm512_add_ps(x, magic);
    const f32x16 f = _mm512_sub_ps(x, _mm512_sub_ps(shifted, magic));
    f32x16 y = _mm512_set1_ps(0x1.5c08e4p-10f);
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0x1.3d0c52p-7f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0x1.c6b6e4p-5f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0x1.ebf918p-3f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0x1.62e428p-1f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f));
    const __m512i exponent = _mm512_slli_epi32((__m512i)shifted, 23);
    // Not `below`, so that NaN stays NaN.
    const __mmask16 kept = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
    return (f32x16)_mm512_maskz_add_epi32(kept, (__m512i)y, exponent);
}

INLINE void clear(f32x16 sums[STRIP][COLUMNS]) {
    UNROLL for (int r = 0; r < STRIP; r++)
        UNROLL for (int c = 0; c < COLUMNS; c++) sums[r][c] = _mm512_setzero_ps();
}

// sums[r][c] += sum over k of a[r * row + k * step] * b[k * width + 16 c], in ascending order of k.
INLINE void multiply(int rows, int columns, long steps, const uint32_t *a, long row, long step,
                     const uint32_t *b, long width, f32x16 sums[STRIP][COLUMNS]) {
    for (long k = 0; k < steps; k++) {
        __m512i line[COLUMNS];
        UNROLL for (int c = 0; c < columns; c++) line[c] = lined_up(b + k * width + c * LANES);
        UNROLL for (int r = 0; r < rows; r++) {
            const __m512i one = broadcast(a + r * row + k * step);
            UNROLL for (int c = 0; c < columns; c++)
                sums[r][c] = add_products(sums[r][c], one, line[c]);
        }
    }
}

// Products are summed before they are added: of many short sums the error grows less than of a
// long one.
INLINE void add_block(int rows, int columns, long steps, const uint32_t *a, long row, long step,
                      const uint32_t *b, float *sum, long width) {
    f32x16 sums[STRIP][COLUMNS];
    clear(sums);
    multiply(rows, columns, steps, a, row, step, b, width, sums);
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < columns; c++) {
            float *to = sum + r * width + c * LANES;
            _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), sums[r][c]));
        }
}

INLINE void add_columns(int rows, long steps, const uint32_t *a, long row, long step,
                        const uint32_t *b, float *sum, long width) {
    long done = 0;
    for (; done + PANEL <= width; done += PANEL)
        add_block(rows, 4, steps, a, row, step, b + done, sum + done, width);
    switch ((width - done) / LANES) {
        case 3: add_block(rows, 3, steps, a, row, step, b + done, sum + done, width); break;
        case 2: add_block(rows, 2, steps, a, row, step, b + done, sum + done, width); break;
        case 1: add_block(rows, 1, steps, a, row, step, b + done, sum + done, width); break;
        default: break;
    }
}

// sum[6][width] += a[6][steps] * b[steps][width]; `a` by rows of `row` words, `b` lined up.
static void add_rows(long steps, const uint32_t *a, long row, const uint32_t *b, float *sum,
                     long width) {
    add_columns(STRIP, steps, a, row, 1, b, sum, width);
}

// sum[PANEL][width] += a[steps][PANEL] transposed * b[steps][width]; both lined up.
static void add_transposed(long steps, const uint32_t *a, const uint32_t *b, float *sum,
                           long width) {
    enum { REST = PANEL % STRIP };
    long r = 0;
    for (; r + STRIP <= PANEL; r += STRIP)
        add_columns(STRIP, steps, a + r, 1, PANEL, b, sum + r * width, width);
    add_columns(REST, steps, a + r, 1, PANEL, b, sum + r * width, width);
}

INLINE float widened(number x) {
#ifdef ACCEL_FLOAT32
    return x;
#else
    union { uint32_t bits; float value; } wide = {(uint32_t)x << 16};
    return wide.value;
#endif
}

// Up to 16 numbers of a row; zeros for the others.
INLINE f32x16 load_numbers(const number *from, __mmask16 some) {
#ifdef ACCEL_FLOAT32
    return _mm512_maskz_loadu_ps(some, from);
#else
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, from));
    return (f32x16)_mm512_slli_epi32(wide, 16);
#endif
}

// Rows of what is lined up and their factors, where others must not be multiplied by zero.
struct chosen {
    long count, row[96];
    float factor[96];
};

INLINE void choose(struct chosen *chosen, long row, number factor) {
    chosen->row[chosen->count] = row;
    chosen->factor[chosen->count++] = widened(factor);
}

// sum[d] += sum of factors times rows, in their order, as `add_block` does it.
static void add_chosen(const struct chosen *chosen, const uint32_t *b, float *sum, long width) {
    for (long d = 0; d < width; d++) {
        float total = 0.0f;
        for (long i = 0; i < chosen->count; i++) {
            const long row = chosen->row[i];
            const number *from = (const number *)(b + row / PAIR * width + d) + row % PAIR;
            total = fmaf(chosen->factor[i], widened(*from), total);
        }
        sum[d] += total;
    }
}

// Write float32 as numbers, multiplied by a factor.
static void store_row(number *to, const float *from, long width, float factor) {
    for (long d = 0; d < width; d += LANES) {
        const f32x16 x = _mm512_mul_ps(_mm512_loadu_ps(from + d), _mm512_set1_ps(factor));
        const __mmask16 some = first_lanes(width - d);
#ifdef ACCEL_FLOAT32
        _mm512_mask_storeu_ps(to + d, some, x);
#else
        _mm256_mask_storeu_epi16(to + d, some, (__m256i)_mm512_cvtneps_pbh(x));
#endif
    }
}

#endif
