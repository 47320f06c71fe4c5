/* Encoding: histograms for choosing modes and tables, and blocks. */
#include "transform.h"

#define STATE_LOW (1u << 15)
#define PROLOGUE 20u

/* What coding one token of one table takes, with the division by its frequency turned into a product. */
typedef struct symbol {
    uint64_t reciprocal; /* ceil(2^(31 + shift) / frequency), below 2^32 */
    uint32_t shift;      /* 31 + ceil(log2 frequency) */
    uint32_t frequency;
    uint32_t start;
} symbol;

int wpatch_top(uint32_t dtype, const uint8_t *elements, size_t count, uint32_t *top) {
    uint32_t size = 0, m = 0, mask = 0, largest = 0;
    switch (dtype) {
        case WPATCH_F8_E4M3: size = 1, m = 3, mask = 15; break;
        case WPATCH_F8_E5M2: size = 1, m = 2, mask = 31; break;
        case WPATCH_F16: size = 2, m = 10, mask = 31; break;
        case WPATCH_BF16: size = 2, m = 7, mask = 255; break;
        case WPATCH_F32: size = 4, m = 23, mask = 255; break;
        default: *top = 0; return wpatch_num_contexts(WPATCH_FULL, dtype) ? WPATCH_OK : WPATCH_BAD_ARGUMENT;
    }
    for (size_t i = 0; i < count; i++) {
        uint32_t exponent = load_element(elements + i * size, size) >> m & mask;
        largest = exponent > largest ? exponent : largest;
    }
    *top = largest;
    return WPATCH_OK;
}

static uint64_t count_changed(const plan *p, const chunk *c) {
    const uint8_t *a = p->part->elements + (size_t)c->start * p->size;
    const uint8_t *b = p->part->base + (size_t)c->start * p->size;
    uint64_t changed = 0;
    for (uint32_t i = 0; i < c->count; i++) {
        changed += load_element(a + (size_t)i * p->size, p->size) != load_element(b + (size_t)i * p->size, p->size);
    }
    return changed;
}

int wpatch_count(const wpatch_part *part, uint64_t *histogram, uint64_t *changed) {
    plan p;
    chunk c;
    uint32_t values[CHUNK], raw[CHUNK];
    uint8_t tokens[CHUNK];
    /* two of them, so that equal neighbours do not wait for each other's sums */
    uint32_t counts[2][WPATCH_MAX_CONTEXTS * WPATCH_NUM_TOKENS];
    int status = plan_part(&p, part, 0, 0);
    if (status != WPATCH_OK) {
        return status;
    }
    memset(counts, 0, sizeof counts);
    for (c.start = 0; c.start < part->count; c.start += c.count) {
        uint32_t left = part->count - c.start;
        c.count = left < CHUNK ? left : CHUNK;
        plan_contexts(&p, &c);
        plan_residuals(&p, &c, values);
        plan_tokens(&p, values, c.count, tokens, raw);
        for (uint32_t i = 0; i < c.count; i++) {
            counts[i & 1u][c.context[i] * WPATCH_NUM_TOKENS + tokens[i]]++;
        }
        if (part->base) {
            *changed += count_changed(&p, &c);
        }
    }
    for (uint32_t i = 0; i < p.num_contexts * WPATCH_NUM_TOKENS; i++) {
        histogram[i] += (uint64_t)counts[0][i] + counts[1][i];
    }
    return WPATCH_OK;
}

static int make_symbols(symbol *symbols, const uint16_t *frequencies, size_t num_tables) {
    for (size_t table = 0; table < num_tables; table++) {
        uint32_t start = 0;
        for (uint32_t token = 0; token < WPATCH_NUM_TOKENS; token++) {
            symbol *s = &symbols[table * WPATCH_NUM_TOKENS + token];
            uint32_t frequency = frequencies[table * WPATCH_NUM_TOKENS + token], log = 0;
            s->frequency = frequency;
            s->start = start;
            s->shift = 31;
            s->reciprocal = 0;
            if (frequency) {
                while (frequency > 1u << log) {
                    log++;
                }
                s->shift = 31 + log;
                s->reciprocal = (((uint64_t)1 << s->shift) + frequency - 1) / frequency;
            }
            start += frequency;
            if (start > 1u << WPATCH_TABLE_BITS) {
                return WPATCH_BAD_ARGUMENT;
            }
        }
        if (start != 1u << WPATCH_TABLE_BITS) {
            return WPATCH_BAD_ARGUMENT;
        }
    }
    return WPATCH_OK;
}

/* Tokens, tables and raw bits of a block, gathered before coding, which runs from the last token back. */
typedef struct gathered {
    uint8_t *tokens, *tables, *bits;
    uint32_t count;
    size_t num_bit_bytes;
    uint64_t pending;
    uint32_t num_pending;
} gathered;

static void put_bits(gathered *g, uint32_t raw, uint32_t count) {
    g->pending |= (uint64_t)raw << g->num_pending;
    g->num_pending += count;
    while (g->num_pending >= 8) {
        g->bits[g->num_bit_bytes++] = (uint8_t)g->pending;
        g->pending >>= 8;
        g->num_pending -= 8;
    }
}

static void gather_part(gathered *g, const plan *p) {
    chunk c;
    uint32_t values[CHUNK], raw[CHUNK];
    for (c.start = 0; c.start < p->part->count; c.start += c.count) {
        uint32_t left = p->part->count - c.start;
        uint8_t *tokens = g->tokens + g->count;
        c.count = left < CHUNK ? left : CHUNK;
        plan_contexts(p, &c);
        plan_residuals(p, &c, values);
        plan_tokens(p, values, c.count, tokens, raw);
        memcpy(g->tables + g->count, c.context, c.count);
        for (uint32_t i = 0; i < c.count; i++) {
            if (p->tokens.extra[tokens[i]]) {
                put_bits(g, raw[i], p->tokens.extra[tokens[i]]);
            }
        }
        g->count += c.count;
    }
}

/* Write the words of all tokens, last to first, downwards from `word`, two bytes a token at most; return
 * where they begin, NULL when a table lacks a token. */
static uint8_t *code(const gathered *g, const symbol *symbols, uint32_t state[4], uint8_t *word) {
    for (uint32_t i = 0; i < 4; i++) {
        state[i] = STATE_LOW;
    }
    for (uint32_t i = g->count; i-- > 0;) {
        const symbol *s = &symbols[g->tables[i] * WPATCH_NUM_TOKENS + g->tokens[i]];
        uint32_t x = state[i & 3u];
        if (!s->frequency) {
            return NULL;
        }
        store16(word - 2, x);
        uint32_t more = x >= (uint64_t)s->frequency << 20;
        word -= more << 1;
        x >>= more << 4;
        uint32_t quotient = (uint32_t)(x * s->reciprocal >> s->shift);
        state[i & 3u] = (quotient << WPATCH_TABLE_BITS) + (x - quotient * s->frequency) + s->start;
    }
    return word;
}

int wpatch_encode(const uint16_t *frequencies, size_t num_tables, const wpatch_part *parts, size_t num_parts,
                  uint8_t *work, uint8_t *block, size_t *length) {
    symbol symbols[WPATCH_MAX_TABLES * WPATCH_NUM_TOKENS];
    uint64_t total = 0;
    plan p;
    for (size_t i = 0; i < num_parts; i++) {
        total += parts[i].count;
    }
    if (!num_tables || num_tables > WPATCH_MAX_TABLES || !total || total > WPATCH_MAX_BLOCK ||
        make_symbols(symbols, frequencies, num_tables) != WPATCH_OK) {
        return WPATCH_BAD_ARGUMENT;
    }
    gathered g = {work, work + total, work + 2 * total, 0, 0, 0, 0};
    for (size_t i = 0; i < num_parts; i++) {
        int status = plan_part(&p, &parts[i], num_tables, 1);
        if (status != WPATCH_OK) {
            return status;
        }
        gather_part(&g, &p);
    }
    put_bits(&g, 0, (8 - g.num_pending) & 7u);
    /* words are written from the end of the room down, then moved to their place */
    uint32_t state[4];
    uint8_t *end = block + WPATCH_BLOCK_BYTES(total), *word = code(&g, symbols, state, end);
    if (!word) {
        return WPATCH_BAD_ARGUMENT;
    }
    size_t num_words = (size_t)(end - word) / 2;
    memmove(block + PROLOGUE, word, 2 * num_words);
    for (uint32_t i = 0; i < 4; i++) {
        store32(block + 4 * i, state[i]);
    }
    store32(block + 16, (uint32_t)num_words);
    memcpy(block + PROLOGUE + 2 * num_words, g.bits, g.num_bit_bytes);
    *length = PROLOGUE + 2 * num_words + g.num_bit_bytes;
    return WPATCH_OK;
}
