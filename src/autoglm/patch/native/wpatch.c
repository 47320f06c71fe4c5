/* Tables and decoding: static rANS with four interleaved 32-bit states, 16-bit words, 11-bit tables.
 *
 * A block is four states, the number of words, the words, and the raw bits. Element i of a block uses state
 * i mod 4. The states must end where the encoder began, and every word and bit must have been used, so
 * most damage is noticed even without a hash.
 */
#include "transform.h"

#define STATE_LOW (1u << 15)
#define STATE_HIGH (1u << 31)
#define SLOT_MASK ((1u << WPATCH_TABLE_BITS) - 1u)
#define PROLOGUE 20u

typedef struct decoder {
    const uint32_t *slots;
    uint32_t state[4];
    uint32_t turn; /* which state is next */
    const uint8_t *word, *words_end;
    const uint8_t *bits;
    size_t num_bit_bytes;
    uint64_t bit; /* position in `bits` */
} decoder;

int wpatch_abi(void) { return WPATCH_ABI; }

int wpatch_expand_tables(const uint16_t *frequencies, size_t num_tables, uint32_t *slots) {
    if (num_tables > WPATCH_MAX_TABLES) {
        return WPATCH_BAD_ARGUMENT;
    }
    for (size_t table = 0; table < num_tables; table++) {
        uint32_t slot = 0;
        for (uint32_t token = 0; token < WPATCH_NUM_TOKENS; token++) {
            uint32_t frequency = frequencies[table * WPATCH_NUM_TOKENS + token];
            if (frequency > SLOT_MASK + 1u - slot) {
                return WPATCH_BAD_ARGUMENT;
            }
            for (uint32_t place = 0; place < frequency; place++, slot++) {
                slots[table << WPATCH_TABLE_BITS | slot] = token << 22 | (frequency - 1u) << 11 | place;
            }
        }
        if (slot != SLOT_MASK + 1u) {
            return WPATCH_BAD_ARGUMENT;
        }
    }
    return WPATCH_OK;
}

static int open_block(decoder *d, const uint32_t *slots, const uint8_t *block, size_t length) {
    if (length < PROLOGUE) {
        return WPATCH_BAD_BLOCK;
    }
    for (uint32_t i = 0; i < 4; i++) {
        d->state[i] = load32(block + 4 * i);
        if (d->state[i] < STATE_LOW || d->state[i] >= STATE_HIGH) {
            return WPATCH_BAD_BLOCK;
        }
    }
    size_t num_words = load32(block + 16);
    if (num_words > (length - PROLOGUE) / 2) {
        return WPATCH_BAD_BLOCK;
    }
    d->slots = slots;
    d->turn = 0;
    d->word = block + PROLOGUE;
    d->words_end = d->bits = d->word + 2 * num_words;
    d->num_bit_bytes = length - PROLOGUE - 2 * num_words;
    d->bit = 0;
    return WPATCH_OK;
}

static int close_block(const decoder *d) {
    uint64_t bytes = (d->bit + 7) / 8;
    int ended = d->word == d->words_end && bytes == d->num_bit_bytes;
    for (uint32_t i = 0; i < 4; i++) {
        ended &= d->state[i] == STATE_LOW;
    }
    if (ended && d->bit % 8 && d->bits[bytes - 1] >> d->bit % 8) {
        ended = 0;
    }
    return ended ? WPATCH_OK : WPATCH_BAD_BLOCK;
}

/* One token of state x; without a branch, because whether a word is read is a coin toss. */
#define STEP(x, i)                                                                    \
    do {                                                                              \
        uint32_t slot = slots[(uint32_t)table[i] << WPATCH_TABLE_BITS | (x & SLOT_MASK)]; \
        tokens[i] = (uint8_t)(slot >> 22);                                            \
        x = ((slot >> 11 & SLOT_MASK) + 1u) * (x >> WPATCH_TABLE_BITS) + (slot & SLOT_MASK); \
        uint32_t more = x < STATE_LOW;                                                \
        x = x << (more << 4) | (load16(word) & (0u - more));                          \
        word += more << 1;                                                            \
    } while (0)

/* At least n words must be left. */
static void decode_tokens_fast(decoder *d, const uint8_t *table, uint32_t n, uint8_t *tokens) {
    const uint32_t *slots = d->slots;
    const uint8_t *word = d->word;
    uint32_t i = 0;
    for (; i < n && d->turn; i++, d->turn = (d->turn + 1) & 3u) {
        STEP(d->state[d->turn], i);
    }
    uint32_t a = d->state[0], b = d->state[1], c = d->state[2], e = d->state[3];
    for (; n - i >= 4; i += 4) {
        STEP(a, i);
        STEP(b, i + 1);
        STEP(c, i + 2);
        STEP(e, i + 3);
    }
    d->state[0] = a;
    d->state[1] = b;
    d->state[2] = c;
    d->state[3] = e;
    for (; i < n; i++, d->turn = (d->turn + 1) & 3u) {
        STEP(d->state[d->turn], i);
    }
    d->word = word;
}

static int decode_tokens_checked(decoder *d, const uint8_t *table, uint32_t n, uint8_t *tokens) {
    for (uint32_t i = 0; i < n; i++, d->turn = (d->turn + 1) & 3u) {
        uint32_t x = d->state[d->turn];
        uint32_t slot = d->slots[(uint32_t)table[i] << WPATCH_TABLE_BITS | (x & SLOT_MASK)];
        tokens[i] = (uint8_t)(slot >> 22);
        x = ((slot >> 11 & SLOT_MASK) + 1u) * (x >> WPATCH_TABLE_BITS) + (slot & SLOT_MASK);
        if (x < STATE_LOW) {
            if (d->word == d->words_end) {
                return WPATCH_BAD_BLOCK;
            }
            x = x << 16 | load16(d->word);
            d->word += 2;
        }
        d->state[d->turn] = x;
    }
    return WPATCH_OK;
}

static int decode_tokens(decoder *d, const uint8_t *table, uint32_t n, uint8_t *tokens) {
    while (n >= 16) {
        /* the fast loop also looks at the word behind the last one that it uses */
        size_t words = (size_t)(d->words_end - d->word) / 2;
        if (words <= 16) {
            break;
        }
        uint32_t safe = words > n ? n : (uint32_t)words - 1u;
        decode_tokens_fast(d, table, safe, tokens);
        table += safe;
        tokens += safe;
        n -= safe;
    }
    return decode_tokens_checked(d, table, n, tokens);
}

/* The 64 bits from the next one on; beyond the last bit there are zeros, which close_block notices by the
 * position. */
static uint64_t window(const decoder *d) {
    uint64_t value = 0, byte = d->bit / 8;
    for (uint32_t i = 0; i < 8 && byte + i < d->num_bit_bytes; i++) {
        value |= (uint64_t)d->bits[byte + i] << 8 * i;
    }
    return value >> d->bit % 8;
}

/* Eight tokens without raw bits at a time, where there are such; at most n * max_extra bits are read. */
static void spell_fast(decoder *d, const plan *p, const uint8_t *tokens, uint32_t n, uint32_t *values) {
    const alphabet *a = &p->tokens;
    const uint64_t indirect = (uint64_t)((0x100u - p->direct) & 0xffu) * 0x0101010101010101u;
    uint64_t bit = d->bit;
    uint32_t i = 0;
    while (i < n) {
        if (p->direct && n - i >= 8 && !(load64(tokens + i) & indirect)) {
            for (uint32_t j = 0; j < 8; j++) {
                values[i + j] = tokens[i + j];
            }
            i += 8;
            continue;
        }
        for (uint32_t end = n - i < 8 ? n : i + 8; i < end; i++) {
            uint32_t extra = a->extra[tokens[i]];
            uint32_t raw = (uint32_t)(load64(d->bits + bit / 8) >> bit % 8) & ((1u << extra) - 1u);
            values[i] = a->first[tokens[i]] + raw;
            bit += extra;
        }
    }
    d->bit = bit;
}

/* Turn tokens into what they and their raw bits spell. */
static void spell(decoder *d, const plan *p, const uint8_t *tokens, uint32_t n, uint32_t *values) {
    const alphabet *a = &p->tokens;
    uint32_t i = 0;
    while (n - i >= 8 && d->num_bit_bytes >= 8 && p->max_extra) {
        uint64_t end = (uint64_t)(d->num_bit_bytes - 8) * 8, left = end > d->bit ? end - d->bit : 0;
        uint64_t safe = left / p->max_extra;
        if (safe < 8) {
            break;
        }
        safe = safe < n - i ? safe : n - i;
        spell_fast(d, p, tokens + i, (uint32_t)safe, values + i);
        i += (uint32_t)safe;
    }
    for (; i < n; i++) {
        uint32_t extra = a->extra[tokens[i]];
        values[i] = a->first[tokens[i]] + ((uint32_t)window(d) & ((1u << extra) - 1u));
        d->bit += extra;
    }
}

/* FULL floats: put exponent, sign and mantissa together again. */
static void assemble(const plan *p, const uint8_t *tokens, uint32_t n, uint32_t *values) {
    uint32_t m = p->mantissa_bits, x = p->exponent_bits, top = p->part->top;
    uint32_t exponents = (1u << x) - 1u, low_mask = (1u << (m - 2)) - 1u;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t raw = values[i], token = tokens[i], sign = raw >> (m - 2) & 1u;
        uint32_t exponent = token >= 60 ? raw >> (m - 1) : top - (token >> 2);
        values[i] = sign << (m + x) | (exponent & exponents) << m | (token & 3u) << (m - 2) | (raw & low_mask);
    }
}

static int decode_part(decoder *d, const plan *p) {
    chunk c;
    uint8_t tokens[CHUNK];
    uint32_t values[CHUNK];
    for (c.start = 0; c.start < p->part->count; c.start += c.count) {
        uint32_t left = p->part->count - c.start;
        c.count = left < CHUNK ? left : CHUNK;
        plan_contexts(p, &c);
        int status = decode_tokens(d, c.context, c.count, tokens);
        if (status != WPATCH_OK) {
            return status;
        }
        spell(d, p, tokens, c.count, values);
        if (is_full_float(p)) {
            assemble(p, tokens, c.count, values);
        }
        plan_restore(p, &c, values);
    }
    return WPATCH_OK;
}

int wpatch_decode(const uint32_t *slots, size_t num_tables, const uint8_t *block, size_t length,
                  const wpatch_part *parts, size_t num_parts) {
    decoder d;
    plan p;
    uint64_t total = 0;
    int status = num_tables && num_tables <= WPATCH_MAX_TABLES ? open_block(&d, slots, block, length)
                                                               : WPATCH_BAD_ARGUMENT;
    for (size_t i = 0; status == WPATCH_OK && i < num_parts; i++) {
        status = plan_part(&p, &parts[i], num_tables, 1);
        total += parts[i].count;
        if (status == WPATCH_OK && total > WPATCH_MAX_BLOCK) {
            status = WPATCH_BAD_ARGUMENT;
        }
        if (status == WPATCH_OK) {
            status = decode_part(&d, &p);
        }
    }
    return status == WPATCH_OK ? close_block(&d) : status;
}
