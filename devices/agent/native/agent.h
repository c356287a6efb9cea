/* The parts of the agent, and what they hand each other. */

#ifndef AGENT_H
#define AGENT_H

#include "base.h"

#define MAX_INPUTS 64
#define MAX_RANK 8

/* plan.c */

/* An element type: numpy's name, size in bytes, and the runtimes' numbers. */
struct dtype {
    const char *name;
    size_t size;
    int onnx, tflite;
};

struct input {
    const struct dtype *dtype;
    int64_t shape[MAX_RANK];
    size_t rank, size;
    void *bytes; /* aligned to 64, as delegates like it */
};

struct job {
    char *id, *quoted_id, *path;
    struct input inputs[MAX_INPUTS];
    size_t input_count;
    const struct value *expect; /* the first of the names, or NULL */
    struct text delegates;      /* the names of those that take part */
    void *model;                /* the runtime's */
};

struct plan {
    char *runtime, *library, *delegate, *core_mask;
    int threads;
    unsigned deadline_s;
    int64_t warmup_iterations, warmup_ns, iterations, slice_iterations, settle_iterations;
    uint64_t seed;
    struct job *jobs;
    size_t job_count;
};

struct plan read_plan(const char *path);
/* The element type of that name, or NULL. */
const struct dtype *dtype_named(const char *name);

/* runtimes.c */

struct runtime {
    const char *name;
    const char *library;  /* the file name to open where the plan names none */
    const char *standard; /* what takes part without a delegate, where that is certain, or NULL */
    /* Find the functions needed and the version; ends by `fail` where the library is another. */
    void (*open)(void *library, struct text *version);
    /* Add the delegates this build has. */
    void (*available)(struct text *list);
    /* A model ready to be fed; `examine`: made to tell what took part, not to be timed. */
    void *(*load)(const struct plan *plan, const struct job *job, bool examine);
    void (*feed)(void *model, const struct job *job);
    /* One inference.  This alone is timed. */
    void (*call)(void *model);
    /* Add what took part in the calls of a model loaded to be examined. */
    void (*taking_part)(void *model, struct text *list);
};

extern const struct runtime onnxruntime, litert; /* onnxruntime.c, litert.c */
/* NULL after the last one. */
extern const struct runtime *const RUNTIMES[];
#define HINT "give the path of the runtime's C library (libonnxruntime.so, libLiteRt.so)"

const struct runtime *runtime_named(const char *name);
void open_runtime(const struct runtime *runtime, const char *path, struct text *version);
/* A function of the library, or the end: it is not the library it was taken for. */
void *function(void *library, const char *name);
void check_count(size_t taken, const struct job *job);
/* A path for a file of this process, in a folder that can be written; the file does not exist. */
char *scratch_path(const char *suffix);

/* delegates.c */

/* Run `work` in a child of its own, so that nothing of it, not even a crash, stays here; returns
 * what it made.  `status` is that of waitpid. */
struct text in_child(struct text (*work)(void *given), void *given, int *status);
/* Find out for every job what really executes it. */
void find_delegates(const struct runtime *runtime, struct plan *plan);

/* environment.c */

void emit_environment(const char *when);
/* Run on these cores and no others; a mask the kernel grants in part only is refused. */
void pin(const char *mask);

/* measure.c, probe.c */

void measure(struct plan *plan);
/* Say which runtimes work here; all that are known where none is named. */
void probe(int count, char **names);

#endif
