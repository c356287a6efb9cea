/* The plainest timing loop there is, and what a program around it needs. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_RANK 8

static void *library;
static int64_t shape[MAX_RANK];
static size_t rank, size; /* of the input; size in bytes */
static int slice;

static void demand(int well, const char *what) {
    if (well) return;
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static void *symbol(const char *name) {
    void *found = dlsym(library, name);
    demand(found != NULL, name);
    return found;
}

static void *read_input(const char *path) {
    void *bytes = aligned_alloc(64, (size + 63) / 64 * 64);
    FILE *file = fopen(path, "rb");
    demand(bytes && file && fread(bytes, 1, size, file) == size, path);
    fclose(file);
    return bytes;
}

static int64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* An input of 32-bit floats, its axes as 1x3x192x192. */
static void read_shape(char *axes) {
    size = sizeof(float);
    for (char *axis = strtok(axes, "x"); axis; axis = strtok(NULL, "x")) {
        demand(rank < MAX_RANK && (shape[rank] = atoll(axis)) > 0, "shape");
        size *= (size_t)shape[rank++];
    }
}

/* PROGRAM LIBRARY MODEL INPUT CORE SHAPE SLICE ...: the library is open, this is on its core. */
static void begin(int count, char **words) {
    cpu_set_t cores;
    demand(count >= 7, "PROGRAM LIBRARY MODEL INPUT CORE SHAPE SLICE");
    read_shape(words[5]);
    slice = atoi(words[6]);
    demand(slice > 0, "slice");
    CPU_ZERO(&cores);
    CPU_SET(atoi(words[4]), &cores);
    demand(!sched_setaffinity(0, sizeof cores, &cores), "core");
    library = dlopen(words[1], RTLD_NOW);
    demand(library != NULL, words[1]);
}

/* Time calls until killed; each slice is a line such as the agents write. */
static void loop(void (*call)(void)) {
    int64_t *taken = calloc((size_t)slice, sizeof *taken);
    demand(taken != NULL, "memory");
    for (;;) {
        for (int i = 0; i < slice; i++) {
            int64_t start = now_ns();
            call();
            taken[i] = now_ns() - start;
        }
        printf("{\"event\":\"samples\",\"ns\":[");
        for (int i = 0; i < slice; i++) printf("%s%" PRId64, i ? "," : "", taken[i]);
        printf("]}\n");
        if (fflush(stdout)) exit(1);
    }
}
