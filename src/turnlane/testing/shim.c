/* Kill (or fail) a process at its n-th durable call. Preloaded; see crash.py.
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
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
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
        int fd = open(counter, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
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

static int ours(int fd) {
    char link[64], path[PATH_MAX];
    if (!dir_len || fd < 0) return 0;
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

static int ours_at(int at, const char *path) {
    if (!dir_len || !path) return 0;
    if (*path == '/') return below(path);
    char base[PATH_MAX], whole[PATH_MAX * 2], link[64];
    snprintf(link, sizeof link, at == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", at);
    ssize_t length = readlink(link, base, sizeof base - 1);
    if (length < 0) return 0;
    base[length] = 0;
    snprintf(whole, sizeof whole, "%s/%s", base, path);
    return below(whole);
}

/* 0: go on. 1: this is the call. */
static int reached(int is_ours) {
    if (!is_ours) return 0;
    uint64_t now = __atomic_add_fetch(count, 1, __ATOMIC_SEQ_CST);
    if (!nth || now < nth || (now > nth && !(sticky && mode >= FAIL))) return 0;
    if (mode == BEFORE) die();
    return 1;
}

/* Calls without bytes. */
#define WHOLE(result, name, is_ours, ...)                    \
    {                                                        \
        if (!reached(is_ours)) return REAL(name)(__VA_ARGS__); \
        if (mode == FAIL) { errno = error_number; return -1; } \
        if (mode == TORN) die();                             \
        result outcome = REAL(name)(__VA_ARGS__);            \
        if (mode == AFTER) die();                            \
        return outcome;                                      \
    }

/* Calls with bytes: `half` writes the first half of them. */
#define BYTES(name, is_ours, half, ...)                      \
    {                                                        \
        if (!reached(is_ours)) return REAL(name)(__VA_ARGS__); \
        if (mode == FAIL) { errno = error_number; return -1; } \
        if (mode == SHORT) return half;                      \
        ssize_t outcome = mode == TORN ? half : REAL(name)(__VA_ARGS__); \
        die();                                               \
        return outcome;                                      \
    }

static ssize_t half_vector(int fd, const struct iovec *parts, int n, off_t at) {
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

ssize_t write(int fd, const void *data, size_t n) BYTES(write, ours(fd), REAL(write)(fd, data, n / 2), fd, data, n)
ssize_t pwrite(int fd, const void *data, size_t n, off_t at)
    BYTES(pwrite, ours(fd), REAL(pwrite)(fd, data, n / 2, at), fd, data, n, at)
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at)
    BYTES(pwrite64, ours(fd), REAL(pwrite64)(fd, data, n / 2, at), fd, data, n, at)
ssize_t writev(int fd, const struct iovec *parts, int n)
    BYTES(writev, ours(fd), half_vector(fd, parts, n, -1), fd, parts, n)
ssize_t pwritev(int fd, const struct iovec *parts, int n, off_t at)
    BYTES(pwritev, ours(fd), half_vector(fd, parts, n, at), fd, parts, n, at)
ssize_t pwritev64(int fd, const struct iovec *parts, int n, off64_t at)
    BYTES(pwritev64, ours(fd), half_vector(fd, parts, n, at), fd, parts, n, at)
int fsync(int fd) WHOLE(int, fsync, ours(fd), fd)
int fdatasync(int fd) WHOLE(int, fdatasync, ours(fd), fd)
int msync(void *at, size_t n, int flags) WHOLE(int, msync, dir_len != 0, at, n, flags)
int ftruncate(int fd, off_t n) WHOLE(int, ftruncate, ours(fd), fd, n)
int ftruncate64(int fd, off64_t n) WHOLE(int, ftruncate64, ours(fd), fd, n)
int rename(const char *from, const char *to) WHOLE(int, rename, ours_at(AT_FDCWD, to), from, to)
int renameat(int at, const char *from, int to_at, const char *to)
    WHOLE(int, renameat, ours_at(to_at, to), at, from, to_at, to)
int unlink(const char *path) WHOLE(int, unlink, ours_at(AT_FDCWD, path), path)
int unlinkat(int at, const char *path, int flags) WHOLE(int, unlinkat, ours_at(at, path), at, path, flags)
