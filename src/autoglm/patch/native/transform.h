/* The modelling half of the coder: elements <-> contexts and tokens. Internal. */
#ifndef WPATCH_TRANSFORM_H
#define WPATCH_TRANSFORM_H

#include <string.h>

#include "wpatch.h"

/* Elements handled at a time, so that every intermediate array stays in the first-level cache. */
#define CHUNK 2048u

/* How values below 2^width become 64 tokens: direct below `direct`, then 2^fine tokens an octave. */
typedef struct alphabet {
    uint32_t first[WPATCH_NUM_TOKENS]; /* smallest value of the token */
    uint8_t extra[WPATCH_NUM_TOKENS];  /* raw bits that follow it */
} alphabet;

/* What the chunks of one part have in common. */
typedef struct plan {
    const wpatch_part *part;
    uint32_t size;          /* bytes of an element */
    uint32_t exponent_bits; /* 0: the type is not a float */
    uint32_t mantissa_bits;
    uint32_t max_extra; /* most raw bits of a token */
    uint32_t num_contexts;
    uint32_t direct;  /* tokens below it are their own value, with no raw bits */
    uint8_t lut[256]; /* exponent field, code or SCALED class -> context, or table when decoding */
    alphabet tokens;
    uint8_t token_of[256]; /* of values below 256; not of FULL floats */
} plan;

/* A chunk's side information, derived from the base alone. */
typedef struct chunk {
    uint32_t start; /* of the part */
    uint32_t count;
    uint8_t context[CHUNK];    /* or table, see plan_part */
    uint8_t prediction[CHUNK]; /* SCALED only */
    uint8_t flip[CHUNK];       /* SCALED only: 1 where the residual's sign is turned */
} chunk;

/* Check a part and prepare it. With `mapped`, chunks get the table of each context instead of the context. */
int plan_part(plan *out, const wpatch_part *part, size_t num_tables, int mapped);
void plan_contexts(const plan *p, chunk *c);
/* values[i] is what the tokens spell: a folded residual, or in mode FULL of floats the element itself. */
void plan_restore(const plan *p, const chunk *c, const uint32_t *values);
void plan_residuals(const plan *p, const chunk *c, uint32_t *values);
/* tokens[i] and raw[i], its extra bits, spell values[i]. */
void plan_tokens(const plan *p, const uint32_t *values, uint32_t n, uint8_t *tokens, uint32_t *raw);

static inline int is_full_float(const plan *p) {
    return p->part->mode == WPATCH_FULL && p->exponent_bits != 0;
}

/* Little-endian loads and stores at any address; one instruction each on little-endian machines. */
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define LOAD(bits)                                                  \
    static inline uint##bits##_t load##bits(const uint8_t *at) {    \
        uint##bits##_t value;                                       \
        memcpy(&value, at, sizeof value);                           \
        return value;                                               \
    }
#define STORE(bits)                                                     \
    static inline void store##bits(uint8_t *at, uint32_t value) {       \
        uint##bits##_t narrow = (uint##bits##_t)value;                  \
        memcpy(at, &narrow, sizeof narrow);                             \
    }
#else
#define LOAD(bits)                                                      \
    static inline uint##bits##_t load##bits(const uint8_t *at) {        \
        uint##bits##_t value = 0;                                       \
        for (uint32_t i = 0; i < (bits) / 8; i++) {                     \
            value = (uint##bits##_t)(value | (uint##bits##_t)at[i] << 8 * i); \
        }                                                               \
        return value;                                                   \
    }
#define STORE(bits)                                                     \
    static inline void store##bits(uint8_t *at, uint32_t value) {       \
        for (uint32_t i = 0; i < (bits) / 8; i++) {                     \
            at[i] = (uint8_t)(value >> 8 * i);                          \
        }                                                               \
    }
#endif

LOAD(8)
LOAD(16)
LOAD(32)
LOAD(64)
STORE(8)
STORE(16)
STORE(32)

static inline uint32_t load_element(const uint8_t *at, uint32_t size) {
    return size == 1 ? at[0] : size == 2 ? load16(at) : load32(at);
}

static inline void store_element(uint8_t *at, uint32_t size, uint32_t value) {
    if (size == 1) {
        at[0] = (uint8_t)value;
    } else if (size == 2) {
        store16(at, value);
    } else {
        store32(at, value);
    }
}

#endif
