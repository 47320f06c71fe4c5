/* Encoding: histograms for choosing modes and tables, and blocks. */
#include "encode.h"

#include "factors.h"
#include "levels.h"
#include "rans.h"
#include "records.h"

#define FEW_CONTEXTS 80u

/* What coding one token of one table takes, with the division by its frequency turned into a product. */
typedef struct symbol {
    uint32_t limit;      /* states from here on give a word first: frequency << 20 */
    uint32_t reciprocal; /* ceil(2^shift / frequency) */
    uint16_t shift;      /* 31 + ceil(log2 frequency) */
    uint16_t start;
    uint32_t others; /* 2048 - frequency */
} symbol;

/* ---- histograms */

/* One loop a width, so that compilers use vector instructions. */
INLINE uint32_t largest(const uint8_t *elements, size_t count, uint32_t size, uint32_t shift, uint32_t mask) {
    uint32_t most = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t field = load_element(elements + i * size, size) >> shift & mask;
        most = field > most ? field : most;
    }
    return most;
}

int wpatch_top(uint32_t dtype, const uint8_t *elements, size_t count, uint32_t *top) {
    *top = 0;
    switch (dtype) {
        case WPATCH_F8_E4M3: *top = largest(elements, count, 1, 3, 15); break;
        case WPATCH_F8_E5M2: *top = largest(elements, count, 1, 2, 31); break;
        case WPATCH_F16: *top = largest(elements, count, 2, 10, 31); break;
        case WPATCH_BF16: *top = largest(elements, count, 2, 7, 255); break;
        case WPATCH_F32: *top = largest(elements, count, 4, 23, 255); break;
        default:
            if (dtype >= FIRST_RECORD) {
                return records_top(dtype, elements, count, top);
            }
            return plan_num_contexts(WPATCH_FULL, dtype) ? WPATCH_OK : WPATCH_BAD_ARGUMENT;
    }
    return WPATCH_OK;
}

INLINE uint64_t differing(const uint8_t *a, const uint8_t *b, size_t count, uint32_t size) {
    uint64_t changed = 0;
    for (size_t i = 0; i < count; i++) {
        changed += load_element(a + i * size, size) != load_element(b + i * size, size);
    }
    return changed;
}

static uint64_t count_changed(const wpatch_part *part, uint32_t size) {
    uint64_t changed = 0;
    switch (size) {
        case 1: return differing(part->elements, part->base, part->count, 1);
        case 2: return differing(part->elements, part->base, part->count, 2);
        case 4: return differing(part->elements, part->base, part->count, 4);
        default: break;
    }
    for (size_t i = 0; i < part->count; i++) {
        changed += memcmp(part->elements + i * size, part->base + i * size, size) != 0;
    }
    return changed;
}

/* Counting in two copies, so that equal neighbours do not wait for each other's sums; with many contexts
 * neighbours are seldom equal. */
static void count_chunk(const chunk *c, const uint8_t *tokens, uint32_t *even, uint32_t *odd) {
    uint32_t i = 0;
    for (; i + 1 < c->count; i += 2) {
        even[c->context[i] * WPATCH_NUM_TOKENS + tokens[i]]++;
        odd[c->context[i + 1] * WPATCH_NUM_TOKENS + tokens[i + 1]]++;
    }
    if (i < c->count) {
        even[c->context[i] * WPATCH_NUM_TOKENS + tokens[i]]++;
    }
}

static void count_directly(const chunk *c, const uint8_t *tokens, uint64_t *histogram) {
    for (uint32_t i = 0; i < c->count; i++) {
        histogram[c->context[i] * WPATCH_NUM_TOKENS + tokens[i]]++;
    }
}

/* The tokens of a chunk, whose start and length are set. */
static void tokens_of(const plan *p, chunk *c, uint8_t *tokens, uint32_t *raw) {
    uint32_t values[CHUNK];
    plan_contexts(p, c);
    plan_residuals(p, c, values);
    plan_tokens(p, values, c->count, tokens, raw);
}

void count_part(const plan *p, uint64_t *histogram) {
    chunk c;
    uint8_t tokens[CHUNK];
    uint32_t raw[CHUNK], counts[2][FEW_CONTEXTS * WPATCH_NUM_TOKENS];
    uint32_t few = p->num_contexts <= FEW_CONTEXTS ? p->num_contexts * WPATCH_NUM_TOKENS : 0;
    memset(counts[0], 0, few * sizeof counts[0][0]);
    memset(counts[1], 0, few * sizeof counts[1][0]);
    for (c.start = 0; c.start < p->part->count; c.start += c.count) {
        uint32_t left = p->part->count - c.start;
        c.count = left < CHUNK ? left : CHUNK;
        tokens_of(p, &c, tokens, raw);
        if (few) {
            count_chunk(&c, tokens, counts[0], counts[1]);
        } else {
            count_directly(&c, tokens, histogram);
        }
    }
    for (uint32_t i = 0; i < few; i++) {
        histogram[i] += (uint64_t)counts[0][i] + counts[1][i];
    }
}

int wpatch_count(const wpatch_part *part, uint64_t *histogram, uint64_t *changed) {
    plan p;
    int record = part->dtype >= FIRST_RECORD, status = record ? count_records(part, histogram) : plan_part(&p, part, 0, 0);
    if (status != WPATCH_OK) {
        return status;
    }
    if (!record) {
        count_part(&p, histogram);
    }
    if (part->base) {
        *changed += count_changed(part, record ? records_size(part->dtype) : p.size);
    }
    return WPATCH_OK;
}

/* ---- gathering */

static void put_bits(gathered *g, uint32_t raw, uint32_t count) {
    g->pending |= (uint64_t)raw << g->num_pending;
    g->num_pending += count;
    /* whole bytes stay; the room behind the last bits is WPATCH_WORK_BYTES' */
    store32(g->bits + g->num_bit_bytes, (uint32_t)g->pending);
    store32(g->bits + g->num_bit_bytes + 4, (uint32_t)(g->pending >> 32));
    g->num_bit_bytes += g->num_pending >> 3;
    g->pending >>= g->num_pending & ~7u;
    g->num_pending &= 7u;
}

static void put_raw(gathered *g, const alphabet *a, const uint8_t *tokens, const uint32_t *raw, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        if (a->extra[tokens[i]]) {
            put_bits(g, raw[i], a->extra[tokens[i]]);
        }
    }
}

void gather_open(gathered *g, size_t num_tables, uint8_t *work, uint64_t num_tokens) {
    memset(g, 0, sizeof *g);
    g->num_tables = num_tables;
    g->tokens = work;
    g->tables = work + num_tokens;
    g->bits = work + 2 * num_tokens;
}

void gather_part(gathered *g, const plan *p) {
    chunk c;
    uint32_t raw[CHUNK];
    for (c.start = 0; c.start < p->part->count; c.start += c.count) {
        uint32_t left = p->part->count - c.start;
        uint8_t *tokens = g->tokens + g->count;
        c.count = left < CHUNK ? left : CHUNK;
        tokens_of(p, &c, tokens, raw);
        memcpy(g->tables + g->count, c.table, c.count);
        put_raw(g, &p->tokens, tokens, raw, c.count);
        g->count += c.count;
    }
}

void gather_numbers(gathered *g, uint8_t table, const uint32_t *values, uint32_t n) {
    alphabet a;
    plan_alphabet(&a, WPATCH_DIFFERENCE, WPATCH_F16);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t raw, token = plan_token(2, values[i], &raw);
        g->tokens[g->count] = (uint8_t)token;
        g->tables[g->count++] = table;
        put_bits(g, raw, a.extra[token]);
    }
}

/* ---- coding */

static symbol make_symbol(uint32_t frequency, uint32_t start) {
    symbol s = {frequency << 20, 0, 31, (uint16_t)start, (1u << WPATCH_TABLE_BITS) - frequency};
    while (frequency > 1u << (s.shift - 31)) {
        s.shift++;
    }
    if (frequency) {
        s.reciprocal = (uint32_t)((((uint64_t)1 << s.shift) + frequency - 1) / frequency);
    }
    return s;
}

static int make_symbols(symbol *symbols, const uint16_t *frequencies, size_t num_tables) {
    for (size_t table = 0; table < num_tables; table++) {
        uint32_t start = 0;
        for (uint32_t token = 0; token < WPATCH_NUM_TOKENS; token++) {
            uint32_t frequency = *frequencies++;
            if (frequency > (1u << WPATCH_TABLE_BITS) - start) {
                return WPATCH_BAD_ARGUMENT;
            }
            *symbols++ = make_symbol(frequency, start);
            start += frequency;
        }
        if (start != 1u << WPATCH_TABLE_BITS) {
            return WPATCH_BAD_ARGUMENT;
        }
    }
    return WPATCH_OK;
}

/* Put a token into state x: x / f * 2048 + x mod f + start, after a word if need be, which goes below *word. */
static inline uint32_t push(uint32_t x, const symbol *s, uint8_t **word) {
    uint32_t more = x >= s->limit;
    store16(*word - 2, x);
    *word -= more << 1;
    x >>= more << 4;
    return x + s->start + (uint32_t)((uint64_t)x * s->reciprocal >> s->shift) * s->others;
}

/* Write the words of all tokens, last to first, downwards from `word`, two bytes a token at most; return
 * where they begin, NULL when a table lacks a token. */
static uint8_t *code(const gathered *g, const symbol *symbols, uint32_t state[STATES], uint8_t *word) {
    uint32_t missing = 0;
    for (uint32_t i = 0; i < STATES; i++) {
        state[i] = STATE_LOW;
    }
    for (uint32_t i = g->count; i-- > 0;) {
        const symbol *s = &symbols[(uint32_t)g->tables[i] * WPATCH_NUM_TOKENS + g->tokens[i]];
        missing |= !s->limit;
        state[i % STATES] = push(state[i % STATES], s, &word);
    }
    return missing ? NULL : word;
}

int gather_close(gathered *g, const uint16_t *frequencies, uint8_t *block, size_t *length) {
    symbol symbols[WPATCH_MAX_TABLES * WPATCH_NUM_TOKENS];
    uint32_t state[STATES];
    if (make_symbols(symbols, frequencies, g->num_tables) != WPATCH_OK) {
        return WPATCH_BAD_ARGUMENT;
    }
    put_bits(g, 0, (8 - g->num_pending) & 7u);
    /* words are written from the end of the room down, then moved to their place */
    uint8_t *end = block + WPATCH_BLOCK_BYTES(g->count), *word = code(g, symbols, state, end);
    if (!word) {
        return WPATCH_BAD_ARGUMENT;
    }
    size_t num_words = (size_t)(end - word) / 2;
    memmove(block + PROLOGUE, word, 2 * num_words);
    for (uint32_t i = 0; i < STATES; i++) {
        store32(block + 4 * i, state[i]);
    }
    store32(block + 4 * STATES, (uint32_t)num_words);
    memcpy(block + PROLOGUE + 2 * num_words, g->bits, g->num_bit_bytes);
    *length = PROLOGUE + 2 * num_words + g->num_bit_bytes;
    return WPATCH_OK;
}

static int gather_any(gathered *g, const wpatch_part *part) {
    plan p;
    if (part->dtype >= FIRST_RECORD) {
        return gather_records(g, part);
    }
    int status = plan_part(&p, part, g->num_tables, 1);
    if (status == WPATCH_OK && part->inline_factors) {
        status = gather_factors(g, part->inline_factors);
    }
    if (status == WPATCH_OK) {
        gather_part(g, &p);
    }
    return status;
}

int wpatch_encode(const uint16_t *frequencies, size_t num_tables, const wpatch_part *parts, size_t num_parts,
                  uint8_t *work, uint8_t *block, size_t *length) {
    gathered g;
    uint64_t total = 0;
    for (size_t i = 0; i < num_parts; i++) {
        int64_t tokens = part_tokens(&parts[i]);
        if (tokens < 0) {
            return WPATCH_BAD_ARGUMENT;
        }
        total += (uint64_t)tokens;
    }
    if (!num_tables || num_tables > WPATCH_MAX_TABLES || !total || total > WPATCH_MAX_BLOCK) {
        return WPATCH_BAD_ARGUMENT;
    }
    gather_open(&g, num_tables, work, total);
    for (size_t i = 0; i < num_parts; i++) {
        int status = gather_any(&g, &parts[i]);
        if (status != WPATCH_OK) {
            return status;
        }
    }
    return gather_close(&g, frequencies, block, length);
}
