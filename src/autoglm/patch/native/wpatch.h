/* wpatch: the block coder of .wpatch packages. C99, no allocation, no floating point, no global state.
 *
 * A block holds up to WPATCH_MAX_BLOCK elements of one or more parts. Decoding turns the bytes of a block,
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

#define WPATCH_ABI 1
#define WPATCH_NUM_TOKENS 64u
#define WPATCH_TABLE_BITS 11u
#define WPATCH_MAX_TABLES 64u
#define WPATCH_MAX_CONTEXTS 20u
#define WPATCH_MAX_BLOCK (512u << 10)

/* Room that encoding needs, in bytes, for n elements. */
#define WPATCH_WORK_BYTES(n) ((size_t)(n) * 6u + 16u)
#define WPATCH_BLOCK_BYTES(n) ((size_t)(n) * 6u + 64u)

enum wpatch_status {
    WPATCH_OK = 0,
    WPATCH_BAD_ARGUMENT = 1, /* a part, a table or a size breaks a limit */
    WPATCH_BAD_BLOCK = 2     /* the block's bytes are damaged */
};

enum wpatch_mode { WPATCH_FULL = 2, WPATCH_DIFFERENCE = 3, WPATCH_SCALED = 4 };

enum wpatch_dtype {
    WPATCH_I8 = 1,
    WPATCH_U8 = 2,
    WPATCH_BOOL = 3,
    WPATCH_F8_E4M3 = 4,
    WPATCH_F8_E5M2 = 5,
    WPATCH_F16 = 8,
    WPATCH_BF16 = 9,
    WPATCH_F32 = 12
};

/* The piece of one tensor that lies in one block. Arrays are little-endian, as in the files. */
typedef struct wpatch_part {
    uint32_t mode;
    uint32_t dtype;
    uint32_t count;        /* elements */
    uint32_t top;          /* largest exponent of the base; of the elements in mode FULL */
    uint32_t num_contexts; /* entries of `tables`: 1, or as many as the mode has */
    uint32_t scale_dtype;  /* SCALED: type of the row scales */
    uint32_t columns;      /* SCALED: elements of a row */
    uint32_t first_column; /* SCALED: place of the first element in its row */
    uint32_t num_rows;     /* SCALED: rows touched, entries of both scale arrays */
    uint8_t tables[WPATCH_MAX_CONTEXTS];
    const uint8_t *base;       /* count elements; not in mode FULL */
    const uint8_t *old_scales; /* SCALED */
    const uint8_t *new_scales; /* SCALED */
    uint8_t *elements;         /* count elements: written by decoding, read by encoding */
} wpatch_part;

WPATCH_API int wpatch_abi(void);

/* Expand num_tables x 64 frequencies, each table summing to 2048, into num_tables << 11 decoding slots. */
WPATCH_API int wpatch_expand_tables(const uint16_t *frequencies, size_t num_tables, uint32_t *slots);

/* Decode one block into the `elements` of its parts. On any status but WPATCH_OK their content is undefined. */
WPATCH_API int wpatch_decode(const uint32_t *slots, size_t num_tables, const uint8_t *block, size_t length,
                             const wpatch_part *parts, size_t num_parts);

/* Find the largest exponent field of `count` float elements; 0 for other types. */
WPATCH_API int wpatch_top(uint32_t dtype, const uint8_t *elements, size_t count, uint32_t *top);

/* Add a part's tokens to histogram[context][token] (as many contexts as its mode has); add to *changed the
 * number of elements that differ from the base. */
WPATCH_API int wpatch_count(const wpatch_part *part, uint64_t *histogram, uint64_t *changed);

/* Encode one block. `work` has WPATCH_WORK_BYTES, `block` WPATCH_BLOCK_BYTES of all elements together. */
WPATCH_API int wpatch_encode(const uint16_t *frequencies, size_t num_tables, const wpatch_part *parts,
                             size_t num_parts, uint8_t *work, uint8_t *block, size_t *length);

/* How many contexts a mode has for an element type; 0 when the pair is not allowed. */
WPATCH_API uint32_t wpatch_num_contexts(uint32_t mode, uint32_t dtype);

#ifdef __cplusplus
}
#endif
#endif
