/* What an instance is told of the wall clock and of its disk. Preloaded into it, and steered through a file that the harness writes.
 * Every call goes to the kernel itself; only what the file says is changed on the way. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* The file, as shim.rs writes it. */
struct wishes {
    volatile int64_t clock_s;    /* seconds that the wall clock is ahead */
    volatile int32_t sync_error; /* what fsync and fdatasync fail with; 0 for not at all */
    volatile int32_t write_error; /* what pwrite fails with */
};

static struct wishes none;
static struct wishes *wishes = &none;

__attribute__((constructor)) static void read_wishes(void) {
    const char *path = getenv("PANDO_TEST_WISHES");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *mapped = mmap(NULL, sizeof none, PROT_READ, MAP_SHARED, file, 0);
    if (mapped != MAP_FAILED) wishes = mapped;
    close(file);
}

static long failed(int error) {
    errno = error;
    return -1;
}

int clock_gettime(clockid_t id, struct timespec *time) {
    long result = syscall(SYS_clock_gettime, id, time);
    if (result == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) time->tv_sec += wishes->clock_s;
    return (int)result;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now) != 0) return -1;
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *into) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now) != 0) return -1;
    if (into) *into = now.tv_sec;
    return now.tv_sec;
}

int fsync(int file) {
    return (int)(wishes->sync_error ? failed(wishes->sync_error) : syscall(SYS_fsync, file));
}

int fdatasync(int file) {
    return (int)(wishes->sync_error ? failed(wishes->sync_error) : syscall(SYS_fdatasync, file));
}

ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t at) {
    return wishes->write_error ? failed(wishes->write_error) : syscall(SYS_pwrite64, file, bytes, count, at);
}

ssize_t pwrite(int file, const void *bytes, size_t count, off_t at) {
    return pwrite64(file, bytes, count, at);
}
