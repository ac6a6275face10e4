/* For LD_PRELOAD: fsync and fdatasync take 2 ms longer, as on a disk that is really written to. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>

static int after_two_ms(const char *name, int fd) {
    const struct timespec two_ms = {0, 2000000};
    nanosleep(&two_ms, 0);
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    return real(fd);
}

int fsync(int fd) { return after_two_ms("fsync", fd); }
int fdatasync(int fd) { return after_two_ms("fdatasync", fd); }
