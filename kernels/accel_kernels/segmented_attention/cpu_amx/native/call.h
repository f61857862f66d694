// One call, as layout.py lays it out (class Memory there has the same fields in the same order).
#ifndef ACCEL_CALL_H
#define ACCEL_CALL_H

#include <stdint.h>

// Products take words of 32 bits: two bfloat16 that follow one another along the summed dimension,
// or one float32.
#ifdef ACCEL_FLOAT32
typedef float number;
enum { PAIR = 1 };
#else
typedef uint16_t number;
enum { PAIR = 2 };
#endif

struct rows {
    void *data;                  // of `number`
    int64_t batch, head, row;    // strides in elements; within a row they follow one another
};

// bool, True where a query may see a key; strides are 0 where one entry serves all, else that of a
// key is 1. No mask if data is NULL.
struct dense {
    void *data;
    int64_t batch, head, row, key;
};

// Dropout of probabilities, as in call.py (class Dropout): a random word below the threshold drops.
// None if `factor`, of what is kept, is 0.
struct dropout {
    double factor;
    int64_t threshold, seed, heads, queries, keys;  // of the whole attention
    int64_t batch, head, row, key;                  // where this call begins in it
};

struct call {
    int64_t batch, heads, key_heads, queries, keys, width, value_width;
    int64_t kind, intervals, mask_batch, slope_batch, place, threads;
    const int32_t *bounds;       // [intervals][2][mask_batch][queries], or NULL
    struct dense dense;
    struct dropout dropout;
    const float *slopes;         // [slope_batch][heads], or NULL: -slope * |row + place - key|
    double scale, softcap;       // no cap if 0
    struct rows query, key, value, out;
    float *lse;                  // [batch][heads][queries]
    struct rows grad_out, grad_query, grad_key, grad_value;
    const float *grad_lse;       // as lse, or NULL
};

static inline number *row_of(const struct rows *rows, int64_t batch, int64_t head, int64_t row) {
    return (number *)rows->data + batch * rows->batch + head * rows->head + row * rows->row;
}

#endif
