// Philox4x32-10 (see philox.py) on the CPU: the words of runs of positions.
#include <stdint.h>

enum { ROUNDS = 10 };

static void philox(uint64_t block, uint64_t stream, uint64_t seed, uint32_t words[4]) {
    uint32_t c0 = (uint32_t)block, c1 = (uint32_t)(block >> 32);
    uint32_t c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t first = (uint64_t)0xD2511F53u * c0, second = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(second >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(first >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)second;
        c3 = (uint32_t)first;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    words[0] = c0;
    words[1] = c1;
    words[2] = c2;
    words[3] = c3;
}

// `length` words from each of `runs` starts on, one run after the other.
__attribute__((visibility("default"))) void accel_philox_runs(
    const int64_t *starts, int64_t runs, int64_t length, uint64_t seed, uint64_t stream,
    int64_t *words) {
    for (int64_t run = 0; run < runs; run++) {
        uint64_t position = (uint64_t)starts[run], end = position + (uint64_t)length;
        while (position < end) {
            uint32_t four[4];
            philox(position / 4, stream, seed, four);
            do *words++ = four[position % 4];
            while (++position < end && position % 4);
        }
    }
}
