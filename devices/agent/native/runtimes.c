/* The runtimes: which there are, and what they have in common. */

#include "agent.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const struct runtime *const RUNTIMES[] = {&onnxruntime, &litert, NULL};

const struct runtime *runtime_named(const char *name) {
    for (size_t i = 0; RUNTIMES[i]; i++)
        if (!strcmp(RUNTIMES[i]->name, name)) return RUNTIMES[i];
    fail("runtime-missing", "this agent knows no runtime '%s'; name one of %s, %s", name,
         RUNTIMES[0]->name, RUNTIMES[1]->name);
}

void open_runtime(const struct runtime *runtime, const char *path, struct told *told) {
    void *library = dlopen(path ? path : runtime->library, RTLD_NOW | RTLD_LOCAL);
    if (!library) fail("runtime-missing", "%s; %s", dlerror(), HINT);
    runtime->open(library, told);
}

void *function(void *library, const char *name) {
    void *found = dlsym(library, name);
    if (!found) fail("runtime-missing", "the library has no function %s", name);
    return found;
}

void check_count(size_t taken, const struct job *job) {
    if (taken != job->input_count)
        fail("failed", "the model takes %zu inputs and was given %zu", taken, job->input_count);
}

char *scratch_path(const char *suffix) {
    const char *folders[] = {getenv("TMPDIR"), "/data/local/tmp", "/tmp", "."};
    for (size_t i = 0; i < LENGTH(folders); i++) {
        if (!folders[i] || access(folders[i], W_OK | X_OK)) continue;
        struct text path = {0};
        append(&path, "%s/edgeloop-%ld%s", folders[i], (long)getpid(), suffix);
        return path.bytes;
    }
    fail("failed", "no folder here can be written: set TMPDIR");
}
