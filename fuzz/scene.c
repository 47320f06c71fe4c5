#include "scene.h"

#include <string.h>

#define MOST_ELEMENTS 4200u  /* two chunks of the core and a bit */
#define MOST_RECORDS 140u    /* two batches and a bit */
#define MOST_NUMBERS 20000u  /* of factors */
#define MOST_BYTES (16u << 20)

static const uint32_t dtypes[] = {WPATCH_I8,  WPATCH_U8,   WPATCH_BOOL, WPATCH_F8_E4M3, WPATCH_F8_E5M2,
                                  WPATCH_F16, WPATCH_BF16, WPATCH_F32,  WPATCH_Q4_0,    WPATCH_Q8_0,
                                  WPATCH_Q4_K, WPATCH_Q5_K, WPATCH_Q6_K};
#define NUM_DTYPES (sizeof dtypes / sizeof *dtypes)

/* ---- tables */

/* Shares of a few tokens, of which the last takes what is left. */
static void choose_shares(input *in, uint16_t *table) {
    uint32_t left = 1u << WPATCH_TABLE_BITS;
    for (uint32_t n = number(in, 0, 7); n && left; n--) {
        uint32_t share = number(in, 1, left);
        table[number(in, 0, WPATCH_NUM_TOKENS - 1)] += (uint16_t)share;
        left -= share;
    }
    table[number(in, 0, WPATCH_NUM_TOKENS - 1)] += (uint16_t)left;
}

void choose_tables(input *in, scene *s, int wild) {
    s->num_tables = number(in, 0, 15) ? number(in, 1, 4) : number(in, 1, WPATCH_MAX_TABLES);
    memset(s->frequencies, 0, sizeof s->frequencies);
    for (size_t i = 0; i < s->num_tables; i++) {
        uint16_t *table = s->frequencies + i * WPATCH_NUM_TOKENS;
        if (number(in, 0, 1)) {
            choose_shares(in, table);
            continue;
        }
        for (uint32_t token = 0; token < WPATCH_NUM_TOKENS; token++) {
            table[token] = (1u << WPATCH_TABLE_BITS) / WPATCH_NUM_TOKENS;
        }
    }
    if (wild && number(in, 0, 3) == 0) {
        s->frequencies[number(in, 0, (uint32_t)s->num_tables * WPATCH_NUM_TOKENS - 1)] = (uint16_t)number(in, 0, 65535);
    }
}

/* ---- sizes */

size_t element_size(uint32_t dtype) {
    switch (dtype) {
        case WPATCH_I8:
        case WPATCH_U8:
        case WPATCH_BOOL:
        case WPATCH_F8_E4M3:
        case WPATCH_F8_E5M2: return 1;
        case WPATCH_F16:
        case WPATCH_BF16: return 2;
        case WPATCH_F32: return 4;
        case WPATCH_Q4_0: return 18;
        case WPATCH_Q8_0: return 34;
        case WPATCH_Q4_K: return 144;
        case WPATCH_Q5_K: return 176;
        case WPATCH_Q6_K: return 210;
        default: return 8;
    }
}

size_t elements_size(const wpatch_part *part) {
    return part->count <= WPATCH_MAX_BLOCK ? part->count * element_size(part->dtype) : 0;
}

size_t num_tokens(const wpatch_part *part) {
    const wpatch_factors *f = part->inline_factors;
    uint64_t sum = (uint64_t)part->count * wpatch_num_tokens(part->mode, part->dtype);
    sum += f ? ((uint64_t)f->rows + f->columns) * f->rank : 0;
    return sum <= WPATCH_MAX_BLOCK ? (size_t)sum : 0;
}

/* Bytes of factors of so many lines, 0 when there are too many. */
static size_t side_size(uint64_t lines, uint32_t rank) {
    uint64_t size = rank <= WPATCH_MAX_RANK ? 2 * lines * WPATCH_EVEN(rank) : 0;
    return size <= MOST_BYTES ? (size_t)size : 0;
}

size_t left_size(const wpatch_factors *f) { return side_size(f->rows, f->rank); }

size_t right_size(const wpatch_factors *f) { return side_size(f->columns, f->rank); }

/* ---- factors */

static uint8_t *choose_map(input *in, const scene *s, uint32_t contexts) {
    uint8_t *map = room(in, contexts);
    uint32_t step = number(in, 0, 63), first = number(in, 0, 63);
    for (uint32_t i = 0; i < contexts; i++) {
        map[i] = (uint8_t)((first + i * step) % s->num_tables);
    }
    return map;
}

static void fill_numbers(input *in, int16_t *numbers, size_t size, uint32_t range) {
    fill(in, (uint8_t *)numbers, size, NULL);
    for (size_t i = 0; i < size / 2; i++) {
        numbers[i] = (int16_t)(numbers[i] % (int32_t)(range + 1));
    }
}

/* The encoder does not spell the padding of an odd rank, and the decoder makes it zero. */
static void zero_padding(wpatch_factors *f) {
    if (f->rank % 2 == 0 || !left_size(f) || !right_size(f)) {
        return;
    }
    for (size_t i = 0; i < f->rows; i++) {
        f->left[i * WPATCH_EVEN(f->rank) + f->rank] = 0;
    }
    for (size_t i = 0; i < f->columns; i++) {
        f->right[((size_t)(f->rank / 2) * f->columns + i) * 2 + 1] = 0;
    }
}

static void fill_factors(input *in, wpatch_factors *f, uint32_t range) {
    f->left = room(in, left_size(f));
    f->right = room(in, right_size(f));
    fill_numbers(in, f->left, left_size(f), range);
    fill_numbers(in, f->right, right_size(f), range);
    zero_padding(f);
}

void choose_factors(input *in, scene *s, wpatch_factors *f, uint32_t range) {
    f->rank = number(in, 1, number(in, 0, 3) ? 4 : WPATCH_MAX_RANK);
    f->rows = number(in, 1, 100);
    f->columns = number(in, 1, number(in, 0, 3) ? 100 : MOST_NUMBERS / f->rank - f->rows);
    f->num_contexts = number(in, 0, 1) ? 1 : WPATCH_MAX_RANK;
    f->tables = choose_map(in, s, f->num_contexts);
    fill_factors(in, f, range);
}

/* ---- parts */

static void choose_kind(input *in, wpatch_part *p) {
    p->mode = number(in, WPATCH_FULL, WPATCH_PAIRS);
    uint32_t any = number(in, 0, 255);
    for (uint32_t i = 0; i < NUM_DTYPES; i++) {
        p->dtype = dtypes[(any + i) % NUM_DTYPES];
        if (wpatch_num_contexts(p->mode, p->dtype)) {
            return;
        }
    }
}

/* Scales of groups; of rows where the mode wants it so. */
static void choose_groups(input *in, wpatch_part *p) {
    static const uint32_t types[] = {WPATCH_F16, WPATCH_BF16, WPATCH_F32};
    int may = p->mode == WPATCH_SCALED || p->mode == WPATCH_PAIRS;
    may |= p->mode == WPATCH_PREDICTED && p->dtype == WPATCH_I8;
    if (!may || (p->mode != WPATCH_SCALED && number(in, 0, 1))) {
        return;
    }
    p->scale_dtype = types[number(in, 0, 2)];
    p->group = number(in, 1, number(in, 0, 1) ? 40 : 70000);
    p->first = number(in, 0, p->group - 1);
    if (p->mode == WPATCH_PREDICTED) {
        p->group = p->columns;
        p->first = p->first_column;
    }
    p->num_scales = (p->first + p->count - 1) / p->group + 1;
}

static void choose_curve(input *in, wpatch_part *p) {
    wpatch_curve *c = &p->curve;
    uint32_t shape = number(in, 0, 2), slope = number(in, 0, 65535);
    p->columns = shape == 0 ? p->count : shape == 1 ? number(in, 1, 40) : number(in, 1, 5000);
    p->first_column = shape == 0 ? 0 : number(in, 0, p->columns - 1);
    p->num_rows = (p->first_column + p->count - 1) / p->columns + 1;
    uint32_t most = MOST_NUMBERS / (p->columns + p->num_rows);
    c->rank = number(in, 1, most < 1 ? 1 : most < WPATCH_MAX_RANK ? most : WPATCH_MAX_RANK);
    c->drop = number(in, 0, 31);
    c->limit = number(in, 1, 32767);
    c->classes = number(in, 0, 65535);
    uint32_t bend = number(in, 0, 65535 - slope), signs = number(in, 0, 3);
    c->slope = (signs & 1u) ? -(int32_t)slope : (int32_t)slope;
    c->bend = (signs & 2u) ? -(int32_t)bend : (int32_t)bend;
    c->shift = (int32_t)number(in, 0, 62) - 31;
}

/* Whether the factors lie in the block is the part's choice; then they cover it as a whole. */
static void choose_place_of_factors(input *in, scene *s, wpatch_part *p, wpatch_factors *f) {
    f->rows = p->num_rows;
    f->columns = p->columns;
    f->rank = p->curve.rank;
    f->num_contexts = number(in, 0, 1) ? 1 : WPATCH_MAX_RANK;
    f->tables = choose_map(in, s, f->num_contexts);
    p->inline_factors = number(in, 0, 1) ? f : NULL;
}

/* Put any number into one of a part's fields. */
static void spoil(input *in, wpatch_part *p, wpatch_factors *f) {
    uint32_t *const fields[] = {
        &p->mode,  &p->dtype,      &p->top,     &p->num_contexts, &p->scale_dtype, &p->group,       &p->first,
        &p->count, &p->num_scales, &p->columns, &p->first_column, &p->num_rows,    &p->curve.rank,  &p->curve.drop,
        &f->rows,  &f->columns,    &f->rank,    &f->num_contexts, &p->curve.limit, &p->curve.classes};
    int32_t *const signed_fields[] = {&p->curve.slope, &p->curve.bend, &p->curve.shift};
    const uint32_t plain = sizeof fields / sizeof *fields, all = plain + 3;
    uint32_t which = number(in, 0, all), small = number(in, 0, 1);
    uint32_t value = small ? number(in, 0, 255) : number(in, 0, UINT32_MAX);
    if (which < plain) {
        *fields[which] = value;
    } else if (which < all) {
        *signed_fields[which - plain] = (int32_t)value;
    }
    /* so many elements that the core must refuse them, or so few that they are quickly coded */
    uint32_t tokens = wpatch_num_tokens(p->mode, p->dtype);
    uint32_t most = tokens > 1 ? MOST_RECORDS : MOST_ELEMENTS;
    p->count = p->count > most ? p->count % WPATCH_MAX_BLOCK + WPATCH_MAX_BLOCK + 1 : p->count;
}

static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

static void choose_scales(input *in, wpatch_part *p) {
    uint64_t width = p->scale_dtype == WPATCH_F32 ? 4 : 2;
    size_t size = (size_t)least(p->num_scales * width, MOST_BYTES);
    uint8_t *old_scales = room(in, size), *new_scales = room(in, size);
    fill(in, old_scales, size, NULL);
    fill(in, new_scales, size, old_scales);
    p->old_scales = old_scales;
    p->new_scales = new_scales;
}

static void choose_arrays(input *in, const scene *s, wpatch_part *p, wpatch_factors *f, uint32_t range) {
    uint8_t *base = room(in, elements_size(p)), *elements = room(in, elements_size(p));
    p->tables = choose_map(in, s, (uint32_t)least(p->num_contexts, 1000));
    fill(in, base, elements_size(p), NULL);
    fill(in, elements, elements_size(p), base);
    p->base = base;
    p->elements = elements;
    choose_scales(in, p);
    wpatch_factors touched = {p->num_rows, p->columns, p->curve.rank, 0, NULL, NULL, NULL};
    fill_factors(in, &touched, range);
    p->left = f->left = touched.left;
    p->right = f->right = touched.right;
}

static void choose_part(input *in, scene *s, size_t i, int wild) {
    wpatch_part *p = &s->parts[i];
    wpatch_factors *f = &s->factors[i];
    choose_kind(in, p);
    int record = wpatch_num_tokens(p->mode, p->dtype) > 1;
    int many = number(in, 0, 15) == 15;
    p->count = number(in, 1, record ? (many ? MOST_RECORDS : 3) : many ? MOST_ELEMENTS : 80);
    p->top = number(in, 0, 255);
    p->num_contexts = number(in, 0, 1) ? wpatch_num_contexts(p->mode, p->dtype) : 1;
    if (p->mode == WPATCH_PREDICTED) {
        choose_curve(in, p);
        choose_place_of_factors(in, s, p, f);
    }
    choose_groups(in, p);
    if (wild) {
        spoil(in, p, f);
    }
    choose_arrays(in, s, p, f, wild && !number(in, 0, 7) ? 32767 : WPATCH_MAX_FACTOR);
}

void choose_parts(input *in, scene *s, int wild) {
    memset(s->parts, 0, sizeof s->parts);
    memset(s->factors, 0, sizeof s->factors);
    s->num_parts = number(in, 1, MAX_PARTS);
    for (size_t i = 0; i < s->num_parts; i++) {
        choose_part(in, s, i, wild && number(in, 0, 1));
    }
}

static void *zeros(input *in, size_t size) {
    void *made = room(in, size);
    memset(made, 0, size);
    return made;
}

void copy_outputs(input *in, const scene *s, scene *copy) {
    *copy = *s;
    for (size_t i = 0; i < s->num_parts; i++) {
        wpatch_part *p = &copy->parts[i];
        wpatch_factors *f = &copy->factors[i];
        p->elements = zeros(in, elements_size(p));
        if (!p->inline_factors) {
            continue;
        }
        wpatch_factors touched = {p->num_rows, p->columns, p->curve.rank, 0, NULL, NULL, NULL};
        p->left = f->left = zeros(in, left_size(&touched));
        p->right = f->right = zeros(in, right_size(&touched));
        p->inline_factors = f;
    }
}
