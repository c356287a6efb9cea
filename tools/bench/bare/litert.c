/* What an application would write with LiteRT's C library: fill the input, then run.  One input,
 * one output, one thread.  Source: litert/c/litert_compiled_model.h and its neighbours. */

#include "loop.h"

struct type { /* LiteRtRankedTensorType, with room to spare */
    int words[64];
};

static int (*run)(void *, size_t, size_t, void **, size_t, void **);
static void *compiled, *input, *output;

static void call(void) {
    demand(!run(compiled, 0, 1, &input, 1, &output), "run");
}

static void *buffer(void *environment, void *signature, const char *tensors, const char *needs) {
    void *tensor, *needed, *made;
    struct type type;
    demand(!((int (*)(void *, size_t, void **))symbol(tensors))(signature, 0, &tensor), tensors);
    demand(!((int (*)(void *, struct type *))symbol("LiteRtGetRankedTensorType"))(tensor, &type),
           "type");
    demand(!((int (*)(void *, size_t, size_t, void **))symbol(needs))(compiled, 0, 0, &needed),
           needs);
    demand(!((int (*)(void *, const struct type *, void *, void **))symbol(
               "LiteRtCreateManagedTensorBufferFromRequirements"))(environment, &type, needed,
                                                                   &made), "buffer");
    return made;
}

int main(int count, char **words) {
    void *environment, *model, *options, *opaque, *signature, *bytes;
    begin(count, words);
    demand(!((int (*)(int, const void *, void **))symbol("LiteRtCreateEnvironment"))(
               0, NULL, &environment), "environment");
    demand(!((int (*)(void *, const char *, void **))symbol("LiteRtCreateModelFromFile"))(
               environment, words[2], &model), "model");
    demand(!((int (*)(void **))symbol("LiteRtCreateOptions"))(&options), "options");
    demand(!((int (*)(void *, int))symbol("LiteRtSetOptionsHardwareAccelerators"))(options, 1),
           "cpu");
    demand(!((int (*)(const char *, void *, void (*)(void *), void **))symbol(
               "LiteRtCreateOpaqueOptions"))("xnnpack", strdup("num_threads = 1\n"), free,
                                             &opaque), "threads");
    demand(!((int (*)(void *, void *))symbol("LiteRtAddOpaqueOptions"))(options, opaque),
           "threads");
    demand(!((int (*)(void *, void *, void *, void **))symbol("LiteRtCreateCompiledModel"))(
               environment, model, options, &compiled), "compile");
    demand(!((int (*)(void *, size_t, void **))symbol("LiteRtGetModelSignature"))(model, 0,
                                                                                  &signature),
           "signature");
    input = buffer(environment, signature, "LiteRtGetSignatureInputTensorByIndex",
                   "LiteRtGetCompiledModelInputBufferRequirements");
    output = buffer(environment, signature, "LiteRtGetSignatureOutputTensorByIndex",
                    "LiteRtGetCompiledModelOutputBufferRequirements");
    demand(!((int (*)(void *, void **, int))symbol("LiteRtLockTensorBuffer"))(input, &bytes, 1),
           "lock");
    memcpy(bytes, read_input(words[3]), size);
    demand(!((int (*)(void *))symbol("LiteRtUnlockTensorBuffer"))(input), "unlock");
    run = (int (*)(void *, size_t, size_t, void **, size_t, void **))symbol(
        "LiteRtRunCompiledModel");
    loop(call);
}
