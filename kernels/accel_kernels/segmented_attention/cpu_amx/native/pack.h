// Rows of numbers in the order in which products read them, with zeros around.
#ifndef ACCEL_PACK_H
#define ACCEL_PACK_H

#include "vector.h"

#include "transpose.h" // uses macros of vector.h

INLINE int not_finite(__m512i words) {
#ifdef ACCEL_FLOAT32
    const __m512i exponent = _mm512_set1_epi32(0x7f800000);
    return _mm512_cmpeq_epi32_mask(_mm512_and_si512(words, exponent), exponent) != 0;
#else
    const __m512i exponent = _mm512_set1_epi16(0x7f80);
    return _mm512_cmpeq_epi16_mask(_mm512_and_si512(words, exponent), exponent) != 0;
#endif
}

// The next words of a row that has `count` numbers left.
INLINE __m512i row_words(const number *row, long count) {
#ifdef ACCEL_FLOAT32
    return _mm512_maskz_loadu_epi32(count > 0 ? first_lanes(count) : 0, row);
#else
    const __mmask32 mask = count >= 32 ? 0xffffffffu : count > 0 ? (1u << count) - 1 : 0;
    return _mm512_maskz_loadu_epi16(mask, row);
#endif
}

// `rows` rows of `words` words, of which `count` rows of `width` numbers are given.
static void pack_rows(uint32_t *to, long words, long rows, const number *from, long stride,
                      long count, long width) {
    for (long r = 0; r < rows; r++)
        for (long w = 0; w < words; w += LANES) {
            const __m512i x = r < count ? row_words(from + r * stride + PAIR * w, width - PAIR * w)
                                        : _mm512_setzero_si512();
            _mm512_mask_storeu_epi32(to + r * words + w, first_lanes(words - w), x);
        }
}

// Lined up along the rows: word [r / PAIR][d] is of row r (and r + 1). `padded`: a multiple of 16.
// Returns whether something is not finite.
static int pack_pairs(uint32_t *to, long padded, long rows, const number *from, long stride,
                      long count, long width) {
    int found = 0;
    for (long r = 0; r < rows; r += PAIR)
        for (long d = 0; d < padded; d += LANES) {
            const __mmask16 mask = d < width ? first_lanes(width - d) : 0;
            const number *row = from + r * stride + d;
            const __mmask16 low = r < count ? mask : 0;
#ifdef ACCEL_FLOAT32
            const __m512i both = _mm512_maskz_loadu_epi32(low, row);
#else
            const __mmask16 high = r + 1 < count ? mask : 0;
            const __m512i a = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(low, row));
            const __m512i b = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(high, row + stride));
            const __m512i both = _mm512_or_si512(a, _mm512_slli_epi32(b, 16));
#endif
            found |= not_finite(both);
            _mm512_storeu_si512(to + r / PAIR * padded + d, both);
        }
    return found;
}

// A panel of 64 rows lined up along their width: word [d / PAIR][r] is of column d (and d + 1).
static void pack_transposed(uint32_t *to, const number *from, long stride, long count,
                            long width) {
    const long steps = words_of(width);
    for (long r = 0; r < PANEL; r += LANES)
        for (long k = 0; k < steps; k += LANES) {
            __m512i x[LANES];
            UNROLL for (int i = 0; i < LANES; i++)
                x[i] = r + i >= count
                           ? _mm512_setzero_si512()
                           : row_words(from + (r + i) * stride + PAIR * k, width - PAIR * k);
            transpose(x);
            UNROLL for (int i = 0; i < LANES; i++)
                if (k + i < steps) _mm512_storeu_si512(to + (k + i) * PANEL + r, x[i]);
        }
}

#endif
