/* Kill (or fail) a process at its n-th durable call, or record all of them. Preloaded; see crash.py and powerloss.py.
 *
 * Durable calls are: write, writev, pwrite, pwritev, fsync, fdatasync, msync, ftruncate, rename, unlink (and their
 * -64 and -at forms) on files below TURNLANE_SHIM_DIR. They are numbered from 1, over all processes that share the
 * counter file.
 *
 *   TURNLANE_SHIM_DIR      path prefix; without it nothing is counted
 *   TURNLANE_SHIM_NTH      which call; 0 or absent: only count
 *   TURNLANE_SHIM_MODE     before | after | torn (the first half of the bytes; "before" where a call has no bytes)
 *                          | fail (return TURNLANE_SHIM_ERRNO instead) | short (half of the bytes, and say so)
 *   TURNLANE_SHIM_ERRNO    a number, for mode "fail"
 *   TURNLANE_SHIM_STICKY   1: modes "fail" and "short" hold from that call on
 *   TURNLANE_SHIM_COUNTER  a file of 8 bytes that holds the count; shared by all processes that name it
 *
 * A forked child may be armed anew with turnlane_shim_arm(). msync is counted wherever it is called.
 *
 * turnlane_shim_record() counts nothing and appends each call that succeeded to a trace: a `struct entry`, then path,
 * second path, bytes. Beside the calls above it knows open with O_CREAT or O_TRUNC, mkdir and rmdir, and what is told
 * to turnlane_shim_note(). One call at a time, so the order of the trace is the order of what happened. What is
 * written through a map is not seen.
 */
#define _GNU_SOURCE
#undef _FORTIFY_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode { BEFORE, AFTER, TORN, FAIL, SHORT };

static char dir[PATH_MAX];
static size_t dir_len;
static uint64_t nth;
static enum mode mode;
static int error_number = EIO, sticky;
static uint64_t own_count;
static uint64_t *count = &own_count;
static int trace = -1;
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static __thread char here[PATH_MAX], there[PATH_MAX];

struct entry { uint32_t kind, path_bytes, other_bytes, unused; uint64_t offset, bytes; };

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) {
    return dlsym(RTLD_NEXT, name);
}

void turnlane_shim_arm(const char *directory, uint64_t n, const char *how, int errno_value, int from_then_on,
                       const char *counter) {
    dir_len = 0;
    nth = n;
    mode = !how ? BEFORE : !strcmp(how, "after") ? AFTER : !strcmp(how, "torn") ? TORN
         : !strcmp(how, "fail") ? FAIL : !strcmp(how, "short") ? SHORT : BEFORE;
    error_number = errno_value ? errno_value : EIO;
    sticky = from_then_on;
    own_count = 0;
    count = &own_count;
    if (counter && *counter) {
        int fd = REAL(open)(counter, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (fd >= 0 && REAL(ftruncate)(fd, sizeof own_count) == 0) {
            void *shared = mmap(NULL, sizeof own_count, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            if (shared != MAP_FAILED) count = shared;
        }
        if (fd >= 0) close(fd);
    }
    if (directory && *directory) {
        snprintf(dir, sizeof dir, "%s", directory);
        dir_len = strlen(dir);
    }
}

uint64_t turnlane_shim_count(void) {
    return *count;
}

__attribute__((constructor)) static void start(void) {
    const char *n = getenv("TURNLANE_SHIM_NTH"), *e = getenv("TURNLANE_SHIM_ERRNO"), *s = getenv("TURNLANE_SHIM_STICKY");
    turnlane_shim_arm(getenv("TURNLANE_SHIM_DIR"), n ? strtoull(n, NULL, 10) : 0, getenv("TURNLANE_SHIM_MODE"),
                      e ? atoi(e) : 0, s && *s == '1', getenv("TURNLANE_SHIM_COUNTER"));
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static int below(const char *path) {
    return dir_len && !strncmp(path, dir, dir_len) && (path[dir_len] == '/' || path[dir_len] == 0);
}

static int link_to(const char *link, char *path) {
    int saved = errno;
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    errno = saved;
    path[length < 0 ? 0 : length] = 0;
    return length >= 0;
}

/* Whether it lies below the directory; its path is then in `here`. */
static int ours(int fd) {
    char link[64];
    if (!dir_len || fd < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    return link_to(link, here) && below(here);
}

static int ours_at(int at, const char *path) {
    char base[PATH_MAX], link[64];
    if (!dir_len || !path) return 0;
    if (*path == '/') return (size_t)snprintf(here, sizeof here, "%s", path) < sizeof here && below(here);
    snprintf(link, sizeof link, at == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", at);
    if (!link_to(link, base)) return 0;
    return (size_t)snprintf(here, sizeof here, "%s/%s", base, path) < sizeof here && below(here);
}

/* 0: go on. 1: this is the call. */
static int reached(int is_ours) {
    if (!is_ours) return 0;
    uint64_t now = __atomic_add_fetch(count, 1, __ATOMIC_SEQ_CST);
    if (!nth || now < nth || (now > nth && !(sticky && mode >= FAIL))) return 0;
    if (mode == BEFORE) die();
    return 1;
}

/* -- recording */

static void note(char kind, const char *path, const char *other, uint64_t offset, const struct iovec *parts, int n,
                 size_t bytes) {
    struct entry entry = {(uint32_t)kind, (uint32_t)strlen(path), (uint32_t)strlen(other), 0, offset, bytes};
    size_t size = sizeof entry + entry.path_bytes + entry.other_bytes + bytes;
    char *whole = malloc(size), *to = whole;
    if (!whole) abort();
    to = mempcpy(to, &entry, sizeof entry);
    to = mempcpy(to, path, entry.path_bytes);
    to = mempcpy(to, other, entry.other_bytes);
    for (int i = 0; i < n && bytes; i++) {
        size_t part = parts[i].iov_len < bytes ? parts[i].iov_len : bytes;
        to = mempcpy(to, parts[i].iov_base, part);
        bytes -= part;
    }
    int saved = errno;
    if (REAL(write)(trace, whole, size) != (ssize_t)size) abort();
    errno = saved;
    free(whole);
}

static void note_call(char kind, uint64_t offset) {
    note(kind, here, "", offset, NULL, 0, 0);
}

/* The path of the new name is in `here`. */
static void note_rename(int at, const char *from) {
    memcpy(there, here, sizeof there);
    ours_at(at, from);
    note('r', here, there, 0, NULL, 0, 0);
}

static void note_bytes(ssize_t bytes, int fd, const struct iovec *parts, int n, off_t at) {
    struct stat found;
    int flags = fcntl(fd, F_GETFL);
    if (flags & O_APPEND) at = fstat(fd, &found) ? 0 : found.st_size - bytes;
    else if (at < 0) at = lseek(fd, 0, SEEK_CUR) - bytes;
    note(flags & O_DSYNC ? 'd' : 'w', here, "", (uint64_t)at, parts, n, (size_t)bytes);
}

void turnlane_shim_note(const char *text) {
    struct iovec part = {(void *)text, strlen(text)};
    pthread_mutex_lock(&one_at_a_time);
    note('a', "", "", 0, &part, 1, part.iov_len);
    pthread_mutex_unlock(&one_at_a_time);
}

int turnlane_shim_record(const char *directory, const char *path) {
    turnlane_shim_arm(directory, 0, NULL, 0, 0, NULL);
    trace = REAL(open)(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    return trace;
}

#define RECORDED(result, is_ours, call, is_done, ...)        \
    if (trace >= 0) {                                        \
        pthread_mutex_lock(&one_at_a_time);                  \
        result outcome = call;                               \
        if (is_done && (is_ours)) __VA_ARGS__;               \
        pthread_mutex_unlock(&one_at_a_time);                \
        return outcome;                                      \
    }

/* -- the calls */

/* Writes the first half of the bytes. */
static ssize_t half(int fd, const struct iovec *parts, int n, off_t at) {
    size_t total = 0, done = 0;
    for (int i = 0; i < n; i++) total += parts[i].iov_len;
    for (int i = 0; i < n && done < total / 2; i++) {
        size_t left = total / 2 - done, size = parts[i].iov_len < left ? parts[i].iov_len : left;
        ssize_t wrote = at < 0 ? REAL(write)(fd, parts[i].iov_base, size)
                               : REAL(pwrite)(fd, parts[i].iov_base, size, at + (off_t)done);
        if (wrote < 0) return done ? (ssize_t)done : wrote;
        done += (size_t)wrote;
    }
    return (ssize_t)done;
}

/* Calls without bytes. */
#define WHOLE(name, is_ours, noted, ...)                     \
    {                                                        \
        RECORDED(int, is_ours, REAL(name)(__VA_ARGS__), outcome == 0, noted) \
        if (!reached(is_ours)) return REAL(name)(__VA_ARGS__); \
        if (mode == FAIL) { errno = error_number; return -1; } \
        if (mode == TORN) die();                             \
        int outcome = REAL(name)(__VA_ARGS__);               \
        if (mode == AFTER) die();                            \
        return outcome;                                      \
    }

/* Calls with bytes; `span` says once more where they are and where they go. */
#define ONE(at) fd, &(struct iovec){(void *)data, n}, 1, at
#define ALL(at) fd, parts, n, at
#define BYTES(name, span, ...)                               \
    {                                                        \
        RECORDED(ssize_t, ours(fd), REAL(name)(__VA_ARGS__), outcome > 0, note_bytes(outcome, span)) \
        if (!reached(ours(fd))) return REAL(name)(__VA_ARGS__); \
        if (mode == FAIL) { errno = error_number; return -1; } \
        if (mode == SHORT) return half(span);                \
        ssize_t outcome = mode == TORN ? half(span) : REAL(name)(__VA_ARGS__); \
        die();                                               \
        return outcome;                                      \
    }

/* Calls that are recorded and never counted. */
#define MADE(name, is_ours, noted, ...)                      \
    {                                                        \
        RECORDED(int, is_ours, REAL(name)(__VA_ARGS__), outcome == 0, noted) \
        return REAL(name)(__VA_ARGS__);                      \
    }

#define OPENED(name, ...)                                    \
    {                                                        \
        va_list rest;                                        \
        va_start(rest, flags);                               \
        mode_t made = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                        \
        if (flags & (O_CREAT | O_TRUNC))                     \
            RECORDED(int, ours(outcome), REAL(name)(__VA_ARGS__, flags, made), outcome >= 0, { \
                if (flags & O_CREAT) note_call('c', 0);      \
                if (flags & O_TRUNC) note_call('t', 0);      \
            })                                               \
        return REAL(name)(__VA_ARGS__, flags, made);         \
    }

ssize_t write(int fd, const void *data, size_t n) BYTES(write, ONE(-1), fd, data, n)
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) BYTES(pwrite, ONE(at), fd, data, n, at)
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) BYTES(pwrite64, ONE(at), fd, data, n, at)
ssize_t writev(int fd, const struct iovec *parts, int n) BYTES(writev, ALL(-1), fd, parts, n)
ssize_t pwritev(int fd, const struct iovec *parts, int n, off_t at) BYTES(pwritev, ALL(at), fd, parts, n, at)
ssize_t pwritev64(int fd, const struct iovec *parts, int n, off64_t at) BYTES(pwritev64, ALL(at), fd, parts, n, at)

int fsync(int fd) WHOLE(fsync, ours(fd), note_call('s', 0), fd)
int fdatasync(int fd) WHOLE(fdatasync, ours(fd), note_call('s', 0), fd)
int msync(void *at, size_t n, int flags) WHOLE(msync, dir_len != 0, (void)0, at, n, flags)
int ftruncate(int fd, off_t n) WHOLE(ftruncate, ours(fd), note_call('t', (uint64_t)n), fd, n)
int ftruncate64(int fd, off64_t n) WHOLE(ftruncate64, ours(fd), note_call('t', (uint64_t)n), fd, n)
int rename(const char *from, const char *to)
    WHOLE(rename, ours_at(AT_FDCWD, to), note_rename(AT_FDCWD, from), from, to)
int renameat(int at, const char *from, int to_at, const char *to)
    WHOLE(renameat, ours_at(to_at, to), note_rename(at, from), at, from, to_at, to)
int unlink(const char *path) WHOLE(unlink, ours_at(AT_FDCWD, path), note_call('u', 0), path)
int unlinkat(int at, const char *path, int flags) WHOLE(unlinkat, ours_at(at, path), note_call('u', 0), at, path, flags)

int rmdir(const char *path) MADE(rmdir, ours_at(AT_FDCWD, path), note_call('u', 0), path)
int mkdir(const char *path, mode_t made) MADE(mkdir, ours_at(AT_FDCWD, path), note_call('m', 0), path, made)
int mkdirat(int at, const char *path, mode_t made) MADE(mkdirat, ours_at(at, path), note_call('m', 0), at, path, made)
int open(const char *path, int flags, ...) OPENED(open, path)
int open64(const char *path, int flags, ...) OPENED(open64, path)
int openat(int at, const char *path, int flags, ...) OPENED(openat, at, path)
int openat64(int at, const char *path, int flags, ...) OPENED(openat64, at, path)
