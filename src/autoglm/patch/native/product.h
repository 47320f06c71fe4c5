/* The product of the factors of a matrix. Internal. */
#ifndef WPATCH_PRODUCT_H
#define WPATCH_PRODUCT_H

#include "transform.h"

/* Write the products of the part's elements start to start + n into sums, modulo 2^32. `next` is worth keeping from
 * one call to the next, whose start is the last one's end. */
void plan_product(const wpatch_part *part, ahead *next, uint32_t start, uint32_t n, int32_t *sums);

#endif
