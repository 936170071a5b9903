/* For LD_PRELOAD: the time of day jumps by $CLOCK_STEP seconds once a process has read it for a second. Clocks that
   cannot be set are left as they are. */

#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static time_t step(void) {
    static time_t began;
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    if (!began) began = now.tv_sec;
    const char *wanted = getenv("CLOCK_STEP");
    return wanted && now.tv_sec > began + 1 ? atol(wanted) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *found) {
    int done = syscall(SYS_clock_gettime, clock, found);
    if (!done && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) found->tv_sec += step();
    return done;
}

int gettimeofday(struct timeval *found, void *zone) {
    struct timespec now;
    int done = clock_gettime(CLOCK_REALTIME, &now);
    found->tv_sec = now.tv_sec;
    found->tv_usec = now.tv_nsec / 1000;
    (void)zone;
    return done;
}

time_t time(time_t *kept) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (kept) *kept = now.tv_sec;
    return now.tv_sec;
}
