/* The factors of predicted matrices: small numbers, coded column by column of both, each rank in its context. */
#include "factors.h"

#include "levels.h"

/* Either array of factors: rows of the left one, columns of the right one. */
typedef struct side {
    uint32_t count;
    size_t stride, first; /* number k of line i lies at first + i * stride */
} side;

static side left_side(const wpatch_factors *f, uint32_t k) {
    side left = {f->rows, WPATCH_EVEN(f->rank), k};
    return left;
}

static side right_side(const wpatch_factors *f, uint32_t k) {
    side right = {f->columns, 2, (size_t)(k / 2) * f->columns * 2 + k % 2};
    return right;
}

uint64_t factors_count(const wpatch_factors *f) {
    int good = f->rows && f->columns && f->rank && f->rank <= WPATCH_MAX_RANK && f->left && f->right;
    uint64_t count = good ? ((uint64_t)f->rows + f->columns) * f->rank : 0;
    return count <= WPATCH_MAX_FACTORS ? count : 0;
}

static int check_tables(const wpatch_factors *f, size_t num_tables) {
    int good = num_tables && num_tables <= WPATCH_MAX_TABLES && f->tables &&
               (f->num_contexts == 1 || f->num_contexts == WPATCH_MAX_RANK);
    for (size_t i = 0; good && i < f->num_contexts; i++) {
        good = f->tables[i] < num_tables;
    }
    return good;
}

static uint8_t table_of(const wpatch_factors *f, uint32_t k) { return f->tables[f->num_contexts == 1 ? 0 : k]; }

/* ---- encoding */

/* Numbers from `at` on as folded 16-bit ones; 0 when one is out of range. */
static int fold(side s, const int16_t *numbers, uint32_t at, uint32_t n, uint32_t *values) {
    int good = 1;
    for (uint32_t i = 0; i < n; i++) {
        int32_t number = numbers[s.first + (at + i) * s.stride];
        good &= number >= -WPATCH_MAX_FACTOR && number <= WPATCH_MAX_FACTOR;
        values[i] = (uint32_t)(number < 0 ? -2 * number - 1 : 2 * number);
    }
    return good;
}

static int gather_side(gathered *g, side s, const int16_t *numbers, uint8_t table) {
    uint32_t values[CHUNK];
    for (uint32_t at = 0, n; at < s.count; at += n) {
        n = s.count - at < CHUNK ? s.count - at : CHUNK;
        if (!fold(s, numbers, at, n, values)) {
            return WPATCH_BAD_ARGUMENT;
        }
        gather_numbers(g, table, values, n);
    }
    return WPATCH_OK;
}

int gather_factors(gathered *g, const wpatch_factors *f) {
    int status = factors_count(f) && check_tables(f, g->num_tables) ? WPATCH_OK : WPATCH_BAD_ARGUMENT;
    for (uint32_t k = 0; status == WPATCH_OK && k < f->rank; k++) {
        status = gather_side(g, left_side(f, k), f->left, table_of(f, k));
        if (status == WPATCH_OK) {
            status = gather_side(g, right_side(f, k), f->right, table_of(f, k));
        }
    }
    return status;
}

int wpatch_encode_factors(const uint16_t *frequencies, size_t num_tables, const wpatch_factors *factors, uint8_t *work,
                          uint8_t *block, size_t *length) {
    gathered g;
    gather_open(&g, num_tables, work, factors_count(factors));
    int status = gather_factors(&g, factors);
    return status == WPATCH_OK ? gather_close(&g, frequencies, block, length) : status;
}

static int count_side(side s, const int16_t *numbers, uint64_t *histogram) {
    uint32_t values[CHUNK], raw;
    for (uint32_t at = 0, n; at < s.count; at += n) {
        n = s.count - at < CHUNK ? s.count - at : CHUNK;
        if (!fold(s, numbers, at, n, values)) {
            return WPATCH_BAD_ARGUMENT;
        }
        for (uint32_t i = 0; i < n; i++) {
            histogram[plan_token(2, values[i], &raw)]++;
        }
    }
    return WPATCH_OK;
}

int wpatch_count_factors(const wpatch_factors *f, uint64_t *histogram) {
    int status = factors_count(f) ? WPATCH_OK : WPATCH_BAD_ARGUMENT;
    for (uint32_t k = 0; status == WPATCH_OK && k < f->rank; k++) {
        status = count_side(left_side(f, k), f->left, histogram + (size_t)k * WPATCH_NUM_TOKENS);
        if (status == WPATCH_OK) {
            status = count_side(right_side(f, k), f->right, histogram + (size_t)k * WPATCH_NUM_TOKENS);
        }
    }
    return status;
}

/* ---- decoding */

static int unfold(side s, int16_t *numbers, uint32_t at, uint32_t n, const uint32_t *values) {
    uint32_t most = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t value = values[i], half = value >> 1;
        most = value > most ? value : most;
        numbers[s.first + (at + i) * s.stride] = (int16_t)(value & 1u ? -(int32_t)half - 1 : (int32_t)half);
    }
    return most <= 2 * WPATCH_MAX_FACTOR ? WPATCH_OK : WPATCH_BAD_BLOCK;
}

/* One number of each line. */
static int decode_side(decoder *d, const alphabet *a, side s, uint8_t table, int16_t *numbers) {
    uint8_t tables[CHUNK], tokens[CHUNK];
    uint32_t values[CHUNK];
    int status = WPATCH_OK;
    memset(tables, table, sizeof tables);
    for (uint32_t at = 0, n; status == WPATCH_OK && at < s.count; at += n) {
        n = s.count - at < CHUNK ? s.count - at : CHUNK;
        status = decode_tokens(d, tables, n, tokens);
        if (status == WPATCH_OK) {
            status = decode_values(d, a, 0, tokens, n, values);
        }
        if (status == WPATCH_OK) {
            status = unfold(s, numbers, at, n, values);
        }
    }
    return status;
}

/* An odd rank is padded to an even one. */
static void pad(side s, int16_t *numbers) {
    for (uint32_t i = 0; i < s.count; i++) {
        numbers[s.first + i * s.stride] = 0;
    }
}

int decode_factors(decoder *d, const wpatch_factors *f, size_t num_tables) {
    alphabet a;
    int status = factors_count(f) && check_tables(f, num_tables) ? WPATCH_OK : WPATCH_BAD_ARGUMENT;
    plan_alphabet(&a, WPATCH_DIFFERENCE, WPATCH_F16);
    for (uint32_t k = 0; status == WPATCH_OK && k < f->rank; k++) {
        status = decode_side(d, &a, left_side(f, k), table_of(f, k), f->left);
        if (status == WPATCH_OK) {
            status = decode_side(d, &a, right_side(f, k), table_of(f, k), f->right);
        }
    }
    if (status == WPATCH_OK && f->rank % 2) {
        pad(left_side(f, f->rank), f->left);
        pad(right_side(f, f->rank), f->right);
    }
    return status;
}

int wpatch_decode_factors(const uint32_t *slots, size_t num_tables, const uint8_t *block, size_t length,
                          const wpatch_factors *factors) {
    decoder d;
    if (!factors_count(factors) || !check_tables(factors, num_tables)) {
        return WPATCH_BAD_ARGUMENT;
    }
    int status = decoder_open(&d, slots, block, length);
    if (status == WPATCH_OK) {
        status = decode_factors(&d, factors, num_tables);
    }
    return status == WPATCH_OK ? decoder_close(&d) : status;
}
