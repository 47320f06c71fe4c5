/* One token of decoding on a CPU, through all blocks of the network in one call.
 *
 * Matrices are INT8 with a scale a row. A row of activations is rounded to 16 bits, each 256 columns with a
 * scale of their own; products are sums of integers, which no order of adding changes, and everything else is
 * added in one fixed order: a row's result is the same to the last bit whatever it is batched with, and on
 * every instruction set. A value that is not finite makes its whole row not finite, never another.
 *
 * A call may use several threads: rows of a matrix, and groups of heads, are dealt out among them, which changes
 * no bit. The library starts its helpers when they are first asked for, they sleep between calls, and end when it
 * is unloaded; of two calls at once one has the helpers, the other works alone. It keeps nothing that it was
 * given. */
#ifndef WDECODE_H
#define WDECODE_H

#include <stdint.h>

#if defined(WDECODE_BUILD) && defined(__GNUC__)
#define WDECODE_API __attribute__((visibility("default")))
#else
#define WDECODE_API
#endif

#define WDECODE_ABI 2
#define WDECODE_TILE 16   /* rows of a matrix that lie together */
#define WDECODE_BLOCK 256 /* columns of a row of activations that share a scale */

enum { WDECODE_OK = 0, WDECODE_NO_MEMORY = 1, WDECODE_BAD_TOKEN = 2, WDECODE_BAD_PAGES = 3 };

/* codes: (ceil(rows / 16), ceil(columns / 2), 16, 2), what is over filled with 0; scale: a float for each of
 * ceil(rows / 16) * 16 rows; bias: rows floats or NULL. */
typedef struct {
    const int8_t *codes;
    const float *scale;
    const float *bias;
    int64_t rows;
    int64_t columns;
} wdecode_matrix;

typedef struct {
    wdecode_matrix qkv, out, gate_up, down;
    const float *attention_norm, *attention_post_norm, *ffn_norm, *ffn_post_norm; /* (width) each */
} wdecode_block;

typedef struct {
    const wdecode_block *blocks;
    wdecode_matrix table;     /* (vocabulary, width) */
    const float *norm;        /* (width) */
    const float *frequencies; /* (pairs): radians a position */
    int64_t num_blocks, width, num_heads, num_kv_heads, head_dim, pairs, ffn_width;
    double norm_eps;
    double embed_scale;
} wdecode_model;

/* A layer's keys and values are (slots, groups, pages_per_slot * page, head_dim), its bounds (slots, groups,
 * pages_per_slot, 2 * head_dim): the largest keys of a page, then the largest negated ones. */
typedef struct {
    float *const *keys; /* one a layer */
    float *const *values;
    float *const *bounds;
    int64_t pages_per_slot, page;
} wdecode_cache;

/* What to run: one token for each of `count` sequences. Sequence i sees lengths[i] tokens, its newest
 * included, and owns the runs of pages run_starts[i] to run_starts[i + 1], each (first page, pages) of one
 * slot, in order. One that sees `gated_from` tokens or more reads only the `keep` pages, at least 2, that can matter
 * most to each group of heads. */
typedef struct {
    int64_t count, keep, gated_from;
    const int64_t *token_ids, *positions, *lengths, *run_starts, *runs;
} wdecode_rows;

/* The ABI that this library was built with, WDECODE_ABI. */
WDECODE_API int wdecode_abi(void);

/* Which instructions it uses here: 0 portable, 1 AVX2, 2 AVX-512 with VNNI, 3 NEON. */
WDECODE_API int wdecode_level(void);

/* Multiply x (count, columns) with a matrix by up to `threads` threads; write out (count, rows). Returns WDECODE_OK
 * or _NO_MEMORY. */
WDECODE_API int wdecode_multiply(
    const wdecode_matrix *matrix, const float *x, int64_t count, int threads, float *out);

/* Multiply a matrix out: write (rows, columns) floats. */
WDECODE_API void wdecode_expand(const wdecode_matrix *matrix, float *out);

/* Run one token a sequence by up to `threads` threads; write its keys, values and bounds, and the normalised hidden states (count,
 * width). Returns WDECODE_OK, or another code and then has written nothing to the cache. */
WDECODE_API int wdecode_step(
    const wdecode_model *model, const wdecode_cache *cache, const wdecode_rows *rows, int threads, float *out);

#endif
