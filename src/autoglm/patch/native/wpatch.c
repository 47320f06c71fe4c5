/* The public entry points of decoding, and what is known of modes and element types. */
#include "wpatch.h"

#include "factors.h"
#include "rans.h"
#include "records.h"

int wpatch_abi(void) { return WPATCH_ABI; }

/* ---- modes and element types */

uint32_t wpatch_num_contexts(uint32_t mode, uint32_t dtype) {
    return dtype < FIRST_RECORD ? plan_num_contexts(mode, dtype) : records_num_contexts(mode, dtype);
}

uint32_t wpatch_num_tokens(uint32_t mode, uint32_t dtype) {
    return dtype < FIRST_RECORD ? plan_num_contexts(mode, dtype) != 0 : records_num_tokens(mode, dtype);
}

int wpatch_extra_bits(uint32_t mode, uint32_t dtype, uint32_t context, uint8_t extra[64]) {
    alphabet letters;
    if (context >= wpatch_num_contexts(mode, dtype)) {
        return WPATCH_BAD_ARGUMENT;
    }
    if (dtype >= FIRST_RECORD) {
        return records_extra_bits(mode, dtype, context, extra);
    }
    plan_alphabet(&letters, mode, dtype);
    memcpy(extra, letters.extra, WPATCH_NUM_TOKENS);
    return WPATCH_OK;
}

/* ---- decoding */

int wpatch_expand_tables(const uint16_t *frequencies, size_t num_tables, uint32_t *slots) {
    if (num_tables > WPATCH_MAX_TABLES) {
        return WPATCH_BAD_ARGUMENT;
    }
    for (size_t table = 0; table < num_tables; table++) {
        uint32_t left = 1u << WPATCH_TABLE_BITS;
        for (uint32_t token = 0; token < WPATCH_NUM_TOKENS; token++) {
            uint32_t frequency = frequencies[table * WPATCH_NUM_TOKENS + token];
            if (frequency > left) {
                return WPATCH_BAD_ARGUMENT;
            }
            left -= frequency;
            for (uint32_t place = 0; place < frequency; place++) {
                *slots++ = SLOT(token, frequency, place);
            }
        }
        if (left) {
            return WPATCH_BAD_ARGUMENT;
        }
    }
    return WPATCH_OK;
}

static int decode_any(decoder *d, const wpatch_part *part, size_t num_tables) {
    plan p;
    if (part->dtype >= FIRST_RECORD) {
        return decode_records(d, part, num_tables);
    }
    int status = plan_part(&p, part, num_tables, 1);
    if (status == WPATCH_OK && part->inline_factors) {
        status = decode_factors(d, part->inline_factors, num_tables);
    }
    return status == WPATCH_OK ? decode_part(d, &p) : status;
}

int wpatch_decode(const uint32_t *slots, size_t num_tables, const uint8_t *block, size_t length,
                  const wpatch_part *parts, size_t num_parts) {
    decoder d;
    uint64_t total = 0;
    if (!num_tables || num_tables > WPATCH_MAX_TABLES) {
        return WPATCH_BAD_ARGUMENT;
    }
    int status = decoder_open(&d, slots, block, length);
    for (size_t i = 0; status == WPATCH_OK && i < num_parts; i++) {
        int64_t tokens = part_tokens(&parts[i]);
        total += tokens < 0 ? WPATCH_MAX_BLOCK + 1u : (uint64_t)tokens;
        status = total <= WPATCH_MAX_BLOCK ? decode_any(&d, &parts[i], num_tables) : WPATCH_BAD_ARGUMENT;
    }
    return status == WPATCH_OK ? decoder_close(&d) : status;
}
