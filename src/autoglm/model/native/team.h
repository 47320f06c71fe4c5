/* Threads that help with one call at a time, and sleep otherwise. Internal; see decode.h.
 *
 * Work is cut into parts that do not depend on each other, and whoever is free takes the next one: a helper that
 * has no core takes none, and nobody waits for it. Who waits spins for some microseconds, then sleeps: a spinning
 * thread may be keeping the very thread it waits for from its core. A call that finds the helpers taken, or in a
 * system without POSIX threads, does all parts itself. After a fork the child has helpers of its own. */
#ifndef WDECODE_TEAM_H
#define WDECODE_TEAM_H

#include <stdint.h>

typedef void (*part_function)(const void *job, int64_t part, int worker);

#if defined(WDECODE_ONE_THREAD) || defined(_WIN32) || defined(__STDC_NO_ATOMICS__)

static int team_take(int threads) { return (void)threads, 1; }
static void team_give_back(int threads) { (void)threads; }
static void team_run(int threads, part_function run, const void *job, int64_t parts) {
    (void)threads;
    for (int64_t part = 0; part < parts; part++) run(job, part, 0);
}

#else

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

#define MAX_THREADS 64
#define SPINS 1000 /* 10 to 40 microseconds */

static struct {
    _Atomic pid_t owner;                         /* the process whose threads these are */
    atomic_int is_taken;                         /* by one call; what follows is changed by that call alone */
    int helpers;                                 /* threads that were started */
    pthread_t threads[MAX_THREADS];
    part_function run;
    const void *job;
    int64_t parts;
    int wanted;                                  /* helpers that may take part */
    atomic_uint turn;                            /* odd while there is work; each work has a number of its own */
    atomic_llong next;                           /* the next part */
    atomic_int active;                           /* helpers that look at the work */
    atomic_int sleeping, is_awaited, is_ending;
    pthread_mutex_t lock;
    pthread_cond_t begun, done;
} team = {.lock = PTHREAD_MUTEX_INITIALIZER, .begun = PTHREAD_COND_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};

static void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void take_parts(int worker) {
    for (;;) {
        int64_t part = atomic_fetch_add(&team.next, 1);
        if (part >= team.parts) return;
        team.run(team.job, part, worker);
    }
}

/* Whether there is nothing to do for a helper that has seen work number `seen`. */
static int is_idle(unsigned seen) {
    unsigned turn = atomic_load(&team.turn);
    return (turn == seen || !(turn & 1)) && !atomic_load(&team.is_ending);
}

static void await_work(unsigned seen) {
    for (int i = 0; i < SPINS && is_idle(seen); i++) pause_briefly();
    if (!is_idle(seen)) return;
    pthread_mutex_lock(&team.lock);
    atomic_fetch_add(&team.sleeping, 1);
    while (is_idle(seen)) pthread_cond_wait(&team.begun, &team.lock);
    atomic_fetch_sub(&team.sleeping, 1);
    pthread_mutex_unlock(&team.lock);
}

static void *help(void *number) {
    int worker = (int)(intptr_t)number;
    for (unsigned seen = 0;;) {
        await_work(seen);
        if (atomic_load(&team.is_ending)) return NULL;
        seen = atomic_load(&team.turn);
        atomic_fetch_add(&team.active, 1); /* from here on the work does not change */
        if ((seen & 1) && atomic_load(&team.turn) == seen && worker <= team.wanted) take_parts(worker);
        if (atomic_fetch_sub(&team.active, 1) == 1 && atomic_load(&team.is_awaited)) {
            pthread_mutex_lock(&team.lock);
            pthread_cond_signal(&team.done);
            pthread_mutex_unlock(&team.lock);
        }
    }
}

static void wake_sleepers(void) {
    pthread_mutex_lock(&team.lock);
    pthread_cond_broadcast(&team.begun);
    pthread_mutex_unlock(&team.lock);
}

/* A forked child has the parent's numbers and none of its threads. Returns 0 while another thread sees to it. */
static int is_ours(void) {
    pid_t here = getpid(), owner = atomic_load(&team.owner);
    if (owner == here) return 1;
    if (owner == -1 || !atomic_compare_exchange_strong(&team.owner, &owner, (pid_t)-1)) return 0;
    pthread_mutex_init(&team.lock, NULL);
    pthread_cond_init(&team.begun, NULL);
    pthread_cond_init(&team.done, NULL);
    team.helpers = 0;
    atomic_store(&team.turn, 0);
    atomic_store(&team.active, 0);
    atomic_store(&team.sleeping, 0);
    atomic_store(&team.is_awaited, 0);
    atomic_store(&team.is_taken, 0);
    atomic_store(&team.owner, here);
    return 1;
}

static void start_helpers(int count) {
    sigset_t all, before;
    sigfillset(&all); /* signals are the program's: none is handled on a helper */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (team.helpers < count) {
        void *number = (void *)(intptr_t)(team.helpers + 1);
        if (pthread_create(&team.threads[team.helpers], NULL, help, number)) break;
        team.helpers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Take the helpers for one call: returns how many threads will work, the caller's among them. */
static int team_take(int threads) {
    int none = 0;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads <= 1 || !is_ours() || !atomic_compare_exchange_strong(&team.is_taken, &none, 1)) return 1;
    if (team.helpers < threads - 1) start_helpers(threads - 1);
    team.wanted = team.helpers < threads - 1 ? team.helpers : threads - 1;
    if (team.wanted) return team.wanted + 1;
    atomic_store(&team.is_taken, 0);
    return 1;
}

/* Give them back; `threads` is what team_take said. */
static void team_give_back(int threads) {
    if (threads > 1) atomic_store(&team.is_taken, 0);
}

static void await_helpers(void) {
    for (int i = 0; i < SPINS && atomic_load(&team.active); i++) pause_briefly();
    if (!atomic_load(&team.active)) return;
    pthread_mutex_lock(&team.lock);
    atomic_store(&team.is_awaited, 1);
    while (atomic_load(&team.active)) pthread_cond_wait(&team.done, &team.lock);
    atomic_store(&team.is_awaited, 0);
    pthread_mutex_unlock(&team.lock);
}

/* Do all parts, by this thread and the helpers that it took. */
static void team_run(int threads, part_function run, const void *job, int64_t parts) {
    if (threads <= 1 || parts <= 1) {
        for (int64_t part = 0; part < parts; part++) run(job, part, 0);
        return;
    }
    team.run = run, team.job = job, team.parts = parts;
    atomic_store(&team.next, 0);
    atomic_fetch_add(&team.turn, 1);
    if (atomic_load(&team.sleeping)) wake_sleepers();
    take_parts(0);
    atomic_fetch_add(&team.turn, 1); /* who comes now finds no work */
    await_helpers();
}

/* The library leaves no thread behind when it is unloaded. */
__attribute__((destructor)) static void team_end(void) {
    if (atomic_load(&team.owner) != getpid()) return;
    atomic_store(&team.is_ending, 1);
    wake_sleepers();
    for (int i = 0; i < team.helpers; i++) pthread_join(team.threads[i], NULL);
}

#endif
#endif
