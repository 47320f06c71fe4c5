/* Values <-> elements: what is left of an element when its prediction is known. All arithmetic is modulo 2^width, so
 * every value has exactly one way back. */
#include "levels.h"
#include "transform.h"

#define WIDTH 8
#define LANE uint16_t
#include "residual_loops.h"
#undef WIDTH
#undef LANE

#define WIDTH 16
#define LANE uint16_t
#include "residual_loops.h"
#undef WIDTH
#undef LANE

#define WIDTH 32
#define LANE uint32_t
#include "residual_loops.h"
#undef WIDTH
#undef LANE

/* The loop for the part's type. */
#define FOR_TYPE(loop, ...)        \
    do {                           \
        if (!p->exponent_bits) {   \
            loop##8(__VA_ARGS__, 0);  \
        } else if (p->size == 1) { \
            loop##8(__VA_ARGS__, 1);  \
        } else if (p->size == 2) { \
            loop##16(__VA_ARGS__, 1); \
        } else {                   \
            loop##32(__VA_ARGS__, 1); \
        }                          \
    } while (0)

INLINE void restore_body(const plan *p, const chunk *c, const uint32_t *values, int level) {
    (void)level;
    size_t start = (size_t)c->start * p->size;
    uint8_t *out = p->part->elements + start;
    uint32_t n = c->count;
    if (p->part->mode == WPATCH_FULL) {
        FOR_TYPE(restore_full, out, n, values);
    } else if (p->part->mode == WPATCH_DIFFERENCE) {
        FOR_TYPE(restore_difference, p->part->base + start, out, n, values);
    } else {
        FOR_TYPE(restore_predicted, c, out, n, values);
    }
}

INLINE void residuals_body(const plan *p, const chunk *c, uint32_t *values, int level) {
    (void)level;
    size_t start = (size_t)c->start * p->size;
    const uint8_t *in = p->part->elements + start;
    uint32_t n = c->count;
    if (p->part->mode == WPATCH_FULL) {
        FOR_TYPE(residuals_full, in, n, values);
    } else if (p->part->mode == WPATCH_DIFFERENCE) {
        FOR_TYPE(residuals_difference, p->part->base + start, in, n, values);
    } else {
        FOR_TYPE(residuals_predicted, c, in, n, values);
    }
}

EVERY_LEVEL(restore, (const plan *p, const chunk *c, const uint32_t *values), (p, c, values))
EVERY_LEVEL(residuals, (const plan *p, const chunk *c, uint32_t *values), (p, c, values))

void plan_restore(const plan *p, const chunk *c, const uint32_t *values) {
    if (p->part->mode == WPATCH_PAIRS) {
        pairs_restore(p, c, values);
    } else {
        restore(p, c, values);
    }
}

void plan_residuals(const plan *p, const chunk *c, uint32_t *values) {
    if (p->part->mode == WPATCH_PAIRS) {
        pairs_residuals(p, c, values);
    } else {
        residuals(p, c, values);
    }
}
