/* Reads what lay_out.py wrote: a block of a package, and what a reader of packages knows of its parts.
 *
 * An app has these things in memory, from the package's header, which it parsed itself or on a server. Here they lie
 * in a file of 64-bit little-endian numbers and arrays of bytes.
 */
#ifndef BLOCK_FILE_H
#define BLOCK_FILE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "wpatch.h"

typedef struct block_file {
    uint16_t *frequencies; /* of num_tables tables */
    size_t num_tables, num_parts, length;
    wpatch_part *parts;
    struct extra *extras; /* one a part */
    uint8_t *block;       /* of `length` bytes */
} block_file;

/* What belongs to a part, besides what the core wants to know. */
typedef struct extra {
    uint64_t offset; /* of its elements in the new file */
    size_t size;     /* in bytes */
    wpatch_factors factors;
    uint8_t *factor_block; /* NULL: the factors lie in the block, or there are none */
    size_t factor_length;
} extra;

static void fail(const char *what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static void *room(size_t size) {
    void *made = calloc(size ? size : 1, 1);
    if (!made) {
        fail("no memory");
    }
    return made;
}

static uint8_t *bytes(FILE *file, size_t size) {
    uint8_t *made = room(size);
    if (fread(made, 1, size, file) != size) {
        fail("a file ends too early");
    }
    return made;
}

static uint64_t number(FILE *file) {
    uint8_t *at = bytes(file, 8);
    uint64_t value = 0;
    for (int i = 0; i < 8; i++) {
        value |= (uint64_t)at[i] << 8 * i;
    }
    free(at);
    return value;
}

static uint8_t *bytes_at(FILE *file, uint64_t offset, size_t size) {
    if (fseek(file, (long)offset, SEEK_SET) != 0) {
        fail("cannot seek");
    }
    return bytes(file, size);
}

/* The numbers of a part, in the order of wpatch.h. */
static void read_numbers(FILE *file, wpatch_part *p) {
    uint32_t *const fields[] = {&p->mode, &p->dtype, &p->count, &p->top, &p->num_contexts, &p->scale_dtype,
                                &p->group, &p->first, &p->num_scales, &p->columns, &p->first_column, &p->num_rows,
                                &p->curve.rank, &p->curve.drop, &p->curve.limit, &p->curve.classes};
    int32_t *const signed_fields[] = {&p->curve.slope, &p->curve.bend, &p->curve.shift};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        *fields[i] = (uint32_t)number(file);
    }
    for (size_t i = 0; i < sizeof signed_fields / sizeof *signed_fields; i++) {
        *signed_fields[i] = (int32_t)(uint32_t)number(file);
    }
}

/* The factors of the whole matrix, and where the rows begin that the part touches. */
static void read_factors(FILE *file, wpatch_part *p, extra *e) {
    wpatch_factors *f = &e->factors;
    f->rows = (uint32_t)number(file);
    f->columns = p->columns;
    f->rank = p->curve.rank;
    f->num_contexts = (uint32_t)number(file);
    f->tables = bytes(file, f->num_contexts);
    uint64_t first_row = number(file);
    e->factor_length = (size_t)number(file);
    e->factor_block = e->factor_length ? bytes(file, e->factor_length) : NULL;
    f->left = room(sizeof(int16_t) * WPATCH_FACTORS(f->rows, f->rank));
    f->right = room(sizeof(int16_t) * WPATCH_FACTORS(f->columns, f->rank));
    p->left = f->left + (size_t)first_row * WPATCH_EVEN(f->rank);
    p->right = f->right;
    p->inline_factors = f->rank && !e->factor_length ? f : NULL;
}

static void read_part(FILE *file, FILE *base, FILE *made, wpatch_part *p, extra *e) {
    read_numbers(file, p);
    size_t scales = (size_t)p->num_scales * (p->scale_dtype == WPATCH_F32 ? 4 : 2);
    uint64_t base_offset = number(file), old_scales = number(file), new_scales = number(file);
    e->offset = number(file);
    e->size = (size_t)number(file);
    p->tables = bytes(file, p->num_contexts);
    read_factors(file, p, e);
    p->base = p->mode == WPATCH_FULL ? NULL : bytes_at(base, base_offset, e->size);
    p->old_scales = p->scale_dtype ? bytes_at(base, old_scales, scales) : NULL;
    p->new_scales = p->scale_dtype ? bytes_at(made, new_scales, scales) : NULL; /* made by the blocks before this one */
    p->elements = room(e->size);
}

static block_file read_block(FILE *file, FILE *base, FILE *made) {
    block_file b = {NULL, (size_t)number(file), (size_t)number(file), (size_t)number(file), NULL, NULL, NULL};
    b.frequencies = room(sizeof(uint16_t) * b.num_tables * WPATCH_NUM_TOKENS);
    for (size_t i = 0; i < b.num_tables * WPATCH_NUM_TOKENS; i++) {
        b.frequencies[i] = (uint16_t)number(file);
    }
    b.parts = room(b.num_parts * sizeof *b.parts);
    b.extras = room(b.num_parts * sizeof *b.extras);
    for (size_t i = 0; i < b.num_parts; i++) {
        read_part(file, base, made, &b.parts[i], &b.extras[i]);
    }
    b.block = bytes(file, b.length);
    return b;
}

static void free_block(block_file *b) {
    for (size_t i = 0; i < b->num_parts; i++) {
        const wpatch_part *p = &b->parts[i];
        extra *e = &b->extras[i];
        const void *const arrays[] = {p->tables, p->base, p->old_scales, p->new_scales, p->elements,
                                      e->factors.tables, e->factors.left, e->factors.right, e->factor_block};
        for (size_t k = 0; k < sizeof arrays / sizeof *arrays; k++) {
            free((void *)(uintptr_t)arrays[k]);
        }
    }
    free(b->frequencies);
    free(b->parts);
    free(b->extras);
    free(b->block);
}

#endif
