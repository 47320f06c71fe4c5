/* The blocks of the network, compiled once a level. Internal; see decode.h.
 *
 * Needs LEVEL, NAME(x), TARGET and INLINE, vectors.h, room.h and product.h. */

/* out = x / rms(x) * gain (arXiv:1910.07467); `out` may be `x`. */
TARGET static void NAME(normalise)(const float *x, const float *gain, int64_t width, double eps, float *out) {
    floats squares = {0};
    for (int64_t i = 0; i < width; i += LANES) {
        floats some = load(x + i, width - i);
        squares += some * some;
    }
    float scale = 1.0f / sqrtf(add_up(squares) / (float)width + (float)eps);
    for (int64_t i = 0; i < width; i += LANES)
        store(out + i, load(x + i, width - i) * scale * load(gain + i, width - i), width - i);
}

/* x += normalised y; y is overwritten. */
TARGET static void NAME(add_normalised)(float *x, float *y, const float *gain, int64_t width, double eps) {
    NAME(normalise)(y, gain, width, eps, y);
    for (int64_t i = 0; i < width; i += LANES)
        store(x + i, load(x + i, width - i) + load(y + i, width - i), width - i);
}

/* out = silu(gate) * up of fused (gate, up). */
TARGET static void NAME(gated)(const float *fused, int64_t width, float *out) {
    for (int64_t i = 0; i < width; i += LANES) {
        floats gate = load(fused + i, width - i), up = load(fused + width + i, width - i);
        store(out + i, gate / (1.0f + exponential(-gate)) * up, width - i);
    }
}

/* Score the keys of one run with `heads` queries; scores are `stride` apart. */
INLINE void NAME(score_run)(const float *q, const float *keys, int64_t count, int64_t dim, float *scores,
    int64_t stride, int heads) {
    int64_t t = 0;
    for (; t + LANES <= count; t += LANES, keys += LANES * dim)
        for (int h = 0; h < heads; h++) {
            floats sums[LANES];
            for (int i = 0; i < LANES; i++) sums[i] = (floats){0};
            for (int64_t d = 0; d < dim; d += LANES) {
                floats query = load(q + h * dim + d, dim - d);
                for (int i = 0; i < LANES; i++) sums[i] += query * load(keys + i * dim + d, dim - d);
            }
            store(scores + h * stride + t, add_up_each(sums), LANES);
        }
    for (; t < count; t++, keys += dim) {
        floats sums[MAX_HEADS];
        for (int h = 0; h < heads; h++) sums[h] = (floats){0};
        for (int64_t d = 0; d < dim; d += LANES) {
            floats key = load(keys + d, dim - d);
            for (int h = 0; h < heads; h++) sums[h] += load(q + h * dim + d, dim - d) * key;
        }
        for (int h = 0; h < heads; h++) scores[h * stride + t] = add_up(sums[h]);
    }
}

#include "gate.h"

/* Turn scores into weights that add up to 1; what lies between `length` and the next 16 becomes 0. */
TARGET static void NAME(softmax)(float *scores, int64_t length) {
    floats top = load(scores, length >= LANES ? LANES : 1) ; /* any score will do to begin with */
    if (length < LANES) top = (floats){0} + scores[0];
    for (int64_t t = 0; t < length; t += LANES) {
        floats some = load(scores + t, length - t);
        if (length - t < LANES)
            for (int64_t i = length - t; i < LANES; i++) some[i] = scores[0];
        top = choose(some > top, some, top);
    }
    float largest = top[0];
    for (int i = 1; i < LANES; i++) largest = top[i] > largest ? top[i] : largest;
    floats sums = {0};
    for (int64_t t = 0; t < length; t += LANES) {
        floats weight = exponential(*(floats *)(scores + t) - largest);
        if (length - t < LANES)
            for (int64_t i = length - t; i < LANES; i++) weight[i] = 0;
        *(floats *)(scores + t) = weight;
        sums += weight;
    }
    float inverse = 1.0f / add_up(sums);
    for (int64_t t = 0; t < length; t += LANES) *(floats *)(scores + t) *= inverse;
}

/* Add the weighted values of one run to `heads` results. */
INLINE void NAME(add_run)(const float *weights, int64_t stride, const float *values, int64_t count, int64_t dim,
    float *out, int heads) {
    for (int64_t d = 0; d < dim; d += LANES) {
        floats sums[MAX_HEADS];
        for (int h = 0; h < heads; h++) sums[h] = load(out + h * dim + d, dim - d);
        for (int64_t t = 0; t < count; t++) {
            floats value = load(values + t * dim + d, dim - d);
            for (int h = 0; h < heads; h++) sums[h] += weights[h * stride + t] * value;
        }
        for (int h = 0; h < heads; h++) store(out + h * dim + d, sums[h], dim - d);
    }
}

/* Attend with up to MAX_HEADS heads of one group to all that a sequence may see. */
INLINE void NAME(attend_heads)(const float *q, const float *keys, const float *values, const run *runs,
    int64_t num_runs, int64_t length, int64_t dim, float *scores, float *out, int heads) {
    int64_t stride = padded(length), at = 0;
    for (int64_t i = 0; i < num_runs; at += runs[i++].tokens)
        NAME(score_run)(q, keys + runs[i].first * dim, runs[i].tokens, dim, scores + at, stride, heads);
    for (int h = 0; h < heads; h++) NAME(softmax)(scores + h * stride, length);
    memset(out, 0, (size_t)(heads * dim) * sizeof *out);
    at = 0;
    for (int64_t i = 0; i < num_runs; at += runs[i++].tokens)
        NAME(add_run)(scores + at, stride, values + runs[i].first * dim, runs[i].tokens, dim, out, heads);
}

TARGET static void NAME(attend)(const float *q, const float *keys, const float *values, const run *runs,
    int64_t num_runs, int64_t length, int64_t dim, int64_t heads, float *scores, float *out) {
    while (heads) {
        int64_t now = heads < MAX_HEADS ? heads : MAX_HEADS;
        switch (now) {
        case 1: NAME(attend_heads)(q, keys, values, runs, num_runs, length, dim, scores, out, 1); break;
        case 2: NAME(attend_heads)(q, keys, values, runs, num_runs, length, dim, scores, out, 2); break;
        case 3: NAME(attend_heads)(q, keys, values, runs, num_runs, length, dim, scores, out, 3); break;
        default: NAME(attend_heads)(q, keys, values, runs, num_runs, length, dim, scores, out, 4); break;
        }
        heads -= now, q += now * dim, out += now * dim;
    }
}

/* Turn the newest queries and keys of a sequence in its row of fused (q, k, v), and store keys and values. */
TARGET static void NAME(begin_attention)(const wdecode_model *m, const wdecode_cache *cache, int64_t layer,
    const sequence *s, float *fused) {
    int64_t dim = m->head_dim, groups = m->num_kv_heads;
    turn(fused, s->turns, m->num_heads + groups, dim, m->pairs);
    const float *k = fused + m->num_heads * dim, *v = k + groups * dim;
    remember(cache, layer, s, k, v, groups, dim);
}

typedef struct {
    const wdecode_model *m;
    const wdecode_cache *cache;
    const wdecode_rows *rows;
    const room *r;
    int64_t layer;
} NAME(attention_job);

/* Attend with one group of heads of one sequence: from r->wide to r->inner. */
TARGET static void NAME(attention_part)(const void *given, int64_t part, int worker) {
    const NAME(attention_job) *job = given;
    const wdecode_cache *cache = job->cache;
    int64_t groups = job->m->num_kv_heads, dim = job->m->head_dim, i = part / groups, g = part % groups;
    int64_t shared = job->m->num_heads / groups, per_slot = cache->pages_per_slot;
    const sequence *s = job->r->sequences + i;
    const scratch *w = job->r->scratches + worker;
    float *q = job->r->wide + (i * (job->m->num_heads + 2 * groups) + g * shared) * dim;
    const run *runs = s->runs;
    int64_t num_runs = s->num_runs, length = s->length;
    if (length >= job->rows->gated_from) {
        const float *bounds = cache->bounds[job->layer] + g * per_slot * 2 * dim;
        int64_t keep = job->rows->keep;
        num_runs = NAME(choose_pages)(q, shared, bounds, s, cache->page, keep, dim, w, &length);
        runs = w->runs;
    }
    float scale = 1.0f / sqrtf((float)dim);
    for (int64_t c = 0; c < shared * dim; c++) q[c] *= scale;
    int64_t apart = per_slot * cache->page * dim; /* from one group to the next */
    const float *keys = cache->keys[job->layer] + g * apart, *values = cache->values[job->layer] + g * apart;
    float *out = job->r->inner + (i * groups + g) * shared * dim;
    NAME(attend)(q, keys, values, runs, num_runs, length, dim, shared, w->scores, out);
}

/* Attend for all sequences. */
TARGET static void NAME(attention)(const wdecode_model *m, const wdecode_cache *cache, const wdecode_rows *rows,
    int64_t layer, const room *r) {
    int64_t fused = m->blocks[layer].qkv.rows, work = 0;
    for (int64_t i = 0; i < rows->count; i++) {
        NAME(begin_attention)(m, cache, layer, r->sequences + i, r->wide + i * fused);
        work += r->sequences[i].reads * m->num_heads * m->head_dim * 2;
    }
    NAME(attention_job) job = {m, cache, rows, r, layer};
    int threads = work < MIN_ATTENDED ? 1 : r->threads;
    team_run(threads, NAME(attention_part), &job, rows->count * m->num_kv_heads);
}

/* One block over the stream of all sequences. */
TARGET static void NAME(block)(const wdecode_model *m, const wdecode_cache *cache, const wdecode_rows *rows,
    int64_t layer, const room *r) {
    const wdecode_block *block = m->blocks + layer;
    int64_t width = m->width, count = rows->count;
    for (int64_t i = 0; i < count; i++)
        NAME(normalise)(r->x + i * width, block->attention_norm, width, m->norm_eps, r->small + i * width);
    NAME(multiply)(&block->qkv, r->small, count, r->wide, r->codes, r->scales, r->threads);
    NAME(attention)(m, cache, rows, layer, r);
    NAME(multiply)(&block->out, r->inner, count, r->small, r->codes, r->scales, r->threads);
    for (int64_t i = 0; i < count; i++) {
        float *x = r->x + i * width, *small = r->small + i * width;
        NAME(add_normalised)(x, small, block->attention_post_norm, width, m->norm_eps);
        NAME(normalise)(x, block->ffn_norm, width, m->norm_eps, small);
    }
    NAME(multiply)(&block->gate_up, r->small, count, r->wide, r->codes, r->scales, r->threads);
    for (int64_t i = 0; i < count; i++)
        NAME(gated)(r->wide + i * 2 * m->ffn_width, m->ffn_width, r->inner + i * m->ffn_width);
    NAME(multiply)(&block->down, r->inner, count, r->small, r->codes, r->scales, r->threads);
    for (int64_t i = 0; i < count; i++) {
        float *x = r->x + i * width, *small = r->small + i * width;
        NAME(add_normalised)(x, small, block->ffn_post_norm, width, m->norm_eps);
    }
}

/* All blocks and the last normalisation. */
TARGET static void NAME(run_blocks)(const wdecode_model *m, const wdecode_cache *cache, const wdecode_rows *rows,
    const room *r, float *out) {
    for (int64_t layer = 0; layer < m->num_blocks; layer++) NAME(block)(m, cache, rows, layer, r);
    for (int64_t i = 0; i < rows->count; i++)
        NAME(normalise)(r->x + i * m->width, m->norm, m->width, m->norm_eps, out + i * m->width);
}
