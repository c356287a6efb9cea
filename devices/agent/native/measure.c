/* Measuring: models are loaded, warmed up and timed in turns. */

#include "agent.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static int64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* A list of latencies that grows between slices. */
struct series {
    int64_t *ns;
    size_t count, room;
};

/* Time `count` calls; returns their sum in ns. */
static int64_t timed_slice(const struct runtime *runtime, void *model, struct series *series,
                           size_t count) {
    if (series->count + count > series->room) {
        series->room = (series->count + count) * 2;
        series->ns = realloc(series->ns, series->room * sizeof *series->ns);
        if (!series->ns) out_of_memory();
    }
    int64_t *taken = series->ns + series->count, sum = 0;
    memset(taken, 0, count * sizeof *taken); /* the pages are there before they are timed */
    for (size_t i = 0; i < count; i++) {
        int64_t start = now_ns();
        runtime->call(model);
        taken[i] = now_ns() - start;
        sum += taken[i];
    }
    series->count += count;
    return sum;
}

static void emit_series(const char *event, const struct job *job, struct series *series,
                        int64_t start_ns) {
    struct text line = {0};
    append(&line, "{\"event\":\"%s\",\"job\":%s,\"ns\":[", event, job->quoted_id);
    for (size_t i = 0; i < series->count; i++)
        append(&line, i ? ",%" PRId64 : "%" PRId64, series->ns[i]);
    append(&line, "],\"start_ns\":%" PRId64 ",\"khz\":null}", start_ns);
    emit(&line);
    series->count = 0;
}

static void load_job(const struct runtime *runtime, const struct plan *plan, struct job *job) {
    int64_t start = now_ns();
    job->model = runtime->load(plan, job, false);
    int64_t loaded = now_ns();
    runtime->feed(job->model, job);
    int64_t called = now_ns();
    runtime->call(job->model);
    int64_t first = now_ns();
    struct text line = {0};
    append(&line, "{\"event\":\"loaded\",\"job\":%s,\"load_ns\":%" PRId64 ",\"first_ns\":%" PRId64
           ",\"delegates\":[%s],\"threads\":%d}", job->quoted_id, loaded - start, first - called,
           job->delegates.bytes, plan->threads);
    emit(&line);
}

static void warm_up(const struct runtime *runtime, const struct plan *plan,
                    const struct job *job, struct series *series) {
    size_t enough = (size_t)plan->warmup_iterations;
    int64_t spent = 0;
    while (series->count < enough || spent < plan->warmup_ns)
        spent += timed_slice(runtime, job->model, series, enough ? enough : 1);
    emit_series("warmup", job, series, 0);
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

/* Warm every model up, then time them slice by slice, in a new random order each round. */
static void take_turns(const struct runtime *runtime, const struct plan *plan) {
    struct series series = {0};
    for (size_t i = 0; i < plan->job_count; i++)
        warm_up(runtime, plan, &plan->jobs[i], &series);
    size_t settle = plan->job_count > 1 ? (size_t)plan->settle_iterations : 0;
    size_t *order = zeroed(plan->job_count, sizeof *order);
    uint64_t state = plan->seed;
    for (int64_t left = plan->iterations; left > 0; left -= plan->slice_iterations) {
        int64_t size = left < plan->slice_iterations ? left : plan->slice_iterations;
        for (size_t i = 0; i < plan->job_count; i++) order[i] = i;
        shuffle(order, plan->job_count, &state);
        for (size_t turn = 0; turn < plan->job_count; turn++) {
            const struct job *job = &plan->jobs[order[turn]];
            if (settle) {
                timed_slice(runtime, job->model, &series, settle);
                emit_series("warmup", job, &series, 0);
            }
            int64_t start_ns = now_ns();
            timed_slice(runtime, job->model, &series, (size_t)size);
            emit_series("samples", job, &series, start_ns);
        }
    }
}

void measure(struct plan *plan) {
    if (plan->core_mask) pin(plan->core_mask);
    const struct runtime *runtime = runtime_named(plan->runtime);
    struct text version = {0}, line = {0};
    open_runtime(runtime, plan->library, &version);
    append(&line, "{\"event\":\"hello\",\"agent\":\"native\",\"runtime\":\"%s\",\"version\":%s,"
           "\"build\":null}", runtime->name, quoted(version.bytes));
    emit(&line);
    emit_environment("before");
    find_delegates(runtime, plan);
    for (size_t i = 0; i < plan->job_count; i++) load_job(runtime, plan, &plan->jobs[i]);
    take_turns(runtime, plan);
    emit_environment("after");
    append(&line, "{\"event\":\"done\"}");
    emit(&line);
}
