/* wpatch: the block coder of .wpatch packages. C99, no allocation, no floating point, no global state.
 *
 * A block holds up to WPATCH_MAX_BLOCK tokens of one or more parts. Decoding turns the bytes of a block,
 * the frequency tables of the package and the elements of the base into the elements of the new file.
 * docs/wpatch-format.md specifies every step. All functions may be called from any number of threads.
 */
#ifndef WPATCH_H
#define WPATCH_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32) && defined(WPATCH_BUILD)
#define WPATCH_API __declspec(dllexport)
#elif defined(__GNUC__) && defined(WPATCH_BUILD)
#define WPATCH_API __attribute__((visibility("default")))
#else
#define WPATCH_API
#endif

#define WPATCH_ABI 2
#define WPATCH_NUM_TOKENS 64u
#define WPATCH_TABLE_BITS 11u
#define WPATCH_NUM_STATES 32u
#define WPATCH_MAX_TABLES 64u
#define WPATCH_MAX_CONTEXTS 640u
#define WPATCH_MAX_BLOCK (512u << 10)
#define WPATCH_MAX_RANK 64u
#define WPATCH_MAX_FACTORS (4u << 20)
#define WPATCH_MAX_FACTOR 2047

/* Room that encoding needs, in bytes, for n tokens. */
#define WPATCH_WORK_BYTES(n) ((size_t)(n) * 6u + 16u)
#define WPATCH_BLOCK_BYTES(n) ((size_t)(n) * 6u + 256u)

/* Numbers in the two arrays of factors: rows (or columns) of `rank` numbers, padded with 0 to an even rank.
 * `left` lies row by row: left[row * even + k]. `right` lies in pairs, so that one multiply-add instruction takes
 * two: right[(k / 2 * columns + column) * 2 + k % 2]. Numbers are the machine's own. */
#define WPATCH_EVEN(rank) (((rank) + 1u) & ~1u)
#define WPATCH_FACTORS(lines, rank) ((size_t)(lines) * WPATCH_EVEN(rank))

enum wpatch_status {
    WPATCH_OK = 0,
    WPATCH_BAD_ARGUMENT = 1, /* a part, a table or a size breaks a limit */
    WPATCH_BAD_BLOCK = 2     /* the block's bytes are damaged */
};

enum wpatch_mode {
    WPATCH_FULL = 2,
    WPATCH_DIFFERENCE = 3,
    WPATCH_SCALED = 4,
    WPATCH_PREDICTED = 5,
    WPATCH_PAIRS = 6
};

enum wpatch_dtype {
    WPATCH_I8 = 1,
    WPATCH_U8 = 2,
    WPATCH_BOOL = 3,
    WPATCH_F8_E4M3 = 4,
    WPATCH_F8_E5M2 = 5,
    WPATCH_F16 = 8,
    WPATCH_BF16 = 9,
    WPATCH_F32 = 12,
    /* records: one block of a GGUF file each */
    WPATCH_Q4_0 = 16,
    WPATCH_Q8_0 = 17,
    WPATCH_Q4_K = 18,
    WPATCH_Q5_K = 19,
    WPATCH_Q6_K = 20
};

/* How the product of the factors moves the base: v = t * (slope - (t * bend >> 15)) << shift, with
 * t = min(|product| >> drop, limit). */
typedef struct wpatch_curve {
    uint32_t rank;
    uint32_t drop;
    uint32_t limit;
    int32_t slope, bend, shift;
    uint32_t classes; /* contexts: min(7, t * classes >> 16) */
} wpatch_curve;

/* The factors of a whole matrix. `tables` has one entry, or one for each of 64 ranks. */
typedef struct wpatch_factors {
    uint32_t rows, columns, rank;
    uint32_t num_contexts;
    const uint8_t *tables;
    int16_t *left;  /* WPATCH_FACTORS(rows, rank) */
    int16_t *right; /* WPATCH_FACTORS(columns, rank) */
} wpatch_factors;

/* The piece of one tensor that lies in one block. Arrays are little-endian, as in the files, but for the
 * factors, which are the machine's own. */
typedef struct wpatch_part {
    uint32_t mode;
    uint32_t dtype;
    uint32_t count;        /* elements */
    uint32_t top;          /* largest exponent of the base; of the elements in mode FULL */
    uint32_t num_contexts; /* entries of `tables`: 1, or as many as the mode has */
    uint32_t scale_dtype;  /* SCALED, PREDICTED, PAIRS: type of the scales; 0 for none */
    uint32_t group;        /* with scales: elements that share one */
    uint32_t first;        /* with scales: place of the first element in its group */
    uint32_t num_scales;   /* entries of both scale arrays: groups touched */
    uint32_t columns;      /* PREDICTED: elements of a row */
    uint32_t first_column; /* PREDICTED: place of the first element in its row */
    uint32_t num_rows;     /* PREDICTED: rows touched, rows of `left` */
    wpatch_curve curve;    /* PREDICTED */
    const uint8_t *tables;
    const uint8_t *base;       /* count elements; not in mode FULL */
    const uint8_t *old_scales;
    const uint8_t *new_scales;
    const int16_t *left;  /* PREDICTED: WPATCH_FACTORS(num_rows, rank), of the rows touched */
    const int16_t *right; /* PREDICTED: WPATCH_FACTORS(columns, rank) */
    const wpatch_factors *inline_factors; /* PREDICTED: factors that precede the elements in the block; NULL when
                                           * they have a block of their own. They are what left and right read. */
    uint8_t *elements;    /* count elements: written by decoding, read by encoding */
} wpatch_part;

WPATCH_API int wpatch_abi(void);

/* Expand num_tables x 64 frequencies, each table summing to 2048, into num_tables << 11 decoding slots. */
WPATCH_API int wpatch_expand_tables(const uint16_t *frequencies, size_t num_tables, uint32_t *slots);

/* Decode one block into the `elements` of its parts. On any status but WPATCH_OK their content is undefined. */
WPATCH_API int wpatch_decode(const uint32_t *slots, size_t num_tables, const uint8_t *block, size_t length,
                             const wpatch_part *parts, size_t num_parts);

/* Find the largest exponent field of `count` float elements (of the F16 fields of records); 0 for other types. */
WPATCH_API int wpatch_top(uint32_t dtype, const uint8_t *elements, size_t count, uint32_t *top);

/* Add a part's tokens to histogram[context][token] (as many contexts as its mode has); add to *changed the
 * number of elements that differ from the base. */
WPATCH_API int wpatch_count(const wpatch_part *part, uint64_t *histogram, uint64_t *changed);

/* Encode one block. `work` has WPATCH_WORK_BYTES, `block` WPATCH_BLOCK_BYTES of all tokens together. */
WPATCH_API int wpatch_encode(const uint16_t *frequencies, size_t num_tables, const wpatch_part *parts,
                             size_t num_parts, uint8_t *work, uint8_t *block, size_t *length);

/* Factors that have a block of their own: how they are coded, counted (histogram has 64 contexts) and decoded. `work`
 * and `block` have room as above for (rows + columns) * rank tokens. */
WPATCH_API int wpatch_encode_factors(const uint16_t *frequencies, size_t num_tables, const wpatch_factors *factors,
                                     uint8_t *work, uint8_t *block, size_t *length);
WPATCH_API int wpatch_count_factors(const wpatch_factors *factors, uint64_t *histogram);
WPATCH_API int wpatch_decode_factors(const uint32_t *slots, size_t num_tables, const uint8_t *block, size_t length,
                                     const wpatch_factors *factors);

/* How many contexts a mode has for an element type; 0 when the pair is not allowed. */
WPATCH_API uint32_t wpatch_num_contexts(uint32_t mode, uint32_t dtype);

/* How many tokens an element of a type takes in a mode; 0 when the pair is not allowed. */
WPATCH_API uint32_t wpatch_num_tokens(uint32_t mode, uint32_t dtype);

/* How many raw bits follow each of the 64 tokens in a context of a mode; the same for all but records. */
WPATCH_API int wpatch_extra_bits(uint32_t mode, uint32_t dtype, uint32_t context, uint8_t extra[64]);

#ifdef __cplusplus
}
#endif
#endif
