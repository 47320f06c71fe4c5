/* Blocks of GGUF files, element types from WPATCH_Q4_0 on: their scales and codes are coded apart. Internal. */
#ifndef WPATCH_RECORDS_H
#define WPATCH_RECORDS_H

#include "encode.h"
#include "rans.h"

/* Bytes of a record; 0 when the type is not one. */
uint32_t records_size(uint32_t dtype);
uint32_t records_num_contexts(uint32_t mode, uint32_t dtype);
uint32_t records_num_tokens(uint32_t mode, uint32_t dtype);
int records_extra_bits(uint32_t mode, uint32_t dtype, uint32_t context, uint8_t extra[64]);
int records_top(uint32_t dtype, const uint8_t *elements, size_t count, uint32_t *top);

int decode_records(decoder *d, const wpatch_part *part, size_t num_tables);
int gather_records(gathered *g, const wpatch_part *part);
int count_records(const wpatch_part *part, uint64_t *histogram);

#endif
