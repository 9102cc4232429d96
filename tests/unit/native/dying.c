/* Preloaded, kills the process at its n-th call into the file system, just
   before or just after the kernel has done it. `arm` sets n, and `taken` says
   how many calls there were since. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>

static atomic_long steps;
static long last_step = -1;
static int dies_after;

void arm(long step, int after) {
  atomic_store(&steps, 0);
  last_step = step;
  dies_after = after;
}

long taken(void) { return atomic_load(&steps); }

static int begin(void) {
  const int is_last =
      last_step >= 0 && atomic_fetch_add(&steps, 1) + 1 == last_step;
  if (is_last && !dies_after)
    kill(getpid(), SIGKILL);
  return is_last;
}

static void end(int is_last) {
  if (is_last)
    kill(getpid(), SIGKILL);
}

#define STEP(type, name, declared, given)                                      \
  type name declared {                                                         \
    static type(*real) declared;                                               \
    if (!real)                                                                 \
      real = (type(*) declared)dlsym(RTLD_NEXT, #name);                        \
    const int is_last = begin();                                               \
    const type result = real given;                                            \
    end(is_last);                                                              \
    return result;                                                             \
  }

STEP(int, mkdir, (const char *path, mode_t mode), (path, mode))
STEP(int, rename, (const char *from, const char *to), (from, to))
STEP(int, renameat2,
     (int a, const char *from, int b, const char *to, unsigned flags),
     (a, from, b, to, flags))
STEP(int, fsync, (int fd), (fd))
STEP(int, ftruncate64, (int fd, off_t size), (fd, size))
STEP(int, fallocate64, (int fd, int mode, off_t offset, off_t size),
     (fd, mode, offset, size))
STEP(ssize_t, pwrite64, (int fd, const void *bytes, size_t size, off_t offset),
     (fd, bytes, size, offset))
STEP(ssize_t, write, (int fd, const void *bytes, size_t size),
     (fd, bytes, size))
STEP(int, unlink, (const char *path), (path))
STEP(int, unlinkat, (int folder, const char *path, int flags),
     (folder, path, flags))
STEP(int, rmdir, (const char *path), (path))
STEP(int, flock, (int fd, int operation), (fd, operation))

int open64(const char *path, int flags, ...) {
  static int (*real)(const char *, int, ...);
  if (!real)
    real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64");
  mode_t mode = 0;
  if (flags & O_CREAT) {
    va_list more;
    va_start(more, flags);
    mode = va_arg(more, mode_t);
    va_end(more);
  }
  const int is_last = (flags & O_CREAT) ? begin() : 0;
  const int fd = real(path, flags, mode);
  end(is_last);
  return fd;
}
