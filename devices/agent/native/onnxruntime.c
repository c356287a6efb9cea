/* ONNX Runtime, by its C library. */

#include "agent.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The C library gives out one table of functions, to which every version only appends.
 * Source: include/onnxruntime/core/session/onnxruntime_c_api.h; the numbers are positions in
 * struct OrtApi, checked against the static_asserts on their offsets in onnxruntime_c_api.cc. */
typedef void *Status; /* NULL: well */

#define ORT_FUNCTIONS(USE)                                                                        \
    USE(2, const char *, error_message, (const void *status))                                     \
    USE(3, Status, create_env, (int severity, const char *name, void **env))                      \
    USE(7, Status, create_session, (void *env, const char *path, void *options, void **out))      \
    USE(10, Status, create_options, (void **out))                                                 \
    USE(14, Status, enable_profiling, (void *options, const char *prefix))                        \
    USE(22, Status, set_severity, (void *options, int severity))                                  \
    USE(24, Status, set_intra_threads, (void *options, int threads))                              \
    USE(25, Status, set_inter_threads, (void *options, int threads))                              \
    USE(30, Status, input_count, (void *session, size_t *out))                                    \
    USE(31, Status, output_count, (void *session, size_t *out))                                   \
    USE(36, Status, input_name, (void *session, size_t index, void *allocator, char **out))       \
    USE(37, Status, output_name, (void *session, size_t index, void *allocator, char **out))      \
    USE(49, Status, create_tensor, (void *memory, void *bytes, size_t size, const int64_t *shape, \
                                    size_t rank, int type, void **out))                           \
    USE(69, Status, create_memory_info, (int allocator, int kind, void **out))                    \
    USE(78, Status, default_allocator, (void **out))                                              \
    USE(110, Status, end_profiling, (void *session, void *allocator, char **path))                \
    USE(125, Status, providers, (char ***names, int *count))                                      \
    USE(133, Status, run_bound, (void *session, void *options, void *binding))                    \
    USE(134, Status, create_binding, (void *session, void **out))                                 \
    USE(136, Status, bind_input, (void *binding, const char *name, void *tensor))                 \
    USE(138, Status, bind_output, (void *binding, const char *name, void *memory))                \
    USE(216, Status, append_provider, (void *options, const char *name, const char *const *keys,  \
                                       const char *const *values, size_t count))
/* The version of the table that has all of these; the library may be any later one. */
#define ORT_API_VERSION 12
/* The first version with GetBuildInfoString, and where it is. */
#define ORT_BUILD_API_VERSION 15
#define ORT_BUILD_POSITION 254

#define ORT_FIELD(position, type, name, arguments) type (*name) arguments;
static struct { ORT_FUNCTIONS(ORT_FIELD) } ort;
static void *ort_env, *ort_allocator, *ort_memory;

static void ort_check(Status status) {
    if (status) fail("failed", "%s", ort.error_message(status));
}

static void ort_open(void *library, struct told *told) {
    struct base {
        const void *const *(*table)(uint32_t version);
        const char *(*version)(void);
    };
    const struct base *(*get_base)(void);
    *(void **)&get_base = function(library, "OrtGetApiBase");
    const struct base *base = get_base();
    const void *const *table = base->table(ORT_API_VERSION);
    if (!table)
        fail("runtime-missing", "ONNX Runtime %s is older than 1.%d", base->version(),
             ORT_API_VERSION);
#define ORT_FIND(position, type, name, arguments) *(const void **)&ort.name = table[position];
    ORT_FUNCTIONS(ORT_FIND)
    append(&told->version, "%s", base->version());
    const void *const *later = base->table(ORT_BUILD_API_VERSION);
    if (!later) return;
    const char *(*build)(void);
    *(const void **)&build = later[ORT_BUILD_POSITION];
    const char *said = build();
    if (said) append(&told->build, "%s", said);
}

static void ort_available(struct text *list) {
    char **names;
    int count;
    ort_check(ort.providers(&names, &count));
    for (int i = 0; i < count; i++) add_name(list, names[i]);
}

/* Ask for an execution provider by the name its factory knows: XnnpackExecutionProvider's is
 * XNNPACK, and so on. */
static void ort_ask_for(void *options, const char *delegate, int threads) {
    char *name = copy_of(delegate), *suffix = strstr(name, "ExecutionProvider"), count[12];
    const char *key = "intra_op_num_threads", *value = count;
    if (suffix) *suffix = 0;
    for (char *at = name; *at; at++) *at = (char)toupper((unsigned char)*at);
    snprintf(count, sizeof count, "%d", threads);
    Status status = ort.append_provider(options, name, &key, &value, !strcmp(name, "XNNPACK"));
    if (status) fail("fallback", "%s: %s", delegate, ort.error_message(status));
    free(name);
}

struct ort_model {
    void *session, *binding;
    int profile; /* the open file of its profile, or -1 */
};

/* The file that a new session writes its profile to, by an open file alone: without a name nothing
 * of it is left behind, however this process ends. */
static int take_profile(const char *prefix) {
    char *folder = copy_of(prefix), *name = strrchr(folder, '/');
    size_t size = strlen(name + 1);
    int found = -1;
    *name++ = 0;
    DIR *files = opendir(folder);
    for (struct dirent *file; files && found < 0 && (file = readdir(files));) {
        if (strncmp(file->d_name, name, size) || file->d_name[size] != '_') continue;
        found = openat(dirfd(files), file->d_name, O_RDONLY | O_CLOEXEC);
        if (found >= 0) unlinkat(dirfd(files), file->d_name, 0);
    }
    if (files) closedir(files);
    free(folder);
    return found;
}

static void ort_start(void) {
    if (ort_env) return;
    ort_check(ort.create_env(3, "agent", &ort_env));
    ort_check(ort.default_allocator(&ort_allocator));
    ort_check(ort.create_memory_info(0, 0, &ort_memory));
}

static void *ort_load(const struct plan *plan, const struct job *job, enum purpose purpose) {
    struct ort_model *model = zeroed(1, sizeof *model);
    void *options;
    char *prefix = purpose == EXAMINED ? scratch_path("") : NULL;
    ort_start();
    ort_check(ort.create_options(&options));
    ort_check(ort.set_severity(options, 3));
    ort_check(ort.set_intra_threads(options, plan->threads));
    ort_check(ort.set_inter_threads(options, 1));
    if (prefix) ort_check(ort.enable_profiling(options, prefix));
    if (plan->delegate && strcmp(plan->delegate, "CPUExecutionProvider"))
        ort_ask_for(options, plan->delegate, plan->threads);
    ort_check(ort.create_session(ort_env, job->path, options, &model->session));
    model->profile = prefix ? take_profile(prefix) : -1;
    return model;
}

static void ort_feed(void *loaded, const struct job *job) {
    struct ort_model *model = loaded;
    size_t inputs, outputs;
    char *name;
    ort_check(ort.input_count(model->session, &inputs));
    ort_check(ort.output_count(model->session, &outputs));
    check_count(inputs, job);
    ort_check(ort.create_binding(model->session, &model->binding));
    for (size_t i = 0; i < inputs; i++) {
        const struct input *input = &job->inputs[i];
        void *tensor;
        ort_check(ort.create_tensor(ort_memory, input->bytes, input->size, input->shape,
                                    input->rank, input->dtype->onnx, &tensor));
        ort_check(ort.input_name(model->session, i, ort_allocator, &name));
        ort_check(ort.bind_input(model->binding, name, tensor));
    }
    for (size_t i = 0; i < outputs; i++) {
        ort_check(ort.output_name(model->session, i, ort_allocator, &name));
        ort_check(ort.bind_output(model->binding, name, ort_memory));
    }
}

static void ort_call(void *loaded) {
    struct ort_model *model = loaded;
    ort_check(ort.run_bound(model->session, NULL, model->binding));
}

static struct text ort_profile(void *loaded) {
    struct ort_model *model = loaded;
    char *path, held[40];
    ort_check(ort.end_profiling(model->session, ort_allocator, &path));
    snprintf(held, sizeof held, "/proc/self/fd/%d", model->profile);
    struct text profile = read_file(model->profile < 0 ? path : held);
    unlink(path); /* where it has its name still */
    return profile;
}

/* The profile of a run names the provider of every node that ran. */
static void ort_taking_part(void *loaded, struct text *list) {
    struct text profile = ort_profile(loaded);
    char **names;
    int count;
    ort_check(ort.providers(&names, &count));
    for (int i = 0; i < count; i++)
        if (lists(&profile, names[i])) add_name(list, names[i]);
}

const struct runtime onnxruntime = {
    .name = "onnxruntime",
    .title = "ONNX Runtime",
    .library = "libonnxruntime.so",
    .standard = "CPUExecutionProvider",
    .open = ort_open,
    .start = ort_start,
    .available = ort_available,
    .load = ort_load,
    .feed = ort_feed,
    .call = ort_call,
    .taking_part = ort_taking_part,
    .profile = ort_profile,
};
