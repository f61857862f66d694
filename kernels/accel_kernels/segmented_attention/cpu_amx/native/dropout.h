// Which probabilities dropout keeps: Philox4x32-10 at logical positions, as in philox.py.
#ifndef ACCEL_DROPOUT_H
#define ACCEL_DROPOUT_H

#include "call.h"
#include "vector.h"

enum { ROUNDS = 10 };
static const uint32_t MULTIPLIERS[] = {0xD2511F53u, 0xCD9E8D57u};
static const uint32_t KEY_STEPS[] = {0x9E3779B9u, 0xBB67AE85u};

struct wide {
    __m512i low, high;
};

INLINE struct wide product(__m512i x, uint32_t factor) {
    const __m512i by = _mm512_set1_epi64(factor);
    const __m512i even = _mm512_mul_epu32(x, by);
    const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), by);
    const struct wide both = {
        _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32)),
        _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd)};
    return both;
}

// The words of 16 blocks from `block` on: words[w] holds the w-th of each.
INLINE void random_words(uint64_t block, uint64_t seed, __m512i words[4]) {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    __m512i c0 = _mm512_add_epi32(_mm512_set1_epi32((int)(uint32_t)block), lanes);
    const __mmask16 carried = _mm512_cmplt_epu32_mask(c0, lanes);
    __m512i c1 = _mm512_set1_epi32((int)(uint32_t)(block >> 32));
    c1 = _mm512_mask_add_epi32(c1, carried, c1, _mm512_set1_epi32(1));
    __m512i c2 = _mm512_setzero_si512(), c3 = c2;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < ROUNDS; round++) {
        const struct wide first = product(c0, MULTIPLIERS[0]), second = product(c2, MULTIPLIERS[1]);
        const __m512i key0 = _mm512_set1_epi32((int)k0), key1 = _mm512_set1_epi32((int)k1);
        c0 = _mm512_xor_si512(_mm512_xor_si512(second.high, c1), key0);
        c2 = _mm512_xor_si512(_mm512_xor_si512(first.high, c3), key1);
        c1 = second.low;
        c3 = first.low;
        k0 += KEY_STEPS[0];
        k1 += KEY_STEPS[1];
    }
    words[0] = c0;
    words[1] = c1;
    words[2] = c2;
    words[3] = c3;
}

// Bit 4 i + w: word w of block i, of 16 blocks, is kept.
static uint64_t kept_words(const struct dropout *dropout, uint64_t block) {
    const __m512i threshold = _mm512_set1_epi32((int)(uint32_t)dropout->threshold);
    __m512i words[4];
    uint64_t kept = 0;
    if (dropout->threshold > UINT32_MAX) return 0;
    random_words(block, (uint64_t)dropout->seed, words);
    for (int w = 0; w < 4; w++)
        kept |= _pdep_u64(_mm512_cmpge_epu32_mask(words[w], threshold),
                          UINT64_C(0x1111111111111111) << w);
    return kept;
}

// Bit j: the probability of this row and key `key + j` is kept.
static uint64_t kept_bits(const struct dropout *dropout, long b, long h, long row, long key) {
    const uint64_t line = (uint64_t)(((b + dropout->batch) * dropout->heads + h + dropout->head) *
                                         dropout->queries + row + dropout->row);
    const uint64_t start = line * (uint64_t)dropout->keys + (uint64_t)(key + dropout->key);
    const unsigned skipped = start % 4;
    const uint64_t kept = kept_words(dropout, start / 4) >> skipped;
    if (!skipped) return kept;
    return kept | kept_words(dropout, start / 4 + LANES) << (PANEL - skipped);
}

#endif
