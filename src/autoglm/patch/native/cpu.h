/* Which vector instructions this machine has. Internal.
 *
 * Functions with a target attribute are compiled for every level; which of them runs is asked at run time, so
 * that one library serves all machines. All levels give the same bytes. WPATCH_CPU_LEVEL bounds it for tests.
 */
#ifndef WPATCH_CPU_H
#define WPATCH_CPU_H

#if defined(__GNUC__) && defined(__x86_64__)
#define CPU_X86 1
#define TARGET_AVX2 __attribute__((target("avx2,bmi,bmi2,lzcnt,popcnt")))
#define TARGET_AVX512                                                                                         \
    __attribute__((target("avx2,bmi,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vbmi," \
                          "avx512vbmi2")))
#else
#define CPU_X86 0
#endif

/* 0: portable C; 1: AVX2; 2: AVX-512 with F, BW, DQ, VL, CD, VBMI and VBMI2. */
static inline int cpu_level(void) {
#if CPU_X86 && (!defined(WPATCH_CPU_LEVEL) || WPATCH_CPU_LEVEL > 0)
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                 __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512vbmi") &&
                 __builtin_cpu_supports("avx512vbmi2");
#if defined(WPATCH_CPU_LEVEL) && WPATCH_CPU_LEVEL < 2
    avx512 = 0;
#endif
    return avx2 ? 1 + avx512 : 0;
#else
    return 0;
#endif
}

#endif
