#include "input.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t byte(input *in) {
    if (!in->left) {
        return 0;
    }
    in->left--;
    return *in->at++;
}

uint32_t number(input *in, uint32_t low, uint32_t high) {
    uint32_t value = 0, span = high - low;
    for (uint32_t place = 0; place < 32 && span >> place; place += 8) {
        value |= byte(in) << place;
    }
    return span == UINT32_MAX ? value : low + value % (span + 1);
}

void *room(input *in, size_t size) {
    check(in->num_rooms < MAX_ROOMS, "the harness has enough places for its arrays");
    void *made = malloc(size ? size : 1);
    check(made != NULL, "there is memory");
    /* nothing may be read behind an empty array either */
    in->rooms[in->num_rooms++] = made;
    return size ? made : (uint8_t *)made + 1;
}

static uint32_t next(uint32_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

/* Behind so many bytes there is nothing new to be found, and zeros are quickly written. */
#define FILLED (48u << 10)

void fill(input *in, uint8_t *out, size_t size, const uint8_t *like) {
    uint8_t unit[8] = {0}, mask[4];
    if (!size) {
        return;
    }
    uint32_t length = like ? 1 : number(in, 1, sizeof unit), seldom = number(in, 0, 3);
    for (uint32_t i = 0; !like && i < length; i++) {
        unit[i] = (uint8_t)byte(in);
    }
    for (uint32_t i = 0; i < sizeof mask; i++) {
        mask[i] = (uint8_t)byte(in);
    }
    uint32_t state = number(in, 0, 255) * 2654435761u + 1u;
    const size_t filled = size < FILLED ? size : FILLED;
    memset(out + filled, 0, size - filled);
    for (size_t i = 0; i < filled; i++) {
        uint32_t noise = next(&state);
        uint8_t change = noise >> 24 < 256u >> 2 * seldom ? (uint8_t)(noise & mask[i % sizeof mask]) : 0;
        out[i] = (like ? like[i] : unit[i % length]) ^ change;
    }
}

size_t rest(input *in, uint8_t *out, size_t size) {
    size_t n = size < in->left ? size : in->left;
    memcpy(out, in->at, n);
    in->at += n;
    in->left -= n;
    return n;
}

/* Freed arrays stay marked for a while, but not so long that the cache is full of them. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "quarantine_size_mb=4:malloc_context_size=0:detect_leaks=0"; }

void close_input(input *in) {
    while (in->num_rooms) {
        free(in->rooms[--in->num_rooms]);
    }
}

void check(int holds, const char *promise) {
    if (!holds) {
        fprintf(stderr, "broken promise: %s\n", promise);
        abort();
    }
}
