// SPDX-License-Identifier: MIT OR Apache-2.0
// Preloaded: counts what a process does with files below FAULT_ROOT, and fails the n-th call, or kills the process there.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_long seen, chosen;
static int how; // an errno, or -1 for SIGKILL
static char kind[16];

void fault_arm(long n, int what) { seen = 0; how = what; chosen = n; kind[0] = 0; }
long fault_seen(void) { return seen; }
const char *fault_kind(void) { return kind; }

static int fails(const char *name, const char *path) {
    const char *root = getenv("FAULT_ROOT");
    if (!chosen || !root || strncmp(path, root, strlen(root))) return 0;
    if (++seen != chosen) return 0;
    strncpy(kind, name, sizeof kind - 1);
    if (how == -1) kill(getpid(), SIGKILL);
    errno = how;
    return 1;
}

static int fails_at(const char *name, int descriptor) {
    char link[64], path[4096];
    if (!chosen) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails(name, path);
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, name)

#define OPEN(name) \
int name(const char *path, int flags, ...) { \
    REAL(int, #name, const char *, int, ...); \
    va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
    return fails("open", path) ? -1 : real(path, flags, mode); \
}
OPEN(open) OPEN(open64)

ssize_t read(int fd, void *to, size_t n) { REAL(ssize_t, "read", int, void *, size_t); return fails_at("read", fd) ? -1 : real(fd, to, n); }
ssize_t pread64(int fd, void *to, size_t n, off64_t at) {
    REAL(ssize_t, "pread64", int, void *, size_t, off64_t);
    return fails_at("read", fd) ? -1 : real(fd, to, n, at);
}
ssize_t write(int fd, const void *of, size_t n) { REAL(ssize_t, "write", int, const void *, size_t); return fails_at("write", fd) ? -1 : real(fd, of, n); }
int fsync(int fd) { REAL(int, "fsync", int); return fails_at("fsync", fd) ? -1 : real(fd); }
int ftruncate64(int fd, off64_t n) { REAL(int, "ftruncate64", int, off64_t); return fails_at("truncate", fd) ? -1 : real(fd, n); }
int rename(const char *from, const char *to) { REAL(int, "rename", const char *, const char *); return fails("rename", to) ? -1 : real(from, to); }
int unlink(const char *path) { REAL(int, "unlink", const char *); return fails("unlink", path) ? -1 : real(path); }
int symlink(const char *to, const char *path) { REAL(int, "symlink", const char *, const char *); return fails("symlink", path) ? -1 : real(to, path); }
