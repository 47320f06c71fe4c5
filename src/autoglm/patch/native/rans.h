/* Entropy decoding: static rANS with 32 interleaved 32-bit states, 16-bit words and 11-bit tables. Internal.
 *
 * Token i of a block belongs to state i mod 32, so a machine with vectors decodes 32 tokens at a time. All versions
 * give the same bytes, and none reads outside the block, whatever it holds.
 */
#ifndef WPATCH_RANS_H
#define WPATCH_RANS_H

#include "transform.h"

#define STATES WPATCH_NUM_STATES
#define STATE_LOW (1u << 15)
#define STATE_HIGH (1u << 31)
#define SLOT_MASK ((1u << WPATCH_TABLE_BITS) - 1u)
#define PROLOGUE (4u * STATES + 4u)

/* A decoding slot: how often its token occurs << 20, the slot's place among the token's << 8, the token. */
#define SLOT(token, frequency, place) ((uint32_t)(frequency) << 20 | (uint32_t)(place) << 8 | (uint32_t)(token))

/* Element types from here on are records, which records.c takes apart. */
#define FIRST_RECORD WPATCH_Q4_0

/* Between two looks at its end, a stream is read at most so many bytes ahead: 64 tokens of 30 raw bits, and a
 * vector. */
#define AHEAD 320u

/* Bytes read forwards without a look at each: AHEAD bytes behind any position up to `limit` exist. The last ones
 * are copied in front of zeros, for there the block may end. Not to be copied, since it may point into itself. */
typedef struct stream {
    const uint8_t *at, *end;
    const uint8_t *limit;
    uint8_t tail[2 * AHEAD];
} stream;

typedef struct decoder {
    const uint32_t *slots;
    uint32_t state[STATES]; /* state[0] belongs to the next token */
    stream words, bits;
    uint32_t bit; /* raw bits used of the byte at bits.at */
} decoder;

int decoder_open(decoder *d, const uint32_t *slots, const uint8_t *block, size_t length);
/* Everything must have been used, and the states be where encoding began. */
int decoder_close(const decoder *d);

/* Decode n tokens, each with its table. */
int decode_tokens(decoder *d, const uint8_t *tables, uint32_t n, uint8_t *tokens);
/* What n tokens stand for, with the raw bits that follow them. Those below `direct` are their own values. */
int decode_values(decoder *d, const alphabet *a, uint32_t direct, const uint8_t *tokens, uint32_t n,
                  uint32_t *values);
/* All elements of a planned part. */
int decode_part(decoder *d, const plan *p);

/* Prepare to read on; 0 when more was read than the stream has. */
int stream_ready(stream *s);

/* While s->at stays up to here, no look at the end is needed. */
static inline const uint8_t *stream_stop(const stream *s) { return s->limit < s->end ? s->limit : s->end; }

/* The vectors' versions of the inner loops. Groups of 32 tokens are decoded until num_groups are done or the
 * words' stop is passed; groups of 64 values until n (a multiple of 64) are done or the bits' stop is passed.
 * They return how many tokens or values were done. */
uint32_t decode_groups_avx2(decoder *d, const uint8_t *tables, uint32_t num_groups, uint8_t *tokens);
uint32_t decode_groups_avx512(decoder *d, const uint8_t *tables, uint32_t num_groups, uint8_t *tokens);
uint32_t decode_values_avx512(decoder *d, const alphabet *a, uint32_t direct, const uint8_t *tokens, uint32_t n,
                              uint32_t *values);

#endif
