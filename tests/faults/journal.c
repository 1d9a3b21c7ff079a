/* Writes down what a process does to the names and files of some folders, so that a power cut can be played
 * out later (tests/faults/disk_model.py). For tests.
 *
 * Preloaded behind shim.c, it sees only the calls that shim.c lets through. Each line of the journal is one
 * call that succeeded, with the numbers (inodes) of the folders and files:
 *
 *   create FOLDER NAME FILE    mkdir FOLDER NAME NEW    remove FOLDER NAME    rename FOLDER NAME TO NEW-NAME
 *   sync FILE SIZE             sync-folder FOLDER
 *
 * Every new file also gets a second name, its number, in the folder `kept`, so that its content outlives a
 * removal.
 *
 * Build: gcc -shared -fPIC -O2 -o journal.so journal.c -ldl */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int journal = -1;
static char root[PATH_MAX], kept[PATH_MAX];

/* Write down what happens below `below` in the file `to`; keep new files in the folder `keep`. */
int journal_begin(const char *below, const char *to, const char *keep) {
    snprintf(root, sizeof root, "%s", below);
    snprintf(kept, sizeof kept, "%s", keep);
    int file = syscall(SYS_openat, AT_FDCWD, to, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0) return -1;
    journal = fcntl(file, F_DUPFD_CLOEXEC, 500); /* out of the way of what the process opens and closes */
    syscall(SYS_close, file);
    return journal < 0 ? -1 : 0;
}

#define REAL(name) ((__typeof__(&name))real(&real_##name, #name))
static void *real(void **found, const char *name) {
    if (!*found) *found = dlsym(RTLD_NEXT, name);
    return *found;
}

__attribute__((format(printf, 1, 2))) static void note(const char *format, ...) {
    char line[3 * PATH_MAX];
    va_list values;
    va_start(values, format);
    int length = vsnprintf(line, sizeof line, format, values);
    va_end(values);
    if (length > 0 && length < (int)sizeof line) syscall(SYS_write, journal, line, (size_t)length);
}

/* The number of a file, seen from the folder `at`; 0 if there is none. */
static uint64_t number(int at, const char *path, int flags) {
    struct statx found;
    return statx(at, path, flags, STATX_INO, &found) ? 0 : found.stx_ino;
}

/* The number of the folder that holds `path`, and the last part of `path`. */
static uint64_t holder(int at, const char *path, char *name) {
    char folder[PATH_MAX];
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') length--;
    snprintf(folder, sizeof folder, "%.*s", (int)length, path);
    char *slash = strrchr(folder, '/');
    snprintf(name, NAME_MAX + 1, "%.255s", slash ? slash + 1 : folder);
    if (!slash) return number(at, "", AT_EMPTY_PATH) ?: number(AT_FDCWD, ".", 0);
    slash[slash == folder] = 0;
    return number(at, folder, 0);
}

static int is_below(int file) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return !strncmp(path, root, strlen(root)) && path[strlen(root)] == '/';
}

static void created(int at, const char *path, int file) {
    char name[NAME_MAX + 1], link[64], keep[PATH_MAX + 32];
    if (file < 0 || !is_below(file)) return;
    int before = errno;
    uint64_t own = number(file, "", AT_EMPTY_PATH), folder = holder(at, path, name);
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    snprintf(keep, sizeof keep, "%s/%llu", kept, (unsigned long long)own);
    syscall(SYS_linkat, AT_FDCWD, link, AT_FDCWD, keep, AT_SYMLINK_FOLLOW);
    note("create\t%llu\t%s\t%llu\n", (unsigned long long)folder, name, (unsigned long long)own);
    errno = before;
}

#define OPENS(name, first, at, ...)                                                                          \
    int name(first const char *path, int flags, ...) {                                                       \
        static void *real_##name;                                                                            \
        va_list more;                                                                                        \
        va_start(more, flags);                                                                               \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;                            \
        va_end(more);                                                                                        \
        int new = journal >= 0 && flags & O_CREAT && !number(at, path, AT_SYMLINK_NOFOLLOW);                 \
        int result = REAL(name)(__VA_ARGS__);                                                                \
        if (new) created(at, path, result);                                                                  \
        return result;                                                                                       \
    }
#define FOLDER int folder,
OPENS(open, , AT_FDCWD, path, flags, mode)
OPENS(open64, , AT_FDCWD, path, flags, mode)
OPENS(openat, FOLDER, folder, folder, path, flags, mode)
OPENS(openat64, FOLDER, folder, folder, path, flags, mode)

static void renamed(int result, int a, const char *from, int b, const char *to) {
    char old[NAME_MAX + 1], new[NAME_MAX + 1];
    if (result || journal < 0) return;
    unsigned long long source = holder(a, from, old), target = holder(b, to, new);
    note("rename\t%llu\t%s\t%llu\t%s\n", source, old, target, new);
}
int rename(const char *from, const char *to) {
    static void *real_rename;
    int result = REAL(rename)(from, to);
    renamed(result, AT_FDCWD, from, AT_FDCWD, to);
    return result;
}
int renameat(int a, const char *from, int b, const char *to) {
    static void *real_renameat;
    int result = REAL(renameat)(a, from, b, to);
    renamed(result, a, from, b, to);
    return result;
}

static void removed(int result, int at, const char *path) {
    char name[NAME_MAX + 1];
    if (result || journal < 0) return;
    note("remove\t%llu\t%s\n", (unsigned long long)holder(at, path, name), name);
}
int unlink(const char *path) {
    static void *real_unlink;
    int result = REAL(unlink)(path);
    removed(result, AT_FDCWD, path);
    return result;
}
int rmdir(const char *path) {
    static void *real_rmdir;
    int result = REAL(rmdir)(path);
    removed(result, AT_FDCWD, path);
    return result;
}
int unlinkat(int at, const char *path, int flags) {
    static void *real_unlinkat;
    int result = REAL(unlinkat)(at, path, flags);
    removed(result, at, path);
    return result;
}

static void made(int result, int at, const char *path) {
    char name[NAME_MAX + 1];
    if (result || journal < 0) return;
    unsigned long long folder = holder(at, path, name), own = number(at, path, 0);
    note("mkdir\t%llu\t%s\t%llu\n", folder, name, own);
}
int mkdir(const char *path, mode_t mode) {
    static void *real_mkdir;
    int result = REAL(mkdir)(path, mode);
    made(result, AT_FDCWD, path);
    return result;
}
int mkdirat(int at, const char *path, mode_t mode) {
    static void *real_mkdirat;
    int result = REAL(mkdirat)(at, path, mode);
    made(result, at, path);
    return result;
}

static void synced(int result, int file) {
    struct statx found;
    if (result || journal < 0 || statx(file, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &found)) return;
    unsigned long long own = found.stx_ino, size = found.stx_size;
    if (S_ISDIR(found.stx_mode))
        note("sync-folder\t%llu\n", own);
    else
        note("sync\t%llu\t%llu\n", own, size);
}
int fsync(int file) {
    static void *real_fsync;
    int result = REAL(fsync)(file);
    synced(result, file);
    return result;
}
int fdatasync(int file) {
    static void *real_fdatasync;
    int result = REAL(fdatasync)(file);
    synced(result, file);
    return result;
}
