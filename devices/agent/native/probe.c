/* The probe: which runtimes work here. */

#include "agent.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* One ReLU over float32[1,4] in each format: a library that runs it works here. */
static const unsigned char TINY_ONNX[] = {
    8,7,18,0,58,59,10,12,10,1,120,18,1,121,34,4,82,101,108,117,18,1,116,90,19,10,1,120,18,14,10,
    12,8,1,18,8,10,2,8,1,10,2,8,4,98,19,10,1,121,18,14,10,12,8,1,18,8,10,2,8,1,10,2,8,4,66,4,10,0,
    16,13,
};
static const unsigned char TINY_TFLITE[] = {
    24,0,0,0,84,70,76,51,0,0,14,0,20,0,16,0,12,0,8,0,0,0,4,0,14,0,0,0,16,0,0,0,28,0,0,0,216,0,0,0,
    3,0,0,0,1,0,0,0,8,0,0,0,4,0,4,0,4,0,0,0,1,0,0,0,16,0,0,0,12,0,20,0,16,0,12,0,8,0,4,0,12,0,0,0,
    16,0,0,0,60,0,0,0,64,0,0,0,68,0,0,0,1,0,0,0,16,0,0,0,0,0,10,0,12,0,0,0,8,0,4,0,10,0,0,0,8,0,0,
    0,12,0,0,0,1,0,0,0,1,0,0,0,1,0,0,0,0,0,0,0,1,0,0,0,1,0,0,0,1,0,0,0,0,0,0,0,2,0,0,0,52,0,0,0,4,
    0,0,0,224,255,255,255,8,0,0,0,12,0,0,0,1,0,0,0,121,0,0,0,2,0,0,0,1,0,0,0,4,0,0,0,12,0,12,0,8,
    0,0,0,0,0,4,0,12,0,0,0,8,0,0,0,12,0,0,0,1,0,0,0,120,0,0,0,2,0,0,0,1,0,0,0,4,0,0,0,1,0,0,0,16,
    0,0,0,12,0,12,0,11,0,0,0,0,0,4,0,12,0,0,0,19,0,0,0,0,0,0,19,
};

struct question {
    char *name, *library; /* the library may be NULL */
};

/* A path by which this process reads the model: of an open file that has no name any more, so that
 * nothing is left behind, not even by a library that crashes. */
static char *write_tiny_model(const struct runtime *runtime) {
    bool onnx = !strcmp(runtime->name, "onnxruntime");
    char *name = scratch_path("-XXXXXX");
    int fd = mkstemp(name);
    if (fd < 0) fail("failed", "%s: %s", name, strerror(errno));
    unlink(name);
    free(name);
    if (onnx) write_all(fd, (const char *)TINY_ONNX, sizeof TINY_ONNX);
    else write_all(fd, (const char *)TINY_TFLITE, sizeof TINY_TFLITE);
    struct text path = {0};
    append(&path, "/proc/self/fd/%d", fd);
    return path.bytes;
}

/* In a child: open the library and run a tiny model; the runtime's part of the answer. */
static struct text try_runtime(void *given) {
    const struct question *question = given;
    struct text answer = {0}, available = {0};
    struct told told = {0};
    alarm(60);
    const struct runtime *runtime = runtime_named(question->name);
    open_runtime(runtime, question->library, &told);
    static _Alignas(64) float values[64] = {-1, 0, 1, 2};
    struct job job = {.id = "tiny", .path = write_tiny_model(runtime), .input_count = 1};
    job.inputs[0] = (struct input){dtype_named("float32"), {1, 4}, 2, 4 * sizeof *values, values};
    struct plan plan = {.threads = 1};
    void *model = runtime->load(&plan, &job, TIMED);
    runtime->feed(model, &job);
    runtime->call(model);
    append_bytes(&available, "", 0);
    runtime->available(&available);
    append(&answer, "{\"version\":%s,\"delegates\":[%s]}", quoted(told.version.bytes),
           available.bytes);
    return answer;
}

static void append_answer(struct text *line, struct question *question) {
    int status;
    struct text said = in_child(try_runtime, question, &status);
    append(line, "%s:", quoted(question->name));
    if (*said.bytes == '{') {
        append_bytes(line, said.bytes, said.size);
        return;
    }
    const char *message = strchr(said.bytes, ' ');
    struct text death = {0};
    append(&death, "the library died of signal %d", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
    append(line, "{\"missing\":%s,\"hint\":\"%s\"}",
           quoted(message ? message + 1 : death.bytes), HINT);
}

void probe(int count, char **names) {
    struct text line = {0};
    append(&line, "{\"event\":\"probe\",\"agent\":\"native\",\"runtimes\":{");
    for (int i = 0; count ? i < count : RUNTIMES[i] != NULL; i++) {
        struct question question = {copy_of(count ? names[i] : RUNTIMES[i]->name), NULL};
        char *equals = strchr(question.name, '=');
        if (equals) {
            *equals = 0;
            question.library = equals + 1;
        }
        if (i) append(&line, ",");
        append_answer(&line, &question);
    }
    append(&line, "}}");
    emit(&line);
}
