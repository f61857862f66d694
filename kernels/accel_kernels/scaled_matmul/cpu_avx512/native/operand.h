// A matrix in eight bits, as Python hands it over, and its decoding to bfloat16.
#ifndef ACCEL_OPERAND_H
#define ACCEL_OPERAND_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

enum { LANES = 16, CODES = 32 };

struct operand {
    const uint8_t *codes;  // [rows, K]
    int64_t rows, stride;
    const uint16_t *values;  // bfloat16 of each code
    const float *scales;     // [blocks of rows, scale_stride]
    int64_t high, scale_stride;
    const int16_t *shifts;  // powers of two that values are multiplied by; NULL: none
    int64_t shift_stride, shift_wide;
};

// The table of all 256 codes in registers.
struct table {
    __m512i part[8];
};

INLINE struct table load_table(const uint16_t *values) {
    struct table table;
    UNROLL for (int i = 0; i < 8; i++) table.part[i] = _mm512_loadu_si512(values + 32 * i);
    return table;
}

INLINE __m512i decoded(const struct table *table, __m256i codes) {
    const __m512i *part = table->part, at = _mm512_cvtepu8_epi16(codes);
    const __mmask32 second = _mm512_test_epi16_mask(at, _mm512_set1_epi16(64));
    const __mmask32 negative = _mm512_test_epi16_mask(at, _mm512_set1_epi16(128));
    __m512i low = _mm512_permutex2var_epi16(part[0], at, part[1]);
    __m512i high = _mm512_permutex2var_epi16(part[4], at, part[5]);
    low = _mm512_mask_mov_epi16(low, second, _mm512_permutex2var_epi16(part[2], at, part[3]));
    high = _mm512_mask_mov_epi16(high, second, _mm512_permutex2var_epi16(part[6], at, part[7]));
    return _mm512_mask_mov_epi16(low, negative, high);
}

// Times a power of two: adds to the exponents of all but zeros, infinities and NaN.
INLINE __m512i shifted(__m512i values, int16_t exponent) {
    const __m512i all = _mm512_set1_epi16(0x7f80), none = _mm512_setzero_si512();
    const __m512i there = _mm512_and_si512(values, all);
    const __mmask32 mask = _mm512_cmpneq_epi16_mask(there, none) &
                           _mm512_cmpneq_epi16_mask(there, all);
    return _mm512_mask_add_epi16(values, mask, values,
                                 _mm512_set1_epi16((int16_t)(exponent * 128)));
}

// Codes `at` to `at + count` of a row, at most 32 of them, as bfloat16; then zeros.
INLINE __m512i values_at(const struct operand *x, const struct table *table, long row, long at,
                         long count) {
    const __mmask32 mask = count >= CODES ? 0xffffffffu : count > 0 ? (1u << count) - 1 : 0;
    const __m256i codes = _mm256_maskz_loadu_epi8(mask, x->codes + row * x->stride + at);
    const __m512i values = _mm512_maskz_mov_epi16(mask, decoded(table, codes));
    if (!x->shifts) return values;
    return shifted(values, x->shifts[row / x->high * x->shift_stride + at / x->shift_wide]);
}

#endif
