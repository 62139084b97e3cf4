/* Calls of the system that fail for files below one folder; loaded by LD_PRELOAD.

   Calls on files below the folder are counted from the moment it is armed, those that follow the
   second of equal reads or writes of a file in a row together with it. The fault begins at one of
   them. Compiled and driven by faulty_disk.py. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NONE, EIO_ONCE, ESTALE_ONCE, FULL, DENIED, SHORT, CRASH };
enum { OPEN, CREATE, READ, WRITE, SYNC, TRUNCATE, RENAME, DELETE, MKDIR, LIST, NUM_CALLS };

static char folder[PATH_MAX];
static atomic_int fault = NONE, is_armed = 0, was_short = 0;
static atomic_long first, count;
static int last_call = -1, last_descriptor = -1, in_a_row = 0;
static atomic_long counts[NUM_CALLS];

void faulty_arm(const char *path, int kind, long at) {
    strncpy(folder, path, sizeof folder - 1);
    fault = kind;
    first = at;
    count = was_short = in_a_row = 0;
    last_call = -1;
    memset(counts, 0, sizeof counts);
    is_armed = 1;
}
void faulty_disarm(void) { is_armed = 0; }
long faulty_count(int call) { return call < 0 ? count : counts[call]; }

static int is_below(int at, const char *path) {
    char whole[2 * PATH_MAX], link[64], base[PATH_MAX];
    ssize_t length;
    if (path[0] == '/') return strncmp(path, folder, strlen(folder)) == 0;
    if (at == AT_FDCWD) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", at);
    if ((length = readlink(link, base, sizeof base - 1)) < 0) return 0;
    base[length] = 0;
    snprintf(whole, sizeof whole, "%s/%s", base, path);
    return strncmp(whole, folder, strlen(folder)) == 0;
}
static int is_file_below(int descriptor) {
    return is_armed && is_below(descriptor, "");
}

/* Counts a call; returns the error that it should give, 0 for none, -1 for half a write. */
static int fault_of(int call, int descriptor) {
    int is_moved = call == READ || call == WRITE;
    int is_equal = is_moved && call == last_call && descriptor == last_descriptor;
    in_a_row = is_equal ? in_a_row + 1 : 0;
    last_call = call, last_descriptor = descriptor;
    long number = in_a_row > 1 ? count - 1 : atomic_fetch_add(&count, 1);
    int takes_room = call == CREATE || call == WRITE || call == SYNC || call == MKDIR;
    counts[call]++;
    if (number < first) return 0;
    switch (fault) {
    case EIO_ONCE: return number == first && in_a_row < 2 ? EIO : 0;
    case ESTALE_ONCE: return number == first && in_a_row < 2 ? ESTALE : 0;
    case FULL: return takes_room ? ENOSPC : 0;
    case DENIED: return call == READ || call == WRITE || call == SYNC ? 0 : EACCES;
    case SHORT:
        if (was_short) return takes_room ? ENOSPC : 0;
        if (call != WRITE) return 0;
        was_short = 1;
        return -1;
    case CRASH: kill(getpid(), SIGKILL);
    }
    return 0;
}

#define REAL(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))
#define FAIL(below, call, result)                                                                  \
    if (is_armed && (below)) {                                                                     \
        int error = fault_of(call, -1);                                                            \
        if (error > 0) { errno = error; return result; }                                           \
    }
#define MODE                                                                                       \
    mode_t mode = 0;                                                                               \
    if (flags & O_CREAT) { va_list list; va_start(list, flags); mode = va_arg(list, int); va_end(list); }
#define OPENED(name)                                                                               \
    int name(const char *path, int flags, ...) {                                                   \
        MODE FAIL(is_below(AT_FDCWD, path), flags & O_CREAT ? CREATE : OPEN, -1)                   \
        return REAL(name)(path, flags, mode);                                                      \
    }
#define OPENED_AT(name)                                                                            \
    int name(int at, const char *path, int flags, ...) {                                           \
        MODE FAIL(is_below(at, path), flags & O_CREAT ? CREATE : OPEN, -1)                         \
        return REAL(name)(at, path, flags, mode);                                                  \
    }
OPENED(open) OPENED(open64) OPENED_AT(openat) OPENED_AT(openat64)

#define MOVED(name, call, data, extra, ...)                                                  \
    ssize_t name(int descriptor, data buffer, size_t size extra) {                                 \
        if (is_file_below(descriptor)) {                                                           \
            int error = fault_of(call, descriptor);                                                \
            if (error > 0) { errno = error; return -1; }                                           \
            if (error < 0) size = (size + 1) / 2;                                                  \
        }                                                                                          \
        return REAL(name)(descriptor, buffer, size __VA_ARGS__);                                   \
    }
#define COMMA ,
MOVED(write, WRITE, const void *, )
MOVED(pwrite, WRITE, const void *, COMMA off_t place, COMMA place)
MOVED(pwrite64, WRITE, const void *, COMMA off64_t place, COMMA place)
MOVED(read, READ, void *, )
MOVED(pread, READ, void *, COMMA off_t place, COMMA place)
MOVED(pread64, READ, void *, COMMA off64_t place, COMMA place)

int fsync(int d) { FAIL(is_file_below(d), SYNC, -1) return REAL(fsync)(d); }
int fdatasync(int d) { FAIL(is_file_below(d), SYNC, -1) return REAL(fdatasync)(d); }
int ftruncate(int d, off_t size) { FAIL(is_file_below(d), TRUNCATE, -1) return REAL(ftruncate)(d, size); }
int ftruncate64(int d, off64_t size) {
    FAIL(is_file_below(d), TRUNCATE, -1)
    return REAL(ftruncate64)(d, size);
}
int rename(const char *from, const char *to) {
    FAIL(is_below(AT_FDCWD, from), RENAME, -1)
    return REAL(rename)(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
    FAIL(is_below(a, from), RENAME, -1)
    return REAL(renameat)(a, from, b, to);
}
int unlink(const char *path) { FAIL(is_below(AT_FDCWD, path), DELETE, -1) return REAL(unlink)(path); }
int unlinkat(int at, const char *path, int flags) {
    FAIL(is_below(at, path), DELETE, -1)
    return REAL(unlinkat)(at, path, flags);
}
int rmdir(const char *path) { FAIL(is_below(AT_FDCWD, path), DELETE, -1) return REAL(rmdir)(path); }
int mkdir(const char *path, mode_t mode) {
    FAIL(is_below(AT_FDCWD, path), MKDIR, -1)
    return REAL(mkdir)(path, mode);
}
int mkdirat(int at, const char *path, mode_t mode) {
    FAIL(is_below(at, path), MKDIR, -1)
    return REAL(mkdirat)(at, path, mode);
}
DIR *opendir(const char *path) { FAIL(is_below(AT_FDCWD, path), LIST, NULL) return REAL(opendir)(path); }
DIR *fdopendir(int d) { FAIL(is_file_below(d), LIST, NULL) return REAL(fdopendir)(d); }
