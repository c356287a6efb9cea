/* Timing: calls, slices of them, and the clock of the core they ran on. */

#include "agent.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void *grown(void *memory, size_t count, size_t size) {
    void *found = realloc(memory, count * size);
    if (!found) out_of_memory();
    return found;
}

void make_room(struct series *series, size_t count) {
    if (series->count + count > series->room) {
        series->room = (series->count + count) * 2;
        series->ns = grown(series->ns, series->room, sizeof *series->ns);
    }
    /* The pages are there before they are timed. */
    memset(series->ns + series->count, 0, count * sizeof *series->ns);
}

int64_t timed_calls(const struct runtime *runtime, const struct job *job, struct series *series,
                    size_t count) {
    int64_t *taken = series->ns + series->count, sum = 0;
    void *model = job->model;
    for (size_t i = 0; i < count; i++) {
        int64_t start = now_ns();
        runtime->call(model);
        taken[i] = now_ns() - start;
        sum += taken[i];
    }
    series->count += count;
    return sum;
}

/* The clock of the core this runs on, or -1.  The file is kept open: reading it again is one call
 * of the system, and where there is none, nothing is tried a second time. */
static int64_t core_khz(void) {
    enum { UNTRIED, ABSENT, OPEN };
    static struct {
        int state, fd;
    } cores[MAX_NUMBERED];
    int core = sched_getcpu();
    if (core < 0 || core >= MAX_NUMBERED || cores[core].state == ABSENT) return -1;
    if (cores[core].state == UNTRIED) {
        char path[80];
        snprintf(path, sizeof path, CORES "%d/cpufreq/scaling_cur_freq", core);
        cores[core].fd = open(path, O_RDONLY | O_CLOEXEC);
        cores[core].state = cores[core].fd < 0 ? ABSENT : OPEN;
    }
    char digits[24] = {0};
    if (cores[core].state == ABSENT || pread(cores[core].fd, digits, sizeof digits - 1, 0) <= 0)
        return -1;
    long long khz = atoll(digits);
    return khz > 0 ? khz : -1;
}

void end_slice(struct series *series, int64_t start_ns, size_t count) {
    int64_t khz = core_khz();
    if (series->slice_count == series->slice_room) {
        series->slice_room = series->slice_room * 2 + 1;
        series->slices = grown(series->slices, series->slice_room, sizeof *series->slices);
    }
    series->slices[series->slice_count++] = (struct slice){start_ns, khz, count};
}

void timed_slice(const struct runtime *runtime, const struct job *job, struct series *series,
                 size_t count) {
    make_room(series, count);
    int64_t start_ns = now_ns();
    timed_calls(runtime, job, series, count);
    end_slice(series, start_ns, count);
}

void cut_slice(struct series *series, size_t count) {
    struct slice *last = &series->slices[series->slice_count - 1];
    if (last->count <= count) return;
    series->count -= last->count - count;
    last->count = count;
    if (!count) series->slice_count--;
}

static void begin_event(struct text *line, const char *event, const struct job *job,
                        const int64_t *ns, size_t count) {
    append(line, "{\"event\":\"%s\",\"job\":%s,\"ns\":[", event, job->quoted_id);
    for (size_t i = 0; i < count; i++) append(line, i ? ",%" PRId64 : "%" PRId64, ns[i]);
    append(line, "]");
}

void emit_warmup(const struct job *job, struct series *series) {
    struct text line = {0};
    begin_event(&line, "warmup", job, series->ns, series->count);
    append(&line, "}");
    emit(&line);
    series->count = 0;
}

void emit_samples(const struct job *job, struct series *series) {
    const int64_t *ns = series->ns;
    for (size_t i = 0; i < series->slice_count; i++) {
        const struct slice *slice = &series->slices[i];
        struct text line = {0};
        begin_event(&line, "samples", job, ns, slice->count);
        append(&line, ",\"start_ns\":%" PRId64, slice->start_ns);
        if (slice->khz < 0) append(&line, ",\"khz\":null}");
        else append(&line, ",\"khz\":%" PRId64 "}", slice->khz);
        emit(&line);
        ns += slice->count;
    }
    series->count = series->slice_count = 0;
}
