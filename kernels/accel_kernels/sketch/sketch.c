// The sketch of a tensor: one pass over its elements, whatever its dtype and strides.
//
// The element with row-major index i in the whole tensor is in lane i % 64 of block i / 64. Two
// 64-bit hashes of the block's number give the lanes' signs and a 6-bit number; the element goes to
// the sum that its lane XOR that number names. XOR moves whole rows of 8 lanes by its upper 3 bits,
// and lanes inside rows by its lower 3 bits, by which eight sets of sums are kept apart until the
// end: so the inner loop only adds vectors of 8.
//
// layout.py has the same constants; reference.py computes the same in torch.
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))

enum { LANES = 64, ROW = 8, CHUNK = 512, DIMENSIONS = 64, TILE = 128 };
enum { LEAST = LANES, LARGEST, SQUARES, NANS, POSITIVE, NEGATIVE, PLACES, COUNT };
enum { FLOAT64, FLOAT32, BFLOAT16, FLOAT16, INT8, UINT8, INT16, UINT16, INT32, UINT32, INT64,
       UINT64, BOOL, TABLES };
enum { TABLE_KINDS = 8 };
static const uint64_t SIGNS = 0x243F6A8885A308D3u, ROTATIONS = 0x13198A2E03707344u;

static const uint64_t INFINITE = UINT64_C(0x7ff) << 52;  // exponent of infinity and NaN

static uint64_t sign_masks[256][ROW] __attribute__((aligned(64)));
static double tables[TABLE_KINDS][256];  // values of the 256 codes of 8-bit floating-point dtypes
static const int widths[TABLES] = {8, 4, 2, 2, 1, 1, 2, 2, 4, 4, 8, 8, 1};

struct state {
    double sums[ROW][LANES] __attribute__((aligned(64)));  // by the block number's lower 3 bits
    double chunk[CHUNK] __attribute__((aligned(64)));  // `begin` to `end` of it are valid
    double least[ROW], largest[ROW];
    double squares, counts[3];
    uint64_t first, places;  // index in the whole of chunk[0], a multiple of LANES
    size_t begin, end;
    unsigned used;  // which of `sums` are, as bits; the others hold nothing
};

INLINE uint64_t mixed(uint64_t number, uint64_t start) {
    uint64_t z = number * 0x9E3779B97F4A7C15u + start;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

// --- what is the same for every length of vector -----------------------------------------------

INLINE double from_bits(uint32_t bits) {
    union { uint32_t bits; float value; } x = {bits};
    return x.value;
}

// float16 becomes float64 in two steps that are vectors: its fields in their new places, where
// subnormal numbers stand as normal ones beyond the range of the others; then those are moved down.
INLINE uint64_t scaled_float16(uint16_t half) {
    uint64_t magnitude = half & 0x7fffu, exponent = 1008;
    exponent += magnitude < 0x400 ? 101 : 0;
    exponent += magnitude >= 0x7c00 ? 1008 : 0;
    return ((magnitude << 42) + (exponent << 52)) | (uint64_t)(half & 0x8000u) << 48;
}

INLINE double unscaled_float16(double x) {
    double magnitude = fabs(x), small = copysign((magnitude - 0x1p86) * 0x1p-100, x);
    return magnitude >= 0x1p80 ? small : x;
}

// All elements of a run to `to`, through an expression in x; apart for the stride of 1, which is
// then known.
#define COPY(to, type, value)                                                               \
    do {                                                                                    \
        const type *from = source;                                                          \
        if (stride == 1)                                                                    \
            for (size_t k = 0; k < n; k++) { type x = from[k]; (to)[k] = (value); }         \
        else                                                                                \
            for (size_t k = 0; k < n; k++) {                                                \
                type x = from[(ptrdiff_t)k * stride];                                       \
                (to)[k] = (value);                                                          \
            }                                                                               \
    } while (0)

// Extremes of the chunk's elements `begin` to `end`; returns their sum of squares.
INLINE double measure_some(struct state *s, size_t begin, size_t end) {
    const double *chunk = s->chunk;
    double least = s->least[0], largest = s->largest[0], squares = 0;
    for (size_t k = begin; k < end; k++) {
        double x = chunk[k];
        least = x < least ? x : least;
        largest = x > largest ? x : largest;
        squares += x * x;
    }
    s->least[0] = least;
    s->largest[0] = largest;
    return squares;
}

// Where in the chunk elements are not finite, which are counted; returns how many there are.
// `*other` is where one is finite, if one is. Without branches, which masks would mislead.
static size_t find_not_finite(struct state *s, uint16_t *places, size_t *other) {
    static const uint64_t starts[3] = {0xA4093822299F31D0u, 0x082EFA98EC4E6C89u,
                                       0x452821E638D01377u};
    size_t found = 0, finite = *other;
    for (size_t k = s->begin; k < s->end; k++) {
        uint64_t bits;
        memcpy(&bits, s->chunk + k, sizeof bits);
        size_t is = (bits & INFINITE) == INFINITE;
        places[found] = (uint16_t)k;
        found += is;
        finite ^= (finite ^ k) & (is - 1);
    }
    *other = finite;
    size_t nans = 0, negative = 0;
    for (size_t i = 0; i < found; i++) {
        double x = s->chunk[places[i]];
        size_t is_nan = x != x, is_negative = x < 0, kind = (is_nan ^ 1) + is_negative;
        nans += is_nan;
        negative += is_negative;
        s->places += mixed(s->first + places[i], starts[kind]) >> 11;
    }
    s->counts[0] += (double)nans;
    s->counts[1] += (double)(found - nans - negative);
    s->counts[2] += (double)negative;
    return found;
}

INLINE void put(struct state *s, const uint16_t *places, size_t n, double x) {
    for (size_t i = 0; i < n; i++) s->chunk[places[i]] = x;
}

#define CHOSEN(mask, yes, no) ((doubles)(((mask) & (words)(yes)) | (~(mask) & (words)(no))))
#define VECTORS (ROW / WIDTH)
#ifndef WIDEST  // tests compile less
#define WIDEST 8
#endif

// The inner loops, once for each length of vector; the longest that the machine has is taken.
#define NAMED(name, width) NAMED_(name, width)
#define NAMED_(name, width) name##_##width

#define WIDTH 2
#define TARGET
#include "chunk.h"
#undef WIDTH
#undef TARGET

#if defined(__x86_64__)
#define WIDTH 4
#define TARGET __attribute__((target("avx2")))
#include "chunk.h"
#undef WIDTH
#undef TARGET

#define WIDTH 8
#define TARGET __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl")))
#include "chunk.h"
#undef WIDTH
#undef TARGET
#endif

static void (*convert)(double *, const void *, ptrdiff_t, size_t, int) = convert_2;
static void (*flush)(struct state *) = flush_2;

__attribute__((constructor)) static void choose(void) {
    for (int byte = 0; byte < 256; byte++)
        for (int k = 0; k < ROW; k++) sign_masks[byte][k] = (uint64_t)(byte >> k & 1) << 63;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (WIDEST >= 8 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
        convert = convert_8;
        flush = flush_8;
    } else if (WIDEST >= 4 && __builtin_cpu_supports("avx2")) {
        convert = convert_4;
        flush = flush_4;
    }
#endif
}

// --- all elements ------------------------------------------------------------------------------

static void start(struct state *s) {
    s->squares = s->counts[0] = s->counts[1] = s->counts[2] = 0;
    s->first = s->places = 0;
    s->begin = s->end = 0;
    s->used = 0;
    for (int k = 0; k < ROW; k++) {
        s->least[k] = INFINITY;
        s->largest[k] = -INFINITY;
    }
}

// `n` elements, one every `stride`, that follow one another in the whole from `index` on.
static void add_run(struct state *s, const char *source, ptrdiff_t stride, size_t n,
                    uint64_t index, int kind) {
    ptrdiff_t step = stride * (kind < TABLES ? widths[kind] : 1);
    while (n) {
        if (s->end == CHUNK || index != s->first + s->end) {
            flush(s);
            s->first = index / LANES * LANES;
            s->begin = s->end = index % LANES;
        }
        size_t room = CHUNK - s->end, some = n < room ? n : room;
        convert(s->chunk + s->end, source, stride, some, kind);
        s->end += some;
        source += step * (ptrdiff_t)some;
        index += some;
        n -= some;
    }
}

static void finish(struct state *s, uint64_t count, double *numbers) {
    flush(s);
    double least = INFINITY, largest = -INFINITY;
    memset(numbers, 0, LANES * sizeof *numbers);
    for (unsigned set = 0; set < ROW; set++) {
        const double *sums = s->sums[set];
        if (!(s->used >> set & 1)) continue;
        for (unsigned k = 0; k < LANES; k++) numbers[k ^ set] += sums[k];
    }
    for (int k = 0; k < ROW; k++) {
        if (s->least[k] < least) least = s->least[k];
        if (s->largest[k] > largest) largest = s->largest[k];
    }
    numbers[LEAST] = least + 0.0;  // no negative zero, which is equal and looks different
    numbers[LARGEST] = largest + 0.0;
    numbers[SQUARES] = s->squares;
    for (int kind = 0; kind < 3; kind++) numbers[NANS + kind] = s->counts[kind];
    numbers[PLACES] = (double)(s->places & ((UINT64_C(1) << 53) - 1));
    numbers[COUNT] = (double)count;
}

// Subnormal numbers count whatever the program has set. Returns the setting to restore.
static uint64_t keep_subnormals(void) {
#if defined(__x86_64__)
    unsigned before = _mm_getcsr();
    if (before & 0x8040u) _mm_setcsr(before & ~0x8040u);
    return before;
#elif defined(__aarch64__)
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(before & ~(UINT64_C(1) << 24 | UINT64_C(1) << 19)));
    return before;
#else
    return 0;
#endif
}

static void restore(uint64_t before) {
#if defined(__x86_64__)
    if (before & 0x8040u) _mm_setcsr((unsigned)before);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(before));
#else
    (void)before;
#endif
}

// Values of the 256 codes of the 8-bit dtype that is kind `TABLES + which` from now on.
EXPORT void accel_sketch_table(int which, const double *values) {
    memcpy(tables[which], values, sizeof tables[which]);
}

// A contiguous tensor that is the whole. `numbers` are 72 float64 of any alignment.
EXPORT void accel_sketch_whole(const void *source, int kind, int64_t n, void *numbers) {
    struct state s;
    double result[COUNT + 1];
    uint64_t before = keep_subnormals();
    start(&s);
    add_run(&s, source, 1, (size_t)n, 0, kind);
    finish(&s, (uint64_t)n, result);
    restore(before);
    memcpy(numbers, result, sizeof result);
}

struct dimension { int64_t size, stride, whole; };

// Dimensions of one element left out, neighbours that are one run of places joined.
static int joined(int n, const int64_t *sizes, const int64_t *strides, const int64_t *wholes,
                  struct dimension *to) {
    int kept = 0;
    for (int d = 0; d < n; d++) {
        if (sizes[d] == 1) continue;
        struct dimension next = {sizes[d], strides[d], wholes[d]}, *last = to + kept - 1;
        if (kept && last->stride == next.stride * next.size &&
            last->whole == next.whole * next.size) {
            last->size *= next.size;
            last->stride = next.stride;
            last->whole = next.whole;
        } else {
            to[kept++] = next;
        }
    }
    // The last one shall be a run of places.
    if (!kept || to[kept - 1].whole != 1) to[kept++] = (struct dimension){1, 1, 1};
    return kept;
}

// All runs of the last dimension, an odometer over the others. If another dimension is the dense
// one in memory, it turns fastest and runs are short, so that what is fetched is used up.
static void add_all(struct state *s, const char *source, int kind, uint64_t index,
                    struct dimension *dims, int n) {
    struct dimension run = dims[n - 1];
    int64_t width = kind < TABLES ? widths[kind] : 1, at[DIMENSIONS + 1] = {0}, longest = run.size;
    for (int d = 0; d < n - 1 && run.stride != 1; d++) {
        if (dims[d].stride != 1) continue;
        struct dimension dense = dims[d];
        memmove(dims + d, dims + d + 1, (size_t)(n - 2 - d) * sizeof *dims);
        dims[n - 2] = dense;
        longest = TILE;
        break;
    }
    for (int64_t begin = 0; begin < run.size; begin += longest) {
        int64_t some = run.size - begin < longest ? run.size - begin : longest;
        const char *from = source + begin * run.stride * width;
        uint64_t first = index + (uint64_t)(begin * run.whole);
        for (int d = n - 1; d >= 0;) {
            add_run(s, from, run.stride, (size_t)some, first, kind);
            for (d = n - 2; d >= 0; d--) {
                from += dims[d].stride * width;
                first += (uint64_t)dims[d].whole;
                if (++at[d] < dims[d].size) break;
                from -= dims[d].size * dims[d].stride * width;
                first -= (uint64_t)(dims[d].size * dims[d].whole);
                at[d] = 0;
            }
        }
    }
}

// Any tensor of `n` dimensions. `sizes` are followed by the strides in memory and by those of a
// contiguous whole, `index` is where in it this begins. Returns 0, or -1 for too many dimensions.
EXPORT int accel_sketch_part(const void *source, int kind, int n, const int64_t *sizes,
                             uint64_t index, void *numbers) {
    const int64_t *strides = sizes + n, *wholes = strides + n;
    struct state s;
    struct dimension dims[DIMENSIONS + 1];
    double result[COUNT + 1];
    uint64_t count = 1;
    if (n > DIMENSIONS) return -1;
    for (int d = 0; d < n; d++) count *= (uint64_t)sizes[d];
    uint64_t before = keep_subnormals();
    start(&s);
    if (count) {
        int kept = joined(n, sizes, strides, wholes, dims);
        add_all(&s, source, kind, index, dims, kept);
    }
    finish(&s, count, result);
    restore(before);
    memcpy(numbers, result, sizeof result);
    return 0;
}
