/* Sixteen numbers at once, in the vector types of GCC and clang: each level of instructions gets them as wide
 * as it can, and all get the same bits. Internal. */
#ifndef WDECODE_VECTORS_H
#define WDECODE_VECTORS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "decode.h"

#define LANES WDECODE_TILE
#define MAX_ROWS 8 /* of activations that share a load of weights */
#define ROUND 12582912.0f /* 1.5 * 2^23: added to a small number, its last bits are that number rounded */
#define ROUND_BITS 0x4B400000

typedef float floats __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(64), aligned(4), may_alias));
typedef int16_t shorts __attribute__((vector_size(32), aligned(2), may_alias));

/* Inlined into functions of every level, so they carry no target of their own. */
#define ALWAYS static inline __attribute__((always_inline))

ALWAYS int64_t padded(int64_t columns) { return (columns + LANES - 1) / LANES * LANES; }
ALWAYS int64_t num_blocks(int64_t columns) { return (columns + WDECODE_BLOCK - 1) / WDECODE_BLOCK; }

ALWAYS int32_t pair(const int16_t *x) {
    int32_t both;
    memcpy(&both, x, 4);
    return both;
}

/* Read up to 16 floats, zeros for those that are not there. */
ALWAYS floats load(const float *x, int64_t count) {
    if (count >= LANES) return *(const floats *)x;
    floats some = {0};
    for (int64_t i = 0; i < count; i++) some[i] = x[i];
    return some;
}

ALWAYS void store(float *x, floats value, int64_t count) {
    if (count >= LANES)
        *(floats *)x = value;
    else
        for (int64_t i = 0; i < count; i++) x[i] = value[i];
}

/* Sum of all lanes, in halves. */
ALWAYS float add_up(floats value) {
    float lane[LANES];
    memcpy(lane, &value, sizeof lane);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}

ALWAYS floats choose(ints mask, floats yes, floats no) {
    return (floats)(((ints)yes & mask) | ((ints)no & ~mask));
}

/* e^x for x in -87..87, others moved there; NaN stays NaN. Polynomial of S. Moshier's Cephes, 2 ulp. */
ALWAYS floats exponential(floats x) {
    floats low = (floats){0} - 87.0f, high = (floats){0} + 87.0f;
    x = choose(x < low, low, x);
    x = choose(x > high, high, x);
    floats shifted = x * 1.44269504f + ROUND;
    floats n = shifted - ROUND;
    floats r = x - n * 0.693359375f - n * -2.12194440e-4f;
    floats y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    ints power = (((ints)shifted - ROUND_BITS) + 127) << 23;
    return y * (floats)power;
}

#endif
