/* What a model takes of memory, as the system counts it. */

#include "agent.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Let the peak be that of what is to come, where this may be.
 * Source: proc(5): 5 written to clear_refs sets the high-water mark to what is resident now. */
static void forget_peak(void) {
    int fd = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
    if (fd < 0) return;
    ssize_t done = write(fd, "5", 1);
    (void)done; /* where it may not, the mark is that of the whole process */
    close(fd);
}

/* A mark of at most so many hundredths of what is resident was reset just now.  Chosen: the kernel
 * counts both in batches of pages, which differ by less. */
#define FORGOTTEN_PERCENT 105

/* The most that was resident between two readings; null where the mark may be older, for it was not
 * reset and has not grown: what came before may have taken more than the model. */
static void append_peak(struct text *line, const struct resident *base,
                        const struct resident *end) {
    bool forgotten = 100 * base->peak <= FORGOTTEN_PERCENT * base->now;
    if (forgotten || end->peak > base->peak) append(line, "%" PRId64, end->peak);
    else append(line, "null");
}

static int64_t line_of(const struct text *status, const char *name) {
    const char *found = strstr(status->bytes, name);
    if (!found) fail("failed", "this system does not tell how much memory a process takes (%s)",
                     name);
    return atoll(found + strlen(name)) * 1024;
}

struct resident resident(void) {
    struct text status = read_file("/proc/self/status");
    struct resident found = {
        .now = line_of(&status, "VmRSS:"),
        .peak = line_of(&status, "VmHWM:"),
        .file = line_of(&status, "RssFile:"),
    };
    free(status.bytes);
    return found;
}

void measure_memory(const struct visit *visit) {
    struct job *job = visit->plan->jobs;
    struct series series = {0};
    struct resident loaded;
    visit->runtime->start();
    forget_peak();
    struct resident base = resident();
    load_job(visit, job, TIMED, &loaded);
    emit_environment("warm", 0);
    take_slices(visit, job, &series, (struct slicing){.keep = true});
    struct resident end = resident();
    emit_samples(job, &series);
    struct text line = {0};
    append(&line, "{\"event\":\"memory\",\"job\":%s,\"base_bytes\":%" PRId64 ",\"loaded_bytes\":%"
           PRId64 ",\"file_bytes\":%" PRId64 ",\"peak_bytes\":", job->quoted_id, base.now,
           loaded.now, end.file);
    append_peak(&line, &base, &end);
    append(&line, "}");
    emit(&line);
}
