/* The product of the factors: sums over pairs of 16-bit numbers, which is what multiply-add instructions take. */
#include "product.h"

#include "cpu.h"

#if CPU_X86
#include <immintrin.h>
#endif

/* Numbers that stay in the nearest cache, and with them the columns' factors of a small matrix. */
#define NEAR (12u << 10)

/* A piece of a row, or of two rows one below the other: the rows' factors (`below` may be none), those of the columns
 * from the first one of the piece on, and the numbers from one pair of columns' factors to the next. */
typedef struct tile {
    const int16_t *left, *below, *right;
    size_t stride;
    uint32_t num_pairs;
} tile;

/* Sums wrap, as those of the instructions do; within the limits of the factors they never need to. */
static void sum_portable(const tile *f, const int16_t *left, uint32_t n, int32_t *sums) {
    memset(sums, 0, n * sizeof *sums);
    for (uint32_t k = 0; k < f->num_pairs; k++) {
        const int16_t *right = f->right + k * f->stride;
        const int32_t even = left[2 * k], odd = left[2 * k + 1];
        for (size_t i = 0; i < n; i++) {
            uint32_t more = (uint32_t)(even * right[2 * i]) + (uint32_t)(odd * right[2 * i + 1]);
            sums[i] = (int32_t)((uint32_t)sums[i] + more);
        }
    }
}

static void product_portable(const tile *f, uint32_t n, int32_t *sums, int32_t *sums_below) {
    sum_portable(f, f->left, n, sums);
    if (f->below) {
        sum_portable(f, f->below, n, sums_below);
    }
}

#if CPU_X86
static inline int32_t pair_of(const int16_t *left, uint32_t k, uint32_t num_pairs) {
    int32_t pair = 0; /* past the last pair nothing is added */
    if (k < num_pairs) {
        memcpy(&pair, left + 2 * k, sizeof pair);
    }
    return pair;
}

/* Four pairs at a time go over the columns, `lanes` of them an instruction: more pairs, or all pairs for a few columns,
 * would jump about more in the factors than caches like. What is left of the columns goes the `smaller` way. */
#define PRODUCT(name, target, vector, lanes, fill, load, multiply, add, store, smaller)                           \
    target static inline vector name##_four(const vector *left, const int16_t *const *right, size_t at) {         \
        vector ab = add(multiply(left[0], load((const void *)(right[0] + 2 * at))),                               \
                        multiply(left[1], load((const void *)(right[1] + 2 * at))));                              \
        vector cd = add(multiply(left[2], load((const void *)(right[2] + 2 * at))),                               \
                        multiply(left[3], load((const void *)(right[3] + 2 * at))));                              \
        return add(ab, cd);                                                                                       \
    }                                                                                                             \
    target static void name(const tile *f, uint32_t n, int32_t *sums, int32_t *sums_below) {                     \
        const uint32_t whole = n - n % (lanes);                                                                   \
        memset(sums, 0, whole * sizeof *sums);                                                                    \
        if (f->below) {                                                                                           \
            memset(sums_below, 0, whole * sizeof *sums_below);                                                    \
        }                                                                                                         \
        for (uint32_t k = 0; k < f->num_pairs; k += 4) {                                                          \
            const int16_t *right[4];                                                                              \
            vector left[4], below[4];                                                                             \
            for (uint32_t i = 0; i < 4; i++) {                                                                    \
                right[i] = f->right + (k + i < f->num_pairs ? k + i : k) * f->stride;                             \
                left[i] = fill(pair_of(f->left, k + i, f->num_pairs));                                            \
                below[i] = fill(f->below ? pair_of(f->below, k + i, f->num_pairs) : 0);                           \
            }                                                                                                     \
            for (size_t at = 0; at < whole && !f->below; at += (lanes)) {                                         \
                void *sum = sums + at;                                                                            \
                store(sum, add(load(sum), name##_four(left, right, at)));                                         \
            }                                                                                                     \
            for (size_t at = 0; at < whole && f->below; at += (lanes)) {                                          \
                void *sum = sums + at, *sum_below = sums_below + at;                                              \
                vector a = name##_four(left, right, at), b = name##_four(below, right, at);                       \
                store(sum, add(load(sum), a));                                                                    \
                store(sum_below, add(load(sum_below), b));                                                        \
            }                                                                                                     \
        }                                                                                                         \
        if (whole < n) {                                                                                          \
            tile rest = {f->left, f->below, f->right + 2 * (size_t)whole, f->stride, f->num_pairs};              \
            smaller(&rest, n - whole, sums + whole, f->below ? sums_below + whole : sums_below);                  \
        }                                                                                                         \
    }

PRODUCT(product_sse2, , __m128i, 4, _mm_set1_epi32, _mm_loadu_si128, _mm_madd_epi16, _mm_add_epi32,
        _mm_storeu_si128, product_portable)
PRODUCT(product_avx2, TARGET_AVX2, __m256i, 8, _mm256_set1_epi32, _mm256_loadu_si256, _mm256_madd_epi16,
        _mm256_add_epi32, _mm256_storeu_si256, product_sse2)
PRODUCT(product_avx512, TARGET_AVX512, __m512i, 16, _mm512_set1_epi32, _mm512_loadu_si512, _mm512_madd_epi16,
        _mm512_add_epi32, _mm512_storeu_si512, product_avx2)

static void product(const tile *f, uint32_t n, int32_t *sums, int32_t *sums_below) {
    switch (cpu_level()) {
        case 2: product_avx512(f, n, sums, sums_below); break;
        case 1: product_avx2(f, n, sums, sums_below); break;
        default: product_sse2(f, n, sums, sums_below);
    }
}
#else
static void product(const tile *f, uint32_t n, int32_t *sums, int32_t *sums_below) {
    product_portable(f, n, sums, sums_below);
}
#endif

/* The columns' factors of a large matrix come from a far cache, so each is used for two rows: the products of the row
 * below are kept until their turn. */
static void piece_products(const wpatch_part *part, ahead *next, uint32_t row, uint32_t column, uint32_t n,
                           int32_t *sums) {
    const uint32_t even = WPATCH_EVEN(part->curve.rank), end = column + n;
    const int16_t *left = part->left + (size_t)row * even;
    tile f = {left, NULL, part->right + 2 * (size_t)column, 2 * (size_t)part->columns, even / 2};
    if (next->row == row && column >= next->from && end <= next->to) {
        memcpy(sums, next->sums + column, n * sizeof *sums);
        return;
    }
    if (next->row != row && row + 1 < part->num_rows && part->columns <= MAX_AHEAD && part->columns * even > NEAR) {
        f.below = left + even;
        next->from = next->row == row + 1 && next->to == column ? next->from : column;
        next->to = end;
        next->row = row + 1;
    }
    product(&f, n, sums, f.below ? next->sums + column : NULL);
}

void plan_product(const wpatch_part *part, ahead *next, uint32_t start, uint32_t n, int32_t *sums) {
    uint32_t place = part->first_column + start, row = place / part->columns, column = place % part->columns;
    if (start == 0) {
        next->row = UINT32_MAX; /* no row */
        next->from = next->to = 0;
    }
    for (uint32_t at = 0; at < n; row++, column = 0) {
        uint32_t left = part->columns - column, count = n - at < left ? n - at : left;
        piece_products(part, next, row, column, count, sums + at);
        at += count;
    }
}
