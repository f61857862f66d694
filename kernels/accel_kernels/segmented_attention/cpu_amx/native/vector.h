// Vectors of 16 float32 and of 32 bfloat16, and the products that everything here is made of.
//
// `vdpbf16ps` adds, in each of 16 lanes, two products of bfloat16 to a float32. So operands are
// held in words of two bfloat16 that follow one another along the summed dimension. One operand is
// read a word at a time and broadcast, the other 16 words at a time ("lined up").
#ifndef ACCEL_VECTOR_H
#define ACCEL_VECTOR_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef __m512 f32x16;

// 6 x 4 vectors of sums, 4 of the operand that is lined up and a broadcast: 29 of 32 registers.
enum { LANES = 16, STRIP = 6, COLUMNS = 4, PANEL = COLUMNS * LANES };

INLINE long at_most(long a, long b) { return a < b ? a : b; }
INLINE long rounded_up(long a, long unit) { return (a + unit - 1) / unit * unit; }

INLINE __mmask16 first_lanes(long count) {
    return (__mmask16)(count >= LANES ? 0xffff : (1u << count) - 1);
}

INLINE __m512bh broadcast(const uint32_t *word) {
    return (__m512bh)_mm512_set1_epi32((int)*word);
}

INLINE __m512bh lined_up(const uint32_t *words) { return (__m512bh)_mm512_loadu_si512(words); }

// 16 of `low`, then 16 of `high`, rounded to nearest even.
INLINE __m512i rounded(f32x16 low, f32x16 high) {
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
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
        __m512bh line[COLUMNS];
        UNROLL for (int c = 0; c < columns; c++) line[c] = lined_up(b + k * width + c * LANES);
        UNROLL for (int r = 0; r < rows; r++) {
            const __m512bh one = broadcast(a + r * row + k * step);
            UNROLL for (int c = 0; c < columns; c++)
                sums[r][c] = _mm512_dpbf16_ps(sums[r][c], one, line[c]);
        }
    }
}

INLINE void add_block(int rows, int columns, long steps, const uint32_t *a, long row, long step,
                      const uint32_t *b, float *sum, long width) {
    f32x16 sums[STRIP][COLUMNS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < columns; c++)
            sums[r][c] = _mm512_loadu_ps(sum + r * width + c * LANES);
    multiply(rows, columns, steps, a, row, step, b, width, sums);
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < columns; c++)
            _mm512_storeu_ps(sum + r * width + c * LANES, sums[r][c]);
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

// sum[6][width] += a[6][2 steps] * b[2 steps][width]; `a` by rows of `row` words, `b` lined up.
static void add_rows(long steps, const uint32_t *a, long row, const uint32_t *b, float *sum,
                     long width) {
    add_columns(STRIP, steps, a, row, 1, b, sum, width);
}

// sum[PANEL][width] += a[2 steps][PANEL] transposed * b[2 steps][width]; both lined up.
static void add_transposed(long steps, const uint32_t *a, const uint32_t *b, float *sum,
                           long width) {
    enum { REST = PANEL % STRIP };
    long r = 0;
    for (; r + STRIP <= PANEL; r += STRIP)
        add_columns(STRIP, steps, a + r, 1, PANEL, b, sum + r * width, width);
    add_columns(REST, steps, a + r, 1, PANEL, b, sum + r * width, width);
}

INLINE float widened(uint16_t number) {
    union { uint32_t bits; float value; } x = {(uint32_t)number << 16};
    return x.value;
}

// sum[d] += factor * row `k` of what is lined up; for what must not be multiplied by zero.
static void add_one(float factor, const uint32_t *b, long k, float *sum, long width) {
    const uint16_t *from = (const uint16_t *)(b + k / 2 * width) + k % 2;
    for (long d = 0; d < width; d++) sum[d] += factor * widened(from[2 * d]);
}

// Write float32 as bfloat16, multiplied by a factor.
static void store_row(uint16_t *to, const float *from, long width, float factor) {
    for (long d = 0; d < width; d += LANES) {
        const f32x16 x = _mm512_mul_ps(_mm512_loadu_ps(from + d), _mm512_set1_ps(factor));
        _mm256_mask_storeu_epi16(to + d, first_lanes(width - d), (__m256i)_mm512_cvtneps_pbh(x));
    }
}

#endif
