/* PREDICTED: the product of factors, bent by a curve, moves the base; what is left is coded. */
#include "predict.h"

#include "product.h"
#include "scaled.h"

#define STRIP 512u /* products worked out at a time */
#define MAX_CURVE 65535

int plan_check_predicted(const wpatch_part *part) {
    const wpatch_curve *q = &part->curve;
    int64_t slope = q->slope < 0 ? -(int64_t)q->slope : q->slope;
    int64_t bend = q->bend < 0 ? -(int64_t)q->bend : q->bend;
    int curve = q->rank && q->rank <= WPATCH_MAX_RANK && q->drop <= 31 && q->limit && q->limit <= 32767 &&
                slope + bend <= MAX_CURVE && q->shift >= -31 && q->shift <= 31 && q->classes <= 65535;
    uint64_t lines = (uint64_t)part->columns + part->num_rows;
    int rows = part->columns && part->first_column < part->columns && lines <= WPATCH_MAX_FACTORS &&
               lines * q->rank <= WPATCH_MAX_FACTORS &&
               (uint64_t)part->num_rows * part->columns >= (uint64_t)part->first_column + part->count;
    int scales = part->dtype == WPATCH_I8 ? !part->scale_dtype || (part->group == part->columns &&
                                                                   part->first == part->first_column)
                                          : !part->scale_dtype;
    return curve && rows && scales && part->left && part->right;
}

/* Products and what becomes of them. */
typedef struct strip {
    int32_t moves[STRIP];    /* products; then what they move the elements by, in two's complement */
    uint16_t classes[STRIP]; /* of the products' sizes */
} strip;

/* `left`, whether the curve shifts to the left, is a constant where this is used. Right shifts of signed numbers are
 * arithmetic with every compiler. */
INLINE void bend(const wpatch_curve *q, uint32_t n, strip *s, int left) {
    const uint32_t drop = q->drop, limit = q->limit, classes = q->classes;
    const int32_t slope = q->slope, bend = q->bend, shift = left ? q->shift : -q->shift;
    for (size_t i = 0; i < n; i++) {
        uint32_t side = (uint32_t)(s->moves[i] >> 31), t = (((uint32_t)s->moves[i] ^ side) - side) >> drop;
        t = t < limit ? t : limit;
        uint32_t k = t * classes >> 16; /* t * bend and t * slope stay below 2^31 in magnitude */
        uint32_t v = (uint32_t)((int32_t)t * (slope - ((int32_t)t * bend >> 15)));
        v = left ? v << shift : (uint32_t)((int32_t)v >> shift);
        s->moves[i] = (int32_t)((v ^ side) - side);
        s->classes[i] = (uint16_t)(k < 7 ? k : 7);
    }
}

INLINE void curve_body(const wpatch_curve *q, uint32_t n, strip *s, int level) {
    (void)level;
    if (q->shift < 0) {
        bend(q, n, s, 0);
    } else {
        bend(q, n, s, 1);
    }
}

typedef struct float_kind {
    uint32_t size, mantissa_bits, sign_bit, top;
} float_kind;

#define BITS 32
#define HALF_BITS 16
#define LEADING 29
#define WIDEN(v) ((uint32_t)(v))
#include "predict_float.h"
#undef BITS
#undef HALF_BITS
#undef LEADING
#undef WIDEN

#define BITS 64
#define HALF_BITS 32
#define LEADING 53
#define WIDEN(v) ((uint64_t)(v) << 24)
#include "predict_float.h"
#undef BITS
#undef HALF_BITS
#undef LEADING
#undef WIDEN

/* With sizes and bits as constants, so that compilers need not widen to shift. */
INLINE void floats_body(const plan *p, chunk *c, uint32_t at, uint32_t n, const strip *s, int level) {
    switch (p->part->dtype) {
        case WPATCH_F8_E4M3: guess_floats32(p, c, at, n, s, 1, 3, level); break;
        case WPATCH_F8_E5M2: guess_floats32(p, c, at, n, s, 1, 2, level); break;
        case WPATCH_F16: guess_floats32(p, c, at, n, s, 2, 10, level); break;
        case WPATCH_BF16: guess_floats32(p, c, at, n, s, 2, 7, level); break;
        default: guess_floats64(p, c, at, n, s, 4, 23, level);
    }
}

INLINE void codes_body(const plan *p, chunk *c, uint32_t at, uint32_t n, const strip *s, int32_t ratio, int level) {
    const uint8_t *base = p->part->base + c->start + at;
    (void)level;
    for (size_t i = 0; i < n; i++) {
        guess g = guess_code((uint16_t)(((uint32_t)((int8_t)base[i] * ratio) + (uint32_t)s->moves[i]) >> 16));
        c->prediction[at + i] = (uint8_t)g.code;
        c->context[at + i] = (uint16_t)(g.class << 3 | s->classes[i]);
        c->flip[at + i] = (uint8_t)g.flip;
    }
}

EVERY_LEVEL(curve, (const wpatch_curve *q, uint32_t n, strip *s), (q, n, s))
EVERY_LEVEL(floats, (const plan *p, chunk *c, uint32_t at, uint32_t n, const strip *s), (p, c, at, n, s))
EVERY_LEVEL(codes, (const plan *p, chunk *c, uint32_t at, uint32_t n, const strip *s, int32_t ratio),
            (p, c, at, n, s, ratio))

/* Elements of one scale, which in this mode is a row. */
static void predict_piece(const plan *p, chunk *c, const piece *all, strip *s) {
    for (uint32_t at = all->at; at < all->end;) {
        uint32_t n = all->end - at < STRIP ? all->end - at : STRIP;
        plan_product(p->part, &c->next, c->start + at, n, s->moves);
        curve(&p->part->curve, n, s);
        if (p->exponent_bits) {
            floats(p, c, at, n, s);
        } else {
            codes(p, c, at, n, s, all->ratio);
        }
        at += n;
    }
}

void plan_predicted_contexts(const plan *p, chunk *c) {
    strip s;
    piece all = {0};
    while (plan_next_piece(p, c, &all)) {
        predict_piece(p, c, &all, &s);
    }
}
