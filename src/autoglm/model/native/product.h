/* Products of 16-bit activations with INT8 matrices, compiled once a level. Internal; see decode.h.
 *
 * Needs LEVEL, NAME(x), TARGET and INLINE, vectors.h and team.h. */

/* Round one row to 16 bits: codes (columns rounded up to 16, the rest 0), scales one a block. */
TARGET static void NAME(quantise)(const float *x, int64_t columns, int16_t *codes, float *scales) {
    for (int64_t start = 0; start < columns; start += WDECODE_BLOCK, scales++) {
        int64_t stop = start + WDECODE_BLOCK < columns ? start + WDECODE_BLOCK : columns;
        ints largest = {0};
        for (int64_t i = start; i < stop; i += LANES) {
            ints bits = (ints)load(x + i, stop - i) & 0x7fffffff;
            ints more = bits > largest;
            largest = (bits & more) | (largest & ~more);
        }
        int32_t top = 1 << 23; /* the smallest normal number: a row of zeros has a scale too */
        for (int j = 0; j < LANES; j++) top = largest[j] > top ? largest[j] : top;
        float range;
        memcpy(&range, &top, 4);
        int is_finite = top < 0x7f800000;
        float step = is_finite ? range / 32767.0f : NAN;
        float inverse = is_finite && range > 0x1p-100f ? 32767.0f / range : 0.0f;
        *scales = is_finite && range <= 0x1p-100f ? 0.0f : step; /* so small that it is nothing */
        for (int64_t i = start; i < stop; i += LANES) {
            ints rounded = (ints)(load(x + i, stop - i) * inverse + ROUND) - ROUND_BITS;
            *(shorts *)(codes + i) = __builtin_convertvector(is_finite ? rounded : (ints){0}, shorts);
        }
    }
}

/* Sum the products of one block of columns, `pairs` pairs: `rows` rows of activations with 16 of a matrix. */
#if LEVEL == 2
INLINE void NAME(sum)(const int8_t *w, const int16_t *x, int64_t stride, int64_t pairs, ints *sums, int rows) {
    __m512i acc[4][MAX_ROWS];
    int unroll = rows == 1 ? 4 : rows <= 3 ? 2 : 1; /* what one add waits for, another fills */
    for (int u = 0; u < unroll; u++)
        for (int r = 0; r < rows; r++) acc[u][r] = _mm512_setzero_si512();
    int64_t k = 0;
    for (; k + unroll <= pairs; k += unroll)
        for (int u = 0; u < unroll; u++) {
            __m512i wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const void *)(w + (k + u) * 2 * LANES)));
            for (int r = 0; r < rows; r++)
                acc[u][r] = _mm512_dpwssd_epi32(acc[u][r], wide, _mm512_set1_epi32(pair(x + r * stride + 2 * (k + u))));
        }
    for (; k < pairs; k++) {
        __m512i wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const void *)(w + k * 2 * LANES)));
        for (int r = 0; r < rows; r++)
            acc[0][r] = _mm512_dpwssd_epi32(acc[0][r], wide, _mm512_set1_epi32(pair(x + r * stride + 2 * k)));
    }
    for (int r = 0; r < rows; r++) {
        for (int u = 1; u < unroll; u++) acc[0][r] = _mm512_add_epi32(acc[0][r], acc[u][r]);
        sums[r] = (ints)acc[0][r];
    }
}
#elif LEVEL == 1
INLINE void NAME(sum)(const int8_t *w, const int16_t *x, int64_t stride, int64_t pairs, ints *sums, int rows) {
    __m256i acc[2][MAX_ROWS];
    for (int r = 0; r < rows; r++) acc[0][r] = acc[1][r] = _mm256_setzero_si256();
    for (int64_t k = 0; k < pairs; k++)
        for (int half = 0; half < 2; half++) {
            const void *place = w + k * 2 * LANES + half * LANES;
            __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(place));
            for (int r = 0; r < rows; r++) {
                __m256i both = _mm256_set1_epi32(pair(x + r * stride + 2 * k));
                acc[half][r] = _mm256_add_epi32(acc[half][r], _mm256_madd_epi16(wide, both));
            }
        }
    for (int r = 0; r < rows; r++) {
        _mm256_storeu_si256((void *)&sums[r], acc[0][r]);
        _mm256_storeu_si256((__m256i *)(void *)&sums[r] + 1, acc[1][r]);
    }
}
#elif LEVEL == 3
INLINE void NAME(sum)(const int8_t *w, const int16_t *x, int64_t stride, int64_t pairs, ints *sums, int rows) {
    int32x4_t acc[MAX_ROWS][4];
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < 4; i++) acc[r][i] = vdupq_n_s32(0);
    for (int64_t k = 0; k < pairs; k++) {
        int8x16x2_t codes = vld2q_s8(w + k * 2 * LANES); /* of the even column, and of the odd one */
        int16x8_t even[2] = {vmovl_s8(vget_low_s8(codes.val[0])), vmovl_s8(vget_high_s8(codes.val[0]))};
        int16x8_t odd[2] = {vmovl_s8(vget_low_s8(codes.val[1])), vmovl_s8(vget_high_s8(codes.val[1]))};
        for (int r = 0; r < rows; r++) {
            int16_t first = x[r * stride + 2 * k], second = x[r * stride + 2 * k + 1];
            for (int i = 0; i < 2; i++) {
                acc[r][2 * i] = vmlal_n_s16(acc[r][2 * i], vget_low_s16(even[i]), first);
                acc[r][2 * i + 1] = vmlal_n_s16(acc[r][2 * i + 1], vget_high_s16(even[i]), first);
                acc[r][2 * i] = vmlal_n_s16(acc[r][2 * i], vget_low_s16(odd[i]), second);
                acc[r][2 * i + 1] = vmlal_n_s16(acc[r][2 * i + 1], vget_high_s16(odd[i]), second);
            }
        }
    }
    for (int r = 0; r < rows; r++) memcpy(&sums[r], acc[r], sizeof acc[r]);
}
#else
INLINE void NAME(sum)(const int8_t *w, const int16_t *x, int64_t stride, int64_t pairs, ints *sums, int rows) {
    for (int r = 0; r < rows; r++) {
        int32_t acc[LANES] = {0};
        for (int64_t k = 0; k < pairs; k++) {
            int32_t even = x[r * stride + 2 * k], odd = x[r * stride + 2 * k + 1];
            const int8_t *codes = w + k * 2 * LANES;
            for (int j = 0; j < LANES; j++) acc[j] += codes[2 * j] * even + codes[2 * j + 1] * odd;
        }
        memcpy(&sums[r], acc, sizeof acc);
    }
}
#endif

#if LEVEL == 2
/* The same for one row of activations with 16 rows at each of several places of a matrix, `apart` codes from each
 * other: memory gives more when it is read in several streams. */
INLINE void NAME(sum_streams)(const int8_t *w, int64_t apart, const int16_t *x, int64_t pairs, ints *sums) {
    __m512i acc[STREAMS];
    for (int t = 0; t < STREAMS; t++) acc[t] = _mm512_setzero_si512();
    for (int64_t k = 0; k < pairs; k++) {
        __m512i both = _mm512_set1_epi32(pair(x + 2 * k));
        for (int t = 0; t < STREAMS; t++) {
            const void *place = w + t * apart + k * 2 * LANES;
            acc[t] = _mm512_dpwssd_epi32(acc[t], _mm512_cvtepi8_epi16(_mm256_loadu_si256(place)), both);
        }
    }
    for (int t = 0; t < STREAMS; t++) sums[t] = (ints)acc[t];
}
#else
INLINE void NAME(sum_streams)(const int8_t *w, int64_t apart, const int16_t *x, int64_t pairs, ints *sums) {
    for (int t = 0; t < STREAMS; t++) NAME(sum)(w + t * apart, x, 0, pairs, sums + t, 1);
}
#endif

/* Write what 16 rows of a matrix from `first` on gave one row of activations. */
INLINE void NAME(finish)(const wdecode_matrix *m, int64_t first, floats total, float *out) {
    int64_t kept = m->rows - first;
    floats result = total * *(const floats *)(m->scale + first);
    if (m->bias) result += load(m->bias + first, kept);
    store(out + first, result, kept);
}

/* Multiply one row with 16 rows of each stream, whose rows begin `apart` from each other. */
INLINE void NAME(streams)(const wdecode_matrix *m, int64_t first, int64_t apart, const int16_t *x,
    const float *scales, float *out) {
    int64_t pairs = (m->columns + 1) / 2, blocks = num_blocks(m->columns);
    floats total[STREAMS];
    ints sums[STREAMS];
    for (int t = 0; t < STREAMS; t++) total[t] = (floats){0};
    for (int64_t b = 0; b < blocks; b++) {
        int64_t at = b * (WDECODE_BLOCK / 2), left = pairs - at;
        int64_t count = left < WDECODE_BLOCK / 2 ? left : WDECODE_BLOCK / 2;
        NAME(sum_streams)(m->codes + (first * pairs + at * LANES) * 2, apart * pairs * 2, x + 2 * at, count, sums);
        for (int t = 0; t < STREAMS; t++) total[t] += __builtin_convertvector(sums[t], floats) * scales[b];
    }
    for (int t = 0; t < STREAMS; t++) NAME(finish)(m, first + t * apart, total[t], out);
}

/* Multiply `rows` rows with 16 rows of a matrix, those from `first` on. */
INLINE void NAME(tile)(const wdecode_matrix *m, int64_t first, const int16_t *x, const float *scales, float *out,
    int rows) {
    int64_t pairs = (m->columns + 1) / 2, stride = padded(m->columns), blocks = num_blocks(m->columns);
    const int8_t *w = m->codes + first * 2 * pairs;
    floats total[MAX_ROWS];
    ints sums[MAX_ROWS];
    for (int r = 0; r < rows; r++) total[r] = (floats){0};
    for (int64_t b = 0; b < blocks; b++) {
        int64_t at = b * (WDECODE_BLOCK / 2), left = pairs - at;
        int64_t count = left < WDECODE_BLOCK / 2 ? left : WDECODE_BLOCK / 2;
        NAME(sum)(w + at * 2 * LANES, x + 2 * at, stride, count, sums, rows);
        for (int r = 0; r < rows; r++)
            total[r] += __builtin_convertvector(sums[r], floats) * scales[r * blocks + b];
    }
    for (int r = 0; r < rows; r++) NAME(finish)(m, first, total[r], out + r * m->rows);
}

/* Rounded rows (count, padded columns), a matrix to multiply them with, and where to. */
typedef struct {
    const wdecode_matrix *m;
    const int16_t *x;
    const float *scales;
    int64_t count, tiles; /* rows of activations; tiles of the matrix a part */
    float *out;
} NAME(product_job);

/* Do the tiles of one part. */
TARGET static void NAME(product_part)(const void *given, int64_t part, int worker) {
    const NAME(product_job) *job = given;
    const wdecode_matrix *m = job->m;
    int64_t stride = padded(m->columns), blocks = num_blocks(m->columns);
    int64_t start = part * job->tiles * LANES, stop = start + job->tiles * LANES;
    (void)worker;
    if (stop > m->rows) stop = m->rows;
    if (job->count == 1) {
        int64_t apart = (stop - start) / (STREAMS * LANES) * LANES; /* rows of one stream */
        for (int64_t row = 0; row < apart; row += LANES)
            NAME(streams)(m, start + row, apart, job->x, job->scales, job->out);
        start += STREAMS * apart;
    }
    for (int64_t first = start; first < stop; first += LANES)
        for (int64_t row = 0; row < job->count; row += MAX_ROWS) {
            const int16_t *codes = job->x + row * stride;
            const float *steps = job->scales + row * blocks;
            float *to = job->out + row * m->rows;
            switch (job->count - row) {
            case 1: NAME(tile)(m, first, codes, steps, to, 1); break;
            case 2: NAME(tile)(m, first, codes, steps, to, 2); break;
            case 3: NAME(tile)(m, first, codes, steps, to, 3); break;
            case 4: NAME(tile)(m, first, codes, steps, to, 4); break;
            case 5: NAME(tile)(m, first, codes, steps, to, 5); break;
            case 6: NAME(tile)(m, first, codes, steps, to, 6); break;
            case 7: NAME(tile)(m, first, codes, steps, to, 7); break;
            default: NAME(tile)(m, first, codes, steps, to, 8); break;
            }
        }
}

/* Multiply rows (count, columns) of floats, with room for what they are rounded to, by threads that were taken. */
TARGET static void NAME(multiply)(const wdecode_matrix *m, const float *x, int64_t count, float *out,
    int16_t *codes, float *scales, int threads) {
    int64_t stride = padded(m->columns), blocks = num_blocks(m->columns);
    for (int64_t row = 0; row < count; row++)
        NAME(quantise)(x + row * m->columns, m->columns, codes + row * stride, scales + row * blocks);
    int64_t all = (m->rows + LANES - 1) / LANES, tiles = tiles_a_part(all, LANES * m->columns * count, threads);
    NAME(product_job) job = {m, codes, scales, count, tiles, out};
    team_run(threads, NAME(product_part), &job, (all + tiles - 1) / tiles);
}
