// Largest magnitudes of blocks, quantization and its reverse, for matrices in memory.
//
// Blocks of `high` by `wide` share a scale; `wide` is 1 (a transposed matrix) or many. Tasks are
// bands of rows; what several tasks join is a maximum.
#include "encode.h"
#include "threads.h"

#define EXPORT __attribute__((visibility("default")))
// One binary for all CPUs of an architecture, with loops for the wider vectors of newer ones.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

enum { STRIP = 1024 };

struct call {
    const void *values;  // [rows, columns]
    int64_t kind, format, rows, columns, stride, high, wide, threads;
    int64_t band;    // rows of a task; of one block if blocks are one column wide
    int64_t as_nan;  // whether infinities become NaN
    const float *scales;  // of each block: what is multiplied by before encoding, or after decoding
    int64_t scale_stride;
    uint8_t *codes;
    int64_t code_stride;
    uint32_t *largest;    // of each block: bits of float32
    const float *table;   // the value of each code
    float *decoded;       // [rows, columns]
};

INLINE const void *row_of(const struct call *call, int kind, long row) {
    return (const char *)call->values + row * call->stride * (kind == FLOAT32 ? 4 : 2);
}

INLINE long least(long a, long b) { return a < b ? a : b; }

static void join(uint32_t *largest, uint32_t bits) {
    uint32_t known = __atomic_load_n(largest, __ATOMIC_RELAXED);
    while (known < bits && !__atomic_compare_exchange_n(largest, &known, bits, 1, __ATOMIC_RELAXED,
                                                        __ATOMIC_RELAXED)) {}
}

INLINE uint32_t largest_of_run(int kind, const void *restrict from, long first, long end) {
    uint32_t known = 0;
    for (long c = first; c < end; c++) {
        const uint32_t size = finite_size(kind, from, c);
        known = size > known ? size : known;
    }
    return known;
}

INLINE void join_run(int kind, const void *restrict from, long first, long count,
                     uint32_t *restrict known) {
    for (long i = 0; i < count; i++) {
        const uint32_t size = finite_size(kind, from, first + i);
        known[i] = size > known[i] ? size : known[i];
    }
}

// Of blocks one column wide; all rows are of one block.
INLINE void largest_of_columns(const struct call *call, int kind, long first, long end) {
    uint32_t *to = call->largest + first / call->high * call->scale_stride;
    for (long c = 0; c < call->columns; c += STRIP) {
        uint32_t known[STRIP] = {0};
        const long count = least(STRIP, call->columns - c);
        for (long row = first; row < end; row++)
            join_run(kind, row_of(call, kind, row), c, count, known);
        for (long i = 0; i < count; i++) join(to + c + i, bits_of_size(kind, known[i]));
    }
}

INLINE void largest_of_blocks(const struct call *call, int kind, long first, long end) {
    const long columns = call->columns, wide = call->wide;
    for (long row = first; row < end; row++) {
        const void *from = row_of(call, kind, row);
        uint32_t *to = call->largest + row / call->high * call->scale_stride;
        for (long c = 0; c < columns; c += wide) {
            const uint32_t size = largest_of_run(kind, from, c, least(c + wide, columns));
            join(to++, bits_of_size(kind, size));
        }
    }
}

#define FOR_KINDS(function, ...)                                          \
    switch (call->kind) {                                                 \
    case FLOAT32: function(call, FLOAT32, __VA_ARGS__); break;            \
    case BFLOAT16: function(call, BFLOAT16, __VA_ARGS__); break;          \
    default: function(call, FLOAT16, __VA_ARGS__);                        \
    }

CLONES static void find_largest(const void *given, long index) {
    const struct call *call = given;
    const long first = index * call->band, end = least(first + call->band, call->rows);
    if (call->wide == 1) {
        FOR_KINDS(largest_of_columns, first, end)
    } else {
        FOR_KINDS(largest_of_blocks, first, end)
    }
}

INLINE uint8_t scaled_code(int kind, int format, const void *from, long at, float factor,
                           uint32_t as_nan) {
    const float x = number(kind, from, at);
    const uint32_t bits = bits_of(x), is_infinite = (bits & MAGNITUDE) == INFINITE;
    return (uint8_t)code_of(format, float_of(is_infinite & as_nan ? 0x7fc00000 : bits) * factor);
}

// Values with one factor, or, if `wide` is 1, each with its own. Bytes may alias anything, hence
// the copies and `restrict`, without which nothing here would be done in vectors.
INLINE void encode_run(int kind, int format, const void *restrict from, long first, long end,
                       const float *restrict factors, long wide, uint32_t as_nan,
                       uint8_t *restrict to) {
    if (wide == 1) {
        for (long c = first; c < end; c++)
            to[c] = scaled_code(kind, format, from, c, factors[c], as_nan);
    } else {
        const float factor = *factors;
        for (long c = first; c < end; c++)
            to[c] = scaled_code(kind, format, from, c, factor, as_nan);
    }
}

INLINE void encode_rows(const struct call *call, int kind, int format, long first, long end) {
    const uint32_t as_nan = call->as_nan != 0;
    const long columns = call->columns, wide = call->wide;
    for (long row = first; row < end; row++) {
        const void *from = row_of(call, kind, row);
        const float *factors = call->scales + row / call->high * call->scale_stride;
        uint8_t *to = call->codes + row * call->code_stride;
        if (wide == 1) {
            encode_run(kind, format, from, 0, columns, factors, 1, as_nan, to);
            continue;
        }
        for (long c = 0; c < columns; c += wide)
            encode_run(kind, format, from, c, least(c + wide, columns), factors++, wide, as_nan, to);
    }
}

CLONES static void encode(const void *given, long index) {
    const struct call *call = given;
    const long first = index * call->band, end = least(first + call->band, call->rows);
    if (call->format == E4M3) {
        FOR_KINDS(encode_rows, E4M3, first, end)
    } else if (call->format == E5M2) {
        FOR_KINDS(encode_rows, E5M2, first, end)
    } else {
        FOR_KINDS(encode_rows, HIF8, first, end)
    }
}

INLINE void decode_run(const float *restrict table, const uint8_t *restrict codes, long first,
                       long end, const float *restrict scales, long wide, float *restrict to) {
    if (wide == 1) {
        for (long c = first; c < end; c++) to[c] = table[codes[c]] * scales[c];
    } else {
        const float scale = *scales;
        for (long c = first; c < end; c++) to[c] = table[codes[c]] * scale;
    }
}

CLONES static void decode(const void *given, long index) {
    const struct call *call = given;
    const long first = index * call->band, end = least(first + call->band, call->rows);
    const long columns = call->columns, wide = call->wide == 1 ? columns : call->wide;
    for (long row = first; row < end; row++) {
        const float *scales = call->scales + row / call->high * call->scale_stride;
        const uint8_t *codes = call->codes + row * call->code_stride;
        for (long c = 0; c < columns; c += wide)
            decode_run(call->table, codes, c, least(c + wide, columns), scales++, call->wide,
                       call->decoded + row * columns);
    }
}

static void run(const struct call *call, void (*task)(const void *, long)) {
    run_tasks(task, call, (call->rows + call->band - 1) / call->band, call->threads);
}

// Into `largest`, which is 0 before. `scale_stride` is of `largest`.
EXPORT void accel_fp8_largest(const struct call *call) { run(call, find_largest); }

// Into `codes`.
EXPORT void accel_fp8_encode(const struct call *call) { run(call, encode); }

// Into `decoded`.
EXPORT void accel_fp8_decode(const struct call *call) { run(call, decode); }
