/* How the codes of a group move when its scale does: a code a of the base is expected at a * ratio + shift, with 20
 * fraction bits. Internal. */
#ifndef WPATCH_STEPS_H
#define WPATCH_STEPS_H

#include "levels.h"
#include "transform.h"

#if CPU_X86
#include <immintrin.h>
#endif

#define STEP_ONE (1 << 20)
#define STEP_CLASSES 12u   /* of an expectation: how far it is from a whole number; the last: out of range */
#define STEP_STRENGTHS 12u /* of a scale: the base's largest first, in half octaves */

typedef struct step {
    int32_t ratio;     /* at most 2^23 in magnitude */
    int32_t shift;     /* at most 2^29 in magnitude */
    uint32_t strength; /* below STEP_STRENGTHS */
} step;

static inline int step_kept(const step *s) { return s->ratio == STEP_ONE && s->shift == 0; }

/* Codes from `low` on down and from `high` on up are at the end of their range, and clipped to `least` and `high`. */
typedef struct range {
    int32_t least, low, high;
} range;

/* What an expectation says about a code. */
typedef struct expected {
    uint32_t code;  /* two's complement */
    uint32_t class; /* below STEP_CLASSES */
    uint32_t turned;
} expected;

/* Eleven classes of the distance of a 20-bit fraction from a whole number, at most 2^19, by its leading bits: octaves
 * where scales hardly moved, steps of a sixteenth where they did. */
INLINE uint32_t distance_class(uint32_t distance) {
    const uint32_t d = distance >> 11;
    return (uint32_t)(d >= 1) + (d >= 2) + (d >= 4) + (d >= 8) + (d >= 16) + (d >= 32) + (d >= 64) + (d >= 96) +
           (d >= 128) + (d >= 192);
}

INLINE expected expect_code(int32_t code, const step *s, range r) {
    /* |code * ratio| and |shift| are at most 2^30 and 2^29; biased by 2^31, so that shifts are of unsigned numbers */
    uint32_t t = (uint32_t)(code * s->ratio) + (uint32_t)s->shift + 0x80000000u;
    int32_t nearest = (int32_t)((t + (1u << 19)) >> 20) - 2048;
    uint32_t below = t - ((uint32_t)(nearest + 2048) << 20), up = below >> 31;
    uint32_t edge = (uint32_t)(nearest <= r.low) | (uint32_t)(nearest >= r.high), lower = nearest <= r.low;
    int32_t clipped = nearest < r.least ? r.least : nearest;
    uint32_t class = distance_class((below ^ (0u - up)) + up);
    expected e;
    e.code = (uint32_t)(clipped > r.high ? r.high : clipped);
    e.class = edge ? STEP_CLASSES - 1u : class;
    e.turned = edge ? lower : up;
    return e;
}

#if CPU_X86
/* The same of 16 codes, in 16-bit lanes; `turned` is all ones where it is true. */
typedef struct expected16 {
    __m256i code, class, turned;
} expected16;

#define INLINE_AVX2 TARGET_AVX2 static inline __attribute__((always_inline))

/* A number of each half of the codes. */
INLINE_AVX2 __m256i halves(int32_t first, int32_t second) {
    return _mm256_inserti128_si256(_mm256_set1_epi32(first), _mm_set1_epi32(second), 1);
}

INLINE_AVX2 __m256i nearest_of(__m256i t) {
    return _mm256_srai_epi32(_mm256_add_epi32(t, _mm256_set1_epi32(1 << 19)), 20);
}

INLINE_AVX2 __m256i magnitude_of(__m256i below) { return _mm256_srli_epi32(_mm256_abs_epi32(below), 11); }

/* distance_class, a nibble at a time: the higher one's class is the larger, if it is not zero. */
INLINE_AVX2 __m256i classes_of(__m256i d) {
    const __m256i nibble = _mm256_set1_epi16(15);
    const __m256i small = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4));
    const __m256i large = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 5, 6, 6, 7, 7, 8, 8, 9, 9, 9, 9, 10, 10, 10, 10));
    d = _mm256_min_epi16(d, _mm256_set1_epi16(255));
    return _mm256_max_epi16(_mm256_shuffle_epi8(small, _mm256_and_si256(d, nibble)),
                            _mm256_shuffle_epi8(large, _mm256_srli_epi16(d, 4)));
}

/* The first eight codes move by one step, the others by the next. Vectors of 32-bit lanes hold codes 0 to 3 and 8 to
 * 11, or 4 to 7 and 12 to 15, which is how vectors are packed. */
INLINE_AVX2 expected16 expect16(__m256i codes, const step *s, const step *next, range r) {
    const __m256i ratio = halves(s->ratio, next->ratio), shift = halves(s->shift, next->shift);
    __m256i sign = _mm256_srai_epi16(codes, 15);
    __m256i t = _mm256_add_epi32(_mm256_mullo_epi32(_mm256_unpacklo_epi16(codes, sign), ratio), shift);
    __m256i u = _mm256_add_epi32(_mm256_mullo_epi32(_mm256_unpackhi_epi16(codes, sign), ratio), shift);
    __m256i p = nearest_of(t), q = nearest_of(u), nearest = _mm256_packs_epi32(p, q);
    t = _mm256_sub_epi32(t, _mm256_slli_epi32(p, 20));
    u = _mm256_sub_epi32(u, _mm256_slli_epi32(q, 20));
    __m256i class = classes_of(_mm256_packs_epi32(magnitude_of(t), magnitude_of(u)));
    __m256i up = _mm256_srai_epi16(_mm256_packs_epi32(t, u), 15);
    __m256i lower = _mm256_cmpgt_epi16(_mm256_set1_epi16((short)(r.low + 1)), nearest);
    __m256i edge = _mm256_or_si256(lower, _mm256_cmpgt_epi16(nearest, _mm256_set1_epi16((short)(r.high - 1))));
    expected16 e;
    e.code = _mm256_max_epi16(nearest, _mm256_set1_epi16((short)r.least));
    e.code = _mm256_min_epi16(e.code, _mm256_set1_epi16((short)r.high));
    e.class = _mm256_blendv_epi8(class, _mm256_set1_epi16(STEP_CLASSES - 1), edge);
    e.turned = _mm256_blendv_epi8(up, lower, edge);
    return e;
}

/* 16 lanes of 16 bits, each below 256, as bytes. */
INLINE_AVX2 __m128i bytes_of(__m256i lanes) {
    return _mm_packus_epi16(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
}
#endif

#endif
