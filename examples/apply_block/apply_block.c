/* Applies blocks of a patch with nothing but the codec's C core.
 *
 *   apply_block BASE NEW BLOCK...
 *
 * BASE is the file that the patch was made against, NEW the file that it makes, of which lay_out.py has written all
 * that is copied. The elements of each block are decoded and put in their place, in the order of the blocks.
 */
#include "block_file.h"

static void decode(const block_file *b, uint32_t *slots) {
    if (wpatch_expand_tables(b->frequencies, b->num_tables, slots) != WPATCH_OK) {
        fail("a frequency table does not sum to 2048");
    }
    for (size_t i = 0; i < b->num_parts; i++) {
        const extra *e = &b->extras[i];
        int status = !e->factor_block ? WPATCH_OK
                                      : wpatch_decode_factors(slots, b->num_tables, e->factor_block, e->factor_length,
                                                              &e->factors);
        if (status != WPATCH_OK) {
            fail("a block of factors is damaged");
        }
    }
    if (wpatch_decode(slots, b->num_tables, b->block, b->length, b->parts, b->num_parts) != WPATCH_OK) {
        fail("a block is damaged, or was made against another base");
    }
}

static void put(FILE *made, const block_file *b) {
    for (size_t i = 0; i < b->num_parts; i++) {
        const extra *e = &b->extras[i];
        if (fseek(made, (long)e->offset, SEEK_SET) || fwrite(b->parts[i].elements, 1, e->size, made) != e->size) {
            fail("cannot write the new file");
        }
    }
}

int main(int argc, char **argv) {
    FILE *base = argc > 3 ? fopen(argv[1], "rb") : NULL, *made = argc > 3 ? fopen(argv[2], "r+b") : NULL;
    uint32_t *slots = room(sizeof(uint32_t) * (WPATCH_MAX_TABLES << WPATCH_TABLE_BITS));
    if (!base || !made) {
        fail("usage: apply_block BASE NEW BLOCK...");
    }
    for (int i = 3; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (!file) {
            fail("cannot open a block");
        }
        block_file b = read_block(file, base, made);
        decode(&b, slots);
        put(made, &b);
        free_block(&b);
        fclose(file);
    }
    free(slots);
    fclose(base);
    return fclose(made) == 0 ? 0 : 1;
}
