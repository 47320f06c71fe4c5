/* Decodes laid-out blocks and encodes them again: both ways must give the bytes that another machine gave.
 *
 *   vectors_main BASE NEW BLOCK...
 *
 * See examples/apply_block for the files; NEW is complete here.
 */
#include <string.h>

#include "block_file.h"

static void check(int holds, const char *path, const char *what) {
    if (!holds) {
        fprintf(stderr, "%s: %s\n", path, what);
        exit(1);
    }
}

static void decode(const block_file *b, const char *path) {
    uint32_t *slots = room(sizeof(uint32_t) * (b->num_tables << WPATCH_TABLE_BITS));
    check(wpatch_expand_tables(b->frequencies, b->num_tables, slots) == WPATCH_OK, path, "its tables");
    for (size_t i = 0; i < b->num_parts; i++) {
        const extra *e = &b->extras[i];
        if (e->factor_block) {
            int status = wpatch_decode_factors(slots, b->num_tables, e->factor_block, e->factor_length, &e->factors);
            check(status == WPATCH_OK, path, "its factors do not decode");
        }
    }
    int status = wpatch_decode(slots, b->num_tables, b->block, b->length, b->parts, b->num_parts);
    check(status == WPATCH_OK, path, "it does not decode");
    free(slots);
}

static void compare_elements(const block_file *b, FILE *made, const char *path) {
    for (size_t i = 0; i < b->num_parts; i++) {
        uint8_t *expected = bytes_at(made, b->extras[i].offset, b->extras[i].size);
        check(!memcmp(expected, b->parts[i].elements, b->extras[i].size), path, "its elements are others");
        free(expected);
    }
}

static size_t tokens_of(const wpatch_part *p) {
    const wpatch_factors *f = p->inline_factors;
    return (size_t)p->count * wpatch_num_tokens(p->mode, p->dtype) + (f ? ((size_t)f->rows + f->columns) * f->rank : 0);
}

/* Every token is counted once. */
static void count(const wpatch_part *p, const char *path) {
    size_t size = (size_t)wpatch_num_contexts(p->mode, p->dtype) * WPATCH_NUM_TOKENS;
    uint64_t *histogram = room(size * sizeof *histogram), sum = 0, changed = 0;
    check(wpatch_count(p, histogram, &changed) == WPATCH_OK, path, "its elements cannot be counted");
    for (size_t i = 0; i < size; i++) {
        sum += histogram[i];
    }
    check(sum == (uint64_t)p->count * wpatch_num_tokens(p->mode, p->dtype), path, "a token was not counted");
    free(histogram);
}

static void encode(const block_file *b, const char *path) {
    size_t tokens = 0, length = 0;
    for (size_t i = 0; i < b->num_parts; i++) {
        tokens += tokens_of(&b->parts[i]);
        count(&b->parts[i], path);
    }
    uint8_t *work = room(WPATCH_WORK_BYTES(tokens)), *block = room(WPATCH_BLOCK_BYTES(tokens));
    int status = wpatch_encode(b->frequencies, b->num_tables, b->parts, b->num_parts, work, block, &length);
    check(status == WPATCH_OK && length == b->length, path, "it is encoded otherwise");
    check(!memcmp(block, b->block, length), path, "it is encoded to other bytes");
    free(work);
    free(block);
}

static void encode_factors(const block_file *b, const extra *e, const char *path) {
    size_t tokens = ((size_t)e->factors.rows + e->factors.columns) * e->factors.rank, length = 0;
    uint8_t *work = room(WPATCH_WORK_BYTES(tokens)), *block = room(WPATCH_BLOCK_BYTES(tokens));
    int status = wpatch_encode_factors(b->frequencies, b->num_tables, &e->factors, work, block, &length);
    check(status == WPATCH_OK && length == e->factor_length && !memcmp(block, e->factor_block, length), path,
          "its factors are encoded otherwise");
    free(work);
    free(block);
}

int main(int argc, char **argv) {
    FILE *base = argc > 3 ? fopen(argv[1], "rb") : NULL, *made = argc > 3 ? fopen(argv[2], "rb") : NULL;
    if (!base || !made) {
        fail("usage: vectors_main BASE NEW BLOCK...");
    }
    for (int i = 3; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (!file) {
            fail("cannot open a block");
        }
        block_file b = read_block(file, base, made);
        decode(&b, argv[i]);
        compare_elements(&b, made, argv[i]);
        encode(&b, argv[i]);
        for (size_t k = 0; k < b.num_parts; k++) {
            if (b.extras[k].factor_block) {
                encode_factors(&b, &b.extras[k], argv[i]);
            }
        }
        free_block(&b);
        fclose(file);
    }
    printf("%d blocks agree\n", argc - 3);
    fclose(base);
    fclose(made);
    return 0;
}
