// Gradients: one pass over blocks of keys, five products a tile, all sums in float32.
//
// A task owns a block of keys: it keeps the sums of their gradients and walks the queries. What a
// tile adds to the gradient of its queries is added in ascending order of the key blocks: a task
// waits until the block before it is done with these rows. So every sum has one order, whatever the
// threads, and nothing is computed twice.
#ifndef ACCEL_BACKWARD_H
#define ACCEL_BACKWARD_H

#include "change.h"
#include "pack.h"

enum { DELTA_ROWS = 256 };

// As add_rows and add_transposed, of what is seen only: 0 * NaN would be NaN.
static void add_rows_selected(const struct tile *tile, long first, const uint32_t *keys,
                              long width) {
    const number *changes = (const number *)tile->change_rows;
    for (long r = first; r < first + STRIP; r++) {
        struct chosen chosen = {0};
        for (uint64_t left = tile->bits[r]; left; left &= left - 1) {
            const long k = __builtin_ctzll(left);
            choose(&chosen, k, changes[r * PANEL + k]);
        }
        add_chosen(&chosen, keys, tile->grad_query + r * width, width);
    }
}

static void add_transposed_selected(const struct tile *tile, long first, long end,
                                    const uint32_t *factors, const uint32_t *rows, float *sum,
                                    long width) {
    for (long k = 0; k < PANEL; k++) {
        struct chosen chosen = {0};
        for (long r = first; r < end; r++) {
            const number *pair = (const number *)(factors + r / PAIR * PANEL + k);
            if (tile->bits[r] >> k & 1) choose(&chosen, r, pair[r % PAIR]);
        }
        add_chosen(&chosen, rows, sum + k * width, width);
    }
}

static void add_to(const struct tile *tile, int selected, long first, long end,
                   const uint32_t *factors, const uint32_t *rows, float *sum, long width) {
    if (selected) add_transposed_selected(tile, first, end, factors, rows, sum, width);
    else
        add_transposed((end - first) / PAIR, factors + first / PAIR * PANEL,
                       rows + first / PAIR * width, sum, width);
}

// One panel of keys against the rows of the tile.
static void backward_panel(const struct backward *job, const struct tile *tile, long panel,
                           long first_key, int kind) {
    const uint32_t *key_rows = tile->key_rows + panel * (PANEL / PAIR) * job->padded;
    // Rows beyond the last see nothing: of theirs not even a bias must count, let alone overflow.
    const int partial = kind == PARTIAL || tile->rows % STRIP != 0;
    const int variant = variant_of(&job->shape, job->call);
    const long rows = rounded_up(tile->rows, STRIP);
    long begin = -1, end = 0;
    for (long first = 0; first < rows; first += STRIP) {
        uint64_t some = 0, every = ~UINT64_C(0);
        for (long r = first; partial && r < first + STRIP; r++) {
            tile->bits[r] = row_bits(&job->seen, tile->batch, tile->head, tile->row + r,
                                     first_key);
            some |= tile->bits[r];
            every &= tile->bits[r];
        }
        if (partial && !some) {
            // Between rows that see something, these count with zeros.
            for (long n = first / PAIR * PANEL; n < (first + STRIP) / PAIR * PANEL; n++)
                tile->weights[n] = tile->changes[n] = 0;
            continue;
        }
        change_variants[variant | (partial && ~every ? MASKED : PLAIN)](job, tile, first, panel,
                                                                        first_key);
        if (partial && tile->keys_wrong) add_rows_selected(tile, first, key_rows, job->padded);
        else
            add_rows(PANEL / PAIR, tile->change_rows + first * (PANEL / PAIR), PANEL / PAIR,
                     key_rows,
                     tile->grad_query + first * job->padded, job->padded);
        if (begin < 0) begin = first;
        end = first + STRIP;
    }
    if (begin < 0) return;
    add_to(tile, partial && tile->grad_out_wrong, begin, end, tile->weights, tile->grad_out_rows,
           tile->grad_value + panel * PANEL * job->value_padded, job->value_padded);
    add_to(tile, partial && tile->query_wrong, begin, end, tile->changes, tile->query_rows,
           tile->grad_key + panel * PANEL * job->padded, job->padded);
}

static void load_tile(const struct backward *job, struct tile *tile, long b, long h, long i) {
    const struct call *call = job->call;
    const long row = i * BACKWARD_ROWS, rows = at_most(BACKWARD_ROWS, call->queries - row);
    const long padded = rounded_up(rows, STRIP);
    const number *query = row_of(&call->query, b, h, row);
    const number *grad_out = row_of(&call->grad_out, b, h, row);
    tile->batch = b;
    tile->head = h;
    tile->row = row;
    tile->rows = rows;
    tile->slope = slope_of(&job->shape, b, h, call->heads);
    pack_rows(tile->query, job->steps, padded, query, call->query.row, rows, call->width);
    pack_rows(tile->grad_out, job->value_steps, padded, grad_out, call->grad_out.row, rows,
              call->value_width);
    tile->query_wrong = pack_pairs(tile->query_rows, job->padded, padded, query, call->query.row,
                                   rows, call->width);
    tile->grad_out_wrong = pack_pairs(tile->grad_out_rows, job->value_padded, padded, grad_out,
                                      call->grad_out.row, rows, call->value_width);
    const long at = (b * call->heads + h) * call->queries + row;
    for (long r = 0; r < padded; r++) {
        const double lse = r < rows ? job->lse[at + r] : 0.0;
        tile->lse[r] = (float)lse;
        tile->lse_rest[r] = PAIR == 1 && isfinite(lse) ? (float)(lse - tile->lse[r]) : 0.0f;
        tile->delta[r] = r < rows ? job->delta[at + r] : 0.0f;
    }
    for (long n = 0; n < padded * job->padded; n++) tile->grad_query[n] = 0.0f;
}

static int tile_seen(const struct backward *job, long b, long i, long j) {
    return block_kind(&job->seen, b, i, j * job->key_block, (j + 1) * job->key_block) != EMPTY;
}

// Add the tile's part of its queries' gradient when it is its turn; the last one writes it out.
static void hand_over(const struct backward *job, const struct tile *tile, long b, long h, long i,
                      long j) {
    const struct call *call = job->call;
    const long head = b * call->heads + h, block = head * job->seen.blocks + i;
    const long size = rounded_up(tile->rows, STRIP) * job->padded;
    float *sum = job->grad_query + block * BACKWARD_ROWS * job->padded;
    long before = j - 1, after = j + 1, rounds = 0;
    while (before >= 0 && !tile_seen(job, b, i, before)) before--;
    while (after < job->key_blocks && !tile_seen(job, b, i, after)) after++;
    while (atomic_load_explicit(job->added + block, memory_order_acquire) != before)
        pause_for(&rounds);
    if (before >= 0)
        for (long n = 0; n < size; n++) tile->grad_query[n] += sum[n];
    if (after < job->key_blocks)
        for (long n = 0; n < size; n++) sum[n] = tile->grad_query[n];
    else
        for (long r = 0; r < tile->rows; r++)
            store_row(row_of(&call->grad_query, b, h, tile->row + r),
                      tile->grad_query + r * job->padded, call->width, (float)call->scale);
    atomic_store_explicit(job->added + block, j, memory_order_release);
}

static void load_keys(const struct backward *job, struct tile *tile, long b, long h, long first,
                      long count) {
    const struct call *call = job->call;
    tile->keys_wrong = 0;
    for (long n = 0; n < count; n += PANEL) {
        const long panel = n / PANEL, rows = at_most(PANEL, count - n);
        const number *key = row_of(&call->key, b, h, first + n);
        pack_transposed(tile->keys + panel * job->steps * PANEL, key, call->key.row, rows,
                        call->width);
        pack_transposed(tile->values + panel * job->value_steps * PANEL,
                        row_of(&call->value, b, h, first + n), call->value.row, rows,
                        call->value_width);
        tile->keys_wrong |= pack_pairs(tile->key_rows + panel * (PANEL / PAIR) * job->padded,
                                       job->padded, PANEL, key, call->key.row, rows, call->width);
    }
    const long used = rounded_up(count, PANEL);
    for (long n = 0; n < used * job->padded; n++) tile->grad_key[n] = 0.0f;
    for (long n = 0; n < used * job->value_padded; n++) tile->grad_value[n] = 0.0f;
}

static void backward_keys(void *given, char *scratch, long index) {
    const struct backward *job = given;
    const struct call *call = job->call;
    // Heads in turn: threads at different heads do not wait for one another.
    const long heads = call->batch * call->key_heads, j = index / heads, head = index % heads;
    const long b = head / call->key_heads, h_kv = head % call->key_heads;
    const long group = call->heads / call->key_heads, first = j * job->key_block;
    const long count = at_most(job->key_block, call->keys - first);
    struct tile tile;
    carve_tile(job, scratch, &tile);
    load_keys(job, &tile, b, h_kv, first, count);
    for (long h = h_kv * group; h < (h_kv + 1) * group; h++)
        for (long i = 0; i < job->seen.blocks; i++) {
            if (!tile_seen(job, b, i, j)) continue;
            load_tile(job, &tile, b, h, i);
            for (long n = 0; n < count; n += PANEL) {
                const int kind = block_kind(&job->seen, b, i, first + n, first + n + PANEL);
                if (kind != EMPTY) backward_panel(job, &tile, n / PANEL, first + n, kind);
            }
            hand_over(job, &tile, b, h, i, j);
        }
    for (long r = 0; r < count; r++) {
        store_row(row_of(&call->grad_key, b, h_kv, first + r), tile.grad_key + r * job->padded,
                  call->width, (float)call->scale);
        store_row(row_of(&call->grad_value, b, h_kv, first + r),
                  tile.grad_value + r * job->value_padded, call->value_width, 1.0f);
    }
}

// delta = sum of grad_out * out - grad_lse, in float32. Zeros for queries that no tile writes.
static void backward_delta(void *given, char *scratch, long index) {
    const struct backward *job = given;
    const struct call *call = job->call;
    const long head = index / job->delta_tasks, first = index % job->delta_tasks * DELTA_ROWS;
    const long b = head / call->heads, h = head % call->heads;
    (void)scratch;
    for (long row = first; row < at_most(first + DELTA_ROWS, call->queries); row++) {
        const number *out = row_of(&call->out, b, h, row);
        const number *grad = row_of(&call->grad_out, b, h, row);
        const long at = head * call->queries + row;
        f32x16 sum = _mm512_setzero_ps();
        for (long d = 0; d < call->value_width; d += LANES) {
            const __mmask16 mask = first_lanes(call->value_width - d);
            sum = _mm512_fmadd_ps(load_numbers(out + d, mask), load_numbers(grad + d, mask), sum);
        }
        job->delta[at] = _mm512_reduce_add_ps(sum) - (call->grad_lse ? call->grad_lse[at] : 0.0f);
        const float lse = call->lse[at];
        job->lse[at] = lse == -INFINITY ? INFINITY : lse * LOG2E;
        for (long d = 0; d < call->width; d++) row_of(&call->grad_query, b, h, row)[d] = 0;
    }
}

#endif
