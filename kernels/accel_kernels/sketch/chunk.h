// The inner loops for vectors of WIDTH float64, for the machines that TARGET names; sketch.c includes
// them once for each. Every WIDTH adds in the same order, so all give the same bits.

#define doubles NAMED(doubles, WIDTH)
#define words NAMED(words, WIDTH)
typedef double doubles __attribute__((vector_size(8 * WIDTH)));
typedef int64_t words __attribute__((vector_size(8 * WIDTH)));

// `n` elements, one every `stride`, to float64.
TARGET static void NAMED(convert, WIDTH)(double *restrict to, const void *restrict source,
                                         ptrdiff_t stride, size_t n, int kind) {
    uint64_t *codes = (uint64_t *)to;
    switch (kind) {
        case FLOAT64: COPY(to, double, x); break;
        case FLOAT32: COPY(to, float, x); break;
        case BFLOAT16: COPY(to, uint16_t, from_bits((uint32_t)x << 16)); break;
        case FLOAT16:
            COPY(codes, uint16_t, scaled_float16(x));
            for (size_t k = 0; k < n; k++) to[k] = unscaled_float16(to[k]);
            break;
        case INT8: COPY(to, int8_t, x); break;
        case UINT8: COPY(to, uint8_t, x); break;
        case INT16: COPY(to, int16_t, x); break;
        case UINT16: COPY(to, uint16_t, x); break;
        case INT32: COPY(to, int32_t, x); break;
        case UINT32: COPY(to, uint32_t, x); break;
        case INT64: COPY(to, int64_t, (double)x); break;
        case UINT64: COPY(to, uint64_t, (double)x); break;
        case BOOL: COPY(to, uint8_t, x != 0); break;
        default: {
            const double *table = tables[kind - TABLES];
            COPY(to, uint8_t, table[x]);
        }
    }
}

// Extremes of the chunk's valid elements; returns their sum of squares. Comparisons pass over NaN.
TARGET static double NAMED(measure, WIDTH)(struct state *s) {
    size_t first = (s->begin + ROW - 1) / ROW, last = s->end / ROW, row = first;
    if (first >= last) return measure_some(s, s->begin, s->end);
    doubles least[VECTORS], largest[VECTORS], squares[VECTORS] = {0}, others[VECTORS] = {0};
    memcpy(least, s->least, sizeof least);
    memcpy(largest, s->largest, sizeof largest);
    for (; row + 1 < last; row += 2) {  // two sums, for no addition to wait for the one before
        const doubles *xs = (const doubles *)(s->chunk + row * ROW), *ys = xs + VECTORS;
        for (int v = 0; v < VECTORS; v++) {
            doubles x = xs[v], y = ys[v], less = CHOSEN(x < y, x, y), more = CHOSEN(x > y, x, y);
            least[v] = CHOSEN(less < least[v], less, least[v]);
            largest[v] = CHOSEN(more > largest[v], more, largest[v]);
            squares[v] += x * x;
            others[v] += y * y;
        }
    }
    for (int v = 0; v < VECTORS; v++) squares[v] += others[v];
    memcpy(s->least, least, sizeof least);
    memcpy(s->largest, largest, sizeof largest);
    double sum = measure_some(s, s->begin, first * ROW) + measure_some(s, row * ROW, s->end);
    for (int k = 0; k < ROW; k++) sum += squares[k / WIDTH][k % WIDTH];
    return sum;
}

TARGET static void NAMED(add_blocks, WIDTH)(struct state *s) {
    for (size_t begin = 0; begin < s->end; begin += LANES) {
        uint64_t block = (s->first + begin) / LANES, signs = mixed(block, SIGNS);
        unsigned moved = mixed(block, ROTATIONS) >> 58, set = moved & 7;
        if (!(s->used >> set & 1)) memset(s->sums[set], 0, sizeof s->sums[set]);
        s->used |= 1u << set;
        for (unsigned row = 0; row < ROW; row++) {
            const words *mask = (const words *)sign_masks[signs >> 8 * row & 255];
            const words *from = (const words *)(s->chunk + begin + row * ROW);
            doubles *to = (doubles *)(s->sums[set] + (row ^ moved >> 3) * ROW);
            for (int v = 0; v < VECTORS; v++) to[v] += (doubles)(from[v] ^ mask[v]);
        }
    }
}

// `measure` of a chunk with elements that are not finite, which are counted and become 0.
TARGET static double NAMED(set_aside, WIDTH)(struct state *s) {
    uint16_t places[CHUNK];
    size_t other = CHUNK, found = find_not_finite(s, places, &other);
    double least[ROW], largest[ROW];
    if (other < CHUNK) {  // extremes of the finite ones: one of them stands in for the others
        put(s, places, found, s->chunk[other]);
        NAMED(measure, WIDTH)(s);
    }
    memcpy(least, s->least, sizeof least);
    memcpy(largest, s->largest, sizeof largest);
    put(s, places, found, 0);
    double squares = NAMED(measure, WIDTH)(s);
    memcpy(s->least, least, sizeof least);
    memcpy(s->largest, largest, sizeof largest);
    return squares;
}

// The chunk's elements into the sums; empties it.
TARGET static void NAMED(flush, WIDTH)(struct state *s) {
    if (s->begin == s->end) return;
    double least[ROW], largest[ROW];
    memset(s->chunk, 0, s->begin * sizeof *s->chunk);
    for (size_t k = s->end; k % LANES; k++) s->chunk[k] = 0;
    memcpy(least, s->least, sizeof least);
    memcpy(largest, s->largest, sizeof largest);
    double squares = NAMED(measure, WIDTH)(s);
    if (!isfinite(squares)) {  // or they overflowed
        memcpy(s->least, least, sizeof least);
        memcpy(s->largest, largest, sizeof largest);
        squares = NAMED(set_aside, WIDTH)(s);
    }
    s->squares += squares;
    NAMED(add_blocks, WIDTH)(s);
    s->begin = s->end;
}

#undef doubles
#undef words
