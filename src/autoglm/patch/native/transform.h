/* The modelling half of the coder: elements <-> contexts and tokens. Internal. */
#ifndef WPATCH_TRANSFORM_H
#define WPATCH_TRANSFORM_H

#include <string.h>

#include "wpatch.h"

/* Elements handled at a time, so that every intermediate array stays in the first-level cache; a multiple of 64. */
#define CHUNK 2048u

/* How values below 2^width become tokens: direct below `direct`, then 2^fine tokens an octave. */
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
    uint32_t num_tokens;              /* tokens from here on are an error: 50 in mode PAIRS, else 64 */
    uint32_t direct;                  /* tokens below it are their own value, with no raw bits */
    int mapped;                       /* chunks have the table of each context */
    uint8_t lut[WPATCH_MAX_CONTEXTS]; /* mapped: the table of each context */
    alphabet tokens;
    const struct field *field; /* set behind plan_part for fields of records: see fields.h */
} plan;

/* Products of the row below the one at hand, for columns from..to of it; see product.c. */
#define MAX_AHEAD 16384u
typedef struct ahead {
    uint32_t row, from, to;
    int32_t sums[MAX_AHEAD];
} ahead;

/* A chunk's side information, derived from the base alone. `start` and `count` are the caller's, who takes the chunks
 * of a part in order, from 0 on. */
typedef struct chunk {
    uint32_t start; /* of the part */
    uint32_t count;
    uint16_t context[CHUNK]; /* not set when there is a single table */
    uint8_t table[CHUNK];    /* set when the plan is mapped */
    uint8_t flip[CHUNK];     /* SCALED, PREDICTED: 1 where the residual's sign is turned; PAIRS: a bit for each code */
    /* SCALED to PAIRS, as wide as an element; floats as ordered numbers */
    uint8_t prediction[CHUNK];
    uint16_t prediction16[CHUNK];
    uint32_t prediction32[CHUNK];
    ahead next; /* PREDICTED */
} chunk;

/* An element type's bytes and the bits of its fields; 0 bytes: none that plans know. */
typedef struct kind {
    uint8_t size, exponent_bits, mantissa_bits;
} kind;
kind plan_kind(uint32_t dtype);

/* Contexts and token alphabet of a mode for an element type other than records; 0 contexts: not allowed. */
uint32_t plan_num_contexts(uint32_t mode, uint32_t dtype);
void plan_alphabet(alphabet *out, uint32_t mode, uint32_t dtype);
/* The token of a value below 2^(8 * size), and in *raw its extra bits. */
uint8_t plan_token(uint32_t size, uint32_t value, uint32_t *raw);

/* Check a part and prepare it. With `mapped`, which decoding and encoding need, chunks get the table of each
 * context too. */
int plan_part(plan *out, const wpatch_part *part, size_t num_tables, int mapped);
void plan_contexts(const plan *p, chunk *c);
/* values[i] is what the tokens spell: a folded residual, or in mode FULL of floats the element itself. */
void plan_restore(const plan *p, const chunk *c, const uint32_t *values);
void plan_residuals(const plan *p, const chunk *c, uint32_t *values);
/* What a plan knows of tokens, from its part and the bits of its elements. */
void plan_make_tokens(plan *p);
/* tokens[i] and raw[i], its extra bits, spell values[i]. */
void plan_tokens(const plan *p, const uint32_t *values, uint32_t n, uint8_t *tokens, uint32_t *raw);

/* A run of a chunk's elements that share a scale. Begin with {0}; at the chunk's end, 0 is returned. */
typedef struct piece {
    uint32_t at, end;
    int32_t ratio; /* old scale / new scale with 20 fraction bits, 0 to 8; 1 without scales */
} piece;
int plan_next_piece(const plan *p, const chunk *c, piece *s);

/* The modes that live in files of their own. */
void pairs_contexts(const plan *p, chunk *c);
void pairs_restore(const plan *p, const chunk *c, const uint32_t *values);
void pairs_residuals(const plan *p, const chunk *c, uint32_t *values);

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
