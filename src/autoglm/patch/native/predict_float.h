/* The prediction of floats, for words of BITS bits and elements of at most half of that: 32, or 64 for F32. Internal:
 * predict.c includes it for each.
 *
 * Three loops over a strip, each with numbers of one width, as vectors want them. In a word, LEADING is the place of
 * the first bit of a float with the largest exponent; WIDEN makes a word of what moves a float. Right shifts of signed
 * numbers are arithmetic with every compiler.
 */
#define JOIN_NAMES(a, b) a##b
#define JOIN(a, b) JOIN_NAMES(a, b)
#define NAMED(name) JOIN(name, BITS)
#define WORD JOIN(JOIN(uint, BITS), _t)
#define SIGNED_WORD JOIN(JOIN(int, BITS), _t)
#define HALF JOIN(JOIN(uint, HALF_BITS), _t)
#define SIGNED_HALF JOIN(JOIN(int, HALF_BITS), _t)
#define SIGN ((HALF)1 << (HALF_BITS - 1))

/* What is known of a strip's floats. `parts` are mantissas with three bits of fraction, and the sign on top. */
typedef struct NAMED(figures) {
    HALF weights[STRIP];                             /* mantissas of the base, with hidden bits and signs */
    HALF shifts[STRIP];                              /* how far below the top they are */
    HALF exponents[STRIP], parts[STRIP];             /* of the base; exponents of at least 1 */
    HALF moved_exponents[STRIP], moved_parts[STRIP]; /* of what it moved to; exponent 0: it did not move */
} NAMED(figures);

INLINE void NAMED(weigh)(const float_kind *t, const uint8_t *base, uint32_t n, NAMED(figures) *f) {
    const HALF low = (HALF)(t->sign_bit - 1);
    for (size_t i = 0; i < n; i++) {
        HALF b = (HALF)load_element(base + i * t->size, t->size), minus = (HALF)(b >> (8 * t->size - 1));
        HALF magnitude = b & low, field = (HALF)(magnitude >> t->mantissa_bits), exponent = field > 1 ? field : 1;
        HALF mantissa = (HALF)(magnitude - ((HALF)(exponent - 1) << t->mantissa_bits)), side = (HALF)(0 - minus);
        HALF below = (HALF)(t->top - exponent); /* wraps above the top */
        f->weights[i] = (HALF)((mantissa ^ side) - side);
        f->shifts[i] = below < BITS - 1 ? below : BITS - 1;
        f->exponents[i] = exponent;
        f->parts[i] = (HALF)(mantissa << 3 | minus << (HALF_BITS - 1));
    }
}

/* Where the upper `step` bits are zeros, shift them out. */
#define NARROW(step)                                           \
    if ((step) < BITS) {                                       \
        WORD shift = a >> (BITS - (step)) % BITS ? 0 : (step); \
        a <<= shift;                                           \
        count += shift;                                        \
    }

/* Shift the first bit of a number that is not 0 to the top of the word; *zeros says by how much. */
INLINE WORD NAMED(normalize)(WORD a, WORD *zeros, int level) {
#if defined(__GNUC__)
    if (level != 1) { /* AVX2 cannot count zeros */
        *zeros = (WORD)(BITS == 32 ? __builtin_clz((uint32_t)a) : __builtin_clzll(a));
        return a << *zeros;
    }
#else
    (void)level;
#endif
    WORD count = 0;
    NARROW(32)
    NARROW(16)
    NARROW(8)
    NARROW(4)
    NARROW(2)
    NARROW(1)
    *zeros = count;
    return a;
}

/* Add what moves the base. */
INLINE void NAMED(push)(const float_kind *t, const int32_t *moves, uint32_t n, NAMED(figures) *f, int level) {
    const uint32_t m = t->mantissa_bits;
    const SIGNED_WORD reach = (SIGNED_WORD)(t->top + BITS - 1 - LEADING);
    for (size_t i = 0; i < n; i++) {
        WORD weight = (WORD)(SIGNED_WORD)(SIGNED_HALF)f->weights[i] << (LEADING - m), zeros;
        WORD sum = (WORD)((SIGNED_WORD)weight >> f->shifts[i]) + WIDEN(moves[i]);
        WORD side = (WORD)((SIGNED_WORD)sum >> (BITS - 1)), first = NAMED(normalize)((sum ^ side) | 1, &zeros, level);
        SIGNED_WORD e = reach - (SIGNED_WORD)zeros, exponent = e > 1 ? e : 1;
        /* e is at least top - LEADING, so that this shifts by less than BITS */
        WORD parts = first >> (BITS - 4 - m) >> (exponent - e);
        f->moved_parts[i] = (HALF)(parts | (side & SIGN));
        f->moved_exponents[i] = (HALF)(moves[i] ? exponent : 0);
    }
}

/* Round, and find contexts. What is not moved is the base itself, whatever bits it has. */
INLINE void NAMED(settle)(const float_kind *t, const NAMED(figures) *f, const uint16_t *classes, uint32_t n, chunk *c,
                          uint32_t at) {
    const HALF low = (HALF)(t->sign_bit - 1), one = (HALF)(1u << t->mantissa_bits), top = (HALF)t->top;
    for (size_t i = 0; i < n; i++) {
        HALF e = f->moved_exponents[i] ? f->moved_exponents[i] : f->exponents[i];
        HALF part = f->moved_exponents[i] ? f->moved_parts[i] : f->parts[i];
        HALF minus = (HALF)(part >> (HALF_BITS - 1)), rounded = (HALF)((part & (SIGN - 1)) + 4) >> 3;
        HALF u = (HALF)((HALF)(e << t->mantissa_bits) + rounded - one), code = (HALF)((u & low) ^ (0 - minus));
        HALF fraction = part & 7, other = fraction ^ 7, depth = (HALF)(top > e ? top - e : 0);
        fraction = fraction < other ? fraction : other;
        depth = depth < 19 ? depth : 19;
        c->context[at + i] = (uint16_t)(depth << 5 | fraction << 3 | classes[i]);
        c->flip[at + i] = (minus ^ part >> 2) & 1;
        if (t->size == 1) {
            c->prediction[at + i] = (uint8_t)code;
        } else if (t->size == 2) {
            c->prediction16[at + i] = (uint16_t)code;
        } else {
            c->prediction32[at + i] = (uint32_t)code;
        }
    }
}

INLINE void NAMED(guess_floats)(const plan *p, chunk *c, uint32_t at, uint32_t n, const strip *s, uint32_t size,
                                uint32_t m, int level) {
    const float_kind t = {size, m, 1u << (8 * size - 1), p->part->top};
    NAMED(figures) f;
    NAMED(weigh)(&t, p->part->base + ((size_t)c->start + at) * size, n, &f);
    NAMED(push)(&t, s->moves, n, &f, level);
    NAMED(settle)(&t, &f, s->classes, n, c, at);
}

#undef JOIN_NAMES
#undef JOIN
#undef NAMED
#undef WORD
#undef SIGNED_WORD
#undef HALF
#undef SIGNED_HALF
#undef SIGN
#undef NARROW
