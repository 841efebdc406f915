// Preloaded into a process: notes all that it does to the files of one folder, in order, and makes its disk full when told to.
//
// A record of the log: operation, lengths of two paths, offset, length of data (1 + 4 + 4 + 8 + 8 bytes), paths, data.
//   c create   t truncate (offset is the size)   w write   s sync   r rename   u unlink   m mkdir
// The offset of c, s and r is the file's inode, since a library that makes system calls by itself may have renamed it unseen.
// Memory maps are not seen; SQLite uses one for its shared-memory file, which no recovery reads.

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
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

namespace {

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
char folder[PATH_MAX] = "";
int log_fd = -1;
int64_t left = -1;  // bytes that the disk still takes; -1 for any number

template <class F>
F next(const char* name) {
  return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

struct Guard {
  Guard() { pthread_mutex_lock(&lock); }
  ~Guard() { pthread_mutex_unlock(&lock); }
};

bool ours(const char* path) {
  size_t n = strlen(folder);
  return n && strncmp(path, folder, n) == 0 && path[n] == '/' && !strstr(path, "-shm");
}

bool path_of(int fd, char* out) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, out, PATH_MAX - 1);
  if (n <= 0) return false;
  out[n] = 0;
  return ours(out) || strcmp(out, folder) == 0;
}

bool absolute(const char* path, char* out) {
  if (path[0] == '/') {
    snprintf(out, PATH_MAX, "%s", path);
  } else {
    char here[PATH_MAX];
    if (!getcwd(here, sizeof here)) return false;
    snprintf(out, PATH_MAX, "%.*s/%s", PATH_MAX / 2, here, path);
  }
  return ours(out);
}

void note(char op, const char* path, const char* path2, int64_t offset, const void* data, int64_t size) {
  if (log_fd < 0) return;
  char head[25];
  uint32_t a = strlen(path), b = path2 ? strlen(path2) : 0;
  head[0] = op;
  memcpy(head + 1, &a, 4);
  memcpy(head + 5, &b, 4);
  memcpy(head + 9, &offset, 8);
  memcpy(head + 17, &size, 8);
  iovec parts[4] = {{head, sizeof head},
                    {const_cast<char*>(path), a},
                    {const_cast<char*>(path2 ? path2 : ""), b},
                    {const_cast<void*>(data), size_t(size)}};
  if (syscall(SYS_writev, log_fd, parts, 4) < 0) abort();
}

int64_t inode(const char* path) {
  struct stat there;
  return stat(path, &there) == 0 ? int64_t(there.st_ino) : 0;
}

// How much of a write the disk takes; -1 with ENOSPC when it takes nothing.
int64_t room(int64_t n) {
  if (left < 0) return n;
  if (n > 0 && left == 0) {
    errno = ENOSPC;
    return -1;
  }
  if (n > left) n = left;
  left -= n;
  return n;
}

int opened(const char* name, int at, const char* path, int flags, mode_t mode) {
  auto real = next<int (*)(int, const char*, int, ...)>("openat64");
  char full[PATH_MAX];
  if (!(flags & (O_CREAT | O_TRUNC)) || (at != AT_FDCWD && path[0] != '/') || !absolute(path, full))
    return real(at, path, flags, mode);
  Guard guard;
  struct stat there;
  bool is_new = stat(full, &there) != 0;
  int fd = real(at, path, flags, mode);
  if (fd >= 0 && is_new) note('c', full, nullptr, inode(full), nullptr, 0);
  if (fd >= 0 && !is_new && (flags & O_TRUNC)) note('t', full, nullptr, 0, nullptr, 0);
  (void)name;
  return fd;
}

int truncated(int fd, int64_t size) {
  auto real = next<int (*)(int, int64_t)>("ftruncate64");
  char path[PATH_MAX];
  if (!path_of(fd, path)) return real(fd, size);
  Guard guard;
  int done = real(fd, size);
  if (done == 0) note('t', path, nullptr, size, nullptr, 0);
  return done;
}

ssize_t written_at(int fd, const void* data, size_t n, int64_t offset) {
  auto real = next<ssize_t (*)(int, const void*, size_t, int64_t)>("pwrite64");
  char path[PATH_MAX];
  if (!path_of(fd, path)) return real(fd, data, n, offset);
  Guard guard;
  int64_t some = room(int64_t(n));
  if (some < 0) return -1;
  ssize_t done = real(fd, data, size_t(some), offset);
  if (done > 0) note('w', path, nullptr, offset, data, done);
  return done;
}

int synced(const char* name, int fd) {
  auto real = next<int (*)(int)>(name);
  char path[PATH_MAX];
  if (!path_of(fd, path)) return real(fd);
  Guard guard;
  note('s', path, nullptr, inode(path), nullptr, 0);  // nothing is waited for: what counts is the log
  return 0;
}

}  // namespace

extern "C" {

// Notes what happens to files below `path` in the file `log` from now on; the disk takes so many bytes more, or -1 for any number.
void disk_watch(const char* path, const char* log, int64_t bytes) {
  Guard guard;
  snprintf(folder, sizeof folder, "%s", path);
  left = bytes;
  if (log_fd >= 0) syscall(SYS_close, log_fd);
  log_fd = *log ? int(syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600)) : -1;
}

#define MODE(flags)                     \
  mode_t mode = 0;                      \
  if ((flags) & (O_CREAT | O_TMPFILE)) { \
    va_list rest;                       \
    va_start(rest, flags);              \
    mode = va_arg(rest, mode_t);        \
    va_end(rest);                       \
  }

int open(const char* path, int flags, ...) { MODE(flags) return opened("open", AT_FDCWD, path, flags, mode); }
int open64(const char* path, int flags, ...) { MODE(flags) return opened("open64", AT_FDCWD, path, flags, mode); }
int openat(int at, const char* path, int flags, ...) { MODE(flags) return opened("openat", at, path, flags, mode); }
int openat64(int at, const char* path, int flags, ...) { MODE(flags) return opened("openat64", at, path, flags, mode); }

ssize_t pwrite(int fd, const void* data, size_t n, off_t offset) { return written_at(fd, data, n, offset); }
ssize_t pwrite64(int fd, const void* data, size_t n, off64_t offset) { return written_at(fd, data, n, offset); }

ssize_t write(int fd, const void* data, size_t n) {
  auto real = next<ssize_t (*)(int, const void*, size_t)>("write");
  char path[PATH_MAX];
  if (!*folder || !path_of(fd, path)) return real(fd, data, n);
  Guard guard;
  int64_t some = room(int64_t(n));
  if (some < 0) return -1;
  bool appends = fcntl(fd, F_GETFL) & O_APPEND;
  struct stat there;
  int64_t at = appends && fstat(fd, &there) == 0 ? int64_t(there.st_size) : int64_t(lseek(fd, 0, SEEK_CUR));
  ssize_t done = real(fd, data, size_t(some));
  if (done > 0) note('w', path, nullptr, at, data, done);
  return done;
}

int ftruncate(int fd, off_t size) { return truncated(fd, size); }
int ftruncate64(int fd, off64_t size) { return truncated(fd, size); }
int fsync(int fd) { return synced("fsync", fd); }
int fdatasync(int fd) { return synced("fdatasync", fd); }

int rename(const char* from, const char* to) {
  auto real = next<int (*)(const char*, const char*)>("rename");
  char a[PATH_MAX], b[PATH_MAX];
  if (!*folder || !absolute(from, a) || !absolute(to, b)) return real(from, to);
  Guard guard;
  int done = real(from, to);
  if (done == 0) note('r', a, b, inode(b), nullptr, 0);
  return done;
}

int unlink(const char* path) {
  auto real = next<int (*)(const char*)>("unlink");
  char full[PATH_MAX];
  if (!*folder || !absolute(path, full)) return real(path);
  Guard guard;
  int done = real(path);
  if (done == 0) note('u', full, nullptr, 0, nullptr, 0);
  return done;
}

int mkdir(const char* path, mode_t mode) {
  auto real = next<int (*)(const char*, mode_t)>("mkdir");
  char full[PATH_MAX];
  if (!*folder || !absolute(path, full)) return real(path, mode);
  Guard guard;
  int done = real(path, mode);
  if (done == 0) note('m', full, nullptr, 0, nullptr, 0);
  return done;
}
}
