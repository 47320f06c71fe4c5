/* The inner loops of decoding for AVX2 and AVX-512.
 *
 * The states are four vectors of eight, which take their turns: each waits for its slots and words only, so the four
 * chains overlap. Slots are loaded one by one: gather instructions are slower on many machines, far slower on some.
 */
#include "rans.h"

#include "levels.h"

#if CPU_X86

#include <immintrin.h>

/* ---- words: lane i takes the word of its rank among the lanes that need one */

#define BELOW1(m) ((m) & 1)
#define BELOW2(m) (BELOW1(m) + ((m) >> 1 & 1))
#define BELOW3(m) (BELOW2(m) + ((m) >> 2 & 1))
#define BELOW4(m) (BELOW3(m) + ((m) >> 3 & 1))
#define BELOW5(m) (BELOW4(m) + ((m) >> 4 & 1))
#define BELOW6(m) (BELOW5(m) + ((m) >> 5 & 1))
#define BELOW7(m) (BELOW6(m) + ((m) >> 6 & 1))
#define RANKS1(m) {0, BELOW1(m), BELOW2(m), BELOW3(m), BELOW4(m), BELOW5(m), BELOW6(m), BELOW7(m)}
#define RANKS4(m) RANKS1(m), RANKS1((m) + 1), RANKS1((m) + 2), RANKS1((m) + 3)
#define RANKS16(m) RANKS4(m), RANKS4((m) + 4), RANKS4((m) + 8), RANKS4((m) + 12)
#define RANKS64(m) RANKS16(m), RANKS16((m) + 16), RANKS16((m) + 32), RANKS16((m) + 48)

static const uint8_t ranks[256][8] = {RANKS64(0), RANKS64(64), RANKS64(128), RANKS64(192)};

/* ---- slots */

TARGET_AVX2 INLINE __m128i two_slots(const uint32_t *slots, uint64_t two) {
    return _mm_insert_epi32(_mm_cvtsi32_si128((int)slots[(uint32_t)two]), (int)slots[two >> 32], 1);
}

TARGET_AVX2 INLINE __m128i four_slots(const uint32_t *slots, __m128i numbers) {
    __m128i low = two_slots(slots, (uint64_t)_mm_cvtsi128_si64(numbers));
    return _mm_unpacklo_epi64(low, two_slots(slots, (uint64_t)_mm_extract_epi64(numbers, 1)));
}

TARGET_AVX2 INLINE __m256i eight_slots(const uint32_t *slots, __m256i x, const uint8_t *tables) {
    __m256i table = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)tables));
    __m256i place = _mm256_and_si256(x, _mm256_set1_epi32((int)SLOT_MASK));
    __m256i numbers = _mm256_or_si256(_mm256_slli_epi32(table, WPATCH_TABLE_BITS), place);
    __m128i low = four_slots(slots, _mm256_castsi256_si128(numbers));
    return _mm256_set_m128i(four_slots(slots, _mm256_extracti128_si256(numbers, 1)), low);
}

/* The states without their tokens: frequency * (x >> 11) + place. */
TARGET_AVX2 INLINE __m256i shrink(__m256i x, __m256i slot) {
    __m256i place = _mm256_and_si256(_mm256_srli_epi32(slot, 8), _mm256_set1_epi32((int)SLOT_MASK));
    __m256i rest = _mm256_srli_epi32(x, WPATCH_TABLE_BITS);
    return _mm256_add_epi32(_mm256_mullo_epi32(_mm256_srli_epi32(slot, 20), rest), place);
}

/* ---- AVX2 */

TARGET_AVX2 INLINE void store_tokens_avx2(uint8_t *tokens, __m256i slot) {
    const __m256i low_bytes = _mm256_set1_epi32(0x0c080400);
    __m256i four = _mm256_shuffle_epi8(slot, low_bytes);
    __m128i eight = _mm_unpacklo_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
    _mm_storel_epi64((void *)tokens, eight);
}

TARGET_AVX2 INLINE __m256i refill_avx2(__m256i y, const uint8_t **word) {
    __m256i low = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)STATE_LOW), y);
    uint32_t mask = (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(low));
    __m256i next = _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)*word));
    __m256i order = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)ranks[mask]));
    __m256i more = _mm256_or_si256(_mm256_slli_epi32(y, 16), _mm256_permutevar8x32_epi32(next, order));
    *word += 2 * (uint32_t)__builtin_popcount(mask);
    return _mm256_blendv_epi8(y, more, low);
}

#define LOAD_STATES(i) _mm256_loadu_si256((const void *)(d->state + 8 * (i)))
#define STORE_STATES(i, x) _mm256_storeu_si256((void *)(d->state + 8 * (i)), x)

#define EIGHT_AVX2(i, x)                                           \
    do {                                                           \
        __m256i slot = eight_slots(slots, x, tables + 8 * (i));    \
        store_tokens_avx2(tokens + 8 * (i), slot);                 \
        x = refill_avx2(shrink(x, slot), &word);                   \
    } while (0)

TARGET_AVX2 uint32_t decode_groups_avx2(decoder *d, const uint8_t *tables, uint32_t num_groups, uint8_t *tokens) {
    const uint32_t *slots = d->slots;
    const uint8_t *word = d->words.at, *stop = stream_stop(&d->words);
    __m256i x0 = LOAD_STATES(0), x1 = LOAD_STATES(1), x2 = LOAD_STATES(2), x3 = LOAD_STATES(3);
    uint32_t group = 0;
    for (; group < num_groups && word <= stop; group++, tables += STATES, tokens += STATES) {
        EIGHT_AVX2(0, x0);
        EIGHT_AVX2(1, x1);
        EIGHT_AVX2(2, x2);
        EIGHT_AVX2(3, x3);
    }
    STORE_STATES(0, x0);
    STORE_STATES(1, x1);
    STORE_STATES(2, x2);
    STORE_STATES(3, x3);
    d->words.at = word;
    return group;
}

/* ---- AVX-512: the same with vectors of eight, whose masks and expansion save instructions */

TARGET_AVX512 INLINE __m256i refill_avx512(__m256i y, const uint8_t **word) {
    __mmask8 mask = _mm256_cmplt_epu32_mask(y, _mm256_set1_epi32((int)STATE_LOW));
    __m256i next = _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)*word));
    *word += 2 * (uint32_t)__builtin_popcount(mask);
    return _mm256_mask_or_epi32(y, mask, _mm256_slli_epi32(y, 16), _mm256_maskz_expand_epi32(mask, next));
}

#define EIGHT_AVX512(i, x)                                                                \
    do {                                                                                  \
        __m256i slot = eight_slots(slots, x, tables + 8 * (i));                           \
        _mm_storel_epi64((void *)(tokens + 8 * (i)), _mm256_cvtepi32_epi8(slot));         \
        x = refill_avx512(shrink(x, slot), &word);                                        \
    } while (0)

TARGET_AVX512 uint32_t decode_groups_avx512(decoder *d, const uint8_t *tables, uint32_t num_groups, uint8_t *tokens) {
    const uint32_t *slots = d->slots;
    const uint8_t *word = d->words.at, *stop = stream_stop(&d->words);
    __m256i x0 = LOAD_STATES(0), x1 = LOAD_STATES(1), x2 = LOAD_STATES(2), x3 = LOAD_STATES(3);
    uint32_t group = 0;
    for (; group < num_groups && word <= stop; group++, tables += STATES, tokens += STATES) {
        EIGHT_AVX512(0, x0);
        EIGHT_AVX512(1, x1);
        EIGHT_AVX512(2, x2);
        EIGHT_AVX512(3, x3);
    }
    STORE_STATES(0, x0);
    STORE_STATES(1, x1);
    STORE_STATES(2, x2);
    STORE_STATES(3, x3);
    d->words.at = word;
    return group;
}

/* ---- values: token t stands for leading[t] << extra[t] plus extra[t] raw bits */

typedef struct letters {
    __m512i leading, extra; /* a byte for each token */
} letters;

TARGET_AVX512 static letters load_letters(const alphabet *a) {
    uint8_t leading[WPATCH_NUM_TOKENS];
    for (uint32_t token = 0; token < WPATCH_NUM_TOKENS; token++) {
        leading[token] = (uint8_t)(a->first[token] >> a->extra[token]);
    }
    letters l = {_mm512_loadu_si512(leading), _mm512_loadu_si512(a->extra)};
    return l;
}

TARGET_AVX512 INLINE __m512i sums(__m512i x) {
    const __m512i zero = _mm512_setzero_si512();
    x = _mm512_add_epi32(x, _mm512_alignr_epi32(x, zero, 15));
    x = _mm512_add_epi32(x, _mm512_alignr_epi32(x, zero, 14));
    x = _mm512_add_epi32(x, _mm512_alignr_epi32(x, zero, 12));
    return _mm512_add_epi32(x, _mm512_alignr_epi32(x, zero, 8));
}

/* Sixteen values whose raw bits begin at `bit` of the 64 bytes at `bits`. */
TARGET_AVX512 INLINE __m512i spell16(__m128i leading, __m128i extra, const uint8_t *bits, uint32_t bit) {
    const __m512i first_bytes = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
    __m512i count = _mm512_cvtepu8_epi32(extra);
    __m512i from = _mm512_add_epi32(_mm512_sub_epi32(sums(count), count), _mm512_set1_epi32((int)bit));
    __m512i byte = _mm512_shuffle_epi8(_mm512_srli_epi32(from, 3), first_bytes);
    __m512i four = _mm512_add_epi8(byte, _mm512_set1_epi32(0x03020100));
    __m512i window = _mm512_permutexvar_epi8(four, _mm512_loadu_si512(bits));
    __m512i raw = _mm512_srlv_epi32(window, _mm512_and_si512(from, _mm512_set1_epi32(7)));
    __m512i above = _mm512_sllv_epi32(_mm512_set1_epi32(-1), count);
    __m512i first = _mm512_sllv_epi32(_mm512_cvtepu8_epi32(leading), count);
    return _mm512_or_si512(_mm512_andnot_si512(above, raw), first);
}

TARGET_AVX512 INLINE uint32_t sum_of_bytes(__m128i x) {
    __m128i halves = _mm_sad_epu8(x, _mm_setzero_si128());
    return (uint32_t)_mm_cvtsi128_si32(halves) + (uint32_t)_mm_extract_epi32(halves, 2);
}

#define SPELL16(i)                                                                       \
    do {                                                                                 \
        __m128i count = _mm512_extracti32x4_epi32(extra, i);                             \
        __m512i value = spell16(_mm512_extracti32x4_epi32(leading, i), count, bits, bit); \
        _mm512_storeu_si512(values + 16 * (i), value);                                   \
        bit += sum_of_bytes(count);                                                      \
        bits += bit >> 3;                                                                \
        bit &= 7u;                                                                       \
    } while (0)

#define WIDEN16(i) \
    _mm512_storeu_si512(values + 16 * (i), _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(token, i)))

TARGET_AVX512 uint32_t decode_values_avx512(decoder *d, const alphabet *a, uint32_t direct, const uint8_t *tokens,
                                            uint32_t n, uint32_t *values) {
    const letters l = load_letters(a);
    const __m512i bound = _mm512_set1_epi8((char)direct);
    const uint8_t *bits = d->bits.at, *stop = stream_stop(&d->bits);
    uint32_t bit = d->bit, done = 0;
    for (; done < n && bits <= stop; done += 64, tokens += 64, values += 64) {
        __m512i token = _mm512_loadu_si512(tokens);
        if (!_mm512_cmpge_epu8_mask(token, bound)) {
            WIDEN16(0);
            WIDEN16(1);
            WIDEN16(2);
            WIDEN16(3);
            continue;
        }
        __m512i extra = _mm512_permutexvar_epi8(token, l.extra), leading = _mm512_permutexvar_epi8(token, l.leading);
        SPELL16(0);
        SPELL16(1);
        SPELL16(2);
        SPELL16(3);
    }
    d->bits.at = bits;
    d->bit = bit;
    return done;
}

#else
typedef int no_vectors; /* a file must declare something */
#endif
