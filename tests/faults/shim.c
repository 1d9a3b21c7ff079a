/* Makes chosen calls of the C library fail, be cut short, or kill the process. For tests.
 *
 * Preloaded into a process (LD_PRELOAD), it counts the calls that work on files below the watched folders,
 * the allocations of thumbnet's kernels, and what Python announces with shim_call. Nothing happens until
 * shim_attach is given a `struct control` with `armed` set. That struct lies in memory shared with the
 * process that set it, so that the counts survive a SIGKILL, and workers count together with the process that
 * forked them. tests/faults/fork_server.py has the same struct in Python; keep both alike (shim_size tells
 * whether they are).
 *
 * It cannot reach: pages read through mmap (only the call of mmap itself), what libc calls within itself (the
 * reads behind fread, the open behind opendir, dlopen), raw system calls, and io_uring.
 *
 * Build: gcc -shared -fPIC -O2 -o shim.so shim.c -ldl */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* clang-format off */
enum operation { OPEN, READ, WRITE, FSYNC, RENAME, MKDIR, UNLINK, TRUNCATE, LINK, CHMOD, CLOSE, LIST, COPY, LOCK, MAP,
                 STAT, ALLOCATE, DECODE, COLLECTIVE, OPERATIONS };
/* FAIL: return an error, and do nothing. SHORT: read or write only half. END: a read finds the end of the file.
 * KILL_BEFORE, KILL_HALF, KILL_AFTER: SIGKILL before the call, after half of its bytes, after it. SIGNAL: send this
 * process the signal `error`, then go on. DELAY: wait `error` milliseconds, then go on. */
enum kind { FAIL, SHORT, END, KILL_BEFORE, KILL_HALF, KILL_AFTER, SIGNAL, DELAY };
/* clang-format on */
enum { FAULTS = 16, FOLDERS = 8, LOGGED = 16384, PATH = 256 };

struct fault {
    uint32_t operations; /* bit (1 << operation) for each that it counts */
    int32_t kind, error; /* error: an errno for FAIL */
    int32_t lasting;     /* whether all further calls that it counts fail, too */
    int64_t at;          /* the call that fails, counted from 1 */
    char contains[PATH]; /* counts only paths that contain this text */
    int64_t count;       /* calls counted so far */
    int64_t fired;       /* how often it failed */
    int32_t operation;   /* what failed first, and where */
    char path[PATH];
};

struct entry {
    int32_t operation;
    char path[PATH];
};

struct control {
    int64_t armed, faults, folders;
    char folder[FOLDERS][PATH];
    struct fault fault[FAULTS];
    int64_t counts[OPERATIONS]; /* of all calls below the folders */
    int64_t logged;             /* all calls, in order; those after the first LOGGED are only counted */
    struct entry log[LOGGED];
};

static struct control *control;
static __thread int inside; /* this thread is in the shim: let its own calls pass */

void shim_attach(struct control *shared) { control = shared; }
size_t shim_size(void) { return sizeof(struct control); }

#define REAL(name) ((__typeof__(&name))real(&real_##name, #name))
static void *real(void **kept, const char *name) {
    if (!*kept) *kept = dlsym(RTLD_NEXT, name);
    return *kept;
}

static int is_watched(const char *path) {
    for (int i = 0; i < control->folders; i++) {
        size_t length = strlen(control->folder[i]);
        if (!strncmp(path, control->folder[i], length) && (path[length] == '/' || !path[length])) return 1;
    }
    return 0;
}

/* The path behind a descriptor; 0 if it has none. `path` holds PATH_MAX bytes. */
static int path_of(int descriptor, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return 1;
}

/* An absolute path for `name`, seen from the folder `at`. Links to folders in it are resolved only below
 * /proc. */
static int absolute(int at, const char *name, char *path) {
    char folder[PATH_MAX];
    int descriptor, end = 0;
    if (sscanf(name, "/proc/self/fd/%d%n", &descriptor, &end) == 1 && name[end] == '/')
        return absolute(descriptor, name + end + 1, path);
    if (*name == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return 1;
    }
    if (at == AT_FDCWD ? !getcwd(folder, sizeof folder) : !path_of(at, folder)) return 0;
    return snprintf(path, PATH_MAX, "%s/%s", folder, name) < PATH_MAX;
}

/* What to do at this call: NULL for nothing special. Counts it. */
static struct fault *met(enum operation operation, const char *path) {
    struct fault *found = NULL;
    __atomic_add_fetch(&control->counts[operation], 1, __ATOMIC_SEQ_CST);
    int64_t line = __atomic_fetch_add(&control->logged, 1, __ATOMIC_SEQ_CST);
    if (line < LOGGED) {
        control->log[line].operation = operation;
        snprintf(control->log[line].path, PATH, "%s", path);
    }
    for (int i = 0; i < control->faults; i++) {
        struct fault *fault = &control->fault[i];
        if (!(fault->operations >> operation & 1) || !strstr(path, fault->contains)) continue;
        int64_t count = __atomic_add_fetch(&fault->count, 1, __ATOMIC_SEQ_CST);
        if (count != fault->at && !(fault->lasting && count > fault->at)) continue;
        if (__atomic_fetch_add(&fault->fired, 1, __ATOMIC_SEQ_CST) == 0) {
            fault->operation = operation;
            snprintf(fault->path, PATH, "%s", path);
        }
        if (!found) found = fault;
    }
    if (found && found->kind == KILL_BEFORE) kill(getpid(), SIGKILL);
    if (found && found->kind == SIGNAL) kill(getpid(), found->error);
    if (found && found->kind == DELAY) usleep(1000 * found->error);
    return found;
}

static int is_active(void) { return control && control->armed && !inside; }

static struct fault *met_path(enum operation operation, int at, const char *name) {
    char path[PATH_MAX];
    struct fault *fault = NULL;
    if (!is_active()) return NULL;
    inside = 1;
    int before = errno;
    if (name && absolute(at, name, path) && is_watched(path)) fault = met(operation, path);
    errno = before;
    inside = 0;
    return fault;
}

static struct fault *met_descriptor(enum operation operation, int descriptor) {
    char path[PATH_MAX];
    struct fault *fault = NULL;
    if (!is_active()) return NULL;
    inside = 1;
    int before = errno;
    if (path_of(descriptor, path) && is_watched(path)) fault = met(operation, path);
    errno = before;
    inside = 0;
    return fault;
}

/* The end of a call that went well and is not one of bytes. */
static void after(const struct fault *fault) {
    if (fault && (fault->kind == KILL_AFTER || fault->kind == KILL_HALF)) kill(getpid(), SIGKILL);
}

static int fails(const struct fault *fault) {
    if (!fault || fault->kind != FAIL) return 0;
    errno = fault->error;
    return 1;
}

/* The number of bytes that a call of `size` bytes is given. */
static size_t allowed(const struct fault *fault, size_t size) {
    return fault && (fault->kind == SHORT || fault->kind == KILL_HALF) && size > 1 ? size / 2 : size;
}

/* A call without bytes: `type name parameters` counts as `operation` at the place that `where` finds, and
 * returns `failed` if it fails. */
#define CALL(operation, where, type, failed, name, parameters, arguments)                                    \
    type name parameters {                                                                                   \
        static void *real_##name;                                                                            \
        struct fault *fault = where;                                                                         \
        if (fails(fault)) return failed;                                                                     \
        type result = REAL(name) arguments;                                                                  \
        after(fault);                                                                                        \
        return result;                                                                                       \
    }
#define BY_PATH(operation, at, path, type, failed, name, parameters, arguments)                              \
    CALL(operation, met_path(operation, at, path), type, failed, name, parameters, arguments)
#define BY_DESCRIPTOR(operation, descriptor, type, failed, name, parameters, arguments)                      \
    CALL(operation, met_descriptor(operation, descriptor), type, failed, name, parameters, arguments)

#define OPENS(name, first, at, ...)                                                                          \
    int name(first const char *path, int flags, ...) {                                                       \
        static void *real_##name;                                                                            \
        va_list more;                                                                                        \
        va_start(more, flags);                                                                               \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;                            \
        va_end(more);                                                                                        \
        struct fault *fault = met_path(OPEN, at, path);                                                      \
        if (fails(fault)) return -1;                                                                         \
        int result = REAL(name)(__VA_ARGS__);                                                                \
        after(fault);                                                                                        \
        return result;                                                                                       \
    }
#define FOLDER int folder,
OPENS(open, , AT_FDCWD, path, flags, mode)
OPENS(open64, , AT_FDCWD, path, flags, mode)
OPENS(openat, FOLDER, folder, folder, path, flags, mode)
OPENS(openat64, FOLDER, folder, folder, path, flags, mode)
BY_PATH(OPEN, AT_FDCWD, path, FILE *, NULL, fopen, (const char *path, const char *mode), (path, mode))
BY_PATH(OPEN, AT_FDCWD, path, FILE *, NULL, fopen64, (const char *path, const char *mode), (path, mode))

int close(int descriptor) {
    static void *real_close;
    struct fault *fault = met_descriptor(CLOSE, descriptor);
    int result =
        REAL(close)(descriptor); /* on Linux, the descriptor is closed even if close reports an error */
    after(fault);
    return fails(fault) ? -1 : result;
}

/* A call of bytes. `size` is the number of bytes that it may have, and is read by `arguments`. */
#define BYTES(operation, descriptor, name, parameters, arguments)                                            \
    ssize_t name parameters {                                                                                \
        static void *real_##name;                                                                            \
        struct fault *fault = met_descriptor(operation, descriptor);                                         \
        if (fails(fault)) return -1;                                                                         \
        if (fault && fault->kind == END && operation == READ) return 0;                                      \
        size = allowed(fault, size);                                                                         \
        ssize_t result = REAL(name) arguments;                                                               \
        after(fault);                                                                                        \
        return result;                                                                                       \
    }
BYTES(READ, file, read, (int file, void *to, size_t size), (file, to, size))
BYTES(READ, file, pread, (int file, void *to, size_t size, off_t offset), (file, to, size, offset))
BYTES(READ, file, pread64, (int file, void *to, size_t size, off64_t offset), (file, to, size, offset))
BYTES(WRITE, file, write, (int file, const void *from, size_t size), (file, from, size))
BYTES(WRITE, file, pwrite, (int file, const void *from, size_t size, off_t offset),
      (file, from, size, offset))
BYTES(WRITE, file, pwrite64, (int file, const void *from, size_t size, off64_t offset),
      (file, from, size, offset))

/* Half of the bytes of several buffers: those of the first. */
#define VECTORS(operation, name, parameters, arguments)                                                      \
    ssize_t name parameters {                                                                                \
        static void *real_##name;                                                                            \
        struct fault *fault = met_descriptor(operation, file);                                               \
        if (fails(fault)) return -1;                                                                         \
        if (fault && fault->kind == END && operation == READ) return 0;                                      \
        struct iovec first = count > 0 ? parts[0] : (struct iovec){0};                                       \
        if (count > 0 && allowed(fault, 2) == 1) {                                                           \
            first.iov_len = allowed(fault, first.iov_len);                                                   \
            parts = &first;                                                                                  \
            count = 1;                                                                                       \
        }                                                                                                    \
        ssize_t result = REAL(name) arguments;                                                               \
        after(fault);                                                                                        \
        return result;                                                                                       \
    }
VECTORS(READ, readv, (int file, const struct iovec *parts, int count), (file, parts, count))
VECTORS(WRITE, writev, (int file, const struct iovec *parts, int count), (file, parts, count))

/* Of these, what libc itself does with the buffer behind them passes unseen. */
size_t fread(void *to, size_t unit, size_t units, FILE *file) {
    static void *real_fread;
    struct fault *fault = met_descriptor(READ, fileno(file));
    if (fails(fault) || (fault && fault->kind == END)) return 0;
    size_t result = REAL(fread)(to, unit, allowed(fault, units), file);
    after(fault);
    return result;
}
size_t fwrite(const void *from, size_t unit, size_t units, FILE *file) {
    static void *real_fwrite;
    struct fault *fault = met_descriptor(WRITE, fileno(file));
    if (fails(fault)) return 0;
    size_t result = REAL(fwrite)(from, unit, allowed(fault, units), file);
    if (fault && fault->kind >= KILL_BEFORE && fault->kind <= KILL_AFTER) fflush(file);
    after(fault);
    return result;
}

ssize_t sendfile64(int out, int in, off64_t *offset, size_t size);
ssize_t sendfile(int out, int in, off_t *offset, size_t size);
#define SENDS(name, offset_t)                                                                                \
    ssize_t name(int out, int in, offset_t *offset, size_t size) {                                           \
        static void *real_##name;                                                                            \
        struct fault *fault = met_descriptor(COPY, out);                                                     \
        if (fails(fault)) return -1;                                                                         \
        ssize_t result = REAL(name)(out, in, offset, allowed(fault, size));                                  \
        after(fault);                                                                                        \
        return result;                                                                                       \
    }
SENDS(sendfile, off_t)
SENDS(sendfile64, off64_t)
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
    static void *real_copy_file_range;
    struct fault *fault = met_descriptor(COPY, out);
    if (fails(fault)) return -1;
    ssize_t result = REAL(copy_file_range)(in, from, out, to, allowed(fault, size), flags);
    after(fault);
    return result;
}

BY_DESCRIPTOR(FSYNC, file, int, -1, fsync, (int file), (file))
BY_DESCRIPTOR(FSYNC, file, int, -1, fdatasync, (int file), (file))
/* clang-format off */
BY_PATH(RENAME, AT_FDCWD, to, int, -1, rename, (const char *from, const char *to), (from, to))
BY_PATH(RENAME, b, to, int, -1, renameat, (int a, const char *from, int b, const char *to), (a, from, b, to))
BY_PATH(RENAME, b, to, int, -1, renameat2, (int a, const char *from, int b, const char *to, unsigned flags),
        (a, from, b, to, flags))
BY_PATH(MKDIR, AT_FDCWD, path, int, -1, mkdir, (const char *path, mode_t mode), (path, mode))
BY_PATH(MKDIR, at, path, int, -1, mkdirat, (int at, const char *path, mode_t mode), (at, path, mode))
BY_PATH(UNLINK, AT_FDCWD, path, int, -1, unlink, (const char *path), (path))
BY_PATH(UNLINK, at, path, int, -1, unlinkat, (int at, const char *path, int flags), (at, path, flags))
BY_PATH(UNLINK, AT_FDCWD, path, int, -1, remove, (const char *path), (path))
BY_PATH(UNLINK, AT_FDCWD, path, int, -1, rmdir, (const char *path), (path))
BY_PATH(TRUNCATE, AT_FDCWD, path, int, -1, truncate, (const char *path, off_t size), (path, size))
BY_PATH(TRUNCATE, AT_FDCWD, path, int, -1, truncate64, (const char *path, off64_t size), (path, size))
BY_DESCRIPTOR(TRUNCATE, file, int, -1, ftruncate, (int file, off_t size), (file, size))
BY_DESCRIPTOR(TRUNCATE, file, int, -1, ftruncate64, (int file, off64_t size), (file, size))
BY_DESCRIPTOR(TRUNCATE, file, int, errno, posix_fallocate, (int file, off_t a, off_t size), (file, a, size))
BY_DESCRIPTOR(TRUNCATE, file, int, errno, posix_fallocate64, (int file, off64_t a, off64_t size), (file, a, size))
BY_PATH(LINK, AT_FDCWD, to, int, -1, link, (const char *from, const char *to), (from, to))
BY_PATH(LINK, b, to, int, -1, linkat, (int a, const char *from, int b, const char *to, int flags),
        (a, from, b, to, flags))
BY_PATH(LINK, AT_FDCWD, to, int, -1, symlink, (const char *from, const char *to), (from, to))
BY_PATH(LINK, at, to, int, -1, symlinkat, (const char *from, int at, const char *to), (from, at, to))
BY_PATH(CHMOD, AT_FDCWD, path, int, -1, chmod, (const char *path, mode_t mode), (path, mode))
BY_PATH(CHMOD, at, path, int, -1, fchmodat, (int at, const char *path, mode_t mode, int flags),
        (at, path, mode, flags))
BY_DESCRIPTOR(CHMOD, file, int, -1, fchmod, (int file, mode_t mode), (file, mode))
BY_PATH(LIST, AT_FDCWD, path, DIR *, NULL, opendir, (const char *path), (path))
BY_DESCRIPTOR(LIST, file, DIR *, NULL, fdopendir, (int file), (file))
BY_DESCRIPTOR(LIST, dirfd(folder), struct dirent *, NULL, readdir, (DIR *folder), (folder))
BY_DESCRIPTOR(LIST, dirfd(folder), struct dirent64 *, NULL, readdir64, (DIR *folder), (folder))
BY_DESCRIPTOR(LOCK, file, int, -1, flock, (int file, int how), (file, how))
BY_DESCRIPTOR(MAP, file, void *, MAP_FAILED, mmap, (void *at, size_t size, int may, int flags, int file, off_t offset),
              (at, size, may, flags, file, offset))
BY_DESCRIPTOR(MAP, file, void *, MAP_FAILED, mmap64,
              (void *at, size_t size, int may, int flags, int file, off64_t offset),
              (at, size, may, flags, file, offset))
BY_PATH(STAT, AT_FDCWD, path, int, -1, stat, (const char *path, struct stat *to), (path, to))
BY_PATH(STAT, AT_FDCWD, path, int, -1, stat64, (const char *path, struct stat64 *to), (path, to))
BY_PATH(STAT, AT_FDCWD, path, int, -1, lstat, (const char *path, struct stat *to), (path, to))
BY_PATH(STAT, AT_FDCWD, path, int, -1, lstat64, (const char *path, struct stat64 *to), (path, to))
BY_PATH(STAT, at, path, int, -1, fstatat, (int at, const char *path, struct stat *to, int flags),
        (at, path, to, flags))
BY_PATH(STAT, at, path, int, -1, fstatat64, (int at, const char *path, struct stat64 *to, int flags),
        (at, path, to, flags))
BY_DESCRIPTOR(STAT, file, int, -1, fstat, (int file, struct stat *to), (file, to))
BY_DESCRIPTOR(STAT, file, int, -1, fstat64, (int file, struct stat64 *to), (file, to))
BY_PATH(STAT, AT_FDCWD, path, int, -1, access, (const char *path, int how), (path, how))
/* clang-format on */

/* Allocations count if the kernels' library makes them; their "path" is the name of the kernel. */
void *aligned_alloc(size_t alignment, size_t size) {
    static void *real_aligned_alloc;
    struct fault *fault = NULL;
    if (is_active()) {
        Dl_info caller;
        inside = 1;
        if (dladdr(__builtin_return_address(0), &caller) && strstr(caller.dli_fname, "/kernels-"))
            fault = met(ALLOCATE, caller.dli_sname ? caller.dli_sname : "a kernel");
        inside = 0;
    }
    if (fault && fault->kind == FAIL) return NULL;
    void *result = REAL(aligned_alloc)(alignment, size);
    after(fault);
    return result;
}

/* For what is no call of the C library: counts `operation`, and kills the process or returns an errno if it
 * is to fail. With `done`, it is the end of an operation that went well. */
static __thread struct fault *announced;
int shim_call(int operation, const char *path, int done) {
    if (done) {
        after(announced);
        return 0;
    }
    announced = NULL;
    if (!is_active()) return 0;
    inside = 1;
    announced = met(operation, path);
    inside = 0;
    return announced && announced->kind == FAIL ? announced->error : 0;
}
