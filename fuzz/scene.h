/* What a block is decoded from: tables, and parts of every mode and element type with their arrays.
 *
 * Arrays are exactly as long as wpatch.h says they must be for a part's fields, whatever these are; where a field
 * breaks a limit of the core, which must notice before it touches them, they are short.
 */
#ifndef FUZZ_SCENE_H
#define FUZZ_SCENE_H

#include "input.h"
#include "wpatch.h"

#define MAX_PARTS 3u

typedef struct scene {
    uint16_t frequencies[WPATCH_MAX_TABLES * WPATCH_NUM_TOKENS];
    size_t num_tables;
    wpatch_part parts[MAX_PARTS];
    wpatch_factors factors[MAX_PARTS];
    size_t num_parts;
} scene;

/* Tables that sum to 2048, or, with `wild`, may not. */
void choose_tables(input *in, scene *s, int wild);

/* Parts in order, or, with `wild`, with a field that may not be. `elements` get a content of their own. */
void choose_parts(input *in, scene *s, int wild);

/* Factors, their numbers from -range to range. */
void choose_factors(input *in, scene *s, wpatch_factors *f, uint32_t range);
size_t left_size(const wpatch_factors *f);
size_t right_size(const wpatch_factors *f);

/* Bytes of an element; 8 for types that are none. */
size_t element_size(uint32_t dtype);
/* Bytes of a part's elements, 0 when it has too many. */
size_t elements_size(const wpatch_part *part);
/* Tokens of a part, 0 when they are too many. */
size_t num_tokens(const wpatch_part *part);

/* A copy whose elements and inline factors are its own, zeroed. */
void copy_outputs(input *in, const scene *s, scene *copy);

#endif
