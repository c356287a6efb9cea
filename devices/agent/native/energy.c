/* Energy: stretches of time with calls and without, while a child reads the power sensor. */

#include "agent.h"

/* How long power is given to fall once calls are over; where windows are shorter, so is this.
 * Chosen: regulators settle in milliseconds, clocks and the kernel's own work in tenths of a
 * second. */
#define SETTLE_NS 1000000000
/* Of how many calls of a run latencies are kept; of the plan's iterations always.  Chosen: 8 MB,
 * and more than any percentile needs. */
#ifndef KEPT_CALLS /* tests have no time for as many */
#define KEPT_CALLS 1000000
#endif

/* A stretch of time, as an event that is said once all is over. */
static void append_mark(struct text *marks, const char *what, int64_t start_ns, int64_t calls) {
    append(marks, "%s{\"event\":\"mark\",\"what\":\"%s\",\"start_ns\":%" PRId64 ",\"end_ns\":%"
           PRId64 ",\"calls\":%" PRId64 "}", marks->size ? "\n" : "", what, start_ns, now_ns(),
           calls);
}

static void idle(const struct visit *visit, const char *what, struct text *marks) {
    sleep_until(now_ns() + smaller(SETTLE_NS, visit->plan->window_ns));
    int64_t start_ns = now_ns();
    sleep_until(start_ns + visit->plan->window_ns);
    append_mark(marks, what, start_ns, 0);
}

/* Nothing is said from the first stretch to the last: talking takes power.  Idle clocks are low, so
 * calls that are not counted come between the first idle stretch and the active one.  The mark of
 * that one counts all of its calls: beside the samples, those that begin a slice untimed, and those
 * beyond KEPT_CALLS. */
void measure_energy(const struct visit *visit) {
    const struct plan *plan = visit->plan;
    struct job *job = plan->jobs;
    struct series again = {0}, series = {0};
    struct text marks = {0};
    load_job(visit, job, TIMED, NULL);
    warm_up(visit, job, plan->warmup_iterations, plan->warmup_ns);
    emit_environment("warm", visit->sampler.pid);
    idle(visit, "idle-before", &marks);
    warm_again(visit, job, plan->window_ns, &again);
    int64_t start_ns = now_ns();
    int64_t most = plan->iterations > KEPT_CALLS ? plan->iterations : KEPT_CALLS;
    int64_t calls = take_slices(visit, job, &series, (struct slicing){.keep = true, .back = true,
                                .least_ns = LEAST_SLICE_NS, .most = most});
    append_mark(&marks, "active", start_ns, calls);
    idle(visit, "idle-after", &marks);
    struct text power = stop_sampler(&visit->sampler, plan->meter);
    if (again.count) emit_warmup(job, &again);
    emit_samples(job, &series);
    emit(&marks);
    emit(&power);
}
