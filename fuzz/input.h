/* The fuzzer's bytes as choices: numbers within bounds, arrays of any statistics, and room that lives as long as they.
 *
 * An input that ends gives zeros, so every input means something and a longer one only adds to it.
 */
#ifndef FUZZ_INPUT_H
#define FUZZ_INPUT_H

#include <stddef.h>
#include <stdint.h>

#define MAX_ROOMS 160u

typedef struct input {
    const uint8_t *at;
    size_t left;
    void *rooms[MAX_ROOMS];
    size_t num_rooms;
} input;

/* From low to high, of as few bytes as that takes. */
uint32_t number(input *in, uint32_t low, uint32_t high);

/* Exactly `size` bytes, so that a sanitizer sees the first one behind them. */
void *room(input *in, size_t size);

/* Bytes that repeat a short unit, or follow `like`, each changed by noise in the bits of a mask. */
void fill(input *in, uint8_t *out, size_t size, const uint8_t *like);

/* The input's next bytes themselves, all that are left at most. */
size_t rest(input *in, uint8_t *out, size_t size);

void close_input(input *in);

/* End the process loudly when a promise of the core is broken. */
void check(int holds, const char *promise);

#endif
