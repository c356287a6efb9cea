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

/* What the power sensor is read by: files, or what a command prints. */
struct meter {
    int64_t period_ns;
    char **files; /* NULL after the last one */
    char **command; /* as execvp takes it; NULL in the first place for files */
};

struct plan {
    char *kind, *runtime, *library, *delegate, *core_mask;
    int threads;
    unsigned deadline_s;
    int64_t warmup_iterations, warmup_ns, iterations, slice_iterations, settle_iterations;
    int64_t window_ns, period_ns;
    struct meter *meter; /* or NULL */
    uint64_t seed;
    struct job *jobs;
    size_t job_count;
};

struct plan read_plan(const char *path);
/* The element type of that name, or NULL. */
const struct dtype *dtype_named(const char *name);

/* runtimes.c */

/* What a model is loaded for: to be timed, or to tell afterwards what took part and how long each
 * of its operators took. */
enum purpose { TIMED, EXAMINED };

/* What a library says of itself. */
struct told {
    struct text version, build; /* no bytes: it does not tell */
};

struct runtime {
    const char *name, *title;
    const char *library;  /* the file name to open where the plan names none */
    const char *standard; /* what takes part without a delegate, where that is certain, or NULL */
    /* Find the functions needed and the version; ends by `fail` where the library is another. */
    void (*open)(void *library, struct told *told);
    /* Make what all models share; the first model does it where this was not called. */
    void (*start)(void);
    /* Add the delegates this build has. */
    void (*available)(struct text *list);
    /* A model ready to be fed. */
    void *(*load)(const struct plan *plan, const struct job *job, enum purpose purpose);
    void (*feed)(void *model, const struct job *job);
    /* One inference.  This alone is timed. */
    void (*call)(void *model);
    /* Add what took part in the calls of a model loaded to be examined. */
    void (*taking_part)(void *model, struct text *list);
    /* The profile of the calls of such a model, a list of JSON objects; NULL: it has none. */
    struct text (*profile)(void *model);
};

extern const struct runtime onnxruntime, litert; /* onnxruntime.c, litert.c */
/* NULL after the last one. */
extern const struct runtime *const RUNTIMES[];
#define HINT "give the path of the runtime's C library (libonnxruntime.so, libLiteRt.so)"

const struct runtime *runtime_named(const char *name);
void open_runtime(const struct runtime *runtime, const char *path, struct told *told);
/* A function of the library, or the end: it is not the library it was taken for. */
void *function(void *library, const char *name);
void check_count(size_t taken, const struct job *job);
/* A path for a file of this process, in a folder that can be written; the file does not exist. */
char *scratch_path(const char *suffix);

/* A child that reads the power sensor until it is told to stop. */
struct sampler {
    int pid, line;
};

/* What one process does: a plan with its runtime. */
struct visit {
    const struct runtime *runtime;
    struct plan *plan;
    struct sampler sampler; /* for energy */
};

/* delegates.c */

/* Run `work` in a child of its own, so that nothing of it, not even a crash, stays here; returns
 * what it made.  `status` is that of waitpid. */
struct text in_child(struct text (*work)(void *given), void *given, int *status);
/* Find out for every job what really executes it. */
void find_delegates(struct visit *visit);

/* environment.c */

/* What the device says of its state: "before" loading, "warm" before timing, and "after" it.
 * `child` is a process of this one that lives, whose work is counted with it; or 0. */
void emit_environment(const char *when, int child);
/* Numbers in the files PREFIX0/FILE, PREFIX1/FILE and so on are those of cores 0, 1... */
#define CORES "/sys/devices/system/cpu/cpu"
#define MAX_NUMBERED 256 /* cores, thermal zones */
/* Run on these cores and no others; a mask the kernel grants in part only is refused. */
void pin(const char *mask);

/* slices.c */

/* Latencies in the order taken, and the slices they were taken in. */
struct series {
    int64_t *ns;
    struct slice {
        int64_t start_ns, khz; /* of the core right after it; -1 where that is not told */
        size_t count;
    } *slices;
    size_t count, room, slice_count, slice_room;
};

/* Have memory for `count` latencies more, so that timing needs none. */
void make_room(struct series *series, size_t count);
/* Time `count` calls, back to back; returns their sum in ns.  There is room for them. */
int64_t timed_calls(const struct runtime *runtime, const struct job *job, struct series *series,
                    size_t count);
/* The last `count` latencies are a slice that began then and is over now. */
void end_slice(struct series *series, int64_t start_ns, size_t count);
void timed_slice(const struct runtime *runtime, const struct job *job, struct series *series,
                 size_t count);
/* Forget the last slice's latencies but the first so many. */
void cut_slice(struct series *series, size_t count);
/* Say what there is, and begin anew: warm-up calls in one event, slices in one each. */
void emit_warmup(const struct job *job, struct series *series);
void emit_samples(const struct job *job, struct series *series);

/* memory.c */

/* What this process takes, in bytes. */
struct resident {
    int64_t now, peak, file;
};

struct resident resident(void);
void measure_memory(const struct visit *visit);

/* sampler.c */

struct sampler start_sampler(const struct meter *meter);
/* Its readings, as an event; it is gone then. */
struct text stop_sampler(const struct sampler *sampler, const struct meter *meter);

/* measure.c, app.c, energy.c, probe.c */

/* Load a job's model and call it once; `loaded`, if not NULL, becomes what there was in between. */
void load_job(const struct visit *visit, struct job *job, enum purpose purpose,
              struct resident *loaded);
/* At least so many calls, which last at least so long. */
void warm_up(const struct visit *visit, const struct job *job, int64_t count, int64_t ns);
/* Calls after so long without any, as caches have cooled and clocks may have fallen; to be said. */
void warm_again(const struct visit *visit, const struct job *job, int64_t pause_ns,
                struct series *series);
int64_t smaller(int64_t a, int64_t b);

/* How slices are taken.  Before a slice the host was told of the last one and the clock of the core
 * was read, which takes a small model's code and data out of the caches: so one of calls back to
 * back begins with one call that is not timed, which brings the caches back after talking.  It
 * would be the slowest of each slice, and the 99th percentile that of the bench. */
struct slicing {
    bool keep;        /* them, or say them slice by slice */
    bool back;        /* begin each with a call that is not timed */
    int64_t least_ns; /* a new one begins once the calls of the last one took so long */
    int64_t most;     /* of so many calls latencies are kept */
};
/* Calls of a slice last at least that long where a window of seconds is filled with them.  Chosen:
 * a hundred slices a second show how heat and clocks go, and are told in little room. */
#define LEAST_SLICE_NS 10000000
/* Time a job's model slice by slice: its iterations, and until the plan's window has passed.
 * Returns how many calls were made, timed or not. */
int64_t take_slices(const struct visit *visit, const struct job *job, struct series *series,
                    struct slicing how);
void measure_app(const struct visit *visit);
void measure_energy(const struct visit *visit);

void measure(struct plan *plan);
/* Say which runtimes work here; all that are known where none is named. */
void probe(int count, char **names);

#endif
