/* Plain loops, compiled for every level of vector instructions. Internal.
 *
 * A body is written once, without branches, so that compilers turn it into vector instructions. EVERY_LEVEL(name, ...)
 * makes of name##_body a function `name` that runs the version for the machine; a body's last parameter is the level,
 * a constant in each version.
 */
#ifndef WPATCH_LEVELS_H
#define WPATCH_LEVELS_H

#include "cpu.h"

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

/* Arguments come in parentheses; this strips them. */
#define LEVEL_ARGUMENTS(...) __VA_ARGS__

#if CPU_X86
#define EVERY_LEVEL(name, parameters, arguments)                                                             \
    static void name##_portable parameters { name##_body(LEVEL_ARGUMENTS arguments, 0); }                    \
    TARGET_AVX2 static void name##_avx2 parameters { name##_body(LEVEL_ARGUMENTS arguments, 1); }            \
    TARGET_AVX512 static void name##_avx512 parameters { name##_body(LEVEL_ARGUMENTS arguments, 2); }        \
    static void name parameters {                                                                            \
        switch (cpu_level()) {                                                                               \
            case 2: name##_avx512 arguments; break;                                                          \
            case 1: name##_avx2 arguments; break;                                                            \
            default: name##_portable arguments;                                                              \
        }                                                                                                    \
    }
#else
#define EVERY_LEVEL(name, parameters, arguments) \
    static void name parameters { name##_body(LEVEL_ARGUMENTS arguments, 0); }
#endif

#endif
