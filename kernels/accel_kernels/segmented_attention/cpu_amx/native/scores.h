// From products of queries and keys to scores in base 2: scale, soft cap, linear bias.
#ifndef ACCEL_SCORES_H
#define ACCEL_SCORES_H

#include "call.h"
#include "vector.h"

static const double LOG2E = 1.4426950408889634;

// What a strip of rows needs besides the plain `scale * product`.
enum { PLAIN = 0, MASKED = 1, SHAPED = 2, DROPPED = 4 };

struct shape {
    float scale, rest;   // of base-2 scores; what float32 leaves of the exact scale
    float inner, cap;    // tanh(inner * product) * cap instead, if cap is not 0
    const float *slopes; // [batch or 1][heads], or NULL
    long slope_batch, place;
};

static struct shape shape_of(const struct call *call) {
    struct shape shape = {.scale = (float)(call->scale * LOG2E), .slopes = call->slopes};
    shape.rest = PAIR == 1 ? (float)(call->scale * LOG2E - shape.scale) : 0.0f;
    if (call->softcap != 0.0) {
        shape.inner = (float)(call->scale / call->softcap);
        shape.cap = (float)(call->softcap * LOG2E);
    }
    shape.slope_batch = call->slope_batch;
    shape.place = call->place;
    return shape;
}

INLINE int variant_of(const struct shape *shape, const struct call *call) {
    return (shape->cap != 0.0f || shape->slopes ? SHAPED : PLAIN) |
           (call->dropout.factor != 0.0 ? DROPPED : PLAIN);
}

// In base 2, for one head.
static float slope_of(const struct shape *shape, long batch, long head, long heads) {
    if (!shape->slopes) return 0.0f;
    return (float)(shape->slopes[(shape->slope_batch > 1 ? batch : 0) * heads + head] * LOG2E);
}

// Up to 1/2 by an odd polynomial, least in the largest relative error: what follows would leave of
// small numbers only multiples of 6e-8, and a large cap would make errors of scores of them.
INLINE f32x16 tanh_of(f32x16 x) {
    const f32x16 one = _mm512_set1_ps(1.0f), steep = _mm512_set1_ps((float)(-2.0 * LOG2E));
    const f32x16 size = _mm512_abs_ps(x), square = _mm512_mul_ps(x, x);
    f32x16 small = _mm512_set1_ps(0x1.1abca4p-6f);
    small = _mm512_fmadd_ps(small, square, _mm512_set1_ps(-0x1.b29c02p-5f));
    small = _mm512_fmadd_ps(small, square, _mm512_set1_ps(0x1.10ea8cp-3f));
    small = _mm512_fmadd_ps(small, square, _mm512_set1_ps(-0x1.5554dap-2f));
    small = _mm512_fmadd_ps(small, _mm512_mul_ps(square, x), x);
    const f32x16 e = exp2_of(_mm512_mul_ps(size, steep));
    const f32x16 y = _mm512_div_ps(_mm512_sub_ps(one, e), _mm512_add_ps(one, e));
    const __m512i sign = _mm512_and_si512((__m512i)x, _mm512_set1_epi32((int)0x80000000u));
    const f32x16 large = (f32x16)_mm512_or_si512((__m512i)y, sign);
    const __mmask16 is_small = _mm512_cmp_ps_mask(size, _mm512_set1_ps(0.5f), _CMP_LE_OQ);
    return _mm512_mask_mov_ps(large, is_small, small);
}

// `scale * product - less`; of float32 with the exact scale, whose rounding would count where
// scores are hundreds.
INLINE f32x16 scaled(const struct shape *shape, f32x16 product, f32x16 less) {
    const f32x16 found = _mm512_fmsub_ps(product, _mm512_set1_ps(shape->scale), less);
    if (PAIR > 1) return found;
    enum { INFINITE = 0x18 };  // of which a part is no number
    const __mmask16 known = _knot_mask16(_mm512_fpclass_ps_mask(product, INFINITE));
    return _mm512_mask3_fmadd_ps(product, _mm512_set1_ps(shape->rest), found, known);
}

// The score of one row and 16 keys from `key` on. slope: in base 2. *tanh: for the derivative.
INLINE f32x16 shaped(const struct shape *shape, float slope, f32x16 product, long row, long key,
                     f32x16 *tanh) {
    f32x16 score = scaled(shape, product, _mm512_setzero_ps());
    if (shape->cap != 0.0f) {
        *tanh = tanh_of(_mm512_mul_ps(product, _mm512_set1_ps(shape->inner)));
        score = _mm512_mul_ps(*tanh, _mm512_set1_ps(shape->cap));
    }
    if (shape->slopes) {
        const __m512i lanes =
            _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        const int apart = (int)(row + shape->place - key);
        const __m512i distance =
            _mm512_abs_epi32(_mm512_sub_epi32(_mm512_set1_epi32(apart), lanes));
        score = _mm512_fnmadd_ps(_mm512_set1_ps(slope), _mm512_cvtepi32_ps(distance), score);
    }
    return score;
}

#endif
