// Faults of the system for one process, by LD_PRELOAD. $QF_FAULT names one:
//   eio:PART:BYTES    reads of files whose path holds PART fail with EIO once so many bytes were read of them
//   short:PART        reads of such files give seven bytes at most
//   threads:COUNT     no more threads than these can be started
//   clock:SECONDS     the wall clock jumps so far, forward and back in turn, at each look
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static _Atomic long long taken;
static _Atomic int looks;

static int concerns(int fd, const char *part, size_t len) {
    char link[64], path[PATH_MAX + 1];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t got = readlink(link, path, PATH_MAX);
    if (got <= 0) return 0;
    path[got] = 0;
    return memmem(path, (size_t)got, part, len) != NULL;
}

// How many bytes a read may take; -1 for EIO.
static ssize_t allowed(int fd, size_t count) {
    const char *fault = getenv("QF_FAULT");
    if (!fault) return (ssize_t)count;
    if (!strncmp(fault, "short:", 6) && concerns(fd, fault + 6, strlen(fault + 6)))
        return (ssize_t)(count < 7 ? count : 7);
    if (!strncmp(fault, "eio:", 4)) {
        const char *part = fault + 4, *end = strchr(part, ':');
        if (end && concerns(fd, part, (size_t)(end - part)) && taken >= atoll(end + 1)) return -1;
    }
    return (ssize_t)count;
}

#define READ(NAME, PARAMETERS, ARGUMENTS)                                                          \
    ssize_t NAME PARAMETERS {                                                                      \
        static ssize_t(*real) PARAMETERS;                                                          \
        if (!real) real = (ssize_t(*) PARAMETERS)dlsym(RTLD_NEXT, #NAME);                          \
        ssize_t most = allowed(fd, count);                                                         \
        if (most < 0) {                                                                            \
            errno = EIO;                                                                           \
            return -1;                                                                             \
        }                                                                                          \
        count = (size_t)most;                                                                      \
        ssize_t got = real ARGUMENTS;                                                              \
        const char *fault = getenv("QF_FAULT");                                                    \
        if (got > 0 && fault && !strncmp(fault, "eio:", 4)) {                                      \
            const char *part = fault + 4, *end = strchr(part, ':');                                \
            if (end && concerns(fd, part, (size_t)(end - part))) taken += got;                     \
        }                                                                                          \
        return got;                                                                                \
    }

READ(read, (int fd, void *buffer, size_t count), (fd, buffer, count))
READ(pread, (int fd, void *buffer, size_t count, off_t at), (fd, buffer, count, at))
READ(pread64, (int fd, void *buffer, size_t count, off64_t at), (fd, buffer, count, at))

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*body)(void *), void *argument) {
    static int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    static _Atomic long long started;
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "pthread_create");
    const char *fault = getenv("QF_FAULT");
    if (fault && !strncmp(fault, "threads:", 8) && started++ >= atoll(fault + 8)) return EAGAIN;
    return real(thread, attributes, body, argument);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, time);
    const char *fault = getenv("QF_FAULT");
    if (!status && clock == CLOCK_REALTIME && fault && !strncmp(fault, "clock:", 6)) {
        long long jump = atoll(fault + 6);
        time->tv_sec += looks++ % 2 ? jump : -jump;
    }
    return status;
}
