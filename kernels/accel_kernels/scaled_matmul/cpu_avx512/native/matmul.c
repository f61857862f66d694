// Products of matrices in eight bits on CPUs with AVX512-BF16, with sums in float32.
//
// Codes are decoded to bfloat16, which holds every one exactly; so products are exact. K is cut
// into stretches; a stretch is summed in registers and joins the total in float32. The same bits
// for any number of threads.
#include "operand.h"
#include "threads.h"

#include <stdlib.h>

#include "transpose.h" // uses macros of operand.h

#define EXPORT __attribute__((visibility("default")))

enum { ROWS = 6, VECTORS = 4, PANEL = VECTORS * LANES, ROWS_OF_TASK = 16 * ROWS, DEPTH = 2048 };

struct call {
    struct operand a, b;
    int64_t depth, stretches, threads, scaled;
    const int64_t *starts;            // of the stretches, and the end of the last
    const int64_t *a_block, *b_block; // which column of scales a stretch has
    const float *bias;
    float *out;  // [a.rows, b.rows]
};

struct job {
    const struct call *call;
    uint32_t *left, *right;  // pairs of bfloat16: [rows][words], [panels][words][PANEL]
    int64_t *words;          // where a stretch begins, and the end of the last
    float *right_scales;     // [panels][stretches or 1][PANEL]
    long panels, groups;
};

INLINE long least(long a, long b) { return a < b ? a : b; }

static void pack_left(const void *given, long index) {
    const struct job *job = given;
    const struct call *call = job->call;
    const struct table table = load_table(call->a.values);
    const long first = index * ROWS_OF_TASK, end = least(first + ROWS_OF_TASK, call->a.rows);
    for (long row = first; row < end; row++)
        for (long s = 0; s < call->stretches; s++) {
            const long length = call->starts[s + 1] - call->starts[s];
            const long words = job->words[s + 1] - job->words[s];
            uint32_t *to = job->left + row * job->words[call->stretches] + job->words[s];
            for (long w = 0; w < words; w += LANES) {
                const __mmask16 mask = words - w >= LANES ? 0xffff : (1u << (words - w)) - 1;
                _mm512_mask_storeu_epi32(
                    to + w, mask,
                    values_at(&call->a, &table, row, call->starts[s] + 2 * w, length - 2 * w));
            }
        }
}

static void pack_right(const void *given, long panel) {
    const struct job *job = given;
    const struct call *call = job->call;
    const struct operand *b = &call->b;
    const struct table table = load_table(b->values);
    uint32_t *to = job->right + panel * job->words[call->stretches] * PANEL;
    for (long s = 0; s < call->stretches; s++) {
        const long length = call->starts[s + 1] - call->starts[s];
        const long begin = job->words[s], words = job->words[s + 1] - begin;
        for (long r = 0; r < PANEL; r += LANES)
            for (long w = 0; w < words; w += LANES) {
                __m512i x[LANES];
                UNROLL for (int i = 0; i < LANES; i++) {
                    const long row = panel * PANEL + r + i;
                    x[i] = row < b->rows ? values_at(b, &table, row, call->starts[s] + 2 * w,
                                                     length - 2 * w)
                                         : _mm512_setzero_si512();
                }
                transpose(x);
                const long count = least(LANES, words - w);
                for (long i = 0; i < count; i++)
                    _mm512_store_si512(to + (begin + w + i) * PANEL + r, x[i]);
            }
    }
    const long columns = call->scaled ? call->stretches : 1;
    float *scales = job->right_scales + panel * columns * PANEL;
    for (long s = 0; s < columns; s++)
        for (long r = 0; r < PANEL; r++) {
            const long row = panel * PANEL + r;
            const long at = row / b->high * b->scale_stride + (call->scaled ? call->b_block[s] : 0);
            scales[s * PANEL + r] = row < b->rows ? b->scales[at] : 0.0f;
        }
}

// `rows` rows of one panel: words `from` to `to`, whose sum joins `total`, times both scales if
// there are some.
INLINE void add_stretch(int rows, const uint32_t *left, long left_stride, const uint32_t *right,
                        long from, long to, const float *left_scales, const float *right_scales,
                        float total[ROWS][PANEL]) {
    __m512 sum[ROWS][VECTORS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < VECTORS; v++) sum[r][v] = _mm512_setzero_ps();
    for (long w = from; w < to; w++) {
        __m512bh b[VECTORS];
        UNROLL for (int v = 0; v < VECTORS; v++)
            b[v] = (__m512bh)_mm512_load_si512(right + w * PANEL + v * LANES);
        UNROLL for (int r = 0; r < rows; r++) {
            const __m512bh a = (__m512bh)_mm512_set1_epi32((int)left[r * left_stride + w]);
            UNROLL for (int v = 0; v < VECTORS; v++)
                sum[r][v] = _mm512_dpbf16_ps(sum[r][v], a, b[v]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < VECTORS; v++) {
            float *at = total[r] + v * LANES;
            __m512 x = sum[r][v];
            if (left_scales) {
                const __m512 a = _mm512_set1_ps(left_scales[r]);
                const __m512 b = _mm512_load_ps(right_scales + v * LANES);
                // The smaller first: a large one could exceed float32 where the result does not.
                x = _mm512_mul_ps(_mm512_mul_ps(x, _mm512_min_ps(a, b)), _mm512_max_ps(a, b));
            }
            _mm512_store_ps(at, _mm512_add_ps(_mm512_load_ps(at), x));
        }
}

static void add_stretch_of(long rows, const uint32_t *left, long left_stride,
                           const uint32_t *right, long from, long to, const float *left_scales,
                           const float *right_scales, float total[ROWS][PANEL]) {
#define CASE(n)                                                                               \
    case n:                                                                                   \
        add_stretch(n, left, left_stride, right, from, to, left_scales, right_scales, total); \
        break;
    switch (rows) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) }
#undef CASE
}

INLINE float left_scale(const struct call *call, long row, long s) {
    const struct operand *a = &call->a;
    return a->scales[row / a->high * a->scale_stride + (call->scaled ? call->a_block[s] : 0)];
}

// Up to ROWS rows of one panel, and stretches `s` to `end`.
static void add_tile(const struct job *job, long panel, long row, long s, long end) {
    const struct call *call = job->call;
    const long rows = least(ROWS, call->a.rows - row), columns = call->b.rows;
    const long words = job->words[call->stretches], width = least(PANEL, columns - panel * PANEL);
    const uint32_t *left = job->left + row * words, *right = job->right + panel * words * PANEL;
    const float *right_scales =
        job->right_scales + panel * (call->scaled ? call->stretches : 1) * PANEL;
    _Alignas(64) float total[ROWS][PANEL] = {0};
    float *out = call->out + row * columns + panel * PANEL, scales[ROWS];
    if (s)
        for (long r = 0; r < rows; r++) memcpy(total[r], out + r * columns, (size_t)width * 4);
    for (long at = s; at < end; at++) {
        for (long r = 0; r < rows; r++) scales[r] = left_scale(call, row + r, at);
        add_stretch_of(rows, left, words, right, job->words[at], job->words[at + 1],
                       call->scaled ? scales : NULL, right_scales + at * PANEL * call->scaled,
                       total);
    }
    const int last = end == call->stretches;
    for (long r = 0; r < rows; r++) {
        if (last && !call->scaled) {
            const float scale = left_scale(call, row + r, 0);
            for (long c = 0; c < PANEL; c++) {
                const float other = right_scales[c];
                const float low = scale < other ? scale : other;
                total[r][c] = total[r][c] * low * (scale < other ? other : scale);
            }
        }
        if (last && call->bias)
            for (long c = 0; c < width; c++) total[r][c] += call->bias[panel * PANEL + c];
        memcpy(out + r * columns, total[r], (size_t)width * 4);
    }
}

static void multiply(const void *given, long index) {
    const struct job *job = given;
    const struct call *call = job->call;
    const long panel = index / job->groups, first = index % job->groups * ROWS_OF_TASK;
    const long end = least(first + ROWS_OF_TASK, call->a.rows);
    // So many stretches at once that their part of the panel stays in the second-level cache.
    for (long s = 0, next; s < call->stretches; s = next) {
        next = s + 1;
        while (next < call->stretches && call->starts[next + 1] - call->starts[s] <= DEPTH) next++;
        for (long row = first; row < end; row += ROWS) add_tile(job, panel, row, s, next);
    }
}

static void *aligned(long bytes) { return aligned_alloc(64, (size_t)(bytes + 64) / 64 * 64); }

// Writes out. Returns 0, or -1 if there is no memory for the decoded matrices.
EXPORT int accel_scaled_matmul(const struct call *call) {
    struct job job = {.call = call};
    const long columns = call->scaled ? call->stretches : 1;
    job.panels = (call->b.rows + PANEL - 1) / PANEL;
    job.groups = (call->a.rows + ROWS_OF_TASK - 1) / ROWS_OF_TASK;
    job.words = aligned((call->stretches + 1) * 8);
    if (!job.words) return -1;
    job.words[0] = 0;
    for (long s = 0; s < call->stretches; s++)
        job.words[s + 1] = job.words[s] + (call->starts[s + 1] - call->starts[s] + 1) / 2;
    const long words = job.words[call->stretches];
    job.left = aligned(call->a.rows * words * 4);
    job.right = aligned(job.panels * words * PANEL * 4);
    job.right_scales = aligned(job.panels * columns * PANEL * 4);
    const int there = job.left && job.right && job.right_scales;
    if (there) {
        run_tasks(pack_left, &job, job.groups, call->threads);
        run_tasks(pack_right, &job, job.panels, call->threads);
        run_tasks(multiply, &job, job.groups * job.panels, call->threads);
    }
    free(job.left);
    free(job.right);
    free(job.right_scales);
    free(job.words);
    return there ? 0 : -1;
}
