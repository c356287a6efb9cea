/* LiteRT, by its C library. */

#include "agent.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Source: litert/c/litert_{environment,model,options,opaque_options,compiled_model,
 * tensor_buffer,profiler}.h and litert/c/options/litert_cpu_options.{h,cc}, whose settings
 * travel as a text of key = value lines. */
struct lrt_type { /* LiteRtRankedTensorType; room for what a later layout appends */
    int element;
    unsigned rank : 7, has_strides : 1;
    int32_t dimensions[8];
    uint32_t strides[8 + 8];
};

#define LRT_FUNCTIONS(USE)                                                                        \
    USE(create_environment, "CreateEnvironment", (int count, const void *options, void **out))    \
    USE(create_model, "CreateModelFromFile", (const void *, const void *, void *))                \
    USE(create_options, "CreateOptions", (void **out))                                            \
    USE(set_accelerators, "SetOptionsHardwareAccelerators", (void *options, int set))             \
    USE(create_opaque, "CreateOpaqueOptions", (const char *, void *, void (*)(void *), void **))  \
    USE(add_opaque, "AddOpaqueOptions", (void *options, void *opaque))                            \
    USE(compile, "CreateCompiledModel", (void *, void *model, void *options, void **))            \
    USE(signature, "GetModelSignature", (void *model, size_t index, void **out))                  \
    USE(signature_subgraph, "GetSignatureSubgraph", (void *signature, void **out))                \
    USE(input_count, "GetNumSignatureInputs", (void *signature, size_t *out))                     \
    USE(output_count, "GetNumSignatureOutputs", (void *signature, size_t *out))                   \
    USE(input_tensor, "GetSignatureInputTensorByIndex", (void *, size_t index, void **out))       \
    USE(output_tensor, "GetSignatureOutputTensorByIndex", (void *, size_t index, void **out))     \
    USE(subgraph_input, "GetSubgraphInput", (void *subgraph, size_t index, void **out))           \
    USE(tensor_type, "GetRankedTensorType", (void *tensor, struct lrt_type *out))                 \
    USE(input_needs, "GetCompiledModelInputBufferRequirements",                                   \
        (void *compiled, size_t signature, size_t index, void **out))                             \
    USE(output_needs, "GetCompiledModelOutputBufferRequirements",                                 \
        (void *compiled, size_t signature, size_t index, void **out))                             \
    USE(create_buffer, "CreateManagedTensorBufferFromRequirements",                               \
        (void *environment, const struct lrt_type *, void *needs, void **out))                    \
    USE(buffer_size, "GetTensorBufferPackedSize", (void *buffer, size_t *out))                    \
    USE(lock, "LockTensorBuffer", (void *buffer, void **bytes, int mode))                         \
    USE(unlock, "UnlockTensorBuffer", (void *buffer))                                             \
    USE(run, "RunCompiledModel", (void *compiled, size_t signature, size_t inputs, void **input,  \
                                  size_t outputs, void **output))                                 \
    USE(profiler, "CompiledModelGetProfiler", (void *compiled, void **out))                       \
    USE(start_profiler, "StartProfiler", (void *profiler))                                        \
    USE(summary, "GetProfileSummary", (void *profiler, void *compiled, const char **out))

#define LRT_FIELD(name, symbol, arguments) int (*name) arguments;
static struct { LRT_FUNCTIONS(LRT_FIELD) } lrt;
static void *lrt_environment;

static void lrt_check(int status, const char *what) {
    if (status) fail("failed", "LiteRT cannot %s (status %d)", what, status);
}

/* LiteRT's C library does not tell its version: a hash of its bytes stands for it.
 * Source: FNV-1a, 64 bits (Fowler, Noll and Vo). */
static void lrt_open(void *library, struct told *told) {
#define LRT_FIND(name, symbol, arguments) *(void **)&lrt.name = function(library, "LiteRt" symbol);
    LRT_FUNCTIONS(LRT_FIND)
    Dl_info info;
    if (!dladdr(*(void **)&lrt.run, &info)) fail("failed", "no path of LiteRT's library");
    FILE *file = fopen(info.dli_fname, "rb");
    if (!file) fail("failed", "%s: %s", info.dli_fname, strerror(errno));
    uint64_t hash = 0xcbf29ce484222325u;
    unsigned char piece[1 << 16]; /* the whole of it would count as the model's peak memory */
    for (size_t got; (got = fread(piece, 1, sizeof piece, file)) > 0;)
        for (size_t i = 0; i < got; i++) hash = (hash ^ piece[i]) * 0x100000001b3u;
    if (ferror(file)) fail("failed", "%s: %s", info.dli_fname, strerror(errno));
    fclose(file);
    append(&told->version, "libLiteRt %016" PRIx64, hash);
}

static void lrt_available(struct text *list) {
    add_name(list, "XNNPACK");
    add_name(list, "builtin");
}

static void lrt_add_settings(void *options, const char *name, const char *settings) {
    void *opaque;
    lrt_check(lrt.create_opaque(name, copy_of(settings), free, &opaque), "take settings");
    lrt_check(lrt.add_opaque(options, opaque), "take settings");
}

/* Where the environment comes first is a matter of the version.  Taken for a path, or the other
 * way round, neither names a file that can be opened. */
static void *lrt_read(const char *path) {
    void *model = NULL, *ignored = NULL;
    if (access(path, R_OK)) fail("failed", "%s: %s", path, strerror(errno));
    if (!lrt.create_model(lrt_environment, path, &model) && model) return model;
    model = NULL;
    if (lrt.create_model(path, &model, &ignored) || !model)
        fail("failed", "LiteRT cannot read %s as a model", path);
    return model;
}

struct lrt_model {
    void *model, *signature, *compiled, *profiler;
    void *inputs[MAX_INPUTS], *outputs[MAX_INPUTS];
    size_t input_count, output_count;
};

static void lrt_start(void) {
    if (!lrt_environment)
        lrt_check(lrt.create_environment(0, NULL, &lrt_environment), "make an environment");
}

static void *lrt_load(const struct plan *plan, const struct job *job, enum purpose purpose) {
    struct lrt_model *model = zeroed(1, sizeof *model);
    void *options;
    char settings[64];
    bool builtin = plan->delegate && !strcmp(plan->delegate, "builtin");
    if (plan->delegate && !builtin && strcmp(plan->delegate, "XNNPACK"))
        fail("fallback", "this agent cannot ask LiteRT for %s", plan->delegate);
    lrt_start();
    model->model = lrt_read(job->path);
    lrt_check(lrt.create_options(&options), "make options");
    lrt_check(lrt.set_accelerators(options, 1), "use the CPU");
    /* Source: LiteRtCpuKernelMode: 0 delegates, 2 LiteRT's own optimized kernels. */
    snprintf(settings, sizeof settings, "num_threads = %d\n%s", plan->threads,
             builtin ? "kernel_mode = 2\n" : "");
    lrt_add_settings(options, "xnnpack", settings);
    if (purpose == EXAMINED)
        lrt_add_settings(options, "runtime_options_string", "enable_profiling = true\n");
    lrt_check(lrt.compile(lrt_environment, model->model, options, &model->compiled),
              "compile the model");
    if (purpose == EXAMINED && !lrt.profiler(model->compiled, &model->profiler) && model->profiler)
        lrt.start_profiler(model->profiler);
    return model;
}

/* Inputs come in the order of the graph; a signature may have another. */
static size_t lrt_input_of(void *tensor, void *subgraph, size_t count, size_t otherwise) {
    for (size_t i = 0; i < count; i++) {
        void *other = NULL;
        if (!lrt.subgraph_input(subgraph, i, &other) && other == tensor) return i;
    }
    return otherwise;
}

static void lrt_fill(void *buffer, const struct lrt_type *type, const struct input *input) {
    size_t room;
    void *bytes;
    bool fits = type->element == input->dtype->tflite && type->rank == input->rank;
    for (size_t i = 0; fits && i < input->rank; i++)
        fits = type->dimensions[i] == input->shape[i];
    if (!fits) fail("failed", "an input has not the shape and type that the model takes");
    lrt_check(lrt.buffer_size(buffer, &room), "size an input");
    if (room != input->size)
        fail("failed", "the model takes %zu bytes and was given %zu", room, input->size);
    lrt_check(lrt.lock(buffer, &bytes, 1), "lock an input");
    memcpy(bytes, input->bytes, input->size);
    lrt_check(lrt.unlock(buffer), "unlock an input");
}

/* A buffer for an input or output of the model, which is `tensor` of `type`. */
static void *lrt_buffer(struct lrt_model *model, bool input, size_t index, void **tensor,
                        struct lrt_type *type) {
    void *needs, *buffer;
    lrt_check((input ? lrt.input_tensor : lrt.output_tensor)(model->signature, index, tensor),
              "find a tensor");
    lrt_check(lrt.tensor_type(*tensor, type), "use tensors without a fixed rank");
    lrt_check((input ? lrt.input_needs : lrt.output_needs)(model->compiled, 0, index, &needs),
              "size a tensor");
    lrt_check(lrt.create_buffer(lrt_environment, type, needs, &buffer), "make a buffer");
    return buffer;
}

static void lrt_feed(void *loaded, const struct job *job) {
    struct lrt_model *model = loaded;
    struct lrt_type type = {0};
    void *tensor, *subgraph;
    lrt_check(lrt.signature(model->model, 0, &model->signature), "find a signature");
    lrt_check(lrt.signature_subgraph(model->signature, &subgraph), "find the graph");
    lrt_check(lrt.input_count(model->signature, &model->input_count), "count inputs");
    lrt_check(lrt.output_count(model->signature, &model->output_count), "count outputs");
    check_count(model->input_count, job);
    if (model->output_count > MAX_INPUTS) fail("failed", "more than %d outputs", MAX_INPUTS);
    for (size_t i = 0; i < model->input_count; i++) {
        model->inputs[i] = lrt_buffer(model, true, i, &tensor, &type);
        size_t place = lrt_input_of(tensor, subgraph, model->input_count, i);
        lrt_fill(model->inputs[i], &type, &job->inputs[place]);
    }
    for (size_t i = 0; i < model->output_count; i++)
        model->outputs[i] = lrt_buffer(model, false, i, &tensor, &type);
}

static void lrt_call(void *loaded) {
    struct lrt_model *model = loaded;
    lrt_check(lrt.run(model->compiled, 0, model->input_count, model->inputs, model->output_count,
                      model->outputs),
              "run the model");
}

/* The profile of a run marks what a delegate executed; on the CPU that is XNNPACK. */
static void lrt_taking_part(void *loaded, struct text *list) {
    struct lrt_model *model = loaded;
    const char *summary = NULL;
    if (!model->profiler || lrt.summary(model->profiler, model->compiled, &summary) || !summary)
        return;
    if (strstr(summary, "[Delegate]")) add_name(list, "XNNPACK");
    else if (strstr(summary, "[Builtin]")) add_name(list, "builtin");
}

const struct runtime litert = {
    .name = "litert",
    .title = "LiteRT",
    .library = "libLiteRt.so",
    .open = lrt_open,
    .start = lrt_start,
    .available = lrt_available,
    .load = lrt_load,
    .feed = lrt_feed,
    .call = lrt_call,
    .taking_part = lrt_taking_part,
};
