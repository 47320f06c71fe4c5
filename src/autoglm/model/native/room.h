/* The memory of one step, and what does not depend on the level of instructions. Internal. */
#ifndef WDECODE_ROOM_H
#define WDECODE_ROOM_H

#include "team.h"
#include "vectors.h"

#define MAX_HEADS 4 /* of one group that share a load of keys */

/* Neighbouring tokens of a sequence: the first one's row in group 0 of a layer, and how many. */
typedef struct {
    int64_t first, tokens;
} run;

typedef struct {
    const float *turns; /* cosines, then sines, of its position: 2 * pairs */
    const run *runs;
    int64_t num_runs, length;
    int64_t reads;       /* tokens that it attends to */
    int64_t newest;      /* its newest token's row in group 0 */
    int64_t newest_page; /* the same of that token's page in the bounds */
    int64_t offset;      /* of that token in its page */
} sequence;

/* What one thread writes to while it attends. */
typedef struct {
    float *scores; /* (MAX_HEADS, most tokens or pages that a sequence reads) */
    float *split;  /* (MAX_HEADS, 2 * head_dim) */
    float *pages;  /* (most pages of a gated sequence) */
    run *runs;     /* (keep) */
} scratch;

typedef struct {
    float *x, *small;  /* (count, width) */
    float *wide;       /* (count, most rows of a matrix) */
    float *inner;      /* (count, most columns of one) */
    float *turns;      /* (count, 2 * pairs) */
    int16_t *codes;    /* (count, most columns) */
    float *scales;     /* (count, their blocks) */
    run *runs;
    sequence *sequences;
    scratch *scratches; /* one a thread */
    int threads;
} room;

/* Turn the first 2 * pairs channels of each head: channel c with channel c + pairs. */
ALWAYS void turn(float *heads, const float *turns, int64_t num_heads, int64_t dim, int64_t pairs) {
    const float *cosines = turns, *sines = turns + pairs;
    for (int64_t h = 0; h < num_heads; h++, heads += dim)
        for (int64_t c = 0; c < pairs; c++) {
            float first = heads[c], second = heads[c + pairs];
            heads[c] = first * cosines[c] - second * sines[c];
            heads[c + pairs] = second * cosines[c] + first * sines[c];
        }
}

ALWAYS float larger(float a, float b) { return a > b || a != a ? a : b; }

/* Store the newest key and value of a sequence, and take the key into the bounds of its page. */
ALWAYS void remember(const wdecode_cache *cache, int64_t layer, const sequence *s, const float *k, const float *v,
    int64_t groups, int64_t dim) {
    int64_t tokens = cache->pages_per_slot * cache->page;
    for (int64_t g = 0; g < groups; g++, k += dim, v += dim) {
        int64_t at = (s->newest + g * tokens) * dim;
        memcpy(cache->keys[layer] + at, k, (size_t)dim * sizeof *k);
        memcpy(cache->values[layer] + at, v, (size_t)dim * sizeof *v);
        float *high = cache->bounds[layer] + (s->newest_page + g * cache->pages_per_slot) * 2 * dim;
        float *low = high + dim;
        for (int64_t d = 0; d < dim; d++) {
            high[d] = s->offset ? larger(high[d], k[d]) : k[d];
            low[d] = s->offset ? larger(low[d], -k[d]) : -k[d];
        }
    }
}

#endif
