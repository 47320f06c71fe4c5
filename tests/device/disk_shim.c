/* The disk between a program and its kernel: counts, records, refuses or cuts off what changes it.
 *
 * Loaded by LD_PRELOAD. It sees each libc call that changes something below one directory, whoever makes it:
 * Python's own files, SQLite's, the TUF library's. From Python, over ctypes:
 *
 *   disk_watch(root)           look at what lies below this directory
 *   disk_record(fd)            write each operation, with its bytes, to this descriptor
 *   disk_mark(text)            put a word of the program's own between them
 *   disk_arm(mode, at, error)  misbehave at the at-th operation from now; see enum mode
 *   disk_count()               operations since disk_arm
 *
 * A record is one line, "operation TAB path TAB second path TAB inode TAB offset TAB length NEWLINE", behind
 * which as many bytes follow as `length` says where the operation is `write` or `mark`. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define PATH_BYTES 4096

enum mode {
    OFF,
    KILL,      /* SIGKILL before the operation */
    KILL_HALF, /* the same in the middle of a write, half of whose bytes have come through */
    REFUSE,    /* the operation fails with `error` */
    FULL       /* from here on whatever needs room fails with `error` */
};

static char root[PATH_BYTES];
static size_t root_length;
static int record_fd = -1;
static enum mode mode = OFF;
static long target, counted;
static int error_code;

void disk_watch(const char *directory) {
    snprintf(root, sizeof root, "%s", directory);
    root_length = strlen(root);
}

void disk_arm(int new_mode, long at, int error) {
    mode = (enum mode)new_mode;
    target = at;
    counted = 0;
    error_code = error;
}

long disk_count(void) { return counted; }

void disk_record(int fd) { record_fd = fd; }

/* -- who and where ------------------------------------------------------------------------------------- */

/* Return the path below the root, or NULL for what is not watched. `out` holds PATH_BYTES. */
static const char *below_root(const char *absolute) {
    if (!root_length || strncmp(absolute, root, root_length)) return NULL;
    if (absolute[root_length] == 0) return ".";
    return absolute[root_length] == '/' ? absolute + root_length + 1 : NULL;
}

static const char *of_descriptor(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, out, PATH_BYTES - 1);
    if (length < 0) return NULL;
    out[length] = 0;
    return below_root(out);
}

static const char *of_path(int directory, const char *path, char *out) {
    if (path[0] == '/') {
        snprintf(out, PATH_BYTES, "%s", path);
        return below_root(out);
    }
    char parent[PATH_BYTES] = "";
    if (directory == AT_FDCWD) {
        if (syscall(SYS_getcwd, parent, sizeof parent) < 0) return NULL;
    } else if (!of_descriptor(directory, parent)) {
        return NULL;
    }
    if (snprintf(out, PATH_BYTES, "%s/%s", parent, path) >= PATH_BYTES) abort();
    return below_root(out);
}

static unsigned long inode_of(int fd) {
    struct stat found;
    return fstat(fd, &found) ? 0 : (unsigned long)found.st_ino;
}

/* -- recording ----------------------------------------------------------------------------------------- */

static void put(const void *bytes, size_t length) {
    const char *at = bytes;
    while (length) {
        ssize_t done = syscall(SYS_write, record_fd, at, length);
        if (done <= 0) abort();
        at += done;
        length -= (size_t)done;
    }
}

static void record(const char *what, const char *path, const char *other, unsigned long inode, off_t offset,
                   const void *bytes, size_t length) {
    if (record_fd < 0) return;
    int kept = errno;
    char line[2 * PATH_BYTES + 128];
    int size = snprintf(line, sizeof line, "%s\t%s\t%s\t%lu\t%lld\t%zu\n", what, path, other, inode,
                        (long long)offset, length);
    put(line, (size_t)size);
    if (bytes) put(bytes, length);
    errno = kept;
}

void disk_mark(const char *text) { record("mark", "", "", 0, 0, text, strlen(text)); }

/* -- misbehaving --------------------------------------------------------------------------------------- */

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

/* Count one operation; return nonzero, with errno set, when it must fail. */
static int refused(int needs_room) {
    if (mode == OFF) return 0;
    counted++;
    if (mode == KILL && counted == target) die();
    if ((mode == REFUSE && counted == target) || (mode == FULL && counted >= target && needs_room)) {
        errno = error_code;
        return 1;
    }
    return 0;
}

static int is_half(void) { return mode == KILL_HALF && counted == target; }

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

/* -- files --------------------------------------------------------------------------------------------- */

static int open_at(int directory, const char *path, int flags, mode_t bits) {
    char name[PATH_BYTES];
    int changes = flags & (O_CREAT | O_TRUNC);
    const char *below = changes && !(flags & O_DIRECTORY) ? of_path(directory, path, name) : NULL;
    int is_new = below && syscall(SYS_faccessat, directory, path, F_OK) != 0;
    if (below && (is_new ? !(flags & O_CREAT) : !(flags & O_TRUNC))) below = NULL;
    if (below && refused(is_new)) return -1;
    int fd = (int)syscall(SYS_openat, directory, path, flags, bits);
    if (below && fd >= 0) record(is_new ? "create" : "truncate", below, "", inode_of(fd), 0, NULL, 0);
    return fd;
}

#define OPEN(name, ...) \
    mode_t bits = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        bits = va_arg(rest, mode_t); \
        va_end(rest); \
    } \
    return open_at(__VA_ARGS__, flags, bits)

int open(const char *path, int flags, ...) { OPEN(open, AT_FDCWD, path); }
int open64(const char *path, int flags, ...) { OPEN(open64, AT_FDCWD, path); }
int openat(int directory, const char *path, int flags, ...) { OPEN(openat, directory, path); }
int openat64(int directory, const char *path, int flags, ...) { OPEN(openat64, directory, path); }
int creat(const char *path, mode_t bits) { return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, bits); }
int creat64(const char *path, mode_t bits) { return creat(path, bits); }

static off_t place_of(int fd) {
    struct stat found;
    if (fcntl(fd, F_GETFL) & O_APPEND) return fstat(fd, &found) ? 0 : found.st_size;
    return lseek(fd, 0, SEEK_CUR);
}

static ssize_t write_at(int fd, const void *bytes, size_t length, off_t offset, int moves) {
    char name[PATH_BYTES];
    const char *below = fd == record_fd ? NULL : of_descriptor(fd, name);
    if (below && refused(1)) return -1;
    off_t place = below && moves ? place_of(fd) : offset;
    size_t count = below && is_half() ? length / 2 : length;
    ssize_t done = moves ? syscall(SYS_write, fd, bytes, count) : syscall(SYS_pwrite64, fd, bytes, count, offset);
    if (below && done > 0) record("write", below, "", inode_of(fd), place, bytes, (size_t)done);
    if (below && is_half()) die();
    return done;
}

ssize_t write(int fd, const void *bytes, size_t length) { return write_at(fd, bytes, length, 0, 1); }
ssize_t pwrite(int fd, const void *b, size_t length, off_t at) { return write_at(fd, b, length, at, 0); }
ssize_t pwrite64(int fd, const void *b, size_t length, off64_t at) { return write_at(fd, b, length, at, 0); }

static int resize(int fd, off_t length) {
    char name[PATH_BYTES];
    const char *below = of_descriptor(fd, name);
    if (below && refused(0)) return -1;
    int done = (int)syscall(SYS_ftruncate, fd, length);
    if (below && !done) record("resize", below, "", inode_of(fd), length, NULL, 0);
    return done;
}

int ftruncate(int fd, off_t length) { return resize(fd, length); }
int ftruncate64(int fd, off64_t length) { return resize(fd, length); }

/* Returns an error number, as posix_fallocate does. */
static int reserve(int fd, off_t offset, off_t length) {
    char name[PATH_BYTES];
    const char *below = of_descriptor(fd, name);
    if (below && refused(1)) return errno;
    if (syscall(SYS_fallocate, fd, 0, offset, length)) return errno;
    if (below) record("reserve", below, "", inode_of(fd), offset + length, NULL, 0);
    return 0;
}

int posix_fallocate(int fd, off_t offset, off_t length) { return reserve(fd, offset, length); }
int posix_fallocate64(int fd, off64_t offset, off64_t length) { return reserve(fd, offset, length); }

static int sync_as(const char *what, long number, int fd) {
    char name[PATH_BYTES];
    const char *below = of_descriptor(fd, name);
    if (below && refused(0)) return -1;
    int done = (int)syscall(number, fd);
    if (below && !done) record(what, below, "", inode_of(fd), 0, NULL, 0);
    return done;
}

int fsync(int fd) { return sync_as("fsync", SYS_fsync, fd); }
int fdatasync(int fd) { return sync_as("fdatasync", SYS_fdatasync, fd); }

/* -- names --------------------------------------------------------------------------------------------- */

static int between(const char *what, int from, const char *old, int to, const char *new, int flags) {
    char name[PATH_BYTES], other[PATH_BYTES];
    const char *below = of_path(from, old, name), *target_below = of_path(to, new, other);
    if ((below || target_below) && refused(*what == 'l')) return -1;
    long number = *what == 'l' ? SYS_linkat : SYS_renameat2;
    int done = (int)syscall(number, from, old, to, new, flags);
    if ((below || target_below) && !done)
        record(what, below ? below : "", target_below ? target_below : "", 0, 0, NULL, 0);
    return done;
}

int rename(const char *old, const char *new) { return between("rename", AT_FDCWD, old, AT_FDCWD, new, 0); }
int renameat(int from, const char *old, int to, const char *new) { return between("rename", from, old, to, new, 0); }
int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    return between("rename", from, old, to, new, (int)flags);
}
int link(const char *old, const char *new) { return between("link", AT_FDCWD, old, AT_FDCWD, new, 0); }
int linkat(int from, const char *old, int to, const char *new, int flags) {
    return between("link", from, old, to, new, flags);
}

static int remove_at(int directory, const char *path, int flags) {
    char name[PATH_BYTES];
    const char *below = of_path(directory, path, name);
    if (below && refused(0)) return -1;
    int done = (int)syscall(SYS_unlinkat, directory, path, flags);
    if (below && !done) record(flags & AT_REMOVEDIR ? "rmdir" : "unlink", below, "", 0, 0, NULL, 0);
    return done;
}

int unlink(const char *path) { return remove_at(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return remove_at(AT_FDCWD, path, AT_REMOVEDIR); }
int unlinkat(int directory, const char *path, int flags) { return remove_at(directory, path, flags); }

static int make_at(int directory, const char *path, mode_t bits) {
    char name[PATH_BYTES];
    const char *below = of_path(directory, path, name);
    if (below && refused(1)) return -1;
    int done = (int)syscall(SYS_mkdirat, directory, path, bits);
    if (below && !done) record("mkdir", below, "", 0, 0, NULL, 0);
    return done;
}

int mkdir(const char *path, mode_t bits) { return make_at(AT_FDCWD, path, bits); }
int mkdirat(int directory, const char *path, mode_t bits) { return make_at(directory, path, bits); }

static int point_at(const char *content, int directory, const char *path) {
    char name[PATH_BYTES];
    const char *below = of_path(directory, path, name);
    if (below && refused(1)) return -1;
    int done = (int)syscall(SYS_symlinkat, content, directory, path);
    if (below && !done) record("symlink", below, content, 0, 0, NULL, 0);
    return done;
}

int symlink(const char *content, const char *path) { return point_at(content, AT_FDCWD, path); }
int symlinkat(const char *content, int directory, const char *path) { return point_at(content, directory, path); }

/* What a careful program does not do below its root: no part of the device may begin to. */

static int forbidden(const char *what, const char *below) {
    if (!below) return 0;
    dprintf(2, "%s below the watched directory: %s\n", what, below);
    abort();
}

int truncate(const char *path, off_t length) {
    char name[PATH_BYTES];
    forbidden("truncate by name", of_path(AT_FDCWD, path, name));
    return (int)syscall(SYS_truncate, path, length);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    char name[PATH_BYTES];
    forbidden("writev", of_descriptor(fd, name));
    return syscall(SYS_writev, fd, parts, count);
}
