// From products of queries and keys to scores in base 2: scale, soft cap, linear bias.
#ifndef ACCEL_SCORES_H
#define ACCEL_SCORES_H

#include "call.h"
#include "vector.h"

static const double LOG2E = 1.4426950408889634;

// What a strip of rows needs besides the plain `scale * product`.
enum { PLAIN = 0, MASKED = 1, SHAPED = 2, DROPPED = 4 };

struct shape {
    float scale;         // of base-2 scores
    float inner, cap;    // tanh(inner * product) * cap instead, if cap is not 0
    const float *slopes; // [batch or 1][heads], or NULL
    long slope_batch, place;
};

static struct shape shape_of(const struct call *call) {
    struct shape shape = {.scale = (float)(call->scale * LOG2E), .slopes = call->slopes};
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

INLINE f32x16 tanh_of(f32x16 x) {
    const f32x16 one = _mm512_set1_ps(1.0f), steep = _mm512_set1_ps((float)(-2.0 * LOG2E));
    const f32x16 e = exp2_of(_mm512_mul_ps(_mm512_abs_ps(x), steep));
    const f32x16 y = _mm512_div_ps(_mm512_sub_ps(one, e), _mm512_add_ps(one, e));
    const __m512i sign = _mm512_and_si512((__m512i)x, _mm512_set1_epi32((int)0x80000000u));
    return (f32x16)_mm512_or_si512((__m512i)y, sign);
}

// The score of one row and 16 keys from `key` on. slope: in base 2. *tanh: for the derivative.
INLINE f32x16 shaped(const struct shape *shape, float slope, f32x16 product, long row, long key,
                     f32x16 *tanh) {
    f32x16 score = _mm512_mul_ps(product, _mm512_set1_ps(shape->scale));
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
