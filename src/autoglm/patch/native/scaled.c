/* SCALED: codes of 8 bits with a scale a group, predicted from the change of the scale. */
#include "scaled.h"

#define IDENTITY_CONTEXTS 9u

/* A scale as mantissa * 2^exponent; mantissa 0 for anything that is not positive and finite. */
static uint32_t scale_parts(uint32_t bits, uint32_t dtype, int32_t *exponent) {
    uint32_t m = dtype == WPATCH_F16 ? 10 : dtype == WPATCH_BF16 ? 7 : 23;
    uint32_t largest = dtype == WPATCH_F16 ? 31 : 255;
    uint32_t field = bits >> m, mantissa = bits & ((1u << m) - 1u);
    if (field >= largest) { /* negative, infinite or not a number */
        return 0;
    }
    *exponent = field ? (int32_t)field : 1;
    return field ? mantissa | 1u << m : mantissa;
}

static int32_t scale_ratio(uint32_t old_scale, uint32_t new_scale, uint32_t dtype) {
    int32_t old_exponent = 0, new_exponent = 0;
    if (old_scale == new_scale) {
        return RATIO_ONE;
    }
    uint64_t old_mantissa = scale_parts(old_scale, dtype, &old_exponent);
    uint64_t new_mantissa = scale_parts(new_scale, dtype, &new_exponent);
    int32_t shift = 20 + old_exponent - new_exponent;
    if (!old_mantissa || !new_mantissa) {
        return RATIO_ONE;
    }
    if (shift < 0 || shift > 38) {
        return shift < 0 ? 0 : 8 * RATIO_ONE;
    }
    uint64_t ratio = ((old_mantissa << shift) + new_mantissa / 2) / new_mantissa;
    return ratio > 8 * RATIO_ONE ? 8 * RATIO_ONE : (int32_t)ratio;
}

static void load_scales(const wpatch_part *part, uint32_t group, uint32_t *old_scale, uint32_t *new_scale) {
    uint32_t width = part->scale_dtype == WPATCH_F32 ? 4 : 2;
    *old_scale = load_element(part->old_scales + (size_t)group * width, width);
    *new_scale = load_element(part->new_scales + (size_t)group * width, width);
}

int plan_next_piece(const plan *p, const chunk *c, piece *s) {
    const wpatch_part *part = p->part;
    uint32_t old_scale, new_scale;
    s->at = s->end;
    s->end = c->count;
    s->ratio = RATIO_ONE;
    if (s->at == c->count || !part->scale_dtype) {
        return s->at < c->count;
    }
    uint32_t place = part->first + c->start + s->at, group = place / part->group;
    uint32_t left = part->group - place % part->group;
    load_scales(part, group, &old_scale, &new_scale);
    s->ratio = scale_ratio(old_scale, new_scale, part->scale_dtype);
    /* groups that kept their scales are common, and go together */
    while (left < c->count - s->at && s->ratio == RATIO_ONE) {
        load_scales(part, ++group, &old_scale, &new_scale);
        if (old_scale != new_scale) {
            break;
        }
        left += part->group;
    }
    s->end = left < c->count - s->at ? s->at + left : c->count;
    return 1;
}

/* Nine classes of a code's magnitude: 0, the powers of two, and codes at the edge of the range. */
INLINE void identity_body(const uint8_t *base, uint32_t n, uint16_t *context, int level) {
    (void)level;
    for (size_t i = 0; i < n; i++) {
        uint8_t b = base[i], a = (uint8_t)(b < 128 ? b : 256 - b);
        context[i] = (uint16_t)((a > 0) + (a > 1) + (a > 3) + (a > 7) + (a > 15) + (a > 31) + (a > 63) + (a > 126));
    }
}

INLINE void sign_body(const uint8_t *base, uint32_t n, uint8_t *prediction, uint8_t *flip, int level) {
    (void)level;
    for (size_t i = 0; i < n; i++) {
        prediction[i] = base[i];
        flip[i] = base[i] >> 7;
    }
}

INLINE void scaled_body(const uint8_t *base, uint32_t n, int32_t ratio, chunk *c, uint32_t at, int level) {
    (void)level;
    for (size_t i = 0; i < n; i++) {
        guess g = guess_code((uint16_t)((uint32_t)((int8_t)base[i] * ratio) >> 16));
        c->prediction[at + i] = (uint8_t)g.code;
        c->context[at + i] = (uint16_t)(IDENTITY_CONTEXTS + g.class);
        c->flip[at + i] = (uint8_t)g.flip;
    }
}

EVERY_LEVEL(identity, (const uint8_t *base, uint32_t n, uint16_t *context), (base, n, context))
EVERY_LEVEL(sign, (const uint8_t *base, uint32_t n, uint8_t *prediction, uint8_t *flip), (base, n, prediction, flip))
EVERY_LEVEL(scaled, (const uint8_t *base, uint32_t n, int32_t ratio, chunk *c, uint32_t at), (base, n, ratio, c, at))

void plan_code_contexts(const plan *p, chunk *c) {
    identity(p->part->base + c->start, c->count, c->context);
}

void plan_scaled_contexts(const plan *p, chunk *c) {
    piece s = {0};
    while (plan_next_piece(p, c, &s)) {
        const uint8_t *base = p->part->base + c->start + s.at;
        uint32_t n = s.end - s.at;
        if (s.ratio == RATIO_ONE) {
            identity(base, n, c->context + s.at);
            sign(base, n, c->prediction + s.at, c->flip + s.at);
        } else {
            scaled(base, n, s.ratio, c, s.at);
        }
    }
}
