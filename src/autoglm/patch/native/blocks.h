/* The blocks of GGUF files as arrays of their fields, and how the codes of their groups move. Internal. */
#ifndef WPATCH_BLOCKS_H
#define WPATCH_BLOCKS_H

#include "steps.h"

#define BATCH 64u /* records taken apart at a time */
#define MAX_GROUPS 16u

/* What a type's records hold. */
typedef struct layout {
    uint32_t dtype;
    uint32_t size;                    /* bytes */
    uint32_t d_at, dmin_at;           /* the places of the F16 numbers; dmin_at 0: there is none */
    uint32_t num_scales, num_minima;  /* beside d and dmin, which they multiply */
    uint32_t num_codes, num_groups;   /* codes of a group share a scale */
    int32_t zero;                     /* the code of a zero where there are no minima */
    int32_t high;                     /* codes go from 0, of Q8_0 from -127, to here */
    int32_t near;                     /* see field */
    uint32_t reach;                   /* bits of the largest scale: see block_steps */
    int paired;                       /* DIFFERENCE takes codes two by two */
} layout;

/* The fields of a batch, each record by record. Codes are one a byte, or stay the bytes that hold two. */
typedef struct content {
    uint8_t d[2 * BATCH], dmin[2 * BATCH];
    uint8_t scales[16 * BATCH], minima[8 * BATCH];
    uint8_t codes[256 * BATCH];
} content;

/* NULL for types that are not records. */
const layout *layout_of(uint32_t dtype);

void split_blocks(const layout *l, const uint8_t *records, uint32_t n, int paired, content *out);
void join_blocks(const layout *l, const content *fields, int paired, uint32_t n, uint8_t *records);

/* How scales move with d, one step a record, and minima with dmin. */
void scale_steps(const uint8_t *old_d, const uint8_t *new_d, uint32_t n, step *steps);
/* How codes move with their scales, one step a group. */
void code_steps(const layout *l, const content *old_fields, const content *new_fields, uint32_t n, uint32_t top,
                step *steps);

#endif
