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
#ifndef MIN_SHARED
#define MIN_SHARED (1 << 19)   /* multiplications of a product from which a second thread pays */
#define MIN_PART (1 << 17)     /* and of one part of it */
#define MIN_ATTENDED (1 << 18) /* and of the attention of one layer */
#endif
#define PARTS_A_THREAD 8 /* so that a thread that starts late or is interrupted holds up little */
#define STREAMS 4  /* in which a matrix is read for one row of activations */
#define ROUND 12582912.0f /* 1.5 * 2^23: added to a small number, its last bits are that number rounded */
#define ROUND_BITS 0x4B400000

typedef float floats __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(64), aligned(4), may_alias));
typedef int16_t shorts __attribute__((vector_size(32), aligned(2), may_alias));

/* Inlined into functions of every level, so they carry no target of their own. */
#define ALWAYS static inline __attribute__((always_inline))

ALWAYS int64_t padded(int64_t columns) { return (columns + LANES - 1) / LANES * LANES; }
ALWAYS int64_t num_blocks(int64_t columns) { return (columns + WDECODE_BLOCK - 1) / WDECODE_BLOCK; }

/* How many tiles of `work` multiplications each are one part: all of them where waking a thread costs more. */
ALWAYS int64_t tiles_a_part(int64_t tiles, int64_t work, int threads) {
    if (threads <= 1 || tiles * work < MIN_SHARED) return tiles;
    int64_t least = (MIN_PART + work - 1) / work, even = tiles / (threads * PARTS_A_THREAD);
    return even > least ? even : least;
}

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

/* Lanes of two vectors: GCC has had clang's builtin since version 12. */
#if defined(__clang__) || __GNUC__ >= 12
#define LANES_OF(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define LANES_OF(a, b, ...) __builtin_shuffle(a, b, (ints){__VA_ARGS__})
#endif

/* add_up of sixteen vectors at once, each in the very order of add_up. */
ALWAYS floats add_up_each(const floats *v) {
    floats eights[8], fours[4], twos[2];
    for (int i = 0; i < 8; i++)
        eights[i] =
            LANES_OF(v[2 * i], v[2 * i + 1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
            LANES_OF(v[2 * i], v[2 * i + 1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    for (int i = 0; i < 4; i++)
        fours[i] =
            LANES_OF(eights[2 * i], eights[2 * i + 1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
            LANES_OF(eights[2 * i], eights[2 * i + 1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    for (int i = 0; i < 2; i++)
        twos[i] =
            LANES_OF(fours[2 * i], fours[2 * i + 1], 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
            LANES_OF(fours[2 * i], fours[2 * i + 1], 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
    return LANES_OF(twos[0], twos[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
           LANES_OF(twos[0], twos[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
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
