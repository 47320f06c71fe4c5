/* What is expected of the codes and scales of records, and the contexts of what they turn out to be. */
#include "fields.h"

/* Where a code lies and where it goes: in the middle of its range; else towards it, else away from it. */
INLINE uint32_t side_of(int32_t code, const field *f, uint32_t turned) {
    int32_t off = 2 * code - f->low - f->high;
    uint32_t inward = (uint32_t)(off < 0) ^ turned;
    return off < f->near && -off < f->near ? 0u : 2u - inward;
}

static void expect_portable(const field *f, const step *s, const uint8_t *base, uint32_t n, chunk *c, uint32_t at) {
    const range r = {f->low, f->low, f->high};
    for (size_t i = 0; i < n; i++) {
        int32_t code = f->is_signed ? (int8_t)base[i] : base[i];
        expected e = expect_code(code, s, r);
        uint32_t sided = (e.class * 3 + side_of(code, f, e.turned)) * STEP_STRENGTHS + s->strength;
        c->prediction[at + i] = (uint8_t)e.code;
        c->flip[at + i] = (uint8_t)e.turned;
        c->context[at + i] = (uint16_t)(f->near ? sided : e.class);
    }
}

#if CPU_X86
INLINE_AVX2 __m256i sides_of(__m256i codes, const field *f, __m256i turned) {
    __m256i off = _mm256_sub_epi16(_mm256_add_epi16(codes, codes), _mm256_set1_epi16((short)(f->low + f->high)));
    __m256i inward = _mm256_xor_si256(_mm256_srai_epi16(off, 15), turned);
    __m256i far = _mm256_cmpgt_epi16(_mm256_abs_epi16(off), _mm256_set1_epi16((short)(f->near - 1)));
    return _mm256_and_si256(far, _mm256_add_epi16(_mm256_set1_epi16(2), inward));
}

/* Sixteen elements, of which the second eight may have a step of their own. */
INLINE_AVX2 void expect_sixteen(const field *f, const step *s, const step *next, const uint8_t *base, chunk *c,
                                uint32_t at) {
    const range r = {f->low, f->low, f->high};
    __m128i bytes = _mm_loadu_si128((const void *)base);
    __m256i codes = f->is_signed ? _mm256_cvtepi8_epi16(bytes) : _mm256_cvtepu8_epi16(bytes);
    expected16 e = expect16(codes, s, next, r);
    __m256i context = e.class;
    if (f->near) {
        context = _mm256_add_epi16(_mm256_mullo_epi16(context, _mm256_set1_epi16(3)), sides_of(codes, f, e.turned));
        context = _mm256_mullo_epi16(context, _mm256_set1_epi16(STEP_STRENGTHS));
        context = _mm256_add_epi16(context, _mm256_set1_epi16((short)s->strength));
    }
    __m256i code = _mm256_and_si256(e.code, _mm256_set1_epi16(255));
    _mm_storeu_si128((void *)(c->prediction + at), bytes_of(code));
    _mm_storeu_si128((void *)(c->flip + at), bytes_of(_mm256_srli_epi16(e.turned, 15)));
    _mm256_storeu_si256((void *)(c->context + at), context);
}

/* As many elements as whole vectors hold; returns how many that were. */
TARGET_AVX2 static uint32_t expect_avx2(const plan *p, chunk *c) {
    const field f = *p->field;
    const uint8_t *base = p->part->base + c->start;
    uint32_t at = 0;
    for (; c->count - at >= 16; at += 16) {
        const step *s = f.steps + (c->start + at) / f.run;
        expect_sixteen(&f, s, f.run < 16 ? s + 1 : s, base + at, c, at);
    }
    return at;
}
#endif

static void expect(const plan *p, chunk *c) {
    const field *f = p->field;
    uint32_t at = 0;
#if CPU_X86
    if (cpu_level()) {
        at = expect_avx2(p, c);
    }
#endif
    for (; at < c->count; at += 8) {
        expect_portable(f, f->steps + (c->start + at) / f->run, p->part->base + c->start + at, 8, c, at);
    }
}

void fields_contexts(const plan *p, chunk *c) {
    if (p->field->steps) {
        expect(p, c);
        return;
    }
    memset(c->prediction, p->field->middle, c->count);
    memset(c->flip, 0, c->count);
    memset(c->context, 0, c->count * sizeof *c->context);
}
