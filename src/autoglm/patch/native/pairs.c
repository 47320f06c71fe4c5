/* PAIRS: bytes of two 4-bit codes, predicted from their groups' scales, and coded with one token a byte.
 *
 * A group has so few codes that what is expected of each is worked out once, and then looked up.
 */
#include "pairs.h"

#include "fields.h"

/* ---- what is expected of a group's codes */

/* What is expected of each of 16 codes, in the parts of a byte's prediction, context and turns that the byte's low code,
 * or its high one, adds. */
typedef struct lookup16 {
    uint8_t code[16], context[16], turned[16];
} lookup16;

static void expect_codes(const step *s, range r, uint32_t high, lookup16 *out) {
    for (uint32_t q = 0; q < 16; q++) {
        expected e = expect_code((int32_t)q, s, r);
        out->code[q] = (uint8_t)(e.code << (high ? 4 : 0));
        out->context[q] = (uint8_t)(e.class * (high ? STEP_CLASSES : 1));
        out->turned[q] = (uint8_t)(e.turned << high);
    }
}

/* n bytes, of whose codes the low ones move by one step, the high ones by the other. */
static void expect_portable(const uint8_t *base, uint32_t n, const step *low, const step *high, range r, chunk *c,
                            uint32_t at) {
    lookup16 lows, highs;
    expect_codes(low, r, 0, &lows);
    expect_codes(high, r, 1, &highs);
    for (size_t i = 0; i < n; i++) {
        uint32_t a = base[i] & 15u, b = base[i] >> 4;
        c->prediction[at + i] = (uint8_t)(lows.code[a] | highs.code[b]);
        c->flip[at + i] = (uint8_t)(lows.turned[a] | highs.turned[b]);
        c->context[at + i] = (uint16_t)(PAIRS_KEPT + lows.context[a] + highs.context[b]);
    }
}

#if CPU_X86
/* The same in registers, where looking up 16 bytes is one instruction. */
typedef struct registers16 {
    __m128i code, context, turned;
} registers16;

INLINE_AVX2 registers16 low_codes(const step *s, range r) {
    const __m256i q = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    expected16 e = expect16(q, s, s, r);
    registers16 x = {bytes_of(e.code), bytes_of(e.class), bytes_of(_mm256_srli_epi16(e.turned, 15))};
    return x;
}

/* No byte is so large that shifting it would reach its neighbour. */
INLINE_AVX2 registers16 as_high(registers16 x) {
    x.code = _mm_slli_epi16(x.code, 4);
    x.context = _mm_add_epi8(_mm_slli_epi16(x.context, 3), _mm_slli_epi16(x.context, 2)); /* times STEP_CLASSES */
    x.turned = _mm_slli_epi16(x.turned, 1);
    return x;
}

#define STORE16(at, value) _mm_storeu_si128((void *)(at), value)

/* Whole runs of 16 bytes; returns how many bytes that were. */
TARGET_AVX2 static uint32_t expect_avx2(const uint8_t *base, uint32_t n, const step *low, const step *high, range r,
                                        chunk *c, uint32_t at) {
    const __m128i nibble = _mm_set1_epi8(15), kept = _mm_set1_epi8(PAIRS_KEPT >> 8);
    const registers16 x = low_codes(low, r), y = as_high(low == high ? x : low_codes(high, r));
    uint32_t i = 0;
    for (; n - i >= 16; i += 16) {
        __m128i bytes = _mm_loadu_si128((const void *)(base + i)), a = _mm_and_si128(bytes, nibble);
        __m128i b = _mm_and_si128(_mm_srli_epi16(bytes, 4), nibble);
        __m128i context = _mm_add_epi8(_mm_shuffle_epi8(x.context, a), _mm_shuffle_epi8(y.context, b));
        STORE16(c->prediction + at + i, _mm_or_si128(_mm_shuffle_epi8(x.code, a), _mm_shuffle_epi8(y.code, b)));
        STORE16(c->flip + at + i, _mm_or_si128(_mm_shuffle_epi8(x.turned, a), _mm_shuffle_epi8(y.turned, b)));
        STORE16(c->context + at + i, _mm_unpacklo_epi8(context, kept));
        STORE16(c->context + at + i + 8, _mm_unpackhi_epi8(context, kept));
    }
    return i;
}
#endif

static void expect_bytes(const uint8_t *base, uint32_t n, const step *low, const step *high, range r, chunk *c,
                         uint32_t at) {
    uint32_t done = 0;
#if CPU_X86
    if (cpu_level() && n >= 16) {
        done = expect_avx2(base, n, low, high, r, c, at);
    }
#endif
    if (done < n) {
        expect_portable(base + done, n - done, low, high, r, c, at + done);
    }
}

/* Groups that kept their scales. */
static void kept_bytes(const uint8_t *base, uint32_t n, chunk *c, uint32_t at) {
    memcpy(c->prediction + at, base, n);
    memset(c->flip + at, 0, n);
    for (size_t i = 0; i < n; i++) {
        c->context[at + i] = base[i];
    }
}

/* ---- contexts */

static void plain_contexts(const plan *p, chunk *c) {
    const range symmetric = {0, 1, 15}; /* around 8, as codes are in most files */
    piece s = {0};
    while (plan_next_piece(p, c, &s)) {
        const uint8_t *base = p->part->base + c->start + s.at;
        const step moved = {s.ratio, 8 * (STEP_ONE - s.ratio), 0};
        if (step_kept(&moved)) {
            kept_bytes(base, s.end - s.at, c, s.at);
        } else {
            expect_bytes(base, s.end - s.at, &moved, &moved, symmetric, c, s.at);
        }
    }
}

/* Bytes of records: runs whose low codes belong to one group, the high ones to the same or to the next. */
static void record_contexts(const plan *p, chunk *c) {
    const range all = {0, 0, 15};
    const field *f = p->field;
    for (uint32_t at = 0; at < c->count; at += f->run) {
        const step *low = f->steps + (c->start + at) / f->run * f->groups, *high = low + f->groups - 1;
        const uint8_t *base = p->part->base + c->start + at;
        if (step_kept(low) && step_kept(high)) {
            kept_bytes(base, f->run, c, at);
        } else {
            expect_bytes(base, f->run, low, high, all, c, at);
        }
    }
}

void pairs_contexts(const plan *p, chunk *c) {
    if (p->field) {
        record_contexts(p, c);
    } else {
        plain_contexts(p, c);
    }
}

/* ---- residuals: two differences in a token, or the byte */

/* The loops' arrays do not overlap, and their numbers fit a byte, so that vector instructions take many at a time. */

INLINE uint8_t turn(uint8_t d, uint8_t turned) { return (uint8_t)((d ^ (0u - turned)) + turned); }

INLINE void restore_body(const uint8_t *restrict prediction, const uint8_t *restrict flip,
                         const uint32_t *restrict values, uint32_t n, uint8_t *restrict out, int level) {
    (void)level;
    for (size_t i = 0; i < n; i++) {
        uint8_t v = (uint8_t)values[i], p = prediction[i], escaped = (uint8_t)(values[i] >> 8);
        uint8_t sevens = (uint8_t)((uint16_t)(v * 37u) >> 8), ones = (uint8_t)(v - 7u * sevens);
        uint8_t low = (uint8_t)(p + turn((uint8_t)(ones - 3u), flip[i] & 1u));
        uint8_t high = (uint8_t)((p >> 4) + turn((uint8_t)(sevens - 3u), flip[i] >> 1));
        uint8_t byte = (uint8_t)((low & 15u) | (uint32_t)high << 4);
        out[i] = escaped ? v : byte;
    }
}

INLINE void residuals_body(const uint8_t *restrict prediction, const uint8_t *restrict flip, const uint8_t *restrict in,
                           uint32_t n, uint32_t *restrict values, int level) {
    (void)level;
    for (size_t i = 0; i < n; i++) {
        uint8_t u = in[i], p = prediction[i];
        uint8_t ones = (turn((uint8_t)(u - p), flip[i] & 1u) + 3u) & 15u;
        uint8_t sevens = (turn((uint8_t)((u >> 4) - (p >> 4)), flip[i] >> 1) + 3u) & 15u;
        uint16_t small = (uint16_t)(7u * sevens + ones), whole = (uint16_t)(256u + u);
        values[i] = (uint8_t)(ones > 6) | (uint8_t)(sevens > 6) ? whole : small;
    }
}

EVERY_LEVEL(restore,
            (const uint8_t *prediction, const uint8_t *flip, const uint32_t *values, uint32_t n, uint8_t *out),
            (prediction, flip, values, n, out))
EVERY_LEVEL(residuals,
            (const uint8_t *prediction, const uint8_t *flip, const uint8_t *in, uint32_t n, uint32_t *values),
            (prediction, flip, in, n, values))

void pairs_restore(const plan *p, const chunk *c, const uint32_t *values) {
    restore(c->prediction, c->flip, values, c->count, p->part->elements + c->start);
}

void pairs_residuals(const plan *p, const chunk *c, uint32_t *values) {
    residuals(c->prediction, c->flip, p->part->elements + c->start, c->count, values);
}
