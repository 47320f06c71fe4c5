/* Contexts, predictions, residuals and tokens of every mode and element type. */
#include "transform.h"

typedef struct kind {
    uint8_t size, exponent_bits, mantissa_bits;
} kind;

static kind kind_of(uint32_t dtype) {
    static const kind none = {0, 0, 0}, code = {1, 0, 0}, e4m3 = {1, 4, 3}, e5m2 = {1, 5, 2};
    static const kind f16 = {2, 5, 10}, bf16 = {2, 8, 7}, f32 = {4, 8, 23};
    switch (dtype) {
        case WPATCH_I8:
        case WPATCH_U8:
        case WPATCH_BOOL: return code;
        case WPATCH_F8_E4M3: return e4m3;
        case WPATCH_F8_E5M2: return e5m2;
        case WPATCH_F16: return f16;
        case WPATCH_BF16: return bf16;
        case WPATCH_F32: return f32;
        default: return none;
    }
}

uint32_t wpatch_num_contexts(uint32_t mode, uint32_t dtype) {
    kind k = kind_of(dtype);
    if (k.size == 0) {
        return 0;
    }
    switch (mode) {
        case WPATCH_FULL: return 1;
        case WPATCH_DIFFERENCE: return k.exponent_bits ? 20 : 9;
        case WPATCH_SCALED: return dtype == WPATCH_I8 ? 9 : 0;
        default: return 0;
    }
}

/* ---- tokens */

static void make_alphabet(alphabet *a, uint32_t size) {
    uint32_t direct = size == 1 ? 32 : size == 2 ? 16 : 4;
    uint32_t fine = size == 1 ? 3 : size == 2 ? 2 : 1;
    uint32_t octave = size == 1 ? 5 : size == 2 ? 4 : 2;
    for (uint32_t token = 0; token < WPATCH_NUM_TOKENS; token++) {
        if (token < direct) {
            a->first[token] = token;
            a->extra[token] = 0;
        } else {
            uint32_t place = token - direct;
            uint32_t bits = octave + (place >> fine) - fine;
            /* tokens above the type's range are never made; their values wrap harmlessly */
            a->first[token] = ((1u << fine) + (place & ((1u << fine) - 1u))) << bits;
            a->extra[token] = (uint8_t)bits;
        }
    }
}

/* FULL floats: token = 4 * min(top - exponent, 15) + two leading mantissa bits; the rest is raw. */
static void make_float_alphabet(alphabet *a, const plan *p) {
    for (uint32_t token = 0; token < WPATCH_NUM_TOKENS; token++) {
        uint32_t rest = 1 + p->mantissa_bits - 2;
        a->first[token] = 0;
        a->extra[token] = (uint8_t)(rest + (token >= 60 ? p->exponent_bits : 0));
    }
}

static uint32_t log2_floor(uint32_t value) {
#if defined(__GNUC__)
    return 31u - (uint32_t)__builtin_clz(value);
#else
    uint32_t result = 0;
    while (value >>= 1) {
        result++;
    }
    return result;
#endif
}

static uint8_t float_token(const plan *p, uint32_t value, uint32_t *raw) {
    uint32_t m = p->mantissa_bits, x = p->exponent_bits;
    uint32_t exponent = value >> m & ((1u << x) - 1u), sign = value >> (m + x) & 1u;
    uint32_t below = p->part->top - exponent; /* the caller made sure that top is the largest */
    uint32_t low = value & ((1u << (m - 2)) - 1u);
    *raw = low | sign << (m - 2);
    if (below >= 15) {
        below = 15;
        *raw |= exponent << (m - 1);
    }
    return (uint8_t)(below << 2 | (value >> (m - 2) & 3u));
}

static uint8_t token_of(uint32_t size, uint32_t value) {
    uint32_t direct = size == 1 ? 32 : size == 2 ? 16 : 4;
    uint32_t fine = size == 1 ? 3 : size == 2 ? 2 : 1;
    uint32_t octave = size == 1 ? 5 : size == 2 ? 4 : 2;
    if (value < direct) {
        return (uint8_t)value;
    }
    uint32_t log = log2_floor(value);
    return (uint8_t)(direct + ((log - octave) << fine) + (value >> (log - fine) & ((1u << fine) - 1u)));
}

void plan_tokens(const plan *p, const uint32_t *values, uint32_t n, uint8_t *tokens, uint32_t *raw) {
    if (is_full_float(p)) {
        for (uint32_t i = 0; i < n; i++) {
            tokens[i] = float_token(p, values[i], &raw[i]);
        }
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint8_t token = values[i] < 256 ? p->token_of[values[i]] : token_of(p->size, values[i]);
        tokens[i] = token;
        raw[i] = values[i] & ((1u << p->tokens.extra[token]) - 1u);
    }
}

/* ---- planning */

static int check_scaled(const wpatch_part *part) {
    uint64_t reach = (uint64_t)part->first_column + part->count;
    int known = part->scale_dtype == WPATCH_F16 || part->scale_dtype == WPATCH_BF16 || part->scale_dtype == WPATCH_F32;
    return known && part->old_scales && part->new_scales && part->columns && part->first_column < part->columns &&
           (uint64_t)part->num_rows * part->columns >= reach;
}

static uint8_t exponent_class(uint32_t top, uint32_t exponent) {
    uint32_t below = exponent < top ? top - exponent : 0;
    return (uint8_t)(below > 19 ? 19 : below);
}

/* Eight magnitude classes of a signed code, and one for codes at the edge of the range. */
static uint8_t code_class(uint32_t code) {
    uint32_t magnitude = code < 128 ? code : 256u - code;
    return (uint8_t)(magnitude >= 127 ? 8 : magnitude == 0 ? 0 : 1 + log2_floor(magnitude));
}

static void make_lut(plan *p, const uint8_t *tables) {
    for (uint32_t i = 0; i < 256; i++) {
        uint8_t context = 0;
        if (p->part->mode == WPATCH_SCALED) {
            context = (uint8_t)(i < 9 ? i : 0);
        } else if (p->part->mode == WPATCH_DIFFERENCE) {
            context = p->exponent_bits ? exponent_class(p->part->top, i) : code_class(i);
        }
        p->lut[i] = tables ? tables[p->part->num_contexts == 1 ? 0 : context] : context;
    }
}

int plan_part(plan *p, const wpatch_part *part, size_t num_tables, int mapped) {
    kind k = kind_of(part->dtype);
    uint32_t contexts = wpatch_num_contexts(part->mode, part->dtype);
    if (!contexts || !part->count || part->count > WPATCH_MAX_BLOCK || !part->elements || part->top > 255) {
        return WPATCH_BAD_ARGUMENT;
    }
    if ((part->mode != WPATCH_FULL && !part->base) || (part->mode == WPATCH_SCALED && !check_scaled(part))) {
        return WPATCH_BAD_ARGUMENT;
    }
    if (part->num_contexts != 1 && part->num_contexts != contexts) {
        return WPATCH_BAD_ARGUMENT;
    }
    p->part = part;
    p->size = k.size;
    p->exponent_bits = k.exponent_bits;
    p->mantissa_bits = k.mantissa_bits;
    p->num_contexts = contexts;
    for (uint32_t i = 0; mapped && i < part->num_contexts; i++) {
        if (part->tables[i] >= num_tables) {
            return WPATCH_BAD_ARGUMENT;
        }
    }
    make_lut(p, mapped ? part->tables : NULL);
    if (is_full_float(p)) {
        make_float_alphabet(&p->tokens, p);
    } else {
        make_alphabet(&p->tokens, p->size);
    }
    for (uint32_t value = 0; value < 256; value++) {
        p->token_of[value] = token_of(p->size, value);
    }
    p->direct = is_full_float(p) ? 0 : p->size == 1 ? 32 : p->size == 2 ? 16 : 4;
    p->max_extra = 0;
    for (uint32_t token = 0; token < WPATCH_NUM_TOKENS; token++) {
        p->max_extra = p->tokens.extra[token] > p->max_extra ? p->tokens.extra[token] : p->max_extra;
    }
    return WPATCH_OK;
}

/* ---- contexts */

static void float_contexts(const plan *p, chunk *c) {
    const uint8_t *base = p->part->base + (size_t)c->start * p->size;
    uint32_t m = p->mantissa_bits, mask = (1u << p->exponent_bits) - 1u;
    if (p->size == 1) {
        for (uint32_t i = 0; i < c->count; i++) {
            c->context[i] = p->lut[base[i] >> m & mask];
        }
    } else if (p->size == 2) {
        for (uint32_t i = 0; i < c->count; i++) {
            c->context[i] = p->lut[load16(base + 2 * i) >> m & mask];
        }
    } else {
        for (uint32_t i = 0; i < c->count; i++) {
            c->context[i] = p->lut[load32(base + 4 * i) >> m & mask];
        }
    }
}

static void code_contexts(const plan *p, chunk *c) {
    const uint8_t *base = p->part->base + c->start;
    for (uint32_t i = 0; i < c->count; i++) {
        c->context[i] = p->lut[base[i]];
    }
}

/* A scale as mantissa * 2^exponent; mantissa 0 for anything that is not positive and finite. */
static uint32_t scale_parts(const uint8_t *at, uint32_t dtype, int32_t *exponent) {
    kind k = kind_of(dtype);
    uint32_t bits = load_element(at, k.size);
    uint32_t field = bits >> k.mantissa_bits & ((1u << k.exponent_bits) - 1u);
    uint32_t mantissa = bits & ((1u << k.mantissa_bits) - 1u);
    if (bits >> (k.mantissa_bits + k.exponent_bits) || field == (1u << k.exponent_bits) - 1u) {
        return 0;
    }
    *exponent = field ? (int32_t)field : 1;
    return field ? mantissa | 1u << k.mantissa_bits : mantissa;
}

/* old / new as a fixed-point number with 20 fraction bits, at most 8. */
static int32_t scale_ratio(const uint8_t *old_scale, const uint8_t *new_scale, uint32_t dtype) {
    int32_t old_exponent = 0, new_exponent = 0;
    uint64_t old_mantissa = scale_parts(old_scale, dtype, &old_exponent);
    uint64_t new_mantissa = scale_parts(new_scale, dtype, &new_exponent);
    int32_t shift = 20 + old_exponent - new_exponent;
    if (!old_mantissa || !new_mantissa) {
        return 1 << 20;
    }
    if (shift < 0 || shift > 38) {
        return shift < 0 ? 0 : 1 << 23;
    }
    uint64_t ratio = ((old_mantissa << shift) + new_mantissa / 2) / new_mantissa;
    return ratio > 1u << 23 ? 1 << 23 : (int32_t)ratio;
}

/* Prediction of a code at a ratio, its class and its flip, packed as prediction | class << 8 | flip << 16. */
static uint32_t scaled_code(uint32_t byte, int32_t ratio) {
    int32_t code = byte < 128 ? (int32_t)byte : (int32_t)byte - 256;
    /* biased by 2^31 so that shifts are of unsigned numbers; |code * ratio| <= 2^30 */
    uint32_t product = (uint32_t)(code * ratio) + 0x80000000u;
    int32_t rounded = (int32_t)((product + (1u << 19)) >> 20) - 2048;
    uint32_t fraction = product >> 16 & 15u, up = fraction >> 3;
    if (rounded <= -127 || rounded >= 127) {
        return rounded < 0 ? 0x81u | 8u << 8 | 1u << 16 : 0x7fu | 8u << 8;
    }
    return ((uint32_t)rounded & 0xffu) | (up ? 15u - fraction : fraction) << 8 | up << 16;
}

static void scaled_row(const plan *p, chunk *c, uint32_t at, uint32_t end, int32_t ratio) {
    const uint8_t *base = p->part->base + c->start;
    uint32_t codes[256];
    int tabled = end - at >= 512; /* then working out all 256 codes first is faster */
    for (uint32_t code = 0; tabled && code < 256; code++) {
        codes[code] = scaled_code(code, ratio);
    }
    for (uint32_t i = at; i < end; i++) {
        uint32_t packed = tabled ? codes[base[i]] : scaled_code(base[i], ratio);
        c->prediction[i] = (uint8_t)packed;
        c->context[i] = p->lut[packed >> 8 & 255u];
        c->flip[i] = (uint8_t)(packed >> 16);
    }
}

static void scaled_contexts(const plan *p, chunk *c) {
    const wpatch_part *part = p->part;
    uint32_t width = kind_of(part->scale_dtype).size, place = part->first_column + c->start;
    uint32_t row = place / part->columns, column = place % part->columns, at = 0;
    while (at < c->count) {
        uint32_t left = part->columns - column, end = c->count - at < left ? c->count : at + left;
        int32_t ratio = scale_ratio(part->old_scales + (size_t)row * width, part->new_scales + (size_t)row * width,
                                    part->scale_dtype);
        scaled_row(p, c, at, end, ratio);
        at = end;
        row++;
        column = 0;
    }
}

void plan_contexts(const plan *p, chunk *c) {
    if (p->part->mode == WPATCH_FULL) {
        memset(c->context, p->lut[0], c->count);
    } else if (p->part->mode == WPATCH_SCALED) {
        scaled_contexts(p, c);
    } else if (p->exponent_bits) {
        float_contexts(p, c);
    } else {
        code_contexts(p, c);
    }
}

/* ---- residuals: all arithmetic is modulo 2^width, so every value has exactly one way back */

#define FOLD(d, width, mask) (((d) << 1 ^ (0u - ((d) >> ((width)-1) & 1u))) & (mask))
#define UNFOLD(z) ((z) >> 1 ^ (0u - ((z) & 1u)))
#define ORDER(u, width, mask) ((u) ^ ((0u - ((u) >> ((width)-1) & 1u)) & (mask) >> 1))
#define TURN(d, flip) (((d) ^ (0u - (flip))) + (flip))

/* One loop a width, so that the compiler sees constant sizes and can use vector instructions. */
#define DIFFERENCE_LOOPS(width, load, store)                                                               \
    static void restore##width(const uint8_t *base, uint8_t *out, uint32_t n, const uint32_t *values, int f) { \
        const uint32_t mask = 0xffffffffu >> (32 - (width));                                               \
        for (uint32_t i = 0; i < n; i++) {                                                                 \
            uint32_t b = load(base + i * ((width) / 8)), sign = b >> ((width)-1);                          \
            uint32_t from = f ? ORDER(b, width, mask) : b;                                                 \
            uint32_t to = (from + TURN(UNFOLD(values[i]), sign)) & mask;                                   \
            to = f ? ORDER(to, width, mask) : to;                                                          \
            store(out + i * ((width) / 8), to);                                                            \
        }                                                                                                  \
    }                                                                                                      \
    static void residual##width(const uint8_t *base, const uint8_t *in, uint32_t n, uint32_t *values, int f) { \
        const uint32_t mask = 0xffffffffu >> (32 - (width));                                               \
        for (uint32_t i = 0; i < n; i++) {                                                                 \
            uint32_t b = load(base + i * ((width) / 8)), sign = b >> ((width)-1);                          \
            uint32_t y = load(in + i * ((width) / 8));                                                     \
            uint32_t d = f ? ORDER(y, width, mask) - ORDER(b, width, mask) : y - b;                        \
            d = TURN(d, sign) & mask;                                                                      \
            values[i] = FOLD(d, width, mask);                                                              \
        }                                                                                                  \
    }

DIFFERENCE_LOOPS(8, load8, store8)
DIFFERENCE_LOOPS(16, load16, store16)
DIFFERENCE_LOOPS(32, load32, store32)

void plan_restore(const plan *p, const chunk *c, const uint32_t *values) {
    const wpatch_part *part = p->part;
    uint8_t *out = part->elements + (size_t)c->start * p->size;
    int ordered = p->exponent_bits != 0;
    if (is_full_float(p)) {
        for (uint32_t i = 0; i < c->count; i++) {
            store_element(out + (size_t)i * p->size, p->size, values[i]);
        }
    } else if (part->mode == WPATCH_FULL) {
        for (uint32_t i = 0; i < c->count; i++) {
            out[i] = (uint8_t)UNFOLD(values[i]);
        }
    } else if (part->mode == WPATCH_SCALED) {
        for (uint32_t i = 0; i < c->count; i++) {
            uint32_t flip = c->flip[i];
            out[i] = (uint8_t)(c->prediction[i] + TURN(UNFOLD(values[i]), flip));
        }
    } else if (p->size == 1) {
        restore8(part->base + c->start, out, c->count, values, ordered);
    } else if (p->size == 2) {
        restore16(part->base + (size_t)c->start * 2, out, c->count, values, ordered);
    } else {
        restore32(part->base + (size_t)c->start * 4, out, c->count, values, ordered);
    }
}

void plan_residuals(const plan *p, const chunk *c, uint32_t *values) {
    const wpatch_part *part = p->part;
    const uint8_t *in = part->elements + (size_t)c->start * p->size;
    int ordered = p->exponent_bits != 0;
    if (is_full_float(p)) {
        for (uint32_t i = 0; i < c->count; i++) {
            values[i] = load_element(in + (size_t)i * p->size, p->size);
        }
    } else if (part->mode == WPATCH_FULL) {
        for (uint32_t i = 0; i < c->count; i++) {
            values[i] = FOLD((uint32_t)in[i], 8, 0xffu);
        }
    } else if (part->mode == WPATCH_SCALED) {
        for (uint32_t i = 0; i < c->count; i++) {
            uint32_t flip = c->flip[i], d = TURN((uint32_t)in[i] - c->prediction[i], flip) & 0xffu;
            values[i] = FOLD(d, 8, 0xffu);
        }
    } else if (p->size == 1) {
        residual8(part->base + c->start, in, c->count, values, ordered);
    } else if (p->size == 2) {
        residual16(part->base + (size_t)c->start * 2, in, c->count, values, ordered);
    } else {
        residual32(part->base + (size_t)c->start * 4, in, c->count, values, ordered);
    }
}
