/* Shows tests what a part's chunks hold: contexts, predictions, turns, and what is left of the elements. */
#include "transform.h"

WPATCH_API int probe(const wpatch_part *part, uint16_t *contexts, uint32_t *predictions, uint8_t *flips,
                     uint32_t *values);
WPATCH_API int probe_tables(const wpatch_part *part, uint8_t *tables);

int probe(const wpatch_part *part, uint16_t *contexts, uint32_t *predictions, uint8_t *flips, uint32_t *values) {
    plan p;
    chunk c;
    uint32_t left[CHUNK];
    int status = plan_part(&p, part, 0, 0);
    if (status != WPATCH_OK) {
        return status;
    }
    for (c.start = 0; c.start < part->count; c.start += c.count) {
        c.count = part->count - c.start < CHUNK ? part->count - c.start : CHUNK;
        plan_contexts(&p, &c);
        plan_residuals(&p, &c, left);
        memcpy(values + c.start, left, c.count * sizeof *left);
        memcpy(contexts + c.start, c.context, c.count * sizeof *contexts);
        memcpy(flips + c.start, c.flip, c.count);
        for (uint32_t i = 0; i < c.count; i++) {
            predictions[c.start + i] = p.size == 1   ? c.prediction[i]
                                       : p.size == 2 ? c.prediction16[i]
                                                     : c.prediction32[i];
        }
    }
    return WPATCH_OK;
}

/* Write the table of each element, and make the elements of their values again. */
int probe_tables(const wpatch_part *part, uint8_t *tables) {
    plan p;
    chunk c;
    uint32_t left[CHUNK];
    int status = plan_part(&p, part, WPATCH_MAX_TABLES, 1);
    for (c.start = 0; status == WPATCH_OK && c.start < part->count; c.start += c.count) {
        size_t bytes;
        c.count = part->count - c.start < CHUNK ? part->count - c.start : CHUNK;
        bytes = (size_t)c.count * p.size;
        plan_contexts(&p, &c);
        plan_residuals(&p, &c, left);
        memset(part->elements + (size_t)c.start * p.size, 0xa5, bytes);
        plan_restore(&p, &c, left);
        memcpy(tables + c.start, c.table, c.count);
    }
    return status;
}
