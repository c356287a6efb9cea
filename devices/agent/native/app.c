/* A model in a plain application: a call now and then, with other work in between. */

#include "agent.h"

#include <stdlib.h>
#include <string.h>

/* What an application touches between two calls.  Chosen: more than the caches of the small boards
 * this is made for; a phone's or a desk machine's last cache may hold more. */
#define WORK_BYTES (16 << 20)
#define CACHE_LINE 64

/* Read and write all of it, so that nothing else is in the caches. */
static void work(volatile unsigned char *memory) {
    for (size_t at = 0; at < WORK_BYTES; at += CACHE_LINE) memory[at]++;
}

void measure_app(const struct visit *visit) {
    const struct plan *plan = visit->plan;
    struct job *job = plan->jobs;
    struct series series = {0};
    unsigned char *memory = zeroed(WORK_BYTES, 1);
    memset(memory, 1, WORK_BYTES); /* its pages are there */
    load_job(visit, job, TIMED, NULL);
    warm_up(visit, job, plan->warmup_iterations, 0);
    emit_environment("warm", 0);
    int64_t due = 0, size;
    for (int64_t left = plan->iterations; left > 0; left -= size) {
        size = left < plan->slice_iterations ? left : plan->slice_iterations;
        int64_t start_ns = 0;
        make_room(&series, (size_t)size);
        for (int64_t i = 0; i < size; i++, due += plan->period_ns) {
            work(memory);
            int64_t now = now_ns();
            if (now < due) sleep_until(due);
            else due = now; /* too late for its turn: the next ones are not to catch up */
            if (!i) start_ns = now_ns();
            timed_calls(visit->runtime, job, &series, 1);
        }
        end_slice(&series, start_ns, (size_t)size);
        emit_samples(job, &series);
    }
}
