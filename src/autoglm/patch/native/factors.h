/* The factors of predicted matrices within a block. Internal. */
#ifndef WPATCH_FACTORS_H
#define WPATCH_FACTORS_H

#include "encode.h"
#include "rans.h"

/* How many numbers there are; 0 when something about them breaks a limit. */
uint64_t factors_count(const wpatch_factors *f);
int gather_factors(gathered *g, const wpatch_factors *f);
int decode_factors(decoder *d, const wpatch_factors *f, size_t num_tables);

/* What lies before the elements of a part: tokens, or -1 when that cannot be. */
static inline int64_t inline_tokens(const wpatch_part *part) {
    const wpatch_factors *f = part->inline_factors;
    if (!f) {
        return 0;
    }
    int whole = part->mode == WPATCH_PREDICTED && part->num_rows == f->rows && part->columns == f->columns &&
                part->curve.rank == f->rank && part->left == f->left && part->right == f->right;
    uint64_t count = whole ? factors_count(f) : 0;
    return count ? (int64_t)count : -1;
}

/* All tokens of a part, -1 when it is not in order. */
static inline int64_t part_tokens(const wpatch_part *part) {
    int64_t before = inline_tokens(part);
    return before < 0 ? -1 : before + (int64_t)part->count * wpatch_num_tokens(part->mode, part->dtype);
}

#endif
