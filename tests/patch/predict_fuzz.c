/* Parts with any fields, over arrays of exactly the size that the header promises for them: run under sanitizers.
 *
 * A part is refused, or its elements come back from their values. Prints how many parts were taken.
 */
#include <stdio.h>
#include <stdlib.h>

#include "transform.h"

static uint64_t seed = 0x9e3779b97f4a7c15u;

static uint32_t any(void) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint32_t)(seed >> 24);
}

static uint32_t below(uint32_t limit) { return any() % limit; }

/* Mostly a sound value; now and then one from the edges of what 32 bits hold. */
static uint32_t mostly(uint32_t sound, uint32_t one_in) {
    static const uint32_t edges[] = {0, 1, 2, 31, 32, 64, 65, 255, 256, 32767, 32768, 65535, 65536,
                                     0x7fffffff, 0x80000000, 0xffffffe1, 0xffff0001, 0xffffffff};
    return below(one_in) ? sound : edges[below(sizeof edges / sizeof *edges)];
}

static void *bytes(size_t count) {
    uint8_t *at = malloc(count ? count : 1);
    for (size_t i = 0; at && i < count; i++) {
        at[i] = (uint8_t)any();
    }
    return at;
}

static int small(uint64_t count) { return count <= 1u << 22; }

/* The arrays of a part; 0 when they are too large to try. */
static int furnish(wpatch_part *p) {
    static const uint8_t sizes[] = {1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 4};
    uint64_t width = p->scale_dtype == WPATCH_F32 ? 4 : 2, even = WPATCH_EVEN(p->curve.rank);
    uint64_t lefts = (uint64_t)p->num_rows * even, rights = (uint64_t)p->columns * even;
    uint32_t size = p->dtype < sizeof sizes ? sizes[p->dtype] : 4;
    if (!small(p->count) || !small(p->num_scales) || !small(lefts) || !small(rights)) {
        return 0;
    }
    p->base = bytes((size_t)p->count * size);
    p->elements = bytes((size_t)p->count * size);
    p->old_scales = bytes((size_t)(p->num_scales * width));
    p->new_scales = bytes((size_t)(p->num_scales * width));
    p->left = bytes(2 * (size_t)lefts);
    p->right = bytes(2 * (size_t)rights);
    return 1;
}

static void discard(const wpatch_part *p) {
    free((void *)(uintptr_t)p->base);
    free(p->elements);
    free((void *)(uintptr_t)p->old_scales);
    free((void *)(uintptr_t)p->new_scales);
    free((void *)(uintptr_t)p->left);
    free((void *)(uintptr_t)p->right);
}

static wpatch_part any_part(void) {
    static const uint32_t modes[] = {WPATCH_FULL, WPATCH_DIFFERENCE, WPATCH_SCALED, WPATCH_PREDICTED};
    static const uint32_t floats[] = {WPATCH_F8_E4M3, WPATCH_F8_E5M2, WPATCH_F16, WPATCH_BF16, WPATCH_F32};
    static const uint32_t scales[] = {0, WPATCH_F16, WPATCH_BF16, WPATCH_F32};
    wpatch_part p;
    memset(&p, 0, sizeof p);
    p.mode = mostly(modes[below(4)], 50);
    p.dtype = mostly(p.mode == WPATCH_SCALED || !below(3) ? WPATCH_I8 : floats[below(5)], 50);
    p.count = mostly(1 + below(5000), 100);
    p.top = mostly(below(256), 100);
    p.num_contexts = 1;
    p.columns = mostly(1 + below(400), 100);
    p.first_column = mostly(below(p.columns ? p.columns : 1), 100);
    p.num_rows = mostly(p.columns ? (p.first_column + p.count) / p.columns + 1 : 1, 100);
    p.curve.rank = mostly(1 + below(64), 100);
    p.curve.drop = mostly(below(32), 100);
    p.curve.limit = mostly(1 + below(32767), 100);
    p.curve.slope = (int32_t)(below(2) ? mostly(below(65536), 100) : 0u - mostly(below(65536), 100));
    p.curve.bend = (int32_t)mostly(below(65536u - (uint32_t)abs(p.curve.slope % 65536)), 100);
    p.curve.shift = (int32_t)(mostly(below(63), 100) - 31u);
    p.curve.classes = mostly(below(65536), 100);
    p.scale_dtype = p.dtype == WPATCH_I8 ? mostly(scales[below(4)], 50) : 0;
    p.group = mostly(p.mode == WPATCH_PREDICTED ? p.columns : 1 + below(600), 100);
    p.first = mostly(p.mode == WPATCH_PREDICTED ? p.first_column : below(p.group ? p.group : 1), 100);
    p.num_scales = mostly(p.group ? (p.first + p.count) / p.group + 1 : 1, 100);
    return p;
}

/* 0: refused; 1: taken, and what was written is what was read; 2: it is not. */
static int try_part(wpatch_part *part) {
    plan p;
    chunk c;
    uint8_t tables[WPATCH_MAX_CONTEXTS], tokens[CHUNK];
    uint32_t values[CHUNK], raw[CHUNK];
    memset(tables, 7, sizeof tables);
    part->tables = tables;
    part->num_contexts = below(2) ? 1 : plan_num_contexts(part->mode, part->dtype);
    if (plan_part(&p, part, below(20) ? 8 : 7, 1) != WPATCH_OK) {
        return 0;
    }
    for (c.start = 0; c.start < part->count; c.start += c.count) {
        c.count = part->count - c.start < CHUNK ? part->count - c.start : CHUNK;
        uint8_t before[CHUNK * 4], *elements = part->elements + (size_t)c.start * p.size;
        size_t length = (size_t)c.count * p.size;
        memcpy(before, elements, length);
        plan_contexts(&p, &c);
        plan_residuals(&p, &c, values);
        plan_tokens(&p, values, c.count, tokens, raw);
        memset(elements, 0, length);
        plan_restore(&p, &c, values);
        if (memcmp(before, elements, length) != 0 || c.table[c.count - 1] != 7) {
            return 2;
        }
    }
    return 1;
}

int main(int count, char **arguments) {
    long taken = 0, rounds = count > 1 ? atol(arguments[1]) : 1000;
    for (long i = 0; i < rounds; i++) {
        wpatch_part part = any_part();
        if (!furnish(&part)) {
            continue;
        }
        int outcome = try_part(&part);
        discard(&part);
        if (outcome == 2) {
            printf("round %ld: mode %u, type %u differs\n", i, (unsigned)part.mode, (unsigned)part.dtype);
            return 1;
        }
        taken += outcome;
    }
    printf("%ld\n", taken);
    return 0;
}
