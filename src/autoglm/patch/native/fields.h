/* Fields of records: numbers of equal kind, gathered from a batch of records into an array of bytes. Internal. */
#ifndef WPATCH_FIELDS_H
#define WPATCH_FIELDS_H

#include "steps.h"

/* Codes and scales whose steps are known, coded like the codes of mode SCALED but in contexts of their own; pairs of
 * codes like those of PAIRS. Without steps every element is expected to be `middle`, in one context. */
typedef struct field {
    const step *steps;
    uint32_t run;    /* elements that share a step, a multiple of 8 */
    uint32_t groups; /* pairs: steps of a run of bytes; 2 when its high codes have one of their own */
    int32_t low, high; /* the range */
    int32_t middle;    /* of the range */
    int32_t near;      /* up to here from it, twice, codes are in the middle; 0: contexts do not ask */
    int is_signed;     /* elements are in two's complement */
} field;

void fields_contexts(const plan *p, chunk *c);

#endif
