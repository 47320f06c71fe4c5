/* The loops between values and elements of WIDTH bits, in numbers of type LANE. Internal: residual.c includes it for
 * each width. No more of a value's bits matter than a lane has, and narrow lanes make vectors hold more of them. `f`,
 * whether the elements are floats, is a constant wherever these are used.
 */
#define JOIN_NAMES(a, b) a##b
#define JOIN(a, b) JOIN_NAMES(a, b)
#define NAMED(name) JOIN(name, WIDTH)
#define SIZE (WIDTH / 8)
#define MASK ((LANE)(0xffffffffu >> (32 - WIDTH)))
#define LOAD_LANE(at) ((LANE)load_element(at, SIZE))

INLINE LANE NAMED(sign)(LANE u) { return (LANE)((LANE)(u & MASK) >> (WIDTH - 1)); }

/* All ones for 1, and 0 for 0. */
INLINE LANE NAMED(spread)(LANE bit) { return (LANE)(0 - bit); }

/* Floats as numbers whose neighbours are neighbours. */
INLINE LANE NAMED(order)(LANE u, int f) {
    return f ? (LANE)(u ^ (NAMED(spread)(NAMED(sign)(u)) & (LANE)(MASK >> 1))) : u;
}

INLINE LANE NAMED(fold)(LANE d) { return (LANE)(((LANE)(d << 1) ^ NAMED(spread)(NAMED(sign)(d))) & MASK); }

INLINE LANE NAMED(unfold)(LANE z) { return (LANE)((LANE)(z >> 1) ^ NAMED(spread)(z & 1)); }

INLINE LANE NAMED(turn)(LANE d, LANE flip) { return (LANE)((d ^ NAMED(spread)(flip)) + flip); }

INLINE LANE NAMED(predicted)(const chunk *c, size_t i) {
    return (LANE)(WIDTH == 8 ? c->prediction[i] : WIDTH == 16 ? c->prediction16[i] : c->prediction32[i]);
}

INLINE void NAMED(restore_full)(uint8_t *out, uint32_t n, const uint32_t *values, int f) {
    for (size_t i = 0; i < n; i++) {
        LANE z = (LANE)values[i];
        store_element(out + i * SIZE, SIZE, f ? z : NAMED(unfold)(z));
    }
}

INLINE void NAMED(restore_difference)(const uint8_t *base, uint8_t *out, uint32_t n, const uint32_t *values, int f) {
    for (size_t i = 0; i < n; i++) {
        LANE b = LOAD_LANE(base + i * SIZE), d = NAMED(turn)(NAMED(unfold)((LANE)values[i]), NAMED(sign)(b));
        store_element(out + i * SIZE, SIZE, NAMED(order)((LANE)(NAMED(order)(b, f) + d), f));
    }
}

INLINE void NAMED(restore_predicted)(const chunk *c, uint8_t *out, uint32_t n, const uint32_t *values, int f) {
    for (size_t i = 0; i < n; i++) {
        LANE d = NAMED(turn)(NAMED(unfold)((LANE)values[i]), c->flip[i]);
        store_element(out + i * SIZE, SIZE, NAMED(order)((LANE)(NAMED(predicted)(c, i) + d), f));
    }
}

INLINE void NAMED(residuals_full)(const uint8_t *in, uint32_t n, uint32_t *values, int f) {
    for (size_t i = 0; i < n; i++) {
        LANE u = LOAD_LANE(in + i * SIZE);
        values[i] = f ? u : NAMED(fold)(u);
    }
}

INLINE void NAMED(residuals_difference)(const uint8_t *base, const uint8_t *in, uint32_t n, uint32_t *values, int f) {
    for (size_t i = 0; i < n; i++) {
        LANE b = LOAD_LANE(base + i * SIZE), u = LOAD_LANE(in + i * SIZE);
        LANE d = (LANE)(NAMED(order)(u, f) - NAMED(order)(b, f));
        values[i] = NAMED(fold)(NAMED(turn)(d, NAMED(sign)(b)));
    }
}

INLINE void NAMED(residuals_predicted)(const chunk *c, const uint8_t *in, uint32_t n, uint32_t *values, int f) {
    for (size_t i = 0; i < n; i++) {
        LANE d = (LANE)(NAMED(order)(LOAD_LANE(in + i * SIZE), f) - NAMED(predicted)(c, i));
        values[i] = NAMED(fold)(NAMED(turn)(d, c->flip[i]));
    }
}

#undef JOIN_NAMES
#undef JOIN
#undef NAMED
#undef SIZE
#undef MASK
#undef LOAD_LANE
