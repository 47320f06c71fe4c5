/* Plans: which contexts a part has, and their tables. The modes' own arithmetic is in scaled.c, predict.c, pairs.c and
 * residual.c; tokens are in tokens.c. */
#include "transform.h"

#include "fields.h"
#include "levels.h"
#include "pairs.h"
#include "predict.h"
#include "scaled.h"

#if CPU_X86
#include <immintrin.h>
#endif

#define FLOAT_CONTEXTS 20u
#define CODE_CONTEXTS 9u
#define SCALED_CONTEXTS 18u
#define PREDICTED_FLOAT_CONTEXTS 640u
#define PREDICTED_CODE_CONTEXTS 72u
#define MAX_GROUP (1u << 28) /* columns of a row at most; sums of places fit 32 bits */

kind plan_kind(uint32_t dtype) {
    static const kind none = {0, 0, 0}, code = {1, 0, 0}, e4m3 = {1, 4, 3}, e5m2 = {1, 5, 2};
    static const kind f16 = {2, 5, 10}, bf16 = {2, 8, 7}, f32 = {4, 8, 23};
    switch (dtype) {
        case WPATCH_I8:
        case WPATCH_U8:
        case WPATCH_BOOL: return code;
        case WPATCH_F8_E4M3: return e4m3;
        case WPATCH_F8_E5M2: return e5m2;
        case WPATCH_F16: return f16;
        case WPATCH_BF16: return bf16;
        case WPATCH_F32: return f32;
        default: return none;
    }
}

uint32_t plan_num_contexts(uint32_t mode, uint32_t dtype) {
    kind k = plan_kind(dtype);
    if (k.size == 0) {
        return 0;
    }
    switch (mode) {
        case WPATCH_FULL: return 1;
        case WPATCH_DIFFERENCE: return k.exponent_bits ? FLOAT_CONTEXTS : CODE_CONTEXTS;
        case WPATCH_SCALED: return dtype == WPATCH_I8 ? SCALED_CONTEXTS : 0;
        case WPATCH_PREDICTED:
            return k.exponent_bits ? PREDICTED_FLOAT_CONTEXTS : dtype == WPATCH_I8 ? PREDICTED_CODE_CONTEXTS : 0;
        case WPATCH_PAIRS: return dtype == WPATCH_I8 || dtype == WPATCH_U8 ? PAIRS_CONTEXTS : 0;
        default: return 0;
    }
}

/* ---- planning */

static int known_scale(uint32_t dtype) {
    return dtype == WPATCH_F16 || dtype == WPATCH_BF16 || dtype == WPATCH_F32;
}

/* Scales, where a mode may have them: all of the elements' are there. */
static int check_scales(const wpatch_part *part) {
    if (part->scale_dtype == 0) {
        return part->mode != WPATCH_SCALED;
    }
    return known_scale(part->scale_dtype) && part->old_scales && part->new_scales && part->group &&
           part->group <= MAX_GROUP && part->first < part->group &&
           (uint64_t)part->num_scales * part->group >= (uint64_t)part->first + part->count;
}

static int check_part(const wpatch_part *part, uint32_t num_contexts) {
    int based = part->mode == WPATCH_FULL || part->base;
    int scaled = part->mode == WPATCH_FULL || part->mode == WPATCH_DIFFERENCE || check_scales(part);
    int predicted = part->mode != WPATCH_PREDICTED || plan_check_predicted(part);
    return num_contexts && part->count && part->count <= WPATCH_MAX_BLOCK && part->elements && part->top <= 255 &&
           (part->num_contexts == 1 || part->num_contexts == num_contexts) && based && scaled && predicted;
}

static int make_lut(plan *p, size_t num_tables) {
    memset(p->lut, 0, sizeof p->lut);
    if (!p->part->tables) {
        return WPATCH_BAD_ARGUMENT;
    }
    for (uint32_t i = 0; i < p->part->num_contexts; i++) {
        if (p->part->tables[i] >= num_tables) {
            return WPATCH_BAD_ARGUMENT;
        }
        p->lut[i] = p->part->tables[i];
    }
    return WPATCH_OK;
}

int plan_part(plan *p, const wpatch_part *part, size_t num_tables, int mapped) {
    kind k = plan_kind(part->dtype);
    p->num_contexts = plan_num_contexts(part->mode, part->dtype);
    if (!check_part(part, p->num_contexts)) {
        return WPATCH_BAD_ARGUMENT;
    }
    p->part = part;
    p->size = k.size;
    p->exponent_bits = k.exponent_bits;
    p->mantissa_bits = k.mantissa_bits;
    p->mapped = mapped;
    p->field = NULL;
    plan_make_tokens(p);
    return mapped ? make_lut(p, num_tables) : WPATCH_OK;
}

/* ---- contexts */

INLINE void exponents(const uint8_t *base, uint32_t n, uint32_t top, uint32_t m, uint32_t size, uint16_t *context) {
    const uint16_t mask = (uint16_t)((1u << (8 * size - 1 - m)) - 1u), most = (uint16_t)top;
    for (size_t i = 0; i < n; i++) {
        uint16_t e = (uint16_t)(load_element(base + i * size, size) >> m) & mask;
        uint16_t below = (uint16_t)(most > e ? most - e : 0);
        context[i] = below < FLOAT_CONTEXTS - 1 ? below : (uint16_t)(FLOAT_CONTEXTS - 1);
    }
}

INLINE void float_contexts_body(const plan *p, chunk *c, int level) {
    const uint8_t *base = p->part->base + (size_t)c->start * p->size;
    (void)level;
    if (p->size == 1) {
        exponents(base, c->count, p->part->top, p->mantissa_bits, 1, c->context);
    } else if (p->size == 2) {
        exponents(base, c->count, p->part->top, p->mantissa_bits, 2, c->context);
    } else {
        exponents(base, c->count, p->part->top, p->mantissa_bits, 4, c->context);
    }
}

EVERY_LEVEL(float_contexts, (const plan *p, chunk *c), (p, c))

/* ---- tables */

static void lookup_portable(const plan *p, chunk *c) {
    for (uint32_t i = 0; i < c->count; i++) {
        c->table[i] = p->lut[c->context[i]];
    }
}

#if CPU_X86
TARGET_AVX2 static void lookup_avx2(const plan *p, chunk *c) {
    if (p->num_contexts > 32) {
        lookup_portable(p, c);
        return;
    }
    /* a chunk's arrays are a multiple of 64 long; what lies behind its elements is read, but its tables mean nothing */
    const __m256i low = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)p->lut));
    const __m256i high = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)(p->lut + 16)));
    for (uint32_t i = 0; i < c->count; i += 32) {
        __m256i a = _mm256_loadu_si256((const void *)(c->context + i));
        __m256i b = _mm256_loadu_si256((const void *)(c->context + i + 16));
        __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(a, b), 0xd8);
        __m256i choice = _mm256_slli_epi16(bytes, 3); /* bit 4 of each to the top, which chooses */
        __m256i tables = _mm256_blendv_epi8(_mm256_shuffle_epi8(low, bytes), _mm256_shuffle_epi8(high, bytes), choice);
        _mm256_storeu_si256((void *)(c->table + i), tables);
    }
}

/* 128 entries an instruction: bits 0 to 6 of a context choose among them, the others the instruction's result. */
TARGET_AVX512 static void lookup_avx512(const plan *p, chunk *c) {
    for (uint32_t i = 0; i < c->count; i += 64) {
        __m512i a = _mm512_loadu_si512(c->context + i), b = _mm512_loadu_si512(c->context + i + 32);
        __m512i low = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi16_epi8(a)), _mm512_cvtepi16_epi8(b), 1);
        a = _mm512_srli_epi16(a, 7);
        b = _mm512_srli_epi16(b, 7);
        __m512i row = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi16_epi8(a)), _mm512_cvtepi16_epi8(b), 1);
        __m512i tables = _mm512_permutex2var_epi8(_mm512_loadu_si512(p->lut), low, _mm512_loadu_si512(p->lut + 64));
        for (uint32_t at = 1; at < (p->num_contexts + 127) / 128; at++) {
            const uint8_t *lut = p->lut + (size_t)128 * at;
            __m512i more = _mm512_permutex2var_epi8(_mm512_loadu_si512(lut), low, _mm512_loadu_si512(lut + 64));
            tables = _mm512_mask_mov_epi8(tables, _mm512_cmpeq_epi8_mask(row, _mm512_set1_epi8((char)at)), more);
        }
        _mm512_storeu_si512(c->table + i, tables);
    }
}

static void lookup(const plan *p, chunk *c) {
    switch (cpu_level()) {
        case 2: lookup_avx512(p, c); break;
        case 1: lookup_avx2(p, c); break;
        default: lookup_portable(p, c);
    }
}
#else
static void lookup(const plan *p, chunk *c) { lookup_portable(p, c); }
#endif

static void fill_contexts(const plan *p, chunk *c) {
    switch (p->part->mode) {
        case WPATCH_FULL: memset(c->context, 0, c->count * sizeof *c->context); break;
        case WPATCH_SCALED:
            if (p->field) {
                fields_contexts(p, c);
            } else {
                plan_scaled_contexts(p, c);
            }
            break;
        case WPATCH_PREDICTED: plan_predicted_contexts(p, c); break;
        case WPATCH_PAIRS: pairs_contexts(p, c); break;
        default:
            if (p->exponent_bits) {
                float_contexts(p, c);
            } else {
                plan_code_contexts(p, c);
            }
    }
}

void plan_contexts(const plan *p, chunk *c) {
    int single = p->mapped && p->part->num_contexts == 1;
    /* predictions come with the contexts; without them there is nothing to work out for a single table */
    if (!single || (p->part->mode != WPATCH_FULL && p->part->mode != WPATCH_DIFFERENCE)) {
        fill_contexts(p, c);
    }
    if (single) {
        memset(c->table, p->lut[0], c->count);
    } else if (p->mapped) {
        lookup(p, c);
    }
}
