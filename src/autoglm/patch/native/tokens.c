/* Values <-> tokens: the alphabets of numbers, of whole floats and of pairs of codes. */
#include "levels.h"
#include "pairs.h"
#include "transform.h"

/* Numbers of a width: those below `direct` are tokens themselves; from 2^octave on, 2^fine tokens an octave follow. */
typedef struct ladder {
    uint32_t direct, fine, octave;
} ladder;

static ladder ladder_of(uint32_t size) {
    static const ladder of8 = {32, 3, 5}, of16 = {16, 2, 4}, of32 = {4, 1, 2};
    return size == 1 ? of8 : size == 2 ? of16 : of32;
}

static void number_alphabet(alphabet *a, uint32_t size) {
    ladder l = ladder_of(size);
    for (uint32_t token = 0; token < WPATCH_NUM_TOKENS; token++) {
        uint32_t place = token < l.direct ? 0 : token - l.direct, bits = l.octave + (place >> l.fine) - l.fine;
        /* tokens above the type's range are never made; their values wrap harmlessly */
        uint32_t leading = (1u << l.fine) + (place & ((1u << l.fine) - 1u));
        a->first[token] = token < l.direct ? token : leading << bits;
        a->extra[token] = (uint8_t)(token < l.direct ? 0 : bits);
    }
}

/* FULL floats: token = 4 * min(top - exponent, 15) + two leading mantissa bits; the rest is raw. */
static void float_alphabet(alphabet *a, kind k) {
    uint32_t rest = 1u + k.mantissa_bits - 2u;
    for (uint32_t token = 0; token < WPATCH_NUM_TOKENS; token++) {
        a->first[token] = 0;
        a->extra[token] = (uint8_t)(rest + (token >= 60 ? k.exponent_bits : 0u));
    }
}

/* A token is two small differences; the one behind them says that the byte follows. */
static void pairs_alphabet(alphabet *a) {
    for (uint32_t token = 0; token < WPATCH_NUM_TOKENS; token++) {
        a->first[token] = token < PAIRS_TOKENS ? token : 256;
        a->extra[token] = token == PAIRS_TOKENS ? 8 : 0;
    }
}

void plan_alphabet(alphabet *out, uint32_t mode, uint32_t dtype) {
    kind k = plan_kind(dtype);
    if (mode == WPATCH_PAIRS) {
        pairs_alphabet(out);
    } else if (mode == WPATCH_FULL && k.exponent_bits) {
        float_alphabet(out, k);
    } else {
        number_alphabet(out, k.size);
    }
}

INLINE uint32_t log2_floor(uint32_t value) {
#if defined(__GNUC__)
    return 31u - (uint32_t)__builtin_clz(value | 1u);
#else
    uint32_t result = 0;
    while (value >>= 1) {
        result++;
    }
    return result;
#endif
}

INLINE uint32_t number_token(ladder l, uint32_t value, uint32_t *raw) {
    uint32_t log = log2_floor(value), octave = log > l.octave ? log : l.octave, bits = octave - l.fine;
    uint32_t token = l.direct + ((octave - l.octave) << l.fine) + (value >> bits & ((1u << l.fine) - 1u));
    *raw = value < l.direct ? 0 : value & ((1u << bits) - 1u);
    return value < l.direct ? value : token;
}

uint8_t plan_token(uint32_t size, uint32_t value, uint32_t *raw) {
    return (uint8_t)number_token(ladder_of(size), value, raw);
}

INLINE uint32_t float_token(uint32_t m, uint32_t x, uint32_t top, uint32_t value, uint32_t *raw) {
    uint32_t exponent = value >> m & ((1u << x) - 1u), sign = value >> (m + x) & 1u;
    uint32_t below = top - exponent; /* the caller made sure that top is the largest */
    uint32_t low = (value & ((1u << (m - 2)) - 1u)) | sign << (m - 2);
    *raw = below < 15 ? low : low | exponent << (m - 1);
    return (below < 15 ? below : 15) << 2 | (value >> (m - 2) & 3u);
}

void plan_make_tokens(plan *p) {
    const int pairs = p->part->mode == WPATCH_PAIRS;
    plan_alphabet(&p->tokens, p->part->mode, p->part->dtype);
    p->num_tokens = pairs ? PAIRS_TOKENS + 1 : WPATCH_NUM_TOKENS;
    p->direct = is_full_float(p) ? 0 : pairs ? PAIRS_TOKENS : ladder_of(p->size).direct;
    p->max_extra = 0;
    for (uint32_t token = 0; token < p->num_tokens; token++) {
        p->max_extra = p->tokens.extra[token] > p->max_extra ? p->tokens.extra[token] : p->max_extra;
    }
}

INLINE void fill_tokens_body(const plan *p, const uint32_t *values, uint32_t n, uint8_t *tokens, uint32_t *raw,
                             int level) {
    const ladder l = ladder_of(p->size);
    const uint32_t m = p->mantissa_bits, x = p->exponent_bits, top = p->part->top;
    (void)level;
    if (is_full_float(p)) {
        for (size_t i = 0; i < n; i++) {
            tokens[i] = (uint8_t)float_token(m, x, top, values[i], &raw[i]);
        }
    } else if (p->part->mode == WPATCH_PAIRS) {
        for (size_t i = 0; i < n; i++) {
            tokens[i] = (uint8_t)(values[i] < PAIRS_TOKENS ? values[i] : PAIRS_TOKENS);
            raw[i] = values[i] < PAIRS_TOKENS ? 0 : values[i] & 0xffu;
        }
    } else {
        for (size_t i = 0; i < n; i++) {
            tokens[i] = (uint8_t)number_token(l, values[i], &raw[i]);
        }
    }
}

EVERY_LEVEL(fill_tokens, (const plan *p, const uint32_t *values, uint32_t n, uint8_t *tokens, uint32_t *raw),
            (p, values, n, tokens, raw))

void plan_tokens(const plan *p, const uint32_t *values, uint32_t n, uint8_t *tokens, uint32_t *raw) {
    fill_tokens(p, values, n, tokens, raw);
}
