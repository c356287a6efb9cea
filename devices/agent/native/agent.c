/* Measure artifacts on this device without Python; one process is one run.
 *
 *     agent PLAN.json                      measure, one JSON object a line on standard output
 *     agent --probe NAME[=LIBRARY]...      say which runtimes work here
 *
 * The plan and the lines are those of the Python agent (agent.py), which says what they mean.  A
 * runtime is its C library, opened by path while this runs: nothing but libc is linked, so the same
 * file builds for a board and for a phone.  Nothing is written inside a timed slice.
 *
 * Sections: memory and text; events; JSON; the plan; ONNX Runtime; LiteRT; what takes part;
 * the device's state; measuring; the probe; main.
 */

#define _GNU_SOURCE
#include <ctype.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PLAN_FORMAT 3
#define MAX_INPUTS 64
#define MAX_RANK 8
#define MAX_MESSAGE 2000

#define PRINTF(text, first) __attribute__((format(printf, text, first)))
#define HEX "0123456789abcdefABCDEF"
#define LENGTH(array) (sizeof(array) / sizeof *(array))

/* ---------------------------------------------------------------- memory and text ------------ */

/* Where events go: a copy of standard output, which itself is given to standard error. */
static int event_fd = 1;

static void write_all(int fd, const char *bytes, size_t size) {
    while (size) {
        ssize_t done = write(fd, bytes, size);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) _exit(1);
        bytes += done;
        size -= (size_t)done;
    }
}

/* End with an event that is ready as it is: where there is no memory, or in a signal handler. */
static void end_with(const char *line) {
    write_all(event_fd, line, strlen(line));
    _exit(1);
}

static void out_of_memory(void) {
    end_with("{\"event\":\"error\",\"kind\":\"failed\",\"message\":\"out of memory\"}\n");
}

/* A text that grows; always ends with a zero byte. */
struct text {
    char *bytes;
    size_t size, room;
};

/* Zeroed memory for `count` things. */
static void *zeroed(size_t count, size_t size) {
    void *memory = calloc(count + 1, size);
    if (!memory) out_of_memory();
    return memory;
}

static void append_bytes(struct text *text, const char *bytes, size_t size) {
    if (text->size + size + 1 > text->room) {
        size_t room = (text->size + size + 1) * 2;
        char *grown = realloc(text->bytes, room);
        if (!grown) out_of_memory();
        text->bytes = grown;
        text->room = room;
    }
    memcpy(text->bytes + text->size, bytes, size);
    text->size += size;
    text->bytes[text->size] = 0;
}

static void append(struct text *text, const char *format, ...) PRINTF(2, 3);

static void append(struct text *text, const char *format, ...) {
    char *piece;
    va_list arguments;
    va_start(arguments, format);
    int size = vasprintf(&piece, format, arguments);
    va_end(arguments);
    if (size < 0) out_of_memory();
    append_bytes(text, piece, (size_t)size);
    free(piece);
}

static char *copy_of(const char *bytes) {
    char *copy = strdup(bytes);
    if (!copy) out_of_memory();
    return copy;
}

/* How many bytes the UTF-8 character at `bytes` has; 0 if it is none. */
static int utf8_length(const unsigned char *bytes) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    int length = bytes[0] < 0x80 ? 1 : bytes[0] >> 5 == 6 ? 2 : bytes[0] >> 4 == 14 ? 3
               : bytes[0] >> 3 == 30 ? 4 : 0;
    if (length < 2) return length;
    uint32_t code = bytes[0] & (0xffu >> (length + 1));
    for (int i = 1; i < length; i++) {
        if (bytes[i] >> 6 != 2) return 0;
        code = code << 6 | (bytes[i] & 0x3fu);
    }
    bool surrogate = code >= 0xd800 && code < 0xe000;
    return code >= least[length] && code < 0x110000 && !surrogate ? length : 0;
}

/* A JSON string; what is not UTF-8 becomes a question mark, so that a line stays JSON.  Like all
 * that is not freed here it lives as long as the process, which measures one plan. */
static char *quoted(const char *value) {
    struct text text = {0};
    append_bytes(&text, "\"", 1);
    for (const unsigned char *at = (const unsigned char *)value; *at;) {
        int length = utf8_length(at);
        if (*at == '"' || *at == '\\') append(&text, "\\%c", *at);
        else if (*at < 0x20 || *at == 0x7f) append(&text, "\\u%04x", *at);
        else append_bytes(&text, length ? (const char *)at : "?", length ? (size_t)length : 1);
        at += length ? length : 1;
    }
    append_bytes(&text, "\"", 1);
    return text.bytes;
}

/* A list of names is kept as the inside of a JSON list. */
static void add_name(struct text *list, const char *name) {
    append(list, list->size ? ",%s" : "%s", quoted(name));
}

static bool lists(const struct text *list, const char *name) {
    return list->size && strstr(list->bytes, quoted(name));
}

/* ---------------------------------------------------------------- events --------------------- */

/* In a child that only looks at something, failing is an answer: see `in_child`. */
static void (*failing)(const char *kind, const char *message);
static volatile sig_atomic_t writing, deadline_passed;

static void say_deadline(void) {
    end_with("{\"event\":\"error\",\"kind\":\"deadline\","
             "\"message\":\"the plan's deadline passed\"}\n");
}

/* The plan's deadline.  A line that is being written is ended first; if nobody takes it, the
 * second alarm ends the process without another word. */
static void on_alarm(int number) {
    (void)number;
    if (!writing) say_deadline();
    deadline_passed = 1;
    signal(SIGALRM, SIG_DFL);
    alarm(5);
}

static void emit(struct text *line) {
    append_bytes(line, "\n", 1);
    writing = 1;
    write_all(event_fd, line->bytes, line->size);
    writing = 0;
    if (deadline_passed) say_deadline();
    free(line->bytes);
    *line = (struct text){0};
}

static void say_failed(const char *kind, const char *message) {
    struct text line = {0};
    append(&line, "{\"event\":\"error\",\"kind\":\"%s\",\"message\":%s}", kind, quoted(message));
    emit(&line);
    _exit(1);
}

static void fail(const char *kind, const char *format, ...) PRINTF(2, 3)
    __attribute__((noreturn));

/* Say why on one line, and end. */
static void fail(const char *kind, const char *format, ...) {
    char message[MAX_MESSAGE + 1];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    for (char *at = message; *at; at++)
        if (isspace((unsigned char)*at)) *at = ' ';
    failing(kind, message);
    _exit(1);
}

/* ---------------------------------------------------------------- JSON ----------------------- */

enum kind { NOTHING, BOOLEAN, NUMBER, STRING, ARRAY, OBJECT };
static const char *const KINDS[] = {"null", "a boolean", "a number", "a string", "a list",
                                    "an object"};

/* A value; members of an array or object form a list. */
struct value {
    enum kind kind;
    char *name; /* of a member of an object */
    char *string;
    bool whole; /* the number is an integer that fits */
    int64_t integer;
    struct value *first, *next;
};

struct reader {
    const char *at; /* a zero byte ends it */
    int depth;
};

static void unreadable(const char *what) { fail("failed", "the plan cannot be read: %s", what); }

static bool take(struct reader *in, char c) {
    in->at += strspn(in->at, " \t\r\n");
    if (*in->at != c) return false;
    in->at++;
    return true;
}

static uint32_t read_hex4(struct reader *in) {
    char digits[5] = {0};
    if (strspn(in->at, HEX) < 4) unreadable("a bad \\u escape");
    memcpy(digits, in->at, 4);
    in->at += 4;
    return (uint32_t)strtoul(digits, NULL, 16);
}

static void append_code(struct text *text, uint32_t code) {
    char bytes[4];
    size_t size = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    static const unsigned char marks[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = size; i-- > 1; code >>= 6) bytes[i] = (char)(0x80 | (code & 0x3f));
    bytes[0] = (char)(marks[size] | code);
    append_bytes(text, bytes, size);
}

static void read_escape(struct reader *in, struct text *text) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    char c = *in->at;
    const char *found = c ? strchr(from, c) : NULL;
    if (!found && c != 'u') unreadable("a bad escape");
    in->at++;
    if (found) {
        append_bytes(text, &to[found - from], 1);
        return;
    }
    uint32_t code = read_hex4(in);
    if (code >= 0xd800 && code < 0xe000) {
        bool pair = code < 0xdc00 && in->at[0] == '\\' && in->at[1] == 'u';
        in->at += pair ? 2 : 0;
        uint32_t low = pair ? read_hex4(in) : 0;
        if (low < 0xdc00 || low > 0xdfff) unreadable("half a surrogate pair");
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    if (!code) unreadable("a string with a zero in it");
    append_code(text, code);
}

static char *read_string(struct reader *in) {
    struct text text = {0};
    append_bytes(&text, "", 0);
    if (!take(in, '"')) unreadable("a string was expected");
    for (;;) {
        unsigned char c = (unsigned char)*in->at++;
        if (c == '"') return text.bytes;
        if (c < 0x20) unreadable("a string does not end, or has a control character");
        if (c == '\\') read_escape(in, &text);
        else append_bytes(&text, in->at - 1, 1);
    }
}

static void read_number(struct reader *in, struct value *value) {
    char *end, *integer_end;
    (void)strtod(in->at, &end);
    if (end == in->at) unreadable("a bad number");
    errno = 0;
    value->kind = NUMBER;
    value->integer = strtoll(in->at, &integer_end, 10);
    value->whole = errno == 0 && integer_end == end;
    in->at = end;
}

static struct value *read_value(struct reader *in);

static void read_members(struct reader *in, struct value *value, char close) {
    if (++in->depth > 32) unreadable("it is nested too deeply");
    struct value **end = &value->first;
    if (!take(in, close)) {
        do {
            char *name = NULL;
            if (value->kind == OBJECT) {
                name = read_string(in);
                if (!take(in, ':')) unreadable("a colon was expected");
            }
            *end = read_value(in);
            (*end)->name = name;
            end = &(*end)->next;
        } while (take(in, ','));
        if (!take(in, close)) unreadable("a list or an object does not end");
    }
    in->depth--;
}

static bool take_word(struct reader *in, const char *word) {
    size_t size = strlen(word);
    if (strncmp(in->at, word, size)) return false;
    in->at += size;
    return true;
}

static struct value *read_value(struct reader *in) {
    struct value *value = zeroed(1, sizeof *value);
    if (take(in, '{')) {
        value->kind = OBJECT;
        read_members(in, value, '}');
    } else if (take(in, '[')) {
        value->kind = ARRAY;
        read_members(in, value, ']');
    } else if (*in->at == '"') {
        value->kind = STRING;
        value->string = read_string(in);
    } else if (*in->at == '-' || isdigit((unsigned char)*in->at)) {
        read_number(in, value);
    } else if (take_word(in, "true") || take_word(in, "false")) {
        value->kind = BOOLEAN;
    } else if (!take_word(in, "null")) {
        unreadable("a value was expected");
    }
    return value;
}

static struct text read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) fail("failed", "%s: %s", path, strerror(errno));
    struct text text = {0};
    char piece[1 << 16];
    append_bytes(&text, "", 0);
    for (size_t got; (got = fread(piece, 1, sizeof piece, file)) > 0;)
        append_bytes(&text, piece, got);
    if (ferror(file)) fail("failed", "%s: %s", path, strerror(errno));
    fclose(file);
    return text;
}

static struct value *read_json(const char *path) {
    struct text text = read_file(path);
    struct reader in = {text.bytes, 0};
    struct value *value = read_value(&in);
    if (!take(&in, 0) || in.at <= text.bytes + text.size)
        unreadable("something follows its end");
    return value;
}

/* The member of that name, or NULL where there is none or it is null; the last one counts. */
static struct value *find(const struct value *object, const char *name, enum kind kind) {
    struct value *found = NULL;
    if (object->kind != OBJECT)
        fail("failed", "%s is to be found in %s", name, KINDS[object->kind]);
    for (struct value *member = object->first; member; member = member->next)
        if (!strcmp(member->name, name)) found = member;
    if (!found || found->kind == NOTHING) return NULL;
    if (found->kind != kind)
        fail("failed", "%s is %s, not %s", name, KINDS[found->kind], KINDS[kind]);
    return found;
}

static struct value *need(const struct value *object, const char *name, enum kind kind) {
    struct value *found = find(object, name, kind);
    if (!found) fail("failed", "the plan has no %s", name);
    return found;
}

static int64_t need_integer(const struct value *object, const char *name, int64_t least,
                            int64_t most) {
    struct value *found = need(object, name, NUMBER);
    if (!found->whole || found->integer < least || found->integer > most)
        fail("failed", "%s must be an integer from %" PRId64 " to %" PRId64, name, least, most);
    return found->integer;
}

static char *find_string(const struct value *object, const char *name) {
    struct value *found = find(object, name, STRING);
    return found ? found->string : NULL;
}

/* ---------------------------------------------------------------- the plan ------------------- */

/* Element types: numpy's name, size in bytes, and the runtimes' numbers.
 * Source: ONNXTensorElementDataType in onnxruntime_c_api.h; TfLiteType in tflite_types.h, which
 * LiteRtElementType repeats. */
static const struct dtype {
    const char *name;
    size_t size;
    int onnx, tflite;
} DTYPES[] = {
    {"float32", 4, 1, 1}, {"float64", 8, 11, 11}, {"float16", 2, 10, 10}, {"bool", 1, 9, 6},
    {"uint8", 1, 2, 3},   {"int8", 1, 3, 9},      {"uint16", 2, 4, 17},   {"int16", 2, 5, 7},
    {"uint32", 4, 12, 16}, {"int32", 4, 6, 2},    {"uint64", 8, 13, 13},  {"int64", 8, 7, 4},
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

static void read_input(const struct value *spec, struct input *input) {
    const char *dtype = need(spec, "dtype", STRING)->string;
    for (size_t i = 0; i < LENGTH(DTYPES); i++)
        if (!strcmp(dtype, DTYPES[i].name)) input->dtype = &DTYPES[i];
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

static struct plan read_plan(const char *path) {
    struct value *root = read_json(path);
    int64_t format = need_integer(root, "format", INT64_MIN, INT64_MAX);
    if (format != PLAN_FORMAT)
        fail("failed", "plan format %" PRId64 ", this agent speaks %d", format, PLAN_FORMAT);
    static const int64_t many = 1000000000;
    struct plan plan = {
        .runtime = need(root, "runtime", STRING)->string,
        .library = find_string(root, "library"),
        .delegate = find_string(root, "delegate"),
        .core_mask = find_string(root, "core_mask"),
        .threads = (int)need_integer(root, "threads", 1, 1024),
        .deadline_s = (unsigned)need_integer(root, "deadline_s", 1, many),
        .warmup_iterations = need_integer(root, "warmup_iterations", 0, many),
        .warmup_ns = need_integer(root, "warmup_ns", 0, INT64_MAX),
        .iterations = need_integer(root, "iterations", 0, many),
        .slice_iterations = need_integer(root, "slice_iterations", 1, many),
        .settle_iterations = need_integer(root, "settle_iterations", 0, many),
        .seed = (uint64_t)need_integer(root, "seed", INT64_MIN, INT64_MAX),
    };
    struct value *jobs = need(root, "jobs", ARRAY);
    for (struct value *job = jobs->first; job; job = job->next) plan.job_count++;
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

/* ---------------------------------------------------------------- runtimes ------------------- */

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
#define HINT "give the path of the runtime's C library (libonnxruntime.so, libLiteRt.so)"

/* A function of the library, or the end: it is not the library it was taken for. */
static void *function(void *library, const char *name) {
    void *found = dlsym(library, name);
    if (!found) fail("runtime-missing", "the library has no function %s", name);
    return found;
}

static void check_count(size_t taken, const struct job *job) {
    if (taken != job->input_count)
        fail("failed", "the model takes %zu inputs and was given %zu", taken, job->input_count);
}

/* A path for a file of this process, in a folder that can be written; the file does not exist. */
static char *scratch_path(const char *suffix) {
    const char *folders[] = {getenv("TMPDIR"), "/data/local/tmp", "/tmp", "."};
    for (size_t i = 0; i < LENGTH(folders); i++) {
        if (!folders[i] || access(folders[i], W_OK | X_OK)) continue;
        struct text path = {0};
        append(&path, "%s/edgeloop-%ld%s", folders[i], (long)getpid(), suffix);
        return path.bytes;
    }
    fail("failed", "no folder here can be written: set TMPDIR");
}

/* ---------------------------------------------------------------- ONNX Runtime --------------- */

/* Its C library gives out one table of functions, to which every version only appends.
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

#define ORT_FIELD(position, type, name, arguments) type (*name) arguments;
static struct { ORT_FUNCTIONS(ORT_FIELD) } ort;
static void *ort_env, *ort_allocator, *ort_memory;

static void ort_check(Status status) {
    if (status) fail("failed", "%s", ort.error_message(status));
}

static void ort_open(void *library, struct text *version) {
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
    append(version, "%s", base->version());
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
};

static void *ort_load(const struct plan *plan, const struct job *job, bool examine) {
    struct ort_model *model = zeroed(1, sizeof *model);
    void *options;
    if (!ort_env) {
        ort_check(ort.create_env(3, "agent", &ort_env));
        ort_check(ort.default_allocator(&ort_allocator));
        ort_check(ort.create_memory_info(0, 0, &ort_memory));
    }
    ort_check(ort.create_options(&options));
    ort_check(ort.set_severity(options, 3));
    ort_check(ort.set_intra_threads(options, plan->threads));
    ort_check(ort.set_inter_threads(options, 1));
    if (examine) ort_check(ort.enable_profiling(options, scratch_path("")));
    if (plan->delegate && strcmp(plan->delegate, "CPUExecutionProvider"))
        ort_ask_for(options, plan->delegate, plan->threads);
    ort_check(ort.create_session(ort_env, job->path, options, &model->session));
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

/* The profile of a run names the provider of every node that ran. */
static void ort_taking_part(void *loaded, struct text *list) {
    struct ort_model *model = loaded;
    char *path, **names;
    int count;
    ort_check(ort.end_profiling(model->session, ort_allocator, &path));
    struct text profile = read_file(path);
    unlink(path);
    ort_check(ort.providers(&names, &count));
    for (int i = 0; i < count; i++)
        if (lists(&profile, names[i])) add_name(list, names[i]);
}

/* ---------------------------------------------------------------- LiteRT --------------------- */

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
static void lrt_open(void *library, struct text *version) {
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
    append(version, "libLiteRt %016" PRIx64, hash);
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

static void *lrt_load(const struct plan *plan, const struct job *job, bool examine) {
    struct lrt_model *model = zeroed(1, sizeof *model);
    void *options;
    char settings[64];
    bool builtin = plan->delegate && !strcmp(plan->delegate, "builtin");
    if (plan->delegate && !builtin && strcmp(plan->delegate, "XNNPACK"))
        fail("fallback", "this agent cannot ask LiteRT for %s", plan->delegate);
    if (!lrt_environment)
        lrt_check(lrt.create_environment(0, NULL, &lrt_environment), "make an environment");
    model->model = lrt_read(job->path);
    lrt_check(lrt.create_options(&options), "make options");
    lrt_check(lrt.set_accelerators(options, 1), "use the CPU");
    /* Source: LiteRtCpuKernelMode: 0 delegates, 2 LiteRT's own optimized kernels. */
    snprintf(settings, sizeof settings, "num_threads = %d\n%s", plan->threads,
             builtin ? "kernel_mode = 2\n" : "");
    lrt_add_settings(options, "xnnpack", settings);
    if (examine) lrt_add_settings(options, "runtime_options_string", "enable_profiling = true\n");
    lrt_check(lrt.compile(lrt_environment, model->model, options, &model->compiled),
              "compile the model");
    if (examine && !lrt.profiler(model->compiled, &model->profiler) && model->profiler)
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

static const struct runtime RUNTIMES[] = {
    {"onnxruntime", "libonnxruntime.so", "CPUExecutionProvider", ort_open, ort_available, ort_load,
     ort_feed, ort_call, ort_taking_part},
    {"litert", "libLiteRt.so", NULL, lrt_open, lrt_available, lrt_load, lrt_feed, lrt_call,
     lrt_taking_part},
};

static const struct runtime *runtime_named(const char *name) {
    for (size_t i = 0; i < LENGTH(RUNTIMES); i++)
        if (!strcmp(RUNTIMES[i].name, name)) return &RUNTIMES[i];
    fail("runtime-missing", "this agent knows no runtime '%s'; name one of %s, %s", name,
         RUNTIMES[0].name, RUNTIMES[1].name);
}

static void open_runtime(const struct runtime *runtime, const char *path, struct text *version) {
    void *library = dlopen(path ? path : runtime->library, RTLD_NOW | RTLD_LOCAL);
    if (!library) fail("runtime-missing", "%s; %s", dlerror(), HINT);
    runtime->open(library, version);
}

/* ---------------------------------------------------------------- what takes part ------------ */

static int child_fd;

/* A child's failure is told to its parent: "!kind message". */
static void tell_failure(const char *kind, const char *message) {
    struct text said = {0};
    append(&said, "!%s %s", kind, message);
    write_all(child_fd, said.bytes, said.size);
    _exit(1);
}

/* Run `work` in a child of its own, so that nothing of it, not even a crash, stays here; returns
 * what it made.  `status` is that of waitpid. */
static struct text in_child(struct text (*work)(void *given), void *given, int *status) {
    int ends[2];
    struct text said = {0};
    char piece[4096];
    ssize_t got;
    if (pipe(ends)) fail("failed", "no pipe: %s", strerror(errno));
    pid_t child = fork();
    if (child < 0) fail("failed", "no process: %s", strerror(errno));
    if (!child) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(ends[0]);
        child_fd = ends[1];
        failing = tell_failure;
        said = work(given);
        write_all(child_fd, said.bytes, said.size);
        _exit(0);
    }
    close(ends[1]);
    append_bytes(&said, "", 0);
    while ((got = read(ends[0], piece, sizeof piece)) > 0 || (got < 0 && errno == EINTR))
        if (got > 0) append_bytes(&said, piece, (size_t)got);
    close(ends[0]);
    while (waitpid(child, status, 0) < 0 && errno == EINTR) continue;
    return said;
}

struct visit {
    const struct runtime *runtime;
    const struct plan *plan;
};

/* In a child: one call of each model, loaded to be examined; a line of names for each. */
static struct text examine(void *given) {
    const struct visit *visit = given;
    struct text lines = {0};
    for (size_t i = 0; i < visit->plan->job_count; i++) {
        const struct job *job = &visit->plan->jobs[i];
        struct text list = {0};
        void *model = visit->runtime->load(visit->plan, job, true);
        visit->runtime->feed(model, job);
        visit->runtime->call(model);
        visit->runtime->taking_part(model, &list);
        append(&lines, "%s\n", list.size ? list.bytes : "");
    }
    return lines;
}

/* Let a child find out for every job what executes it. */
static void ask_child(const struct runtime *runtime, struct plan *plan) {
    struct visit visit = {runtime, plan};
    int status;
    struct text said = in_child(examine, &visit, &status);
    char *message = *said.bytes == '!' ? strchr(said.bytes, ' ') : NULL;
    if (message) {
        *message = 0;
        fail(said.bytes + 1, "%s", message + 1);
    }
    if (WIFSIGNALED(status))
        fail("failed", "%s died of signal %d", runtime->name, WTERMSIG(status));
    char *line = said.bytes, *end;
    for (size_t i = 0; i < plan->job_count && (end = strchr(line, '\n')); i++, line = end + 1)
        append_bytes(&plan->jobs[i].delegates, line, (size_t)(end - line));
}

/* Refuse to time a model where a delegate that was asked for or is expected takes no part. */
static void require(const struct plan *plan, const struct job *job, const char *wanted) {
    if (!lists(&job->delegates, wanted))
        fail("fallback", "%s: %s takes no part in it: %s executes it with %s", job->id, wanted,
             plan->runtime, job->delegates.bytes);
}

/* Find out for every job what really executes it. */
static void find_delegates(const struct runtime *runtime, struct plan *plan) {
    bool standard = runtime->standard
                    && (!plan->delegate || !strcmp(plan->delegate, runtime->standard));
    if (!standard) ask_child(runtime, plan);
    for (size_t i = 0; i < plan->job_count; i++) {
        struct job *job = &plan->jobs[i];
        if (!job->delegates.size)
            add_name(&job->delegates, standard ? runtime->standard : "unknown");
        if (plan->delegate) require(plan, job, plan->delegate);
        for (const struct value *name = job->expect; name; name = name->next)
            require(plan, job, name->string);
    }
}

/* ---------------------------------------------------------------- the device's state --------- */

/* Append the numbers in the files PREFIX0/FILE, PREFIX1/FILE and so on, where there are such. */
static void append_numbers(struct text *text, const char *prefix, const char *file) {
    const char *comma = "";
    append(text, "[");
    for (int i = 0; i < 256; i++) {
        char path[128];
        long number;
        snprintf(path, sizeof path, "%s%d/%s", prefix, i, file);
        FILE *stream = fopen(path, "r");
        if (stream && fscanf(stream, "%ld", &number) == 1) {
            append(text, "%s%ld", comma, number);
            comma = ",";
        }
        if (stream) fclose(stream);
    }
    append(text, "]");
}

static void emit_environment(const char *when) {
    struct text line = {0};
    double load;
    append(&line, "{\"event\":\"environment\",\"when\":\"%s\",", when);
    FILE *stream = fopen("/proc/loadavg", "r");
    if (stream && fscanf(stream, "%lf", &load) == 1) append(&line, "\"load_1min\":%.2f,", load);
    if (stream) fclose(stream);
    append(&line, "\"frequencies_khz\":");
    append_numbers(&line, "/sys/devices/system/cpu/cpu", "cpufreq/scaling_cur_freq");
    append(&line, ",\"temperatures_mdegc\":");
    append_numbers(&line, "/sys/class/thermal/thermal_zone", "temp");
    append(&line, ",\"clock\":\"clock_gettime(CLOCK_MONOTONIC)\"}");
    emit(&line);
}

/* Run on these cores and no others; a mask the kernel grants in part only is refused. */
static void pin(const char *mask) {
    cpu_set_t wanted, granted;
    CPU_ZERO(&wanted);
    size_t size = strlen(mask);
    if (!size || strspn(mask, HEX) != size)
        fail("failed", "core_mask '%s' is not a hexadecimal number", mask);
    for (size_t core = 0; core < 4 * size; core++) {
        char digit[] = {mask[size - 1 - core / 4], 0};
        if (!(strtoul(digit, NULL, 16) >> core % 4 & 1)) continue;
        if (core >= CPU_SETSIZE) fail("failed", "core_mask names a core beyond %d", CPU_SETSIZE);
        CPU_SET(core, &wanted);
    }
    if (sched_setaffinity(0, sizeof wanted, &wanted))
        fail("failed", "core_mask %s: %s", mask, strerror(errno));
    if (sched_getaffinity(0, sizeof granted, &granted) || !CPU_EQUAL(&wanted, &granted))
        fail("failed", "core_mask %s: not all of its cores are there", mask);
}

/* ---------------------------------------------------------------- measuring ------------------ */

static int64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* A list of latencies that grows between slices. */
struct series {
    int64_t *ns;
    size_t count, room;
};

/* Time `count` calls; returns their sum in ns. */
static int64_t timed_slice(const struct runtime *runtime, void *model, struct series *series,
                           size_t count) {
    if (series->count + count > series->room) {
        series->room = (series->count + count) * 2;
        series->ns = realloc(series->ns, series->room * sizeof *series->ns);
        if (!series->ns) out_of_memory();
    }
    int64_t *taken = series->ns + series->count, sum = 0;
    memset(taken, 0, count * sizeof *taken); /* the pages are there before they are timed */
    for (size_t i = 0; i < count; i++) {
        int64_t start = now_ns();
        runtime->call(model);
        taken[i] = now_ns() - start;
        sum += taken[i];
    }
    series->count += count;
    return sum;
}

static void emit_series(const char *event, const struct job *job, struct series *series,
                        int64_t start_ns) {
    struct text line = {0};
    append(&line, "{\"event\":\"%s\",\"job\":%s,\"ns\":[", event, job->quoted_id);
    for (size_t i = 0; i < series->count; i++)
        append(&line, i ? ",%" PRId64 : "%" PRId64, series->ns[i]);
    append(&line, "],\"start_ns\":%" PRId64 ",\"khz\":null}", start_ns);
    emit(&line);
    series->count = 0;
}

static void load_job(const struct runtime *runtime, const struct plan *plan, struct job *job) {
    int64_t start = now_ns();
    job->model = runtime->load(plan, job, false);
    int64_t loaded = now_ns();
    runtime->feed(job->model, job);
    int64_t called = now_ns();
    runtime->call(job->model);
    int64_t first = now_ns();
    struct text line = {0};
    append(&line, "{\"event\":\"loaded\",\"job\":%s,\"load_ns\":%" PRId64 ",\"first_ns\":%" PRId64
           ",\"delegates\":[%s],\"threads\":%d}", job->quoted_id, loaded - start, first - called,
           job->delegates.bytes, plan->threads);
    emit(&line);
}

static void warm_up(const struct runtime *runtime, const struct plan *plan,
                    const struct job *job, struct series *series) {
    size_t enough = (size_t)plan->warmup_iterations;
    int64_t spent = 0;
    while (series->count < enough || spent < plan->warmup_ns)
        spent += timed_slice(runtime, job->model, series, enough ? enough : 1);
    emit_series("warmup", job, series, 0);
}

/* Source: splitmix64 (Vigna), a generator of 64 bits of state that any seed starts well. */
static uint64_t next_random(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static void shuffle(size_t *order, size_t count, uint64_t *state) {
    for (size_t i = count; i > 1; i--) {
        size_t other = next_random(state) % i, kept = order[i - 1];
        order[i - 1] = order[other];
        order[other] = kept;
    }
}

/* Warm every model up, then time them slice by slice, in a new random order each round. */
static void take_turns(const struct runtime *runtime, const struct plan *plan) {
    struct series series = {0};
    for (size_t i = 0; i < plan->job_count; i++)
        warm_up(runtime, plan, &plan->jobs[i], &series);
    size_t settle = plan->job_count > 1 ? (size_t)plan->settle_iterations : 0;
    size_t *order = zeroed(plan->job_count, sizeof *order);
    uint64_t state = plan->seed;
    for (int64_t left = plan->iterations; left > 0; left -= plan->slice_iterations) {
        int64_t size = left < plan->slice_iterations ? left : plan->slice_iterations;
        for (size_t i = 0; i < plan->job_count; i++) order[i] = i;
        shuffle(order, plan->job_count, &state);
        for (size_t turn = 0; turn < plan->job_count; turn++) {
            const struct job *job = &plan->jobs[order[turn]];
            if (settle) {
                timed_slice(runtime, job->model, &series, settle);
                emit_series("warmup", job, &series, 0);
            }
            int64_t start_ns = now_ns();
            timed_slice(runtime, job->model, &series, (size_t)size);
            emit_series("samples", job, &series, start_ns);
        }
    }
}

static void measure(struct plan *plan) {
    if (plan->core_mask) pin(plan->core_mask);
    const struct runtime *runtime = runtime_named(plan->runtime);
    struct text version = {0}, line = {0};
    open_runtime(runtime, plan->library, &version);
    append(&line, "{\"event\":\"hello\",\"agent\":\"native\",\"runtime\":\"%s\",\"version\":%s,"
           "\"build\":null}", runtime->name, quoted(version.bytes));
    emit(&line);
    emit_environment("before");
    find_delegates(runtime, plan);
    for (size_t i = 0; i < plan->job_count; i++) load_job(runtime, plan, &plan->jobs[i]);
    take_turns(runtime, plan);
    emit_environment("after");
    append(&line, "{\"event\":\"done\"}");
    emit(&line);
}

/* ---------------------------------------------------------------- the probe ------------------ */

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
    struct text answer = {0}, version = {0}, available = {0};
    alarm(60);
    const struct runtime *runtime = runtime_named(question->name);
    open_runtime(runtime, question->library, &version);
    static _Alignas(64) float values[64] = {-1, 0, 1, 2};
    struct job job = {.id = "tiny", .path = write_tiny_model(runtime), .input_count = 1};
    job.inputs[0] = (struct input){&DTYPES[0], {1, 4}, 2, 4 * sizeof *values, values};
    struct plan plan = {.threads = 1};
    void *model = runtime->load(&plan, &job, false);
    runtime->feed(model, &job);
    runtime->call(model);
    append_bytes(&available, "", 0);
    runtime->available(&available);
    append(&answer, "{\"version\":%s,\"delegates\":[%s]}", quoted(version.bytes), available.bytes);
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

static void probe(int count, char **names) {
    struct text line = {0};
    append(&line, "{\"event\":\"probe\",\"agent\":\"native\",\"runtimes\":{");
    int asked = count ? count : (int)LENGTH(RUNTIMES);
    for (int i = 0; i < asked; i++) {
        struct question question = {copy_of(count ? names[i] : RUNTIMES[i].name), NULL};
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

/* ---------------------------------------------------------------- main ----------------------- */

int main(int count, char **arguments) {
    failing = say_failed;
    /* A host that went away must not leave a measuring process behind on the device. */
    signal(SIGPIPE, SIG_DFL);
    /* ONNX Runtime sends names of models home from 1.29 on, unless told not to.
     * Source: the release notes of 1.29, and the name in the library. */
    setenv("ORT_DISABLE_TELEMETRY", "1", 1);
    event_fd = fcntl(1, F_DUPFD_CLOEXEC, 3);
    if (event_fd < 0 || dup2(2, 1) < 0) return 1;
    if (count >= 2 && !strcmp(arguments[1], "--probe")) {
        probe(count - 2, arguments + 2);
        _exit(0);
    }
    if (count != 2) fail("failed", "usage: agent PLAN.json, or agent --probe [NAME[=LIBRARY]...]");
    struct plan plan = read_plan(arguments[1]);
    signal(SIGALRM, on_alarm);
    alarm(plan.deadline_s);
    measure(&plan);
    /* Libraries that are torn down here have nothing to add, and some hang. */
    _exit(0);
}
