/* Records: blocks of GGUF files, taken apart into columns of equal fields, a batch at a time.
 *
 * A batch's columns are coded one after the other: first its F16 numbers, then scales, predicted from how those
 * changed, then codes, predicted from how all of these did. Each column is a part of its own to the rest of the core.
 */
#include "records.h"

#include "blocks.h"
#include "fields.h"
#include "pairs.h"

#define MAX_COLUMNS 5u
#define FULL_CONTEXTS MAX_COLUMNS /* one a column, also of those that a type lacks */
#define HALF_CONTEXTS 20u
#define FIRST_SCALE HALF_CONTEXTS
#define FIRST_MINIMUM (FIRST_SCALE + STEP_CLASSES)
#define FIRST_CODE (FIRST_MINIMUM + STEP_CLASSES)
#define CODE_CONTEXTS (STEP_CLASSES * 3u * STEP_STRENGTHS)

enum { D, DMIN, SCALES, MINIMA, CODES };

/* One field of all records of a batch. */
typedef struct column {
    plan plan;
    wpatch_part part;
    field field;
    uint32_t first;      /* its contexts begin here among the record's */
    uint32_t per_record; /* elements */
} column;

/* What is done with the tokens of columns: one of these is set. */
typedef struct worker {
    decoder *decoder;
    gathered *gathered;
    uint64_t *histogram;
    size_t num_tables;
} worker;

/* All that a part's batches share. */
typedef struct batch {
    const layout *layout;
    const wpatch_part *part;
    int paired;
    content old_fields, new_fields;
    step steps[MAX_GROUPS * BATCH];
    column columns[MAX_COLUMNS];
} batch;

/* ---- what types and modes have */

uint32_t records_size(uint32_t dtype) {
    const layout *l = layout_of(dtype);
    return l ? l->size : 0;
}

static int is_known(uint32_t mode, uint32_t dtype) {
    return layout_of(dtype) && (mode == WPATCH_FULL || mode == WPATCH_DIFFERENCE);
}

uint32_t records_num_contexts(uint32_t mode, uint32_t dtype) {
    if (!is_known(mode, dtype)) {
        return 0;
    }
    uint32_t codes = layout_of(dtype)->paired ? PAIRS_CONTEXTS : CODE_CONTEXTS;
    return mode == WPATCH_FULL ? FULL_CONTEXTS : FIRST_CODE + codes;
}

static uint32_t column_length(const layout *l, uint32_t mode, uint32_t which) {
    const uint32_t codes = l->paired && mode == WPATCH_DIFFERENCE ? l->num_codes / 2 : l->num_codes;
    const uint32_t lengths[MAX_COLUMNS] = {1, l->num_minima ? 1 : 0, l->num_scales, l->num_minima, codes};
    return lengths[which];
}

uint32_t records_num_tokens(uint32_t mode, uint32_t dtype) {
    uint32_t sum = 0;
    for (uint32_t i = 0; is_known(mode, dtype) && i < MAX_COLUMNS; i++) {
        sum += column_length(layout_of(dtype), mode, i);
    }
    return sum;
}

int records_extra_bits(uint32_t mode, uint32_t dtype, uint32_t context, uint8_t extra[64]) {
    alphabet letters;
    if (context >= records_num_contexts(mode, dtype)) {
        return WPATCH_BAD_ARGUMENT;
    }
    if (context < (mode == WPATCH_FULL ? SCALES : FIRST_SCALE)) {
        plan_alphabet(&letters, mode, WPATCH_F16);
    } else if (mode == WPATCH_DIFFERENCE && context >= FIRST_CODE && layout_of(dtype)->paired) {
        plan_alphabet(&letters, WPATCH_PAIRS, WPATCH_U8);
    } else {
        plan_alphabet(&letters, WPATCH_DIFFERENCE, WPATCH_I8);
    }
    memcpy(extra, letters.extra, WPATCH_NUM_TOKENS);
    return WPATCH_OK;
}

static uint32_t exponent_at(const uint8_t *at) { return load16(at) >> 10 & 31u; }

int records_top(uint32_t dtype, const uint8_t *elements, size_t count, uint32_t *top) {
    const layout *l = layout_of(dtype);
    if (!l) {
        return WPATCH_BAD_ARGUMENT;
    }
    *top = 0;
    for (size_t i = 0; i < count; i++, elements += l->size) {
        uint32_t d = exponent_at(elements + l->d_at), dmin = l->num_minima ? exponent_at(elements + l->dmin_at) : 0;
        uint32_t larger = d > dmin ? d : dmin;
        *top = larger > *top ? larger : *top;
    }
    return WPATCH_OK;
}

/* ---- columns */

/* A column of `contexts` contexts from its first on, of elements that have a mode of their own elsewhere. */
static int open_plain(batch *b, uint32_t which, uint32_t mode, uint32_t dtype, uint32_t contexts, const worker *w) {
    column *c = &b->columns[which];
    const wpatch_part *whole = b->part;
    int single = whole->num_contexts == 1;
    c->part.mode = mode;
    c->part.dtype = dtype;
    c->part.count = BATCH;
    c->part.top = whole->top;
    c->part.num_contexts = single ? 1 : contexts;
    c->part.tables = single || !whole->tables ? whole->tables : whole->tables + c->first;
    return plan_part(&c->plan, &c->part, w->num_tables, !w->histogram);
}

/* A column of codes, or of scales, that are expected somewhere. */
static int open_field(batch *b, uint32_t which, uint32_t contexts, const worker *w) {
    column *c = &b->columns[which];
    /* what the mode DIFFERENCE of codes checks and knows of tokens serves here too */
    int status = open_plain(b, which, WPATCH_DIFFERENCE, WPATCH_I8, 1, w);
    if (status != WPATCH_OK) {
        return status;
    }
    c->part.mode = WPATCH_SCALED;
    c->part.num_contexts = b->part->num_contexts == 1 ? 1 : contexts;
    c->plan.num_contexts = contexts;
    c->plan.field = &c->field;
    for (uint32_t i = 0; !w->histogram && i < c->part.num_contexts; i++) {
        c->plan.lut[i] = c->part.tables[i];
        if (c->part.tables[i] >= w->num_tables) {
            return WPATCH_BAD_ARGUMENT;
        }
    }
    return WPATCH_OK;
}

/* What is known of the elements beforehand: their range, and which of them move together. */
static void describe(batch *b) {
    const layout *l = b->layout;
    const int moving = b->part->mode == WPATCH_DIFFERENCE, small = l->num_minima != 0;
    const step *steps = moving ? b->steps : NULL;
    const field scales = {steps, l->num_scales, 1, small ? 0 : -128, small ? 63 : 127, small ? 32 : 0, 0, !small};
    const field minima = {steps, 8, 1, 0, 63, 32, 0, 0};
    const int whole = l->dtype == WPATCH_Q8_0;
    const uint32_t run = l->num_codes / l->num_groups;
    const field codes = {steps, run, 1, whole ? -127 : 0, l->high, whole ? 0 : (l->high + 1) / 2, l->near, whole};
    b->columns[SCALES].field = scales;
    b->columns[MINIMA].field = minima;
    b->columns[CODES].field = codes;
    if (b->paired) {
        /* a run of bytes holds one group's codes, or one's and the next one's */
        b->columns[CODES].field.run = l->dtype == WPATCH_Q4_0 ? 16 : 32;
        b->columns[CODES].field.groups = l->dtype == WPATCH_Q4_0 ? 1 : 2;
    }
}

static int open_column(batch *b, uint32_t which, const worker *w) {
    static const uint32_t firsts[MAX_COLUMNS] = {0, 0, FIRST_SCALE, FIRST_MINIMUM, FIRST_CODE};
    column *c = &b->columns[which];
    int moving = b->part->mode == WPATCH_DIFFERENCE;
    c->first = moving ? firsts[which] : which;
    if (which <= DMIN) {
        return open_plain(b, which, b->part->mode, WPATCH_F16, moving ? HALF_CONTEXTS : 1, w);
    }
    if (which == CODES && b->paired) {
        int status = open_plain(b, which, WPATCH_PAIRS, WPATCH_U8, PAIRS_CONTEXTS, w);
        c->plan.field = &c->field;
        return status;
    }
    return open_field(b, which, !moving ? 1 : which < CODES ? STEP_CLASSES : CODE_CONTEXTS, w);
}

static int check_records(const wpatch_part *part) {
    uint32_t contexts = records_num_contexts(part->mode, part->dtype);
    uint64_t tokens = (uint64_t)part->count * records_num_tokens(part->mode, part->dtype);
    return contexts && tokens && tokens <= WPATCH_MAX_BLOCK && part->elements && part->top <= 255 &&
           (part->num_contexts == 1 || part->num_contexts == contexts) && (part->mode == WPATCH_FULL || part->base);
}

static int open_batch(batch *b, const wpatch_part *part, const worker *w) {
    int status = check_records(part) && (w->histogram || part->tables) ? WPATCH_OK : WPATCH_BAD_ARGUMENT;
    if (status != WPATCH_OK) {
        return status;
    }
    memset(b->columns, 0, sizeof b->columns);
    b->layout = layout_of(part->dtype);
    b->part = part;
    b->paired = b->layout->paired && part->mode == WPATCH_DIFFERENCE;
    describe(b);
    uint8_t *const places[2][MAX_COLUMNS] = {
        {b->old_fields.d, b->old_fields.dmin, b->old_fields.scales, b->old_fields.minima, b->old_fields.codes},
        {b->new_fields.d, b->new_fields.dmin, b->new_fields.scales, b->new_fields.minima, b->new_fields.codes}};
    for (uint32_t i = 0; status == WPATCH_OK && i < MAX_COLUMNS; i++) {
        column *c = &b->columns[i];
        c->per_record = column_length(b->layout, part->mode, i);
        c->part.base = places[0][i];
        c->part.elements = places[1][i];
        status = c->per_record ? open_column(b, i, w) : WPATCH_OK;
    }
    return status;
}

/* ---- batches */

static int work_on(const worker *w, const column *c) {
    if (w->decoder) {
        return decode_part(w->decoder, &c->plan);
    }
    if (w->gathered) {
        gather_part(w->gathered, &c->plan);
    } else {
        count_part(&c->plan, w->histogram + (size_t)c->first * WPATCH_NUM_TOKENS);
    }
    return WPATCH_OK;
}

/* The columns before this one are known. */
static void find_steps(batch *b, uint32_t which, uint32_t n) {
    const content *o = &b->old_fields, *f = &b->new_fields;
    switch (which) {
        case SCALES: scale_steps(o->d, f->d, n, b->steps); break;
        case MINIMA: scale_steps(o->dmin, f->dmin, n, b->steps); break;
        case CODES: code_steps(b->layout, o, f, n, b->part->top, b->steps); break;
        default: break;
    }
}

static int run_batch(batch *b, const worker *w, uint32_t start, uint32_t n) {
    const wpatch_part *part = b->part;
    const size_t at = (size_t)start * b->layout->size;
    const int moving = part->mode == WPATCH_DIFFERENCE;
    int status = WPATCH_OK;
    if (moving) {
        split_blocks(b->layout, part->base + at, n, b->paired, &b->old_fields);
    }
    if (!w->decoder) {
        split_blocks(b->layout, part->elements + at, n, b->paired, &b->new_fields);
    }
    for (uint32_t i = 0; status == WPATCH_OK && i < MAX_COLUMNS; i++) {
        column *c = &b->columns[i];
        if (c->per_record) {
            if (moving) {
                find_steps(b, i, n);
            }
            c->part.count = n * c->per_record;
            status = work_on(w, c);
        }
    }
    if (w->decoder && status == WPATCH_OK) {
        join_blocks(b->layout, &b->new_fields, b->paired, n, part->elements + at);
    }
    return status;
}

static int run(const worker *w, const wpatch_part *part) {
    batch b;
    int status = open_batch(&b, part, w);
    for (uint32_t start = 0; status == WPATCH_OK && start < part->count; start += BATCH) {
        uint32_t left = part->count - start;
        status = run_batch(&b, w, start, left < BATCH ? left : BATCH);
    }
    return status;
}

int decode_records(decoder *d, const wpatch_part *part, size_t num_tables) {
    const worker w = {d, NULL, NULL, num_tables};
    return run(&w, part);
}

int gather_records(gathered *g, const wpatch_part *part) {
    const worker w = {NULL, g, NULL, g->num_tables};
    return run(&w, part);
}

int count_records(const wpatch_part *part, uint64_t *histogram) {
    const worker w = {NULL, NULL, histogram, 0};
    return run(&w, part);
}
