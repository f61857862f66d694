/* Element types of the stand-in HCCL and reductions over them. */
#ifndef ACCEL_SIMULATE_REDUCE_H
#define ACCEL_SIMULATE_REDUCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Numbers are HCCL's own (hccl_types.h). */
enum { REDUCE_SUM = 0, REDUCE_PROD = 1, REDUCE_MAX = 2, REDUCE_MIN = 3 };
enum {
    TYPE_INT8 = 0,
    TYPE_INT16 = 1,
    TYPE_INT32 = 2,
    TYPE_FLOAT16 = 3,
    TYPE_FLOAT32 = 4,
    TYPE_INT64 = 5,
    TYPE_UINT64 = 6,
    TYPE_UINT8 = 7,
    TYPE_UINT16 = 8,
    TYPE_UINT32 = 9,
    TYPE_FLOAT64 = 10,
    TYPE_BFLOAT16 = 11,
    TYPE_INT128 = 12,
    TYPE_HIFLOAT8 = 14,
    TYPE_FLOAT8_E4M3 = 15,
    TYPE_FLOAT8_E5M2 = 16,
    TYPE_FLOAT8_E8M0 = 17,
};

/* Bytes of one element; 0 for a type that does not exist. */
size_t type_size(uint32_t dtype);
const char *type_name(uint32_t dtype);
bool type_reduces(uint32_t dtype);

/* result[i] = inputs[0][i] op inputs[1][i] op ..., in this order, for `count` elements.
 *
 * float16 and bfloat16 are combined in float32 and rounded once, to nearest even. Integers wrap.
 * A NaN makes the result NaN, for max and min too. Pointers need no alignment; `result` may be one
 * of the inputs. */
void reduce_elements(void *result, const void *const *inputs, uint32_t ranks, size_t count,
                     uint32_t dtype, uint32_t reduction);

#endif
