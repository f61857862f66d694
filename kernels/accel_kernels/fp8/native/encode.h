// float32 to eight bits, saturating; rules and constants are those of bits.py.
#ifndef ACCEL_ENCODE_H
#define ACCEL_ENCODE_H

#include "numbers.h"

enum { E4M3, E5M2, HIF8 };  // as numbered in native.py

INLINE uint32_t minifloat_code(float x, int width, int bias, uint32_t top) {
    const uint32_t bits = bits_of(x), size = bits & MAGNITUDE;
    const int cut = 23 - width;
    const uint32_t rounded = size + ((1u << (cut - 1)) - 1) + ((size >> cut) & 1);
    const uint32_t normal = (rounded >> cut) - ((uint32_t)(127 - bias) << width);
    const float magic = float_of((uint32_t)(128 + cut - bias) << 23);
    const uint32_t small = bits_of(float_of(size) + magic) - bits_of(magic);
    uint32_t code = size < ((uint32_t)(128 - bias) << 23) ? small : normal;
    code = code > top ? top : code;
    code = size > INFINITE ? 0x7f : code;
    return code | ((bits >> 24) & 0x80);
}

INLINE uint32_t hif8_width(int32_t exponent) {
    const int32_t far = exponent < 0 ? -exponent : exponent;
    return pick(exponent < -15, 0, 3u - (far > 3) - (far > 7));
}

INLINE uint32_t hif8_code(float x) {
    const uint32_t bits = bits_of(x), size = bits & MAGNITUDE;
    const uint32_t cut = 23 - hif8_width((int32_t)(size >> 23) - 127);
    const uint32_t rounded = size + (1u << (cut - 1));
    const int32_t exponent = (int32_t)(rounded >> 23) - 127;
    const uint32_t far = (uint32_t)(exponent < 0 ? -exponent : exponent);
    const uint32_t negative = exponent < 0;
    const uint32_t mantissa = ((rounded >> 20) & 7) >> (3 - hif8_width(exponent));
    uint32_t code = 0x60 | negative << 4 | (far & 7) << 1;
    code = pick(far < 8, 0x40 | negative << 4 | (far & 3) << 2, code);
    code = pick(far < 4, 0x20 | negative << 4 | (far & 1) << 3, code);
    code = pick(far < 2, 0x10 | negative << 3, code);
    code = pick(far < 1, 0x08, code) | mantissa;
    code = pick(exponent < -15, pick(exponent < -22, 1, (uint32_t)(exponent + 23)), code);
    code = pick(size < (104u << 23), 0, code);
    code = pick((exponent > 15) | (code == 0x6f), 0x6e, code);
    code = pick(code == 0, 0, code | ((bits >> 24) & 0x80));
    return pick(size > INFINITE, 0x80, code);
}

INLINE uint32_t code_of(int format, float x) {
    if (format == HIF8) return hif8_code(x);
    return format == E4M3 ? minifloat_code(x, 3, 7, 0x7e) : minifloat_code(x, 2, 15, 0x7b);
}

#endif
