/* Compiled in front of every source of the core, this lets one program run all levels of vector instructions and
 * compare what they make. The core itself has no such switch: it asks the machine. */
#ifndef FUZZ_LEVELS_H
#define FUZZ_LEVELS_H

#define cpu_level machine_level
#include "cpu.h"
#undef cpu_level

#define NUM_LEVELS 3

/* Portable code is used from here on up to this level. */
extern int level_limit;

static inline int cpu_level(void) {
    int level = machine_level();
    return level < level_limit ? level : level_limit;
}

#endif
