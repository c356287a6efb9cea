/* What an application would write with ONNX Runtime's C library: bind, then run.  One input, one
 * output, one thread.  Source of the positions: onnxruntime_c_api.h, struct OrtApi. */

#include "loop.h"

static void *(*run_bound)(void *session, void *options, void *binding);
static void *session, *binding;

static void call(void) {
    demand(!run_bound(session, NULL, binding), "run");
}

int main(int count, char **words) {
    begin(count, words);
    struct {
        void *const *(*table)(uint32_t version);
    } *base = ((void *(*)(void))symbol("OrtGetApiBase"))();
    void *const *api = base->table(12);
    void *env, *options, *memory, *allocator, *tensor;
    char *input, *output;
    demand(!((void *(*)(int, const char *, void **))api[3])(3, "bare", &env), "env");
    demand(!((void *(*)(void **))api[10])(&options), "options");
    demand(!((void *(*)(void *, int))api[24])(options, 1), "threads");
    demand(!((void *(*)(void *, const char *, void *, void **))api[7])(env, words[2], options,
                                                                       &session), "session");
    demand(!((void *(*)(int, int, void **))api[69])(0, 0, &memory), "memory");
    demand(!((void *(*)(void **))api[78])(&allocator), "allocator");
    demand(!((void *(*)(void *, void *, size_t, const int64_t *, size_t, int, void **))api[49])(
               memory, read_input(words[3]), size, shape, rank, 1, &tensor), "tensor");
    demand(!((void *(*)(void *, size_t, void *, char **))api[36])(session, 0, allocator, &input),
           "input");
    demand(!((void *(*)(void *, size_t, void *, char **))api[37])(session, 0, allocator, &output),
           "output");
    demand(!((void *(*)(void *, void **))api[134])(session, &binding), "binding");
    demand(!((void *(*)(void *, const char *, void *))api[136])(binding, input, tensor), "bind");
    demand(!((void *(*)(void *, const char *, void *))api[138])(binding, output, memory), "bind");
    run_bound = (void *(*)(void *, void *, void *))api[133];
    loop(call);
}
