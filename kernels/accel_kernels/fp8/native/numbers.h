// Floating-point numbers as bits, and the widening of 16 bits to float32.
#ifndef ACCEL_NUMBERS_H
#define ACCEL_NUMBERS_H

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum { FLOAT32, BFLOAT16, FLOAT16 };  // as numbered in native.py

#define MAGNITUDE 0x7fffffffu
#define INFINITE 0x7f800000u

INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

INLINE float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// a if it is 1, b if 0; not a branch, which would keep a loop from being done in vectors.
INLINE uint32_t pick(uint32_t is_first, uint32_t a, uint32_t b) {
    return b ^ ((a ^ b) & -is_first);
}

// Without a step through subnormals, which a thread may have switched off.
INLINE float float_of_half(uint32_t half) {
    const uint32_t size = (half & 0x7fff) << 13, sign = (half & 0x8000) << 16;
    const float least = float_of(113u << 23);
    const uint32_t normal = size + (112u << 23);
    const uint32_t small = bits_of(float_of(size + (113u << 23)) - least);
    uint32_t bits = size < (1u << 23) ? small : normal;
    bits = size >= (31u << 23) ? size + (224u << 23) : bits;
    return float_of(bits | sign);
}

INLINE float number(int kind, const void *data, long at) {
    if (kind == FLOAT32) return ((const float *)data)[at];
    const uint32_t word = ((const uint16_t *)data)[at];
    return kind == BFLOAT16 ? float_of(word << 16) : float_of_half(word);
}

// Of its magnitude if that is finite, else 0. Ordered as the magnitudes are.
INLINE uint32_t finite_size(int kind, const void *data, long at) {
    const uint32_t word =
        kind == FLOAT32 ? ((const uint32_t *)data)[at] : ((const uint16_t *)data)[at];
    const uint32_t size = word & (kind == FLOAT32 ? MAGNITUDE : 0x7fff);
    const uint32_t limit = kind == FLOAT32 ? INFINITE : kind == BFLOAT16 ? 0x7f80 : 0x7c00;
    return size & -(uint32_t)(size < limit);
}

INLINE uint32_t bits_of_size(int kind, uint32_t size) {
    return kind == FLOAT32 ? size : kind == BFLOAT16 ? size << 16 : bits_of(float_of_half(size));
}

#endif
