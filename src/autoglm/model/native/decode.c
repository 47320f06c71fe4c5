/* One token of decoding: what is checked and prepared, and which level of instructions runs. See decode.h. */
#define _POSIX_C_SOURCE 200809L /* threads and signals, which C11 alone does not have */
#include "decode.h"

#include <stdlib.h>

#include "room.h"
#include "vectors.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define HAS_LEVELS 1
#else
#define HAS_LEVELS 0
#endif
#if defined(__aarch64__) && defined(__ARM_NEON) && !defined(__AARCH64EB__)
#include <arm_neon.h>
#define HAS_NEON 1
#else
#define HAS_NEON 0
#endif

#define LEVEL 0
#define NAME(x) x##_portable
#define TARGET
#define INLINE ALWAYS
#include "product.h"
#include "step.h"
#undef LEVEL
#undef NAME
#undef TARGET
#undef INLINE

#if HAS_LEVELS
#define LEVEL 1
#define NAME(x) x##_avx2
#define TARGET __attribute__((target("avx2")))
#define INLINE TARGET ALWAYS
#include "product.h"
#include "step.h"
#undef LEVEL
#undef NAME
#undef TARGET
#undef INLINE

#define LEVEL 2
#define NAME(x) x##_avx512
#define TARGET __attribute__((target("avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#define INLINE TARGET ALWAYS
#include "product.h"
#include "step.h"
#undef LEVEL
#undef NAME
#undef TARGET
#undef INLINE
#endif

#if HAS_NEON
#define LEVEL 3
#define NAME(x) x##_neon
#define TARGET
#define INLINE ALWAYS
#include "product.h"
#include "step.h"
#undef LEVEL
#undef NAME
#undef TARGET
#undef INLINE
#endif

int wdecode_abi(void) { return WDECODE_ABI; }

int wdecode_level(void) {
#if HAS_LEVELS && (!defined(WDECODE_MAX_LEVEL) || WDECODE_MAX_LEVEL > 0)
    if (!__builtin_cpu_supports("avx2")) return 0;
#if !defined(WDECODE_MAX_LEVEL) || WDECODE_MAX_LEVEL > 1
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vnni"))
        return 2;
#endif
    return 1;
#elif HAS_NEON && (!defined(WDECODE_MAX_LEVEL) || WDECODE_MAX_LEVEL > 0)
    return 3;
#else
    return 0;
#endif
}

#if HAS_LEVELS
#define AT_LEVEL(function, ...)                                       \
    switch (wdecode_level()) {                                        \
    case 2: function##_avx512(__VA_ARGS__); break;                    \
    case 1: function##_avx2(__VA_ARGS__); break;                      \
    default: function##_portable(__VA_ARGS__);                        \
    }
#elif HAS_NEON
#define AT_LEVEL(function, ...)                                       \
    if (wdecode_level()) {                                            \
        function##_neon(__VA_ARGS__);                                 \
    } else {                                                          \
        function##_portable(__VA_ARGS__);                             \
    }
#else
#define AT_LEVEL(function, ...) function##_portable(__VA_ARGS__);
#endif

int wdecode_multiply(const wdecode_matrix *matrix, const float *x, int64_t count, int threads, float *out) {
    size_t stride = (size_t)padded(matrix->columns), blocks = (size_t)num_blocks(matrix->columns);
    float *scales = malloc((size_t)count * (blocks * sizeof *scales + stride * sizeof(int16_t)) + 1);
    if (!scales) return WDECODE_NO_MEMORY;
    int16_t *codes = (int16_t *)(scales + (size_t)count * blocks);
    threads = team_take(threads);
    AT_LEVEL(multiply, matrix, x, count, out, codes, scales, threads)
    team_give_back(threads);
    free(scales);
    return WDECODE_OK;
}

void wdecode_expand(const wdecode_matrix *matrix, float *out) {
    int64_t stride = (matrix->columns + 1) / 2 * 2;
    for (int64_t row = 0; row < matrix->rows; row++) {
        const int8_t *codes = matrix->codes + row / LANES * LANES * stride + row % LANES * 2;
        for (int64_t column = 0; column < matrix->columns; column++)
            out[row * matrix->columns + column] =
                (float)codes[column / 2 * 2 * LANES + column % 2] * matrix->scale[row];
    }
}

static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* Take the next `bytes` of a run of memory; without memory only count. */
static void *take(char **memory, size_t *used, size_t bytes) {
    void *place = *memory ? *memory + *used : NULL;
    *used += (bytes + 63) / 64 * 64;
    return place;
}

static int64_t pages_of(int64_t tokens, int64_t page) { return (tokens + page - 1) / page; }

/* How many tokens of its past a sequence attends to. */
static int64_t tokens_read(const wdecode_rows *rows, int64_t length, int64_t page) {
    int64_t kept = rows->keep * page;
    return length >= rows->gated_from && kept < length ? kept : length;
}

/* What each thread writes to while it attends. */
static void lay_out_scratches(room *r, char **memory, size_t *used, const wdecode_model *m, int64_t page,
    const wdecode_rows *rows) {
    int64_t pages = 0, longest = 0;
    for (int64_t i = 0; i < rows->count; i++) {
        int64_t length = rows->lengths[i];
        if (length >= rows->gated_from) pages = most(pages, pages_of(length, page));
        longest = most(longest, tokens_read(rows, length, page));
    }
    r->scratches = take(memory, used, (size_t)r->threads * sizeof(scratch));
    for (int i = 0; i < r->threads; i++) {
        scratch w;
        w.scores = take(memory, used, MAX_HEADS * (size_t)padded(most(longest, pages)) * sizeof(float));
        w.split = take(memory, used, MAX_HEADS * 2 * (size_t)m->head_dim * sizeof(float));
        w.pages = take(memory, used, (size_t)padded(pages) * sizeof(float));
        w.runs = take(memory, used, (pages ? (size_t)rows->keep : 0) * sizeof(run));
        if (*memory) r->scratches[i] = w;
    }
}

static size_t lay_out(room *r, char *memory, const wdecode_model *m, int64_t page, const wdecode_rows *rows) {
    size_t used = 0, count = (size_t)rows->count, width = (size_t)m->width;
    int64_t fused = (m->num_heads + 2 * m->num_kv_heads) * m->head_dim;
    size_t columns = (size_t)padded(most(most(m->ffn_width, m->num_heads * m->head_dim), m->width));
    r->x = take(&memory, &used, count * width * sizeof(float));
    r->small = take(&memory, &used, count * width * sizeof(float));
    r->wide = take(&memory, &used, count * (size_t)most(fused, 2 * m->ffn_width) * sizeof(float));
    r->inner = take(&memory, &used, count * columns * sizeof(float));
    r->turns = take(&memory, &used, count * 2 * (size_t)m->pairs * sizeof(float));
    r->codes = take(&memory, &used, count * columns * sizeof(int16_t));
    r->scales = take(&memory, &used, count * (size_t)num_blocks((int64_t)columns) * sizeof(float));
    r->runs = take(&memory, &used, (size_t)rows->run_starts[rows->count] * sizeof(run));
    r->sequences = take(&memory, &used, count * sizeof(sequence));
    lay_out_scratches(r, &memory, &used, m, page, rows);
    return used;
}

/* Find where a sequence's tokens lie. */
static int find(const wdecode_model *m, const wdecode_cache *cache, const wdecode_rows *rows, int64_t i,
    const room *r) {
    sequence *s = r->sequences + i;
    int64_t per_slot = cache->pages_per_slot, left = rows->lengths[i];
    s->length = left;
    s->reads = tokens_read(rows, left, cache->page);
    s->runs = r->runs + rows->run_starts[i];
    s->num_runs = 0;
    for (int64_t j = rows->run_starts[i]; j < rows->run_starts[i + 1] && left > 0; j++) {
        int64_t slot = rows->runs[2 * j] / per_slot, place = rows->runs[2 * j] % per_slot;
        int64_t held = rows->runs[2 * j + 1] * cache->page, tokens = held < left ? held : left;
        run *now = r->runs + j;
        now->first = slot * m->num_kv_heads * per_slot * cache->page + place * cache->page;
        now->tokens = tokens;
        s->num_runs++;
        s->newest = now->first + tokens - 1;
        s->newest_page = slot * m->num_kv_heads * per_slot + place + (tokens - 1) / cache->page;
        s->offset = (tokens - 1) % cache->page;
        left -= tokens;
    }
    return left || !s->num_runs ? WDECODE_BAD_PAGES : WDECODE_OK;
}

static int prepare(const wdecode_model *m, const wdecode_cache *cache, const wdecode_rows *rows, const room *r) {
    int64_t stride = (m->width + 1) / 2 * 2;
    for (int64_t i = 0; i < rows->count; i++) {
        int64_t token = rows->token_ids[i];
        if (token < 0 || token >= m->table.rows) return WDECODE_BAD_TOKEN;
        int problem = find(m, cache, rows, i, r);
        if (problem) return problem;
        const int8_t *codes = m->table.codes + token / LANES * LANES * stride + token % LANES * 2;
        for (int64_t c = 0; c < m->width; c++)
            r->x[i * m->width + c] =
                (float)codes[c / 2 * 2 * LANES + c % 2] * m->table.scale[token] * (float)m->embed_scale;
        float *turns = r->turns + i * 2 * m->pairs;
        for (int64_t p = 0; p < m->pairs; p++) {
            float angle = (float)rows->positions[i] * m->frequencies[p];
            turns[p] = cosf(angle);
            turns[m->pairs + p] = sinf(angle);
        }
        r->sequences[i].turns = turns;
    }
    return WDECODE_OK;
}

int wdecode_step(const wdecode_model *model, const wdecode_cache *cache, const wdecode_rows *rows, int threads,
    float *out) {
    room r = {.threads = threads = team_take(threads)};
    char *memory = malloc(lay_out(&r, NULL, model, cache->page, rows));
    int problem = memory ? WDECODE_OK : WDECODE_NO_MEMORY;
    if (memory) {
        lay_out(&r, memory, model, cache->page, rows);
        problem = prepare(model, cache, rows, &r);
        if (!problem) {
            AT_LEVEL(run_blocks, model, cache, rows, &r, out)
        }
    }
    team_give_back(threads);
    free(memory);
    return problem;
}
