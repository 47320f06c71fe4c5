/* Decode with a small model of made-up weights, and print a number that any changed bit changes.
 *
 *     step_main THREADS    one line: the level of instructions, and the number
 *
 * Sizes are chosen to meet every remainder: of tiles, of vectors, of pages, of heads that share a load. Nothing
 * turns (cosines come from the machine's own library), so the number is the same on every machine. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "decode.h"

enum { WIDTH = 72, LAYERS = 2, HEADS = 10, GROUPS = 2, DIM = 20, PAIRS = 5, FFN = 301, VOCAB = 50, PAGE = 8 };
enum { SLOTS = 4, PER_SLOT = 24, STEPS = 4, COUNT = 9 };

static uint64_t state = 1;

static uint32_t draw(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

static float draw_float(void) { return ((float)(draw() % 2001) - 1000.0f) * 0.001f; }

static float *floats_of(int64_t count) {
    float *made = malloc((size_t)count * sizeof *made);
    for (int64_t i = 0; i < count; i++) made[i] = draw_float();
    return made;
}

static wdecode_matrix matrix_of(int64_t rows, int64_t columns, int has_bias) {
    int64_t tiles = (rows + 15) / 16, pairs = (columns + 1) / 2;
    int8_t *codes = calloc((size_t)(tiles * pairs * 32), 1);
    float *scale = calloc((size_t)(tiles * 16), sizeof *scale);
    for (int64_t row = 0; row < rows; row++) {
        scale[row] = 0.002f + 0.000001f * (float)(draw() % 1000);
        for (int64_t c = 0; c < columns; c++)
            codes[(row / 16 * pairs + c / 2) * 32 + row % 16 * 2 + c % 2] = (int8_t)((int)(draw() % 255) - 127);
    }
    return (wdecode_matrix){codes, scale, has_bias ? floats_of(rows) : NULL, rows, columns};
}

static uint64_t taken(uint64_t hash, const void *bytes, size_t count) {
    for (size_t i = 0; i < count; i++) hash = (hash ^ ((const unsigned char *)bytes)[i]) * 1099511628211u;
    return hash;
}

int main(int count, char **words) {
    int threads = count > 1 ? atoi(words[1]) : 1;
    wdecode_block blocks[LAYERS];
    float *keys[LAYERS], *values[LAYERS], *bounds[LAYERS];
    int64_t held = (int64_t)SLOTS * GROUPS * PER_SLOT * PAGE * DIM, pages = (int64_t)SLOTS * GROUPS * PER_SLOT;
    for (int i = 0; i < LAYERS; i++) {
        blocks[i] = (wdecode_block){
            matrix_of((HEADS + 2 * GROUPS) * DIM, WIDTH, 1), matrix_of(WIDTH, HEADS * DIM, 0),
            matrix_of(2 * FFN, WIDTH, 0), matrix_of(WIDTH, FFN, 0),
            floats_of(WIDTH), floats_of(WIDTH), floats_of(WIDTH), floats_of(WIDTH)};
        keys[i] = floats_of(held), values[i] = floats_of(held), bounds[i] = floats_of(pages * 2 * DIM);
    }
    float still[PAIRS] = {0};
    wdecode_model model = {blocks, matrix_of(VOCAB, WIDTH, 0), floats_of(WIDTH), still, LAYERS, WIDTH, HEADS,
        GROUPS, DIM, PAIRS, FFN, 1e-5, 8.0};
    wdecode_cache cache = {keys, values, bounds, PER_SLOT, PAGE};
    /* Nine sequences of one to fifteen pages; the first ones in scattered runs. Those of 70 tokens are gated. */
    int64_t starts[COUNT + 1] = {0, 3, 5, 6, 7, 8, 9, 10, 11, 12};
    int64_t runs[][2] = {{40, 5}, {2, 3}, {50, 7}, {0, 1}, {30, 8}, {8, 3}, {20, 1}, {24, 2}, {57, 9}, {70, 2},
        {72, 12}, {84, 12}};
    int64_t lengths[COUNT] = {113, 66, 17, 1, 9, 67, 3, 90, 69}, tokens[COUNT], positions[COUNT];
    wdecode_rows rows = {COUNT, 3, 70, tokens, positions, lengths, starts, runs[0]};
    float out[COUNT * WIDTH], scores[COUNT * VOCAB], alone[2 * FFN];
    uint64_t hash = 14695981039346656037u;
    for (int step = 0; step < STEPS; step++) {
        for (int i = 0; i < COUNT; i++) tokens[i] = draw() % VOCAB, positions[i] = lengths[i] - 1;
        if (wdecode_step(&model, &cache, &rows, threads, out)) return 1;
        if (wdecode_multiply(&model.table, out, COUNT, threads, scores)) return 1;
        if (wdecode_multiply(&blocks[0].gate_up, out, 1, threads, alone)) return 1;
        hash = taken(taken(taken(hash, out, sizeof out), scores, sizeof scores), alone, sizeof alone);
        for (int i = 0; i < COUNT; i++) lengths[i]++;
    }
    for (int i = 0; i < LAYERS; i++) {
        hash = taken(hash, keys[i], (size_t)held * sizeof(float));
        hash = taken(hash, bounds[i], (size_t)(pages * 2 * DIM) * sizeof(float));
    }
    printf("%d %016llx\n", wdecode_level(), (unsigned long long)hash);
    return 0;
}
