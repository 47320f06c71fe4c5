/* Where each type of GGUF block keeps its scales and codes, as ggml's reference has it, and fixed-point quotients of
 * scales. */
#include "blocks.h"

#define MAX_RATIO (1u << 23) /* eight: with any code, a sum with a shift stays within 31 bits */
#define MAX_SHIFT (1u << 28)
#define NOT_FINITE 31u

const layout *layout_of(uint32_t dtype) {
    static const layout layouts[] = {
        {WPATCH_Q4_0, 18, 0, 0, 0, 0, 32, 1, 8, 15, 0, 11, 1},
        {WPATCH_Q8_0, 34, 0, 0, 0, 0, 32, 1, 0, 127, 100, 11, 0},
        {WPATCH_Q4_K, 144, 0, 2, 8, 8, 256, 8, 0, 15, 0, 13, 1},
        {WPATCH_Q5_K, 176, 0, 2, 8, 8, 256, 8, 0, 31, 12, 13, 0},
        {WPATCH_Q6_K, 210, 208, 0, 16, 0, 256, 16, 32, 63, 24, 18, 0},
    };
    return dtype >= WPATCH_Q4_0 && dtype <= WPATCH_Q6_K ? &layouts[dtype - WPATCH_Q4_0] : NULL;
}

/* ---- codes */

/* Bytes whose low nibbles come first, in runs. */
INLINE void split_nibbles(const uint8_t *bytes, uint32_t num_runs, uint32_t run, uint8_t *codes) {
    for (uint32_t i = 0; i < num_runs; i++) {
        for (uint32_t j = 0; j < run; j++) {
            codes[2 * run * i + j] = bytes[run * i + j] & 15u;
            codes[2 * run * i + run + j] = bytes[run * i + j] >> 4;
        }
    }
}

INLINE void join_nibbles(const uint8_t *codes, uint32_t num_runs, uint32_t run, uint8_t *bytes) {
    for (uint32_t i = 0; i < num_runs; i++) {
        for (uint32_t j = 0; j < run; j++) {
            bytes[run * i + j] = (uint8_t)((codes[2 * run * i + j] & 15u) | (uint32_t)codes[2 * run * i + run + j] << 4);
        }
    }
}

/* The bits above the nibbles: of code `run * i + j` those from `width * i` on of byte j. */
INLINE void split_high(const uint8_t *bytes, uint32_t width, uint8_t *codes) {
    for (uint32_t i = 0; i < 8 / width; i++) {
        for (uint32_t j = 0; j < 32; j++) {
            codes[32 * i + j] |= (uint8_t)((bytes[j] >> width * i & ((1u << width) - 1u)) << 4);
        }
    }
}

INLINE void join_high(const uint8_t *codes, uint32_t width, uint8_t *bytes) {
    memset(bytes, 0, 32);
    for (uint32_t i = 0; i < 8 / width; i++) {
        for (uint32_t j = 0; j < 32; j++) {
            bytes[j] |= (uint8_t)((codes[32 * i + j] >> 4 & ((1u << width) - 1u)) << width * i);
        }
    }
}

/* ---- scales of Q4_K and Q5_K: eight scales and eight minima of six bits in twelve bytes */

static void split_scales(const uint8_t *bytes, uint8_t *scales, uint8_t *minima) {
    for (uint32_t g = 0; g < 4; g++) {
        scales[g] = bytes[g] & 63u;
        minima[g] = bytes[g + 4] & 63u;
        scales[g + 4] = (uint8_t)((bytes[g + 8] & 15u) | (uint32_t)bytes[g] >> 6 << 4);
        minima[g + 4] = (uint8_t)(bytes[g + 8] >> 4 | bytes[g + 4] >> 6 << 4);
    }
}

static void join_scales(const uint8_t *scales, const uint8_t *minima, uint8_t *bytes) {
    for (uint32_t g = 0; g < 4; g++) {
        bytes[g] = (uint8_t)((scales[g] & 63u) | (uint32_t)scales[g + 4] >> 4 << 6);
        bytes[g + 4] = (uint8_t)((minima[g] & 63u) | (uint32_t)minima[g + 4] >> 4 << 6);
        bytes[g + 8] = (uint8_t)((scales[g + 4] & 15u) | (uint32_t)minima[g + 4] << 4);
    }
}

/* ---- records */

INLINE void split_body(const layout *l, const uint8_t *record, uint32_t n, int paired, content *out, int level) {
    (void)level;
    for (uint32_t i = 0; i < n; i++, record += l->size) {
        uint8_t *codes = out->codes + (size_t)i * (paired ? l->num_codes / 2 : l->num_codes);
        memcpy(out->d + 2 * i, record + l->d_at, 2);
        memcpy(out->dmin + 2 * i, record + l->dmin_at, 2);
        if (l->num_minima) {
            split_scales(record + 4, out->scales + 8 * i, out->minima + 8 * i);
        }
        switch (l->dtype) {
            case WPATCH_Q4_0:
                if (paired) {
                    memcpy(codes, record + 2, 16);
                } else {
                    split_nibbles(record + 2, 1, 16, codes);
                }
                break;
            case WPATCH_Q8_0: memcpy(codes, record + 2, 32); break;
            case WPATCH_Q4_K:
                if (paired) {
                    memcpy(codes, record + 16, 128);
                } else {
                    split_nibbles(record + 16, 4, 32, codes);
                }
                break;
            case WPATCH_Q5_K:
                split_nibbles(record + 48, 4, 32, codes);
                split_high(record + 16, 1, codes);
                break;
            default:
                memcpy(out->scales + 16 * i, record + 192, 16);
                split_nibbles(record, 2, 64, codes);
                split_high(record + 128, 2, codes);
                split_high(record + 160, 2, codes + 128);
        }
    }
}

INLINE void join_body(const layout *l, const content *fields, int paired, uint32_t n, uint8_t *record, int level) {
    (void)level;
    for (uint32_t i = 0; i < n; i++, record += l->size) {
        const uint8_t *codes = fields->codes + (size_t)i * (paired ? l->num_codes / 2 : l->num_codes);
        memcpy(record + l->d_at, fields->d + 2 * i, 2);
        if (l->num_minima) {
            memcpy(record + l->dmin_at, fields->dmin + 2 * i, 2);
            join_scales(fields->scales + 8 * i, fields->minima + 8 * i, record + 4);
        }
        switch (l->dtype) {
            case WPATCH_Q4_0:
                if (paired) {
                    memcpy(record + 2, codes, 16);
                } else {
                    join_nibbles(codes, 1, 16, record + 2);
                }
                break;
            case WPATCH_Q8_0: memcpy(record + 2, codes, 32); break;
            case WPATCH_Q4_K:
                if (paired) {
                    memcpy(record + 16, codes, 128);
                } else {
                    join_nibbles(codes, 4, 32, record + 16);
                }
                break;
            case WPATCH_Q5_K:
                join_nibbles(codes, 4, 32, record + 48);
                join_high(codes, 1, record + 16);
                break;
            default:
                memcpy(record + 192, fields->scales + 16 * i, 16);
                join_nibbles(codes, 2, 64, record);
                join_high(codes, 2, record + 128);
                join_high(codes + 128, 2, record + 160);
        }
    }
}

EVERY_LEVEL(split, (const layout *l, const uint8_t *record, uint32_t n, int paired, content *out),
            (l, record, n, paired, out))
EVERY_LEVEL(join, (const layout *l, const content *fields, int paired, uint32_t n, uint8_t *record),
            (l, fields, paired, n, record))

void split_blocks(const layout *l, const uint8_t *records, uint32_t n, int paired, content *out) {
    split(l, records, n, paired, out);
}

void join_blocks(const layout *l, const content *fields, int paired, uint32_t n, uint8_t *records) {
    join(l, fields, paired, n, records);
}

/* ---- steps */

/* A number as mantissa * 2^exponent, and its sign. */
typedef struct number {
    uint32_t mantissa; /* below 2^18 */
    int32_t exponent;  /* 1 to 31; 31: not finite */
    int negative;
} number;

static number half_at(const uint8_t *at) {
    uint32_t bits = load16(at), field = bits >> 10 & 31u;
    number x = {bits & 1023u, field ? (int32_t)field : 1, (int)(bits >> 15)};
    x.mantissa |= field ? 1024u : 0u;
    return x;
}

static number times(number x, int32_t factor) {
    x.mantissa *= (uint32_t)(factor < 0 ? -factor : factor);
    x.negative ^= factor < 0;
    return x;
}

/* a / b rounded to 20 fraction bits, at most `limit` in magnitude; b is not zero. */
static int32_t quotient(number a, number b, uint32_t limit) {
    int32_t shift = 20 + a.exponent - b.exponent; /* -9 to 49 */
    uint64_t dividend = a.mantissa, divisor = b.mantissa, result = limit;
    if (shift < 0) {
        divisor <<= -shift;
    } else if (shift <= 45) {
        dividend <<= shift;
    } else { /* above 2^(46 - 18), which is no limit's business */
        dividend = a.mantissa ? (uint64_t)limit * divisor : 0;
    }
    result = (dividend + divisor / 2) / divisor;
    result = result < limit ? result : limit;
    return a.negative == b.negative ? (int32_t)result : -(int32_t)result;
}

static int same(number a, number b) {
    return a.mantissa == b.mantissa && a.exponent == b.exponent && a.negative == b.negative;
}

static int usable(number old_scale, number new_scale) {
    return old_scale.mantissa && new_scale.mantissa && old_scale.exponent < (int32_t)NOT_FINITE &&
           new_scale.exponent < (int32_t)NOT_FINITE;
}

static int32_t ratio_of(number old_scale, number new_scale) {
    return usable(old_scale, new_scale) ? quotient(old_scale, new_scale, MAX_RATIO) : STEP_ONE;
}

void scale_steps(const uint8_t *old_d, const uint8_t *new_d, uint32_t n, step *steps) {
    for (uint32_t i = 0; i < n; i++) {
        steps[i].ratio = ratio_of(half_at(old_d + 2 * i), half_at(new_d + 2 * i));
        steps[i].shift = 0;
        steps[i].strength = 0;
    }
}

/* How strong a scale is, in half octaves below the strongest that a segment with such a `top` is likely to have. */
static uint32_t strength_of(number scale, uint32_t top, uint32_t reach) {
    uint32_t length = 0, most = 2 * ((top ? top : 1) + reach) + 1;
    while (scale.mantissa >> length) {
        length++;
    }
    uint32_t next = length > 1 ? scale.mantissa >> (length - 2) & 1u : 0u;
    uint32_t level = scale.mantissa ? 2 * ((uint32_t)scale.exponent + length) + next : 0u;
    uint32_t below = level < most ? most - level : 0;
    return below < STEP_STRENGTHS - 1 ? below : STEP_STRENGTHS - 1;
}

/* A record's numbers, old and new. */
typedef struct heads {
    number d[2], dmin[2];
} heads;

static int32_t scale_at(const layout *l, const content *c, uint32_t i, uint32_t g) {
    uint8_t scale = l->num_scales ? c->scales[l->num_scales * i + g] : 1;
    return l->num_minima ? (int32_t)(scale & 63u) : (int8_t)scale; /* what a damaged block spells may be greater */
}

static step step_of(const layout *l, const heads *h, const content *const fields[2], uint32_t i, uint32_t g) {
    number s[2], m[2];
    step result = {STEP_ONE, 0, 0};
    for (uint32_t k = 0; k < 2; k++) {
        s[k] = times(h->d[k], scale_at(l, fields[k], i, g));
        m[k] = times(h->dmin[k], l->num_minima ? (int32_t)(fields[k]->minima[8 * i + g] & 63u) : 0);
    }
    if (same(s[0], s[1]) && same(m[0], m[1])) {
        return result; /* spares divisions */
    }
    int finite = !l->num_minima || (m[0].exponent < (int32_t)NOT_FINITE && m[1].exponent < (int32_t)NOT_FINITE);
    if (usable(s[0], s[1]) && finite) {
        result.ratio = quotient(s[0], s[1], MAX_RATIO);
        result.shift = l->num_minima ? quotient(m[1], s[1], MAX_SHIFT) - quotient(m[0], s[1], MAX_SHIFT)
                                     : l->zero * (STEP_ONE - result.ratio);
    }
    return result;
}

void code_steps(const layout *l, const content *old_fields, const content *new_fields, uint32_t n, uint32_t top,
                step *steps) {
    const content *const fields[2] = {old_fields, new_fields};
    for (uint32_t i = 0; i < n; i++) {
        heads h = {{half_at(old_fields->d + 2 * i), half_at(new_fields->d + 2 * i)}, {{0}, {0}}};
        if (l->num_minima) { /* of other types nobody has written dmin */
            h.dmin[0] = half_at(old_fields->dmin + 2 * i);
            h.dmin[1] = half_at(new_fields->dmin + 2 * i);
        }
        for (uint32_t g = 0; g < l->num_groups; g++, steps++) {
            *steps = step_of(l, &h, fields, i, g);
            if (l->near) {
                steps->strength = strength_of(times(h.d[0], scale_at(l, old_fields, i, g)), top, l->reach);
            }
        }
    }
}
