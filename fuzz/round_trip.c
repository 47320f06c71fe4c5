/* Fuzzes coding as a package is made: count, make tables, encode, decode.
 *
 * The elements come back, all levels of vector instructions count and write the same, and a block is as long as the
 * counts and the raw bits of their tokens say.
 */
#include <string.h>

#include "levels.h"
#include "scene.h"

int level_limit;

#define TOTAL (1u << WPATCH_TABLE_BITS)

/* ---- tables from counts */

/* Shares of 2048 in proportion, at least 1 for every token that occurs; a table that nobody uses is flat. */
static void normalise(const uint64_t *counts, uint16_t *table) {
    uint64_t sum = 0;
    uint32_t given = 0, largest = 0;
    for (uint32_t i = 0; i < WPATCH_NUM_TOKENS; i++) {
        sum += counts[i];
    }
    for (uint32_t i = 0; i < WPATCH_NUM_TOKENS; i++) {
        uint64_t share = sum ? counts[i] * (TOTAL - WPATCH_NUM_TOKENS) / sum : TOTAL / WPATCH_NUM_TOKENS;
        table[i] = (uint16_t)(share + (counts[i] != 0));
        given += table[i];
        largest = counts[i] > counts[largest] ? i : largest;
    }
    table[largest] = (uint16_t)(table[largest] + TOTAL - given);
}

static void add_counts(const scene *s, uint64_t totals[][WPATCH_NUM_TOKENS], const uint8_t *map, uint32_t contexts,
                       uint32_t entries, const uint64_t *histogram) {
    for (uint32_t context = 0; context < contexts; context++) {
        uint64_t *total = totals[map[entries == 1 ? 0 : context] % s->num_tables];
        for (uint32_t token = 0; token < WPATCH_NUM_TOKENS; token++) {
            total[token] += histogram[context * WPATCH_NUM_TOKENS + token];
        }
    }
}

#define ALL_COUNTS (WPATCH_MAX_CONTEXTS * WPATCH_NUM_TOKENS)

/* Zeroed counts at the end of an array, so that a sanitizer sees what is counted behind them. */
static uint64_t *zero_counts(uint64_t all[ALL_COUNTS], uint32_t contexts) {
    uint64_t *counts = all + ALL_COUNTS - contexts * WPATCH_NUM_TOKENS;
    memset(counts, 0, contexts * WPATCH_NUM_TOKENS * sizeof *counts);
    return counts;
}

/* The histogram of `contexts` contexts, counted at every level; valid until the next call. */
static const uint64_t *counted(const wpatch_part *part, uint32_t contexts) {
    static uint64_t first[ALL_COUNTS], other[ALL_COUNTS];
    uint64_t *histogram = zero_counts(first, contexts), changed[NUM_LEVELS] = {0};
    for (level_limit = 0; level_limit < NUM_LEVELS; level_limit++) {
        uint64_t *made = level_limit ? zero_counts(other, contexts) : histogram;
        check(wpatch_count(part, made, &changed[level_limit]) == WPATCH_OK, "a part in order is counted");
        check(!memcmp(made, histogram, contexts * WPATCH_NUM_TOKENS * sizeof *made), "all levels count the same");
        check(changed[level_limit] == changed[0], "all levels see the same changes");
    }
    return histogram;
}

static const uint64_t *counted_factors(const wpatch_factors *f) {
    static uint64_t all[ALL_COUNTS];
    uint64_t *histogram = zero_counts(all, WPATCH_MAX_RANK);
    check(wpatch_count_factors(f, histogram) == WPATCH_OK, "factors in range are counted");
    return histogram;
}

static uint64_t raw_bits(uint32_t mode, uint32_t dtype, uint32_t contexts, const uint64_t *histogram) {
    static const uint64_t unused[WPATCH_NUM_TOKENS] = {0};
    uint64_t sum = 0;
    uint8_t extra[WPATCH_NUM_TOKENS];
    for (uint32_t context = 0; context < contexts; context++) {
        if (!memcmp(histogram + context * WPATCH_NUM_TOKENS, unused, sizeof unused)) {
            continue;
        }
        check(wpatch_extra_bits(mode, dtype, context, extra) == WPATCH_OK, "every context has its raw bits");
        for (uint32_t token = 0; token < WPATCH_NUM_TOKENS; token++) {
            sum += histogram[context * WPATCH_NUM_TOKENS + token] * extra[token];
        }
    }
    return sum;
}

/* Count a part and its factors into the tables that they are mapped to; return the raw bits. */
static uint64_t count_part_of(scene *s, const wpatch_part *part, uint64_t totals[][WPATCH_NUM_TOKENS]) {
    uint32_t contexts = wpatch_num_contexts(part->mode, part->dtype);
    const uint64_t *histogram = counted(part, contexts);
    uint64_t bits = raw_bits(part->mode, part->dtype, contexts, histogram);
    add_counts(s, totals, part->tables, contexts, part->num_contexts, histogram);
    const wpatch_factors *f = part->inline_factors;
    if (f) {
        const uint64_t *of_factors = counted_factors(f);
        add_counts(s, totals, f->tables, WPATCH_MAX_RANK, f->num_contexts, of_factors);
        for (uint32_t k = 0; k < f->rank; k++) {
            bits += raw_bits(WPATCH_DIFFERENCE, WPATCH_F16, 1, of_factors + (size_t)k * WPATCH_NUM_TOKENS);
        }
    }
    return bits;
}

/* ---- blocks */

typedef struct coded {
    uint8_t *bytes;
    size_t length;
} coded;

static size_t announced_length(const coded *block, uint64_t bits) {
    const uint8_t *at = block->bytes + 4 * WPATCH_NUM_STATES;
    size_t words = at[0] | (size_t)at[1] << 8 | (size_t)at[2] << 16 | (size_t)at[3] << 24;
    return 4 * WPATCH_NUM_STATES + 4 + 2 * words + (size_t)((bits + 7) / 8);
}

static coded encoded(input *in, const scene *s, size_t tokens) {
    coded first = {NULL, 0};
    for (level_limit = 0; level_limit < NUM_LEVELS; level_limit++) {
        coded made = {room(in, WPATCH_BLOCK_BYTES(tokens)), 0};
        uint8_t *work = room(in, WPATCH_WORK_BYTES(tokens));
        check(wpatch_encode(s->frequencies, s->num_tables, s->parts, s->num_parts, work, made.bytes, &made.length) ==
                  WPATCH_OK,
              "what was counted is encoded");
        first = first.bytes ? first : made;
        int same = first.length == made.length && !memcmp(first.bytes, made.bytes, made.length);
        check(same, "all levels encode the same");
    }
    uint8_t *exact = room(in, first.length);
    memcpy(exact, first.bytes, first.length);
    first.bytes = exact;
    return first;
}

/* Lines are read in two layouts; numbers of the padding are zero whatever the encoder was given. */
static void compare_factors(const wpatch_factors *f, const wpatch_factors *g) {
    uint32_t even = WPATCH_EVEN(f->rank);
    for (uint32_t k = 0; k < f->rank; k++) {
        for (size_t i = 0; i < f->rows; i++) {
            check(f->left[i * even + k] == g->left[i * even + k], "left factors come back");
        }
        for (size_t i = 0; i < f->columns; i++) {
            size_t at = ((size_t)(k / 2) * f->columns + i) * 2 + k % 2;
            check(f->right[at] == g->right[at], "right factors come back");
        }
    }
}

static void decode_everywhere(input *in, const scene *s, const coded *block) {
    uint32_t *slots = room(in, sizeof(uint32_t) * (s->num_tables << WPATCH_TABLE_BITS));
    check(wpatch_expand_tables(s->frequencies, s->num_tables, slots) == WPATCH_OK, "tables are expanded");
    for (level_limit = 0; level_limit < NUM_LEVELS; level_limit++) {
        scene out;
        copy_outputs(in, s, &out);
        check(wpatch_decode(slots, s->num_tables, block->bytes, block->length, out.parts, out.num_parts) == WPATCH_OK,
              "what was encoded decodes");
        for (size_t i = 0; i < s->num_parts; i++) {
            const wpatch_part *p = &s->parts[i];
            check(!memcmp(out.parts[i].elements, p->elements, elements_size(p)), "elements come back");
            if (p->inline_factors) {
                compare_factors(&s->factors[i], &out.factors[i]);
            }
        }
    }
}

static void parts_there_and_back(input *in, scene *s) {
    uint64_t totals[WPATCH_MAX_TABLES][WPATCH_NUM_TOKENS] = {{0}}, bits = 0;
    size_t tokens = 0;
    choose_parts(in, s, 0);
    for (size_t i = 0; i < s->num_parts; i++) {
        wpatch_part *p = &s->parts[i];
        const uint8_t *measured = p->mode == WPATCH_FULL ? p->elements : p->base;
        if (number(in, 0, 3)) {
            check(wpatch_top(p->dtype, measured, p->count, &p->top) == WPATCH_OK, "every type has a largest exponent");
        }
        bits += count_part_of(s, p, totals);
        tokens += num_tokens(p);
    }
    for (size_t i = 0; i < s->num_tables; i++) {
        normalise(totals[i], s->frequencies + i * WPATCH_NUM_TOKENS);
    }
    coded block = encoded(in, s, tokens);
    check(block.length == announced_length(&block, bits), "a block has the raw bits of its tokens");
    decode_everywhere(in, s, &block);
}

static void factors_there_and_back(input *in, scene *s) {
    uint64_t totals[WPATCH_MAX_TABLES][WPATCH_NUM_TOKENS] = {{0}};
    wpatch_factors *f = &s->factors[0], out;
    choose_factors(in, s, f, WPATCH_MAX_FACTOR);
    add_counts(s, totals, f->tables, WPATCH_MAX_RANK, f->num_contexts, counted_factors(f));
    for (size_t i = 0; i < s->num_tables; i++) {
        normalise(totals[i], s->frequencies + i * WPATCH_NUM_TOKENS);
    }
    size_t tokens = ((size_t)f->rows + f->columns) * f->rank, length = 0;
    uint8_t *work = room(in, WPATCH_WORK_BYTES(tokens)), *block = room(in, WPATCH_BLOCK_BYTES(tokens));
    uint32_t *slots = room(in, sizeof(uint32_t) * (s->num_tables << WPATCH_TABLE_BITS));
    check(wpatch_encode_factors(s->frequencies, s->num_tables, f, work, block, &length) == WPATCH_OK,
          "factors that were counted are encoded");
    check(wpatch_expand_tables(s->frequencies, s->num_tables, slots) == WPATCH_OK, "tables are expanded");
    out = *f;
    out.left = room(in, left_size(f));
    out.right = room(in, right_size(f));
    check(wpatch_decode_factors(slots, s->num_tables, block, length, &out) == WPATCH_OK, "factors decode");
    compare_factors(f, &out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input in = {data, size, {NULL}, 0};
    scene s;
    level_limit = NUM_LEVELS - 1;
    choose_tables(&in, &s, 0);
    if (number(&in, 0, 7)) {
        parts_there_and_back(&in, &s);
    } else {
        factors_there_and_back(&in, &s);
    }
    close_input(&in);
    return 0;
}
