/* Decoding of blocks: 32 states, the number of words, the words, and the raw bits.
 *
 * The states must end where the encoder began, and every word and bit must have been used, so most damage is
 * noticed even without a hash.
 */
#include "rans.h"

#include "levels.h"

#define WINDOW_BITS 25u /* raw bits of a token that fit a 32-bit window at any place in its first byte */

/* ---- streams */

static void move_to_tail(stream *s) {
    size_t left = (size_t)(s->end - s->at);
    memcpy(s->tail, s->at, left);
    memset(s->tail + left, 0, sizeof s->tail - left);
    s->at = s->tail;
    s->limit = s->end = s->tail + left;
}

/* `memory` bytes at `at` can be read, of which the stream has `length`. */
static void stream_open(stream *s, const uint8_t *at, size_t length, size_t memory) {
    s->at = at;
    s->end = at + length;
    if (memory >= AHEAD) {
        s->limit = at + (memory - AHEAD);
    } else {
        move_to_tail(s);
    }
}

int stream_ready(stream *s) {
    if (s->at > s->end) {
        return 0;
    }
    if (s->at > s->limit) {
        move_to_tail(s);
    }
    return 1;
}

int decoder_open(decoder *d, const uint32_t *slots, const uint8_t *block, size_t length) {
    if (length < PROLOGUE) {
        return WPATCH_BAD_BLOCK;
    }
    for (uint32_t i = 0; i < STATES; i++) {
        d->state[i] = load32(block + 4 * i);
        if (d->state[i] < STATE_LOW || d->state[i] >= STATE_HIGH) {
            return WPATCH_BAD_BLOCK;
        }
    }
    size_t num_words = load32(block + 4 * STATES), rest = length - PROLOGUE;
    if (num_words > rest / 2) {
        return WPATCH_BAD_BLOCK;
    }
    d->slots = slots;
    d->bit = 0;
    stream_open(&d->words, block + PROLOGUE, 2 * num_words, rest);
    stream_open(&d->bits, block + PROLOGUE + 2 * num_words, rest - 2 * num_words, rest - 2 * num_words);
    return WPATCH_OK;
}

int decoder_close(const decoder *d) {
    const stream *bits = &d->bits;
    int ended = d->words.at == d->words.end && bits->at <= bits->end &&
                (size_t)(bits->end - bits->at) == (d->bit ? 1u : 0u) && (!d->bit || *bits->at >> d->bit == 0);
    for (uint32_t i = 0; i < STATES; i++) {
        ended &= d->state[i] == STATE_LOW;
    }
    return ended ? WPATCH_OK : WPATCH_BAD_BLOCK;
}

/* ---- tokens */

/* The state without its token: below 2^31 for every state below it. */
static inline uint32_t shrink(uint32_t x, uint32_t slot) {
    return (slot >> 20) * (x >> WPATCH_TABLE_BITS) + (slot >> 8 & SLOT_MASK);
}

/* Bring a state back into [2^15, 2^31); without a branch, because whether it takes a word is a coin toss. */
static inline uint32_t refill(uint32_t y, const uint8_t **word) {
    uint32_t more = (y - STATE_LOW) >> 31;
    uint32_t x = y << (more << 4) | (load16(*word) & (0u - more));
    *word += more << 1;
    return x;
}

/* In loops of one kind of step each, most of which compilers turn into vector instructions. */
static uint32_t decode_groups_portable(decoder *d, const uint8_t *tables, uint32_t num_groups, uint8_t *tokens) {
    const uint32_t *slots = d->slots;
    const uint8_t *word = d->words.at, *stop = stream_stop(&d->words);
    uint32_t x[STATES], slot[STATES], group = 0;
    memcpy(x, d->state, sizeof x);
    for (; group < num_groups && word <= stop; group++, tables += STATES, tokens += STATES) {
        for (uint32_t i = 0; i < STATES; i++) {
            slot[i] = slots[(uint32_t)tables[i] << WPATCH_TABLE_BITS | (x[i] & SLOT_MASK)];
        }
        for (uint32_t i = 0; i < STATES; i++) {
            x[i] = shrink(x[i], slot[i]);
        }
        for (uint32_t i = 0; i < STATES; i++) {
            tokens[i] = (uint8_t)slot[i];
        }
        for (uint32_t i = 0; i < STATES; i++) {
            x[i] = refill(x[i], &word);
        }
    }
    memcpy(d->state, x, sizeof x);
    d->words.at = word;
    return group;
}

static uint32_t decode_groups(decoder *d, const uint8_t *tables, uint32_t num_groups, uint8_t *tokens) {
#if CPU_X86
    switch (cpu_level()) {
        case 2: return decode_groups_avx512(d, tables, num_groups, tokens);
        case 1: return decode_groups_avx2(d, tables, num_groups, tokens);
        default: break;
    }
#endif
    return decode_groups_portable(d, tables, num_groups, tokens);
}

/* Fewer than 32 tokens; the states turn, so that the next token's comes first again. */
static void decode_few(decoder *d, const uint8_t *tables, uint32_t n, uint8_t *tokens) {
    const uint32_t *slots = d->slots;
    const uint8_t *word = d->words.at;
    uint32_t x[2 * STATES];
    memcpy(x, d->state, sizeof d->state);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t slot = slots[(uint32_t)tables[i] << WPATCH_TABLE_BITS | (x[i] & SLOT_MASK)];
        tokens[i] = (uint8_t)slot;
        x[STATES + i] = refill(shrink(x[i], slot), &word);
    }
    memcpy(d->state, x + n, sizeof d->state);
    d->words.at = word;
}

int decode_tokens(decoder *d, const uint8_t *tables, uint32_t n, uint8_t *tokens) {
    uint32_t at = 0;
    while (n - at >= STATES) {
        if (!stream_ready(&d->words)) {
            return WPATCH_BAD_BLOCK;
        }
        at += STATES * decode_groups(d, tables + at, (n - at) / STATES, tokens + at);
    }
    if (!stream_ready(&d->words)) {
        return WPATCH_BAD_BLOCK;
    }
    decode_few(d, tables + at, n - at, tokens + at);
    return WPATCH_OK;
}

/* ---- values */

static inline int any_at_least(const uint8_t *tokens, uint32_t bound) {
    /* tokens and bound are at most 64, so no sum leaves its byte */
    const uint64_t each = 0x0101010101010101u;
    return ((load64(tokens) + each * (128u - bound)) & each << 7) != 0;
}

/* Up to 8 values, at a bit position counted from `bits`; returns the next position. */
INLINE size_t spell(const alphabet *a, const uint8_t *bits, size_t bit, const uint8_t *tokens, uint32_t n,
                    uint32_t *values) {
    for (uint32_t i = 0; i < n; i++) {
        uint32_t extra = a->extra[tokens[i]];
        uint32_t raw = (uint32_t)(load64(bits + (bit >> 3)) >> (bit & 7u)) & ((1u << extra) - 1u);
        values[i] = a->first[tokens[i]] + raw;
        bit += extra;
    }
    return bit;
}

/* At most 64 values, for which the stream is ready. */
INLINE void decode_some_body(decoder *d, const alphabet *a, uint32_t direct, const uint8_t *tokens, uint32_t n,
                             uint32_t *values, int level) {
    const uint8_t *bits = d->bits.at;
    size_t bit = d->bit;
    uint32_t i = 0;
    (void)level;
    for (; n - i >= 8; i += 8) {
        if (any_at_least(tokens + i, direct)) {
            bit = spell(a, bits, bit, tokens + i, 8, values + i);
        } else {
            for (uint32_t j = 0; j < 8; j++) {
                values[i + j] = tokens[i + j];
            }
        }
    }
    bit = spell(a, bits, bit, tokens + i, n - i, values + i);
    d->bits.at = bits + (bit >> 3);
    d->bit = (uint32_t)bit & 7u;
}

EVERY_LEVEL(decode_some,
            (decoder *d, const alphabet *a, uint32_t direct, const uint8_t *tokens, uint32_t n, uint32_t *values),
            (d, a, direct, tokens, n, values))

static uint32_t most_extra(const alphabet *a) {
    uint32_t most = 0;
    for (uint32_t token = 0; token < WPATCH_NUM_TOKENS; token++) {
        most = a->extra[token] > most ? a->extra[token] : most;
    }
    return most;
}

int decode_values(decoder *d, const alphabet *a, uint32_t direct, const uint8_t *tokens, uint32_t n,
                  uint32_t *values) {
    int wide = CPU_X86 && cpu_level() == 2 && most_extra(a) <= WINDOW_BITS;
    for (uint32_t i = 0, done; i < n; i += done) {
        if (!stream_ready(&d->bits)) {
            return WPATCH_BAD_BLOCK;
        }
        done = n - i < 64 ? n - i : 64;
#if CPU_X86
        if (wide && done == 64) {
            done = decode_values_avx512(d, a, direct, tokens + i, (n - i) & ~63u, values + i);
            continue;
        }
#endif
        decode_some(d, a, direct, tokens + i, done, values + i);
    }
    (void)wide;
    return stream_ready(&d->bits) ? WPATCH_OK : WPATCH_BAD_BLOCK;
}

/* FULL floats: put exponent, sign and mantissa together again. */
INLINE void assemble_body(const plan *p, const uint8_t *tokens, uint32_t n, uint32_t *values, int level) {
    uint32_t m = p->mantissa_bits, x = p->exponent_bits, top = p->part->top;
    uint32_t exponents = (1u << x) - 1u, low_mask = (1u << (m - 2)) - 1u;
    (void)level;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t raw = values[i], token = tokens[i], sign = raw >> (m - 2) & 1u;
        uint32_t exponent = token >= 60 ? raw >> (m - 1) : top - (token >> 2);
        values[i] = sign << (m + x) | (exponent & exponents) << m | (token & 3u) << (m - 2) | (raw & low_mask);
    }
}

EVERY_LEVEL(assemble, (const plan *p, const uint8_t *tokens, uint32_t n, uint32_t *values), (p, tokens, n, values))

/* ---- parts */

/* Tokens that the part's alphabet does not have are damage. */
static int check_tokens(const plan *p, const uint8_t *tokens, uint32_t n) {
    uint32_t most = 0;
    if (p->num_tokens == WPATCH_NUM_TOKENS) {
        return WPATCH_OK;
    }
    for (uint32_t i = 0; i < n; i++) {
        most = tokens[i] > most ? tokens[i] : most;
    }
    return most < p->num_tokens ? WPATCH_OK : WPATCH_BAD_BLOCK;
}

static int decode_chunk(decoder *d, const plan *p, chunk *c) {
    uint8_t tokens[CHUNK];
    uint32_t values[CHUNK];
    plan_contexts(p, c);
    int status = decode_tokens(d, c->table, c->count, tokens);
    if (status == WPATCH_OK) {
        status = check_tokens(p, tokens, c->count);
    }
    if (status == WPATCH_OK) {
        status = decode_values(d, &p->tokens, p->direct, tokens, c->count, values);
    }
    if (status != WPATCH_OK) {
        return status;
    }
    if (is_full_float(p)) {
        assemble(p, tokens, c->count, values);
    }
    plan_restore(p, c, values);
    return WPATCH_OK;
}

int decode_part(decoder *d, const plan *p) {
    chunk c;
    int status = WPATCH_OK;
    for (c.start = 0; status == WPATCH_OK && c.start < p->part->count; c.start += c.count) {
        uint32_t left = p->part->count - c.start;
        c.count = left < CHUNK ? left : CHUNK;
        status = decode_chunk(d, p, &c);
    }
    return status;
}
