/* Reductions of the stand-in HCCL: in the order of ranks, so that every run gives the same bits. */
#include "reduce.h"

#include <string.h>

#define BLOCK 512 /* elements at a time, so that partial results stay in the first cache */

static const struct {
    const char *name;
    uint8_t size, reduces;
} types[] = {
    [TYPE_INT8] = {"int8", 1, 1},
    [TYPE_INT16] = {"int16", 2, 1},
    [TYPE_INT32] = {"int32", 4, 1},
    [TYPE_FLOAT16] = {"float16", 2, 1},
    [TYPE_FLOAT32] = {"float32", 4, 1},
    [TYPE_INT64] = {"int64", 8, 1},
    [TYPE_UINT64] = {"uint64", 8, 1},
    [TYPE_UINT8] = {"uint8", 1, 1},
    [TYPE_UINT16] = {"uint16", 2, 0},
    [TYPE_UINT32] = {"uint32", 4, 0},
    [TYPE_FLOAT64] = {"float64", 8, 1},
    [TYPE_BFLOAT16] = {"bfloat16", 2, 1},
    [TYPE_INT128] = {"int128", 16, 0},
    [TYPE_HIFLOAT8] = {"hifloat8", 1, 0},
    [TYPE_FLOAT8_E4M3] = {"float8_e4m3", 1, 0},
    [TYPE_FLOAT8_E5M2] = {"float8_e5m2", 1, 0},
    [TYPE_FLOAT8_E8M0] = {"float8_e8m0", 1, 0},
};

static bool known(uint32_t dtype) {
    return dtype < sizeof types / sizeof *types && types[dtype].name;
}

size_t type_size(uint32_t dtype) { return known(dtype) ? types[dtype].size : 0; }

const char *type_name(uint32_t dtype) { return known(dtype) ? types[dtype].name : "unknown type"; }

bool type_reduces(uint32_t dtype) { return known(dtype) && types[dtype].reduces; }

/* --- 16-bit floats -------------------------------------------------------------------------- */

static float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float widen_bfloat16(uint16_t half) { return from_bits((uint32_t)half << 16); }

static uint16_t narrow_bfloat16(float value) {
    uint32_t bits = to_bits(value);
    if (value != value) return (uint16_t)(bits >> 16 | 0x40); /* quiet, and no infinity */
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float widen_float16(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t exponent = half >> 10 & 0x1f, fraction = half & 0x3ff;
    if (exponent == 0x1f) return from_bits(sign | 0x7f800000 | fraction << 13);
    if (exponent) return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
    float small = (float)fraction * 0x1p-24f; /* zero and subnormals, exact */
    return sign ? -small : small;
}

static uint16_t narrow_float16(float value) {
    uint32_t bits = to_bits(value);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    uint32_t size = bits & 0x7fffffff;
    if (size > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (size >> 13 & 0x3ff));
    if (size >= 0x47800000) return sign | 0x7c00; /* 65536 and more */
    if (size < 0x38800000) {
        /* Adding 0.5 leaves the subnormal's bits, rounded to nearest even, at the lower end. */
        float shifted = from_bits(size) + 0.5f;
        return (uint16_t)(sign | (to_bits(shifted) - 0x3f000000));
    }
    size += 0xfff + (size >> 13 & 1);
    return (uint16_t)(sign | ((size - 0x38000000) >> 13));
}

/* --- loops ---------------------------------------------------------------------------------- */

#define SAME(value) (value)
#define ADD(a, b) ((a) + (b))
#define MULTIPLY(a, b) ((a) * (b))
#define LARGER(a, b) ((b) > (a) || (b) != (b) ? (b) : (a))
#define SMALLER(a, b) ((b) < (a) || (b) != (b) ? (b) : (a))

#define LOOP(COMBINE, WIDE, STORED, WIDEN)                            \
    for (uint32_t rank = 1; rank < ranks; rank++) {                   \
        memcpy(block, (const char *)inputs[rank] + at, bytes);        \
        for (size_t i = 0; i < many; i++) {                           \
            WIDE next = (WIDE)WIDEN(block[i]);                        \
            partial[i] = (WIDE)COMBINE(partial[i], next);             \
        }                                                             \
    }                                                                 \
    break;

/* STORED: the type in memory, WIDE: the one computed in (unsigned where overflow has to wrap). */
#define REDUCER(NAME, STORED, WIDE, ORDERED, WIDEN, NARROW)                                      \
    static void NAME(char *result, const void *const *inputs, uint32_t ranks, size_t count,      \
                     uint32_t reduction) {                                                       \
        STORED block[BLOCK];                                                                     \
        for (size_t start = 0; start < count; start += BLOCK) {                                  \
            size_t many = count - start < BLOCK ? count - start : BLOCK;                         \
            size_t at = start * sizeof(STORED), bytes = many * sizeof(STORED);                   \
            memcpy(block, (const char *)inputs[0] + at, bytes);                                  \
            if (reduction == REDUCE_SUM || reduction == REDUCE_PROD) {                           \
                WIDE partial[BLOCK];                                                             \
                for (size_t i = 0; i < many; i++) partial[i] = (WIDE)WIDEN(block[i]);            \
                switch (reduction) {                                                             \
                case REDUCE_SUM: LOOP(ADD, WIDE, STORED, WIDEN)                                  \
                default: LOOP(MULTIPLY, WIDE, STORED, WIDEN)                                     \
                }                                                                                \
                for (size_t i = 0; i < many; i++) block[i] = (STORED)NARROW(partial[i]);         \
            } else {                                                                             \
                ORDERED partial[BLOCK];                                                          \
                for (size_t i = 0; i < many; i++) partial[i] = (ORDERED)WIDEN(block[i]);         \
                switch (reduction) {                                                             \
                case REDUCE_MAX: LOOP(LARGER, ORDERED, STORED, WIDEN)                            \
                default: LOOP(SMALLER, ORDERED, STORED, WIDEN)                                   \
                }                                                                                \
                for (size_t i = 0; i < many; i++) block[i] = (STORED)NARROW(partial[i]);         \
            }                                                                                    \
            memcpy(result + at, block, bytes);                                                   \
        }                                                                                        \
    }

REDUCER(reduce_int8, int8_t, uint32_t, int8_t, SAME, SAME)
REDUCER(reduce_int16, int16_t, uint32_t, int16_t, SAME, SAME)
REDUCER(reduce_int32, int32_t, uint32_t, int32_t, SAME, SAME)
REDUCER(reduce_int64, int64_t, uint64_t, int64_t, SAME, SAME)
REDUCER(reduce_uint8, uint8_t, uint32_t, uint8_t, SAME, SAME)
REDUCER(reduce_uint64, uint64_t, uint64_t, uint64_t, SAME, SAME)
REDUCER(reduce_float16, uint16_t, float, float, widen_float16, narrow_float16)
REDUCER(reduce_bfloat16, uint16_t, float, float, widen_bfloat16, narrow_bfloat16)
REDUCER(reduce_float32, float, float, float, SAME, SAME)
REDUCER(reduce_float64, double, double, double, SAME, SAME)

void reduce_elements(void *result, const void *const *inputs, uint32_t ranks, size_t count,
                     uint32_t dtype, uint32_t reduction) {
    switch (dtype) {
    case TYPE_INT8: reduce_int8(result, inputs, ranks, count, reduction); break;
    case TYPE_INT16: reduce_int16(result, inputs, ranks, count, reduction); break;
    case TYPE_INT32: reduce_int32(result, inputs, ranks, count, reduction); break;
    case TYPE_INT64: reduce_int64(result, inputs, ranks, count, reduction); break;
    case TYPE_UINT8: reduce_uint8(result, inputs, ranks, count, reduction); break;
    case TYPE_UINT64: reduce_uint64(result, inputs, ranks, count, reduction); break;
    case TYPE_FLOAT16: reduce_float16(result, inputs, ranks, count, reduction); break;
    case TYPE_BFLOAT16: reduce_bfloat16(result, inputs, ranks, count, reduction); break;
    case TYPE_FLOAT32: reduce_float32(result, inputs, ranks, count, reduction); break;
    case TYPE_FLOAT64: reduce_float64(result, inputs, ranks, count, reduction); break;
    }
}
