/* Runs a fuzz target without libFuzzer: every input of a corpus, then as many changed ones as asked for.
 *
 *   replay ROUNDS FILE...
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_BYTES 4096u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct entry {
    size_t size;
    uint8_t bytes[MOST_BYTES];
} entry;

static uint32_t state = 1;

static uint32_t below(uint32_t bound) {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state % bound;
}

static int load(const char *path, entry *e) {
    FILE *file = fopen(path, "rb");
    if (!file) {
        perror(path);
        return 0;
    }
    e->size = fread(e->bytes, 1, sizeof e->bytes, file);
    return fclose(file) == 0;
}

/* The target gets a copy of exactly the input's size, so that a sanitizer sees what it reads behind it. */
static void run(const entry *e) {
    uint8_t *copy = malloc(e->size ? e->size : 1);
    if (copy) {
        memcpy(copy, e->bytes, e->size);
        LLVMFuzzerTestOneInput(copy, e->size);
        free(copy);
    }
}

/* Changed bytes, and now and then the rest of another input. */
static void change(entry *e, const entry *other) {
    if (below(4) == 0) {
        size_t at = below((uint32_t)e->size + 1);
        if (at < other->size) {
            memcpy(e->bytes + at, other->bytes + at, other->size - at);
        }
        e->size = other->size > at ? other->size : at;
    }
    for (uint32_t i = below(4) + 1; i && e->size; i--) {
        e->bytes[below((uint32_t)e->size)] = (uint8_t)below(256);
    }
    if (below(4) == 0) {
        size_t longer = e->size + below(32);
        for (; e->size < longer && e->size < MOST_BYTES; e->size++) {
            e->bytes[e->size] = (uint8_t)below(256);
        }
    }
}

int main(int argc, char **argv) {
    int num_files = argc - 2;
    if (num_files < 1) {
        fprintf(stderr, "usage: replay ROUNDS FILE...\n");
        return 2;
    }
    entry *corpus = malloc((size_t)num_files * sizeof *corpus);
    for (int i = 0; i < num_files; i++) {
        if (!corpus || !load(argv[i + 2], &corpus[i])) {
            return 2;
        }
        run(&corpus[i]);
    }
    for (long rounds = atol(argv[1]); rounds > 0; rounds--) {
        entry e = corpus[below((uint32_t)num_files)];
        change(&e, &corpus[below((uint32_t)num_files)]);
        run(&e);
    }
    printf("%d inputs and %s changed ones: clean\n", num_files, argv[1]);
    free(corpus);
    return 0;
}
