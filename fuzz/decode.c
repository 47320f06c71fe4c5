/* Fuzzes decoding: blocks that never were any, and real ones with damage, from fields that may break every limit.
 *
 * Whatever they are, all levels of vector instructions say the same and make the same bytes; a real block without
 * damage gives its elements back.
 */
#include <stdlib.h>
#include <string.h>

#include "levels.h"
#include "scene.h"

int level_limit;

typedef struct coded {
    uint8_t *bytes;
    size_t length;
    int whole; /* it is what an encoder made, and must decode */
} coded;

/* ---- blocks */

/* States in their range, most of the time, and a number of words, which may be more than follow. */
static coded invent(input *in) {
    uint8_t scratch[8192];
    size_t before = 132, length = number(in, 0, 3) ? before + number(in, 0, sizeof scratch - 132) : number(in, 0, 200);
    fill(in, scratch, length, NULL);
    uint32_t fitting = (uint32_t)(length > before ? (length - before) / 2 : 0);
    uint32_t words = number(in, 0, 7) ? fitting : number(in, 0, UINT32_MAX);
    words -= words && !number(in, 0, 3) ? number(in, 0, words - 1) : 0;
    int good = number(in, 0, 7) != 0;
    for (uint32_t i = 0; good && i < 32 && 4 * i + 4 <= length; i++) {
        scratch[4 * i + 1] |= 0x80;
        scratch[4 * i + 3] &= 0x7f;
    }
    for (uint32_t i = 0; i < 4 && 128 + i < length; i++) {
        scratch[128 + i] = (uint8_t)(words >> 8 * i);
    }
    coded made = {room(in, length), length, 0};
    memcpy(made.bytes, scratch, length);
    return made;
}

/* Change, cut or lengthen a block a little. */
static coded damage(input *in, const uint8_t *bytes, size_t length) {
    uint32_t edits = number(in, 0, 3);
    size_t longer = length + (edits && !number(in, 0, 7) ? number(in, 1, 40) : 0);
    size_t kept = edits && !number(in, 0, 7) ? number(in, 0, (uint32_t)longer) : longer;
    uint8_t *scratch = calloc(longer ? longer : 1, 1);
    coded made = {room(in, kept), kept, kept == length};
    memcpy(scratch, bytes, length);
    for (uint32_t i = 0; i < edits && longer; i++) {
        uint8_t change = (uint8_t)number(in, 0, 255);
        scratch[number(in, 0, (uint32_t)longer - 1)] ^= change;
        made.whole &= change == 0;
    }
    memcpy(made.bytes, scratch, kept);
    free(scratch);
    return made;
}

/* A block of the scene's elements, made by the core. */
static coded encoded(input *in, const scene *s) {
    size_t tokens = 0, length = 0;
    for (size_t i = 0; i < s->num_parts; i++) {
        tokens += num_tokens(&s->parts[i]);
    }
    uint8_t *work = room(in, WPATCH_WORK_BYTES(tokens)), *block = room(in, WPATCH_BLOCK_BYTES(tokens));
    int status = wpatch_encode(s->frequencies, s->num_tables, s->parts, s->num_parts, work, block, &length);
    return status == WPATCH_OK ? damage(in, block, length) : invent(in);
}

static coded encoded_factors(input *in, const scene *s, const wpatch_factors *f) {
    size_t tokens = ((size_t)f->rows + f->columns) * f->rank, length = 0;
    uint8_t *work = room(in, WPATCH_WORK_BYTES(tokens)), *block = room(in, WPATCH_BLOCK_BYTES(tokens));
    int status = wpatch_encode_factors(s->frequencies, s->num_tables, f, work, block, &length);
    return status == WPATCH_OK ? damage(in, block, length) : invent(in);
}

/* ---- promises */

static void compare_parts(const scene *a, const scene *b, const char *promise) {
    for (size_t i = 0; i < a->num_parts; i++) {
        check(!memcmp(a->parts[i].elements, b->parts[i].elements, elements_size(&a->parts[i])), promise);
    }
}

static void decode_everywhere(input *in, const scene *s, const uint32_t *slots, const coded *block) {
    scene made[NUM_LEVELS];
    int status[NUM_LEVELS];
    for (level_limit = 0; level_limit < NUM_LEVELS; level_limit++) {
        scene *out = &made[level_limit];
        copy_outputs(in, s, out);
        status[level_limit] =
            wpatch_decode(slots, s->num_tables, block->bytes, block->length, out->parts, out->num_parts);
        check(status[level_limit] == status[0], "all levels agree about a block");
        if (status[0] == WPATCH_OK) {
            compare_parts(out, &made[0], "all levels decode the same");
        }
    }
    if (block->whole) {
        check(status[0] == WPATCH_OK, "what was encoded decodes");
        compare_parts(s, &made[0], "what was encoded comes back");
    }
}

static void decode_factors_everywhere(input *in, const scene *s, const wpatch_factors *f, const uint32_t *slots,
                                      const coded *block) {
    wpatch_factors made[NUM_LEVELS];
    int status[NUM_LEVELS];
    for (level_limit = 0; level_limit < NUM_LEVELS; level_limit++) {
        wpatch_factors *out = &made[level_limit];
        *out = *f;
        out->left = room(in, left_size(f));
        out->right = room(in, right_size(f));
        status[level_limit] = wpatch_decode_factors(slots, s->num_tables, block->bytes, block->length, out);
        check(status[level_limit] == status[0], "all levels agree about factors");
        if (status[0] == WPATCH_OK) {
            check(!memcmp(out->left, made[0].left, left_size(f)), "all levels decode the same left factors");
            check(!memcmp(out->right, made[0].right, right_size(f)), "all levels decode the same right factors");
        }
    }
    check(!block->whole || status[0] == WPATCH_OK, "factors that were encoded decode");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input in = {data, size, {NULL}, 0};
    scene s;
    level_limit = NUM_LEVELS - 1;
    uint32_t what = number(&in, 0, 7);
    choose_tables(&in, &s, what & 1u);
    uint32_t *slots = room(&in, sizeof(uint32_t) * (s.num_tables << WPATCH_TABLE_BITS));
    if (wpatch_expand_tables(s.frequencies, s.num_tables, slots) != WPATCH_OK) {
        check(what & 1u, "tables that sum to 2048 are expanded");
    } else if (what >> 1) {
        choose_parts(&in, &s, what & 1u);
        coded block = number(&in, 0, 1) ? encoded(&in, &s) : invent(&in);
        decode_everywhere(&in, &s, slots, &block);
    } else {
        choose_factors(&in, &s, &s.factors[0], what & 1u ? 32767 : WPATCH_MAX_FACTOR);
        coded block = number(&in, 0, 1) ? encoded_factors(&in, &s, &s.factors[0]) : invent(&in);
        decode_factors_everywhere(&in, &s, &s.factors[0], slots, &block);
    }
    close_input(&in);
    return 0;
}
