/* Predicting 8-bit codes from a fixed-point number. Internal. */
#ifndef WPATCH_SCALED_H
#define WPATCH_SCALED_H

#include "levels.h"
#include "transform.h"

#define RATIO_ONE (1 << 20)

/* What is predicted of a code: its 8 bits in two's complement, the class of the prediction, and whether the sign of
 * what is left is turned. */
typedef struct guess {
    uint16_t code, class, flip;
} guess;

/* From the upper half of a fixed-point number with 20 fraction bits: all of it that matters, and vectors hold twice as
 * many. Right shifts of signed numbers are arithmetic with every compiler. */
INLINE guess guess_code(uint16_t upper) {
    int16_t rounded = (int16_t)(uint16_t)(upper + 8) >> 4;
    uint16_t fraction = upper & 15, up = fraction >> 3;
    rounded = rounded > -127 ? rounded : -127;
    rounded = rounded < 127 ? rounded : 127;
    int edge = rounded == 127 || rounded == -127;
    guess g;
    g.code = (uint16_t)rounded & 0xff;
    g.class = edge ? 8 : fraction ^ (uint16_t)(up ? 15 : 0);
    g.flip = edge ? (uint16_t)rounded >> 15 : up;
    return g;
}

void plan_code_contexts(const plan *p, chunk *c); /* DIFFERENCE of codes */
void plan_scaled_contexts(const plan *p, chunk *c);

#endif
