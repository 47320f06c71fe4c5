/* The encoding half of the coder: histograms and the gathering of tokens. Internal. */
#ifndef WPATCH_ENCODE_H
#define WPATCH_ENCODE_H

#include "transform.h"

/* Tokens, tables and raw bits of a block, gathered before coding, which runs from the last token back. */
typedef struct gathered {
    size_t num_tables; /* what `tables` of parts may name */
    uint8_t *tokens, *tables, *bits;
    uint32_t count; /* tokens so far */
    size_t num_bit_bytes;
    uint64_t pending;
    uint32_t num_pending;
} gathered;

/* Gather into `work` of WPATCH_WORK_BYTES(num_tokens). */
void gather_open(gathered *g, size_t num_tables, uint8_t *work, uint64_t num_tokens);
/* All tokens of a planned part, mapped to g's tables. */
void gather_part(gathered *g, const plan *p);
/* n values of one table, which an alphabet of 16-bit numbers spells. */
void gather_numbers(gathered *g, uint8_t table, const uint32_t *values, uint32_t n);
/* Write the block of everything gathered; WPATCH_BAD_ARGUMENT when a table breaks a rule or lacks a token. */
int gather_close(gathered *g, const uint16_t *frequencies, uint8_t *block, size_t *length);

/* Add the tokens of a part planned without tables to histogram[context][token]. */
void count_part(const plan *p, uint64_t *histogram);

#endif
