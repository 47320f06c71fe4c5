/* The Top-K gate, compiled once a level: which pages a sequence reads. Internal; see decode.h.
 *
 * The rule is that of model/topk.py (Quest, Tang et al. 2024, arXiv:2406.10774): a page can matter as much as the
 * best dot product that any head of the group could have with a key inside the page's bounds. The first page and
 * the last are always read; of pages that score the same the earlier one is.
 *
 * Needs LEVEL, NAME(x), TARGET and INLINE, vectors.h, room.h and score_run of step.h. */

/* Split queries (heads, dim) by sign to (heads, 2 * dim), so that one product with a page's bounds scores it. */
TARGET static void NAME(split)(const float *q, int64_t heads, int64_t dim, float *out) {
    for (int64_t h = 0; h < heads; h++, q += dim, out += 2 * dim)
        for (int64_t d = 0; d < dim; d++) {
            out[d] = larger(q[d], 0.0f);
            out[dim + d] = larger(-q[d], 0.0f);
        }
}

INLINE void NAME(score_pages)(const float *split, const float *bounds, const sequence *s, int64_t page,
    int64_t dim, float *scores, int64_t stride, int heads) {
    for (int64_t i = 0, at = 0; i < s->num_runs; i++) {
        int64_t pages = (s->runs[i].tokens + page - 1) / page;
        NAME(score_run)(split, bounds + s->runs[i].first / page * 2 * dim, pages, 2 * dim, scores + at, stride, heads);
        at += pages;
    }
}

/* Score every page by the best of a group's heads, to `best` (padded pages). */
TARGET static void NAME(rate_pages)(const float *q, int64_t heads, const float *bounds, const sequence *s,
    int64_t page, int64_t dim, const scratch *w, float *best) {
    int64_t pages = (s->length + page - 1) / page, stride = padded(pages);
    for (int64_t first = 0; first < heads; first += MAX_HEADS) {
        int64_t now = heads - first < MAX_HEADS ? heads - first : MAX_HEADS;
        NAME(split)(q + first * dim, now, dim, w->split);
        switch (now) {
        case 1: NAME(score_pages)(w->split, bounds, s, page, dim, w->scores, stride, 1); break;
        case 2: NAME(score_pages)(w->split, bounds, s, page, dim, w->scores, stride, 2); break;
        case 3: NAME(score_pages)(w->split, bounds, s, page, dim, w->scores, stride, 3); break;
        default: NAME(score_pages)(w->split, bounds, s, page, dim, w->scores, stride, 4); break;
        }
        for (int64_t h = 0; h < now; h++)
            for (int64_t p = 0; p < pages; p++) {
                float score = w->scores[h * stride + p];
                best[p] = first + h ? larger(best[p], score) : score;
            }
    }
}

/* Turn scores into integers of the same order, in place. What is not a number is the largest, as torch has it;
 * what fills the last vector up is the smallest. */
TARGET static void NAME(rank)(float *scores, int64_t pages) {
    for (int64_t p = 0; p < pages; p += LANES) {
        floats some = load(scores + p, pages - p) + 0.0f; /* -0 becomes 0 */
        ints bits = (ints)some, order = bits ^ ((bits >> 31) & INT32_MAX);
        ints is_number = (bits & INT32_MAX) <= 0x7f800000;
        order = (order & is_number) | (INT32_MAX & ~is_number);
        for (int64_t i = pages - p; i < LANES; i++) order[i] = INT32_MIN;
        *(ints *)(scores + p) = order;
    }
}

TARGET static int64_t NAME(count_from)(const float *ranks, int64_t pages, int32_t least) {
    ints found = {0};
    for (int64_t p = 0; p < pages; p += LANES) found -= *(const ints *)(ranks + p) >= least;
    int64_t count = 0;
    for (int i = 0; i < LANES; i++) count += found[i];
    return count;
}

/* Return the keep-th largest rank, found bit by bit. */
TARGET static int32_t NAME(limit_of)(const float *ranks, int64_t pages, int64_t keep) {
    uint32_t limit = 0;
    for (uint32_t bit = 1u << 31; bit; bit >>= 1)
        if (NAME(count_from)(ranks, pages, (int32_t)((limit | bit) ^ (1u << 31))) >= keep) limit |= bit;
    return (int32_t)(limit ^ (1u << 31));
}

/* Choose the pages that a group of heads reads: writes them to w->runs, neighbours as one run. Returns how many
 * runs, and the tokens in them. */
TARGET static int64_t NAME(choose_pages)(const float *q, int64_t heads, const float *bounds, const sequence *s,
    int64_t page, int64_t keep, int64_t dim, const scratch *w, int64_t *tokens) {
    int64_t pages = (s->length + page - 1) / page, chosen = 0, p = 0;
    float *ranks = w->pages;
    NAME(rate_pages)(q, heads, bounds, s, page, dim, w, ranks);
    ranks[0] = ranks[pages - 1] = INFINITY;
    NAME(rank)(ranks, pages);
    int32_t limit = NAME(limit_of)(ranks, pages, keep);
    int64_t equals = keep - (limit == INT32_MAX ? 0 : NAME(count_from)(ranks, pages, limit + 1));
    *tokens = 0;
    for (int64_t i = 0; i < s->num_runs; i++)
        for (int64_t at = 0; at < s->runs[i].tokens; at += page, p++) {
            int32_t rank;
            memcpy(&rank, ranks + p, sizeof rank);
            if (rank < limit || (rank == limit && equals-- <= 0)) continue;
            int64_t first = s->runs[i].first + at, left = s->runs[i].tokens - at, held = left < page ? left : page;
            run *last = w->runs + chosen - 1;
            if (chosen && last->first + last->tokens == first)
                last->tokens += held;
            else
                w->runs[chosen++] = (run){first, held};
            *tokens += held;
        }
    return chosen;
}
