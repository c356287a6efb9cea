/* Energy: stretches of time with calls and without, while a child reads the power sensor. */

#include "agent.h"

/* Before and after the calls, until the device is as it is without any. */
#define SETTLE_NS 1000000000

/* A stretch of time, as an event that is said once all is over. */
static void append_mark(struct text *marks, const char *what, int64_t start_ns, size_t calls) {
    append(marks, "%s{\"event\":\"mark\",\"what\":\"%s\",\"start_ns\":%" PRId64 ",\"end_ns\":%"
           PRId64 ",\"calls\":%zu}", marks->size ? "\n" : "", what, start_ns, now_ns(), calls);
}

static void idle(const struct visit *visit, const char *what, struct text *marks) {
    sleep_until(now_ns() + SETTLE_NS);
    int64_t start_ns = now_ns();
    sleep_until(start_ns + visit->plan->window_ns);
    append_mark(marks, what, start_ns, 0);
}

/* Nothing is said from the first stretch to the last: talking takes power. */
void measure_energy(const struct visit *visit) {
    const struct plan *plan = visit->plan;
    struct job *job = plan->jobs;
    struct series series = {0};
    struct text marks = {0};
    load_job(visit, job, TIMED, NULL);
    warm_up(visit, job, plan->warmup_iterations, plan->warmup_ns);
    emit_environment("warm");
    idle(visit, "idle-before", &marks);
    int64_t start_ns = now_ns();
    take_slices(visit, job, &series, true);
    append_mark(&marks, "active", start_ns, series.count);
    idle(visit, "idle-after", &marks);
    struct text power = stop_sampler(&visit->sampler, plan->meter);
    emit_samples(job, &series);
    emit(&marks);
    emit(&power);
}
