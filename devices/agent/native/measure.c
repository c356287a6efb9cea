/* Measuring: a model is loaded, warmed up and timed, in the way of the plan's kind. */

#include "agent.h"

#include <stdlib.h>
#include <string.h>

void load_job(const struct visit *visit, struct job *job, enum purpose purpose,
              struct resident *loaded) {
    const struct runtime *runtime = visit->runtime;
    int64_t start = now_ns();
    job->model = runtime->load(visit->plan, job, purpose);
    int64_t ready = now_ns();
    if (loaded) *loaded = resident();
    runtime->feed(job->model, job);
    int64_t called = now_ns();
    runtime->call(job->model);
    int64_t first = now_ns();
    struct text line = {0};
    append(&line, "{\"event\":\"loaded\",\"job\":%s,\"load_ns\":%" PRId64 ",\"first_ns\":%" PRId64
           ",\"delegates\":[%s],\"threads\":%d}", job->quoted_id, ready - start, first - called,
           job->delegates.bytes, visit->plan->threads);
    emit(&line);
}

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static void call_for(const struct visit *visit, const struct job *job, int64_t count, int64_t ns,
                     struct series *series) {
    size_t piece = count ? (size_t)count : 1;
    int64_t spent = 0;
    while (series->count < (size_t)count || spent < ns) {
        make_room(series, piece);
        spent += timed_calls(visit->runtime, job, series, piece);
    }
}

void warm_up(const struct visit *visit, const struct job *job, int64_t count, int64_t ns) {
    static struct series series;
    call_for(visit, job, count, ns, &series);
    emit_warmup(job, &series);
}

void warm_again(const struct visit *visit, const struct job *job, int64_t pause_ns,
                struct series *series) {
    const struct plan *plan = visit->plan;
    call_for(visit, job, smaller(plan->warmup_iterations, plan->settle_iterations),
             smaller(plan->warmup_ns, pause_ns), series);
}

static void warm_up_as_planned(const struct visit *visit, const struct job *job) {
    warm_up(visit, job, visit->plan->warmup_iterations, visit->plan->warmup_ns);
}

/* How many calls come next, `done` of them made since `since_ns`; 0 at the end. */
static size_t next_slice(const struct plan *plan, int64_t done, int64_t since_ns) {
    if (done < plan->iterations)
        return (size_t)smaller(plan->slice_iterations, plan->iterations - done);
    return now_ns() - since_ns < plan->window_ns ? (size_t)plan->slice_iterations : 0;
}

int64_t take_slices(const struct visit *visit, const struct job *job, struct series *series,
                    struct slicing how) {
    const struct runtime *runtime = visit->runtime;
    int64_t since_ns = now_ns(), done = 0, untimed = 0, kept = 0;
    for (size_t size; (size = next_slice(visit->plan, done, since_ns));) {
        size_t begun = series->count;
        make_room(series, size);
        if (how.back) {
            runtime->call(job->model);
            untimed++;
        }
        int64_t start_ns = now_ns(), spent_ns = 0;
        for (;;) {
            spent_ns += timed_calls(runtime, job, series, size);
            done += (int64_t)size;
            if (spent_ns >= how.least_ns) break;
            if (!(size = next_slice(visit->plan, done, since_ns))) break;
            make_room(series, size);
        }
        end_slice(series, start_ns, series->count - begun);
        if (how.most) cut_slice(series, (size_t)(how.most - kept));
        kept += (int64_t)(series->count - begun);
        if (!how.keep) emit_samples(job, series);
    }
    return done + untimed;
}

/* Look at the device, which may take long, and then warm up again what cooled down meanwhile. */
static void look_when_warm(const struct visit *visit, const struct job *job) {
    struct series series = {0};
    int64_t start = now_ns();
    emit_environment("warm", 0);
    warm_again(visit, job, now_ns() - start, &series);
    if (series.count) emit_warmup(job, &series);
    free(series.ns);
}

/* Source: splitmix64 (Vigna), a generator of 64 bits of state that any seed starts well. */
static uint64_t next_random(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static void shuffle(size_t *order, size_t count, uint64_t *state) {
    for (size_t i = count; i > 1; i--) {
        size_t other = next_random(state) % i, kept = order[i - 1];
        order[i - 1] = order[other];
        order[other] = kept;
    }
}

/* Time several models slice by slice, in a new random order each round.  Another one's turn has
 * cooled the caches; a few calls bring them back, kept as warm-up. */
static void take_turns(const struct visit *visit) {
    const struct plan *plan = visit->plan;
    struct series series = {0};
    size_t *order = zeroed(plan->job_count, sizeof *order);
    uint64_t state = plan->seed;
    int64_t since_ns = now_ns(), done = 0;
    for (size_t size; (size = next_slice(plan, done, since_ns)); done += (int64_t)size) {
        for (size_t i = 0; i < plan->job_count; i++) order[i] = i;
        shuffle(order, plan->job_count, &state);
        for (size_t turn = 0; turn < plan->job_count; turn++) {
            const struct job *job = &plan->jobs[order[turn]];
            if (plan->settle_iterations) warm_up(visit, job, plan->settle_iterations, 0);
            timed_slice(visit->runtime, job, &series, size);
            emit_samples(job, &series);
        }
    }
}

static void measure_latency(const struct visit *visit) {
    const struct plan *plan = visit->plan;
    struct series series = {0};
    for (size_t i = 0; i < plan->job_count; i++) load_job(visit, &plan->jobs[i], TIMED, NULL);
    for (size_t i = 0; i < plan->job_count; i++) warm_up_as_planned(visit, &plan->jobs[i]);
    if (plan->job_count == 1) {
        look_when_warm(visit, plan->jobs);
        int64_t least_ns = strcmp(plan->kind, "sustained") ? 0 : LEAST_SLICE_NS;
        take_slices(visit, plan->jobs, &series, (struct slicing){.back = true,
                                                                 .least_ns = least_ns});
    } else {
        emit_environment("warm", 0);
        take_turns(visit);
    }
}

/* The session is one whose operators are timed, too; its latencies are of that. */
static void measure_operators(const struct visit *visit) {
    struct job *job = visit->plan->jobs;
    struct series series = {0};
    load_job(visit, job, EXAMINED, NULL);
    warm_up_as_planned(visit, job);
    emit_environment("warm", 0);
    take_slices(visit, job, &series, (struct slicing){0});
    struct text trace = visit->runtime->profile(job->model), line = {0};
    for (char *at = trace.bytes; *at; at++)
        if (*at == '\n' || *at == '\r') *at = ' ';
    append(&line, "{\"event\":\"operators\",\"job\":%s,\"trace\":", job->quoted_id);
    append_bytes(&line, trace.bytes, trace.size);
    append(&line, "}");
    emit(&line);
}

/* What a kind of trial does between the two looks at the device. */
static const struct procedure {
    const char *kind;
    void (*carry_out)(const struct visit *visit);
    bool of_one; /* it takes one job */
} PROCEDURES[] = {
    {"latency", measure_latency, false}, {"sustained", measure_latency, true},
    {"app", measure_app, true},          {"memory", measure_memory, true},
    {"energy", measure_energy, true},    {"operators", measure_operators, true},
};

static const struct procedure *procedure_of(const struct plan *plan) {
    for (size_t i = 0; i < LENGTH(PROCEDURES); i++) {
        const struct procedure *found = &PROCEDURES[i];
        if (strcmp(found->kind, plan->kind)) continue;
        if (found->of_one && plan->job_count != 1)
            fail("failed", "%s is of one job, not of %zu", plan->kind, plan->job_count);
        return found;
    }
    fail("failed", "this agent measures no '%s'", plan->kind);
}

static void say_hello(const struct runtime *runtime, const struct told *told) {
    struct text line = {0};
    append(&line, "{\"event\":\"hello\",\"agent\":\"native\",\"runtime\":\"%s\",\"version\":%s,"
           "\"build\":%s}", runtime->name, quoted(told->version.bytes),
           told->build.size ? quoted(told->build.bytes) : "null");
    emit(&line);
}

void measure(struct plan *plan) {
    const struct procedure *procedure = procedure_of(plan);
    struct visit visit = {.runtime = runtime_named(plan->runtime), .plan = plan};
    struct told told = {0};
    if (!strcmp(plan->kind, "operators") && !visit.runtime->profile)
        fail("failed", "%s has no profile of operators", visit.runtime->title);
    if (!strcmp(plan->kind, "energy")) {
        if (!plan->meter) fail("failed", "energy needs a meter");
        /* Before it is told which cores to use, and while there is little to copy. */
        visit.sampler = start_sampler(plan->meter);
    }
    if (plan->core_mask) pin(plan->core_mask);
    open_runtime(visit.runtime, plan->library, &told);
    say_hello(visit.runtime, &told);
    emit_environment("before", visit.sampler.pid);
    find_delegates(&visit);
    procedure->carry_out(&visit);
    emit_environment("after", 0);
    struct text line = {0};
    append(&line, "{\"event\":\"done\"}");
    emit(&line);
}
