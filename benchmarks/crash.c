/* Counts the operations that change files below one folder, and kills the process after the n-th of them.
 *
 * Preloaded into Python by benchmarks/crash.py. The functions below take the place of those of the C library. As long
 * as nothing is armed they only pass on. Armed, operations below the folder run one at a time, so "after the n-th"
 * means the same however many threads write: what a thread has not begun by then never happens.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>
#include <utime.h>

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX];
static size_t root_length;
static volatile int armed;
static long count, last; /* operations so far; the one after which the process dies, 0: it lives */
static int torn;         /* whether it dies in the middle of the first write from the last-th operation on */
static int log_fd = -1;

/* Begin to count below `folder`; each operation is written to `log` as a line. */
void crash_arm(const char *folder, long die_after, int in_the_middle, int log) {
    strncpy(root, folder, sizeof root - 1);
    root_length = strlen(root);
    last = die_after, torn = in_the_middle, log_fd = log, count = 0, armed = 1;
}

long crash_disarm(void) {
    armed = 0;
    return count;
}

#define NEXT(name) \
    static __typeof__(&name) next; \
    if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static int below(const char *path) {
    return strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == '\0');
}

static int path_of_fd(int fd, char *path) {
    char link[64];
    if (fd == AT_FDCWD) strcpy(link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, PATH_MAX - 1);
    path[n > 0 ? n : 0] = '\0';
    return n > 0;
}

/* Take "." and ".." and double slashes out of an absolute path. */
static void straighten(char *path) {
    char *to = path;
    for (const char *from = path; *from;) {
        while (*from == '/') from++;
        size_t n = strcspn(from, "/");
        if (n == 2 && from[0] == '.' && from[1] == '.') {
            while (to > path && *--to != '/');
        } else if (n && !(n == 1 && from[0] == '.')) {
            *to++ = '/';
            memmove(to, from, n);
            to += n;
        }
        from += n;
    }
    *to = '\0';
}

/* Write the absolute path of `name`, relative to the folder `fd`, to `path`; say whether it is below the root. */
static int path_at(int fd, const char *name, char *path) {
    int error = errno;
    if (name == NULL) path[0] = '\0';
    else if (name[0] == '/') snprintf(path, PATH_MAX, "%s", name);
    else if (path_of_fd(fd, path)) {
        size_t n = strlen(path);
        snprintf(path + n, PATH_MAX - n, "/%s", name);
    }
    straighten(path);
    errno = error;
    return below(path);
}

static int fd_below(int fd, char *path) {
    int error = errno, found = path_of_fd(fd, path) && below(path);
    errno = error;
    return found;
}

static void note(const char *kind, const char *path) {
    if (log_fd < 0) return;
    char line[PATH_MAX + 64];
    const char *name = below(path) ? path + root_length : path;
    int n = snprintf(line, sizeof line, "%ld %s %s\n", count, kind, name[0] == '/' ? name + 1 : name);
    syscall(SYS_write, log_fd, line, n < (int)sizeof line ? n : (int)sizeof line - 1);
}

static void die(void) {
    for (;;) syscall(SYS_kill, (pid_t)syscall(SYS_getpid), SIGKILL);
}

/* Called with the turn taken, after an operation. */
static void counted(const char *kind, const char *path) {
    int error = errno;
    count++;
    note(kind, path);
    if (last && !torn && count >= last) die();
    errno = error;
}

static void take(void) { pthread_mutex_lock(&turn); }
static void pass(void) {
    int error = errno;
    pthread_mutex_unlock(&turn);
    errno = error;
}

/* Whether the write at hand is the one to be cut. */
static int cut(void) { return last && torn && count + 1 >= last; }

static void die_torn(const char *path) {
    count++;
    note("torn", path);
    die();
}

/* --- operations on paths ------------------------------------------------------------------------------------------ */

#define ON_PATH(kind, failed, fd, name, call) \
    do { \
        char path[PATH_MAX]; \
        if (!armed || !path_at(fd, name, path)) return call; \
        take(); \
        __typeof__(call) result = call; \
        if (result != failed) counted(kind, path); \
        pass(); \
        return result; \
    } while (0)

#define CHANGES(flags) ((flags) & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR))
#define MODE(flags) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { \
        va_list more; \
        va_start(more, flags); \
        mode = va_arg(more, mode_t); \
        va_end(more); \
    }

#define OPEN(name) \
    int name(const char *file, int flags, ...) { \
        MODE(flags) \
        NEXT(name); \
        if (!CHANGES(flags)) return next(file, flags, mode); \
        ON_PATH("open", -1, AT_FDCWD, file, next(file, flags, mode)); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int fd, const char *file, int flags, ...) { \
        MODE(flags) \
        NEXT(name); \
        if (!CHANGES(flags)) return next(fd, file, flags, mode); \
        ON_PATH("open", -1, fd, file, next(fd, file, flags, mode)); \
    }
OPENAT(openat)
OPENAT(openat64)

/* What programs call that were compiled with _FORTIFY_SOURCE */
#define OPEN_2(name) \
    int name(const char *file, int flags) { \
        NEXT(name); \
        if (!CHANGES(flags)) return next(file, flags); \
        ON_PATH("open", -1, AT_FDCWD, file, next(file, flags)); \
    }
int __open_2(const char *, int);
int __open64_2(const char *, int);
OPEN_2(__open_2)
OPEN_2(__open64_2)

#define OPENAT_2(name) \
    int name(int fd, const char *file, int flags) { \
        NEXT(name); \
        if (!CHANGES(flags)) return next(fd, file, flags); \
        ON_PATH("open", -1, fd, file, next(fd, file, flags)); \
    }
int __openat_2(int, const char *, int);
int __openat64_2(int, const char *, int);
OPENAT_2(__openat_2)
OPENAT_2(__openat64_2)

#define CREAT(name) \
    int name(const char *file, mode_t mode) { \
        NEXT(name); \
        ON_PATH("open", -1, AT_FDCWD, file, next(file, mode)); \
    }
CREAT(creat)
CREAT(creat64)

#define FOPEN(name) \
    FILE *name(const char *file, const char *how) { \
        NEXT(name); \
        if (!strpbrk(how, "wa+")) return next(file, how); \
        ON_PATH("open", NULL, AT_FDCWD, file, next(file, how)); \
    }
FOPEN(fopen)
FOPEN(fopen64)

int unlink(const char *file) { NEXT(unlink); ON_PATH("unlink", -1, AT_FDCWD, file, next(file)); }
int remove(const char *file) { NEXT(remove); ON_PATH("unlink", -1, AT_FDCWD, file, next(file)); }
int rmdir(const char *file) { NEXT(rmdir); ON_PATH("rmdir", -1, AT_FDCWD, file, next(file)); }
int unlinkat(int fd, const char *file, int flags) {
    NEXT(unlinkat);
    ON_PATH(flags & AT_REMOVEDIR ? "rmdir" : "unlink", -1, fd, file, next(fd, file, flags));
}
int mkdir(const char *file, mode_t mode) { NEXT(mkdir); ON_PATH("mkdir", -1, AT_FDCWD, file, next(file, mode)); }
int mkdirat(int fd, const char *file, mode_t mode) { NEXT(mkdirat); ON_PATH("mkdir", -1, fd, file, next(fd, file, mode)); }
int rename(const char *from, const char *to) { NEXT(rename); ON_PATH("rename", -1, AT_FDCWD, to, next(from, to)); }
int renameat(int from_fd, const char *from, int fd, const char *to) {
    NEXT(renameat);
    ON_PATH("rename", -1, fd, to, next(from_fd, from, fd, to));
}
int renameat2(int from_fd, const char *from, int fd, const char *to, unsigned flags) {
    NEXT(renameat2);
    ON_PATH("rename", -1, fd, to, next(from_fd, from, fd, to, flags));
}
int link(const char *from, const char *to) { NEXT(link); ON_PATH("link", -1, AT_FDCWD, to, next(from, to)); }
int linkat(int from_fd, const char *from, int fd, const char *to, int flags) {
    NEXT(linkat);
    ON_PATH("link", -1, fd, to, next(from_fd, from, fd, to, flags));
}
int symlink(const char *from, const char *to) { NEXT(symlink); ON_PATH("link", -1, AT_FDCWD, to, next(from, to)); }
int symlinkat(const char *from, int fd, const char *to) { NEXT(symlinkat); ON_PATH("link", -1, fd, to, next(from, fd, to)); }
int truncate(const char *file, off_t n) { NEXT(truncate); ON_PATH("truncate", -1, AT_FDCWD, file, next(file, n)); }
int truncate64(const char *file, off64_t n) { NEXT(truncate64); ON_PATH("truncate", -1, AT_FDCWD, file, next(file, n)); }
int chmod(const char *file, mode_t mode) { NEXT(chmod); ON_PATH("chmod", -1, AT_FDCWD, file, next(file, mode)); }
int fchmodat(int fd, const char *file, mode_t mode, int flags) {
    NEXT(fchmodat);
    ON_PATH("chmod", -1, fd, file, next(fd, file, mode, flags));
}
int utime(const char *file, const struct utimbuf *t) { NEXT(utime); ON_PATH("utime", -1, AT_FDCWD, file, next(file, t)); }
int utimes(const char *file, const struct timeval t[2]) { NEXT(utimes); ON_PATH("utime", -1, AT_FDCWD, file, next(file, t)); }
int lutimes(const char *file, const struct timeval t[2]) { NEXT(lutimes); ON_PATH("utime", -1, AT_FDCWD, file, next(file, t)); }
int utimensat(int fd, const char *file, const struct timespec t[2], int flags) {
    NEXT(utimensat);
    ON_PATH("utime", -1, fd, file, next(fd, file, t, flags));
}

/* --- operations on open files ------------------------------------------------------------------------------------- */

#define ON_FD(kind, fd, call) \
    do { \
        char path[PATH_MAX]; \
        if (!armed || !fd_below(fd, path)) return call; \
        take(); \
        __typeof__(call) result = call; \
        if (result != -1) counted(kind, path); \
        pass(); \
        return result; \
    } while (0)

/* `half` writes half of the bytes. */
#define WRITE(fd, call, half) \
    do { \
        char path[PATH_MAX]; \
        if (!armed || !fd_below(fd, path)) return call; \
        take(); \
        if (cut()) { \
            (void)!(half); \
            die_torn(path); \
        } \
        __typeof__(call) result = call; \
        if (result != -1) counted("write", path); \
        pass(); \
        return result; \
    } while (0)

ssize_t write(int fd, const void *data, size_t n) { NEXT(write); WRITE(fd, next(fd, data, n), next(fd, data, n / 2)); }
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
    NEXT(pwrite);
    WRITE(fd, next(fd, data, n, at), next(fd, data, n / 2, at));
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
    NEXT(pwrite64);
    WRITE(fd, next(fd, data, n, at), next(fd, data, n / 2, at));
}
/* Of several pieces: the first half of them, or half of the only one */
static ssize_t half_of(int fd, const struct iovec *pieces, int n) {
    return n > 1 ? syscall(SYS_writev, fd, pieces, n / 2) : syscall(SYS_write, fd, pieces->iov_base, pieces->iov_len / 2);
}
ssize_t writev(int fd, const struct iovec *pieces, int n) {
    NEXT(writev);
    WRITE(fd, next(fd, pieces, n), half_of(fd, pieces, n));
}
ssize_t pwritev(int fd, const struct iovec *pieces, int n, off_t at) {
    NEXT(pwritev);
    WRITE(fd, next(fd, pieces, n, at), next(fd, pieces, (n + 1) / 2, at));
}
ssize_t pwritev64(int fd, const struct iovec *pieces, int n, off64_t at) {
    NEXT(pwritev64);
    WRITE(fd, next(fd, pieces, n, at), next(fd, pieces, (n + 1) / 2, at));
}
ssize_t sendfile(int to, int from, off_t *at, size_t n) {
    NEXT(sendfile);
    WRITE(to, next(to, from, at, n), next(to, from, at, n / 2));
}
ssize_t sendfile64(int to, int from, off64_t *at, size_t n) {
    NEXT(sendfile64);
    WRITE(to, next(to, from, at, n), next(to, from, at, n / 2));
}
ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *at, size_t n, unsigned flags) {
    NEXT(copy_file_range);
    WRITE(to, next(from, from_at, to, at, n, flags), next(from, from_at, to, at, n / 2, flags));
}
int ftruncate(int fd, off_t n) { NEXT(ftruncate); ON_FD("truncate", fd, next(fd, n)); }
int ftruncate64(int fd, off64_t n) { NEXT(ftruncate64); ON_FD("truncate", fd, next(fd, n)); }
int fallocate(int fd, int mode, off_t at, off_t n) { NEXT(fallocate); ON_FD("truncate", fd, next(fd, mode, at, n)); }
int fchmod(int fd, mode_t mode) { NEXT(fchmod); ON_FD("chmod", fd, next(fd, mode)); }
int futimes(int fd, const struct timeval t[2]) { NEXT(futimes); ON_FD("utime", fd, next(fd, t)); }
int futimens(int fd, const struct timespec t[2]) { NEXT(futimens); ON_FD("utime", fd, next(fd, t)); }

/* --- streams: the C library writes them from inside, so each call is brought to the file at once ------------------ */

size_t fwrite(const void *data, size_t size, size_t n, FILE *file) {
    NEXT(fwrite);
    char path[PATH_MAX];
    if (!armed || !fd_below(fileno(file), path)) return next(data, size, n, file);
    take();
    if (cut()) {
        fflush(file);
        (void)!syscall(SYS_write, fileno(file), data, size * n / 2);
        die_torn(path);
    }
    size_t result = next(data, size, n, file);
    fflush(file);
    counted("write", path);
    pass();
    return result;
}
int fclose(FILE *file) {
    NEXT(fclose);
    char path[PATH_MAX];
    if (!armed || !__fpending(file) || !fd_below(fileno(file), path)) return next(file);
    take();
    int result = next(file);
    counted("write", path);
    pass();
    return result;
}
