/* The clock that everything here is timed by. */

#include "base.h"

#include <errno.h>
#include <time.h>

#define NS_PER_S 1000000000

int64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * NS_PER_S + time.tv_nsec;
}

void sleep_until(int64_t at_ns) {
    struct timespec time = {.tv_sec = (time_t)(at_ns / NS_PER_S), .tv_nsec = at_ns % NS_PER_S};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL) == EINTR) continue;
}
