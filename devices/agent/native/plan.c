/* The plan: what is to be measured, and how. */

#include "agent.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define PLAN_FORMAT 3
/* A year; sums of such times do not overflow. */
#define LONGEST_NS 31536000000000000

/* Source: ONNXTensorElementDataType in onnxruntime_c_api.h; TfLiteType in tflite_types.h, which
 * LiteRtElementType repeats. */
static const struct dtype DTYPES[] = {
    {"float32", 4, 1, 1}, {"float64", 8, 11, 11}, {"float16", 2, 10, 10}, {"bool", 1, 9, 6},
    {"uint8", 1, 2, 3},   {"int8", 1, 3, 9},      {"uint16", 2, 4, 17},   {"int16", 2, 5, 7},
    {"uint32", 4, 12, 16}, {"int32", 4, 6, 2},    {"uint64", 8, 13, 13},  {"int64", 8, 7, 4},
};

const struct dtype *dtype_named(const char *name) {
    for (size_t i = 0; i < LENGTH(DTYPES); i++)
        if (!strcmp(name, DTYPES[i].name)) return &DTYPES[i];
    return NULL;
}

static void read_input(const struct value *spec, struct input *input) {
    const char *dtype = need(spec, "dtype", STRING)->string;
    input->dtype = dtype_named(dtype);
    if (!input->dtype) fail("failed", "this agent knows no element type '%s'", dtype);
    size_t wanted = input->dtype->size;
    for (struct value *axis = need(spec, "shape", ARRAY)->first; axis; axis = axis->next) {
        if (input->rank == MAX_RANK) fail("failed", "an input of more than %d axes", MAX_RANK);
        if (axis->kind != NUMBER || !axis->whole || axis->integer < 0 || axis->integer > INT32_MAX
            || __builtin_mul_overflow(wanted, (size_t)axis->integer, &wanted))
            fail("failed", "a shape is a list of sizes");
        input->shape[input->rank++] = axis->integer;
    }
    const char *path = need(spec, "path", STRING)->string;
    struct stat found;
    FILE *file = fopen(path, "rb");
    if (!file || fstat(fileno(file), &found)) fail("failed", "%s: %s", path, strerror(errno));
    if ((uint64_t)found.st_size != wanted)
        fail("failed", "%s has %lld bytes, its shape and type need %zu", path,
             (long long)found.st_size, wanted);
    if (posix_memalign(&input->bytes, 64, wanted + 64)) out_of_memory();
    if (fread(input->bytes, 1, wanted, file) != wanted) fail("failed", "%s cannot be read", path);
    fclose(file);
    input->size = wanted;
}

static void read_job(const struct value *spec, struct job *job) {
    job->id = need(spec, "id", STRING)->string;
    job->quoted_id = quoted(job->id);
    job->path = need(spec, "path", STRING)->string;
    for (struct value *input = need(spec, "inputs", ARRAY)->first; input; input = input->next) {
        if (job->input_count == MAX_INPUTS) fail("failed", "more than %d inputs", MAX_INPUTS);
        read_input(input, &job->inputs[job->input_count++]);
    }
    struct value *expect = find(spec, "expect", ARRAY);
    job->expect = expect ? expect->first : NULL;
    for (const struct value *name = job->expect; name; name = name->next)
        if (name->kind != STRING) fail("failed", "expect is a list of names");
}

/* A list of texts, NULL after the last one. */
static char **read_words(const struct value *object, const char *name) {
    struct value *list = need(object, name, ARRAY);
    size_t count = 0;
    for (struct value *each = list->first; each; each = each->next, count++)
        if (each->kind != STRING) fail("failed", "%s is a list of texts", name);
    char **words = zeroed(count + 1, sizeof *words);
    count = 0;
    for (struct value *each = list->first; each; each = each->next) words[count++] = each->string;
    return words;
}

static struct meter *read_meter(const struct value *root) {
    struct value *spec = need_or_null(root, "meter", OBJECT);
    if (!spec) return NULL;
    struct meter *meter = zeroed(1, sizeof *meter);
    meter->period_ns = need_integer(spec, "period_ns", 1, LONGEST_NS);
    meter->files = read_words(spec, "files");
    meter->command = read_words(spec, "command");
    if (!*meter->files && !*meter->command)
        fail("failed", "the meter has neither files nor a command");
    return meter;
}

struct plan read_plan(const char *path) {
    struct value *root = read_json(path);
    int64_t format = need_integer(root, "format", INT64_MIN, INT64_MAX);
    if (format != PLAN_FORMAT)
        fail("failed", "plan format %" PRId64 ", this agent speaks %d", format, PLAN_FORMAT);
    static const int64_t many = 1000000000;
    struct plan plan = {
        .kind = need(root, "kind", STRING)->string,
        .runtime = need(root, "runtime", STRING)->string,
        .library = find_string(root, "library"),
        .delegate = find_string(root, "delegate"),
        .core_mask = find_string(root, "core_mask"),
        .threads = (int)need_integer(root, "threads", 1, 1024),
        .deadline_s = (unsigned)need_integer(root, "deadline_s", 1, many),
        .warmup_iterations = need_integer(root, "warmup_iterations", 0, many),
        .warmup_ns = need_integer(root, "warmup_ns", 0, LONGEST_NS),
        .iterations = need_integer(root, "iterations", 1, many),
        .slice_iterations = need_integer(root, "slice_iterations", 1, many),
        .settle_iterations = need_integer(root, "settle_iterations", 0, many),
        .window_ns = need_integer(root, "window_ns", 0, LONGEST_NS),
        .period_ns = need_integer(root, "period_ns", 0, LONGEST_NS),
        .meter = read_meter(root),
        .seed = (uint64_t)need_integer(root, "seed", INT64_MIN, INT64_MAX),
    };
    struct value *jobs = need(root, "jobs", ARRAY);
    for (struct value *job = jobs->first; job; job = job->next) plan.job_count++;
    if (!plan.job_count) fail("failed", "the plan has no jobs");
    plan.jobs = zeroed(plan.job_count, sizeof *plan.jobs);
    size_t count = 0;
    for (struct value *spec = jobs->first; spec; spec = spec->next, count++) {
        read_job(spec, &plan.jobs[count]);
        for (size_t i = 0; i < count; i++)
            if (!strcmp(plan.jobs[i].id, plan.jobs[count].id))
                fail("failed", "two jobs are called %s", plan.jobs[count].id);
    }
    return plan;
}
