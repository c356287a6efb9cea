/* Memory, texts that grow, and the events that are made of them. */

#include "base.h"

#include <ctype.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_MESSAGE 2000

int event_fd = 1;

void write_all(int fd, const char *bytes, size_t size) {
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

void out_of_memory(void) {
    end_with("{\"event\":\"error\",\"kind\":\"failed\",\"message\":\"out of memory\"}\n");
}

void *zeroed(size_t count, size_t size) {
    void *memory = calloc(count + 1, size);
    if (!memory) out_of_memory();
    return memory;
}

void append_bytes(struct text *text, const char *bytes, size_t size) {
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

void append(struct text *text, const char *format, ...) {
    char *piece;
    va_list arguments;
    va_start(arguments, format);
    int size = vasprintf(&piece, format, arguments);
    va_end(arguments);
    if (size < 0) out_of_memory();
    append_bytes(text, piece, (size_t)size);
    free(piece);
}

char *copy_of(const char *bytes) {
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

char *quoted(const char *value) {
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

void add_name(struct text *list, const char *name) {
    append(list, list->size ? ",%s" : "%s", quoted(name));
}

bool lists(const struct text *list, const char *name) {
    return list->size && strstr(list->bytes, quoted(name));
}

void (*failing)(const char *kind, const char *message);
static volatile sig_atomic_t writing, deadline_passed;

static void say_deadline(void) {
    end_with("{\"event\":\"error\",\"kind\":\"deadline\","
             "\"message\":\"the plan's deadline passed\"}\n");
}

/* A line that is being written is ended first; if nobody takes it, the
 * second alarm ends the process without another word. */
void on_alarm(int number) {
    (void)number;
    if (!writing) say_deadline();
    deadline_passed = 1;
    signal(SIGALRM, SIG_DFL);
    alarm(5);
}

void emit(struct text *line) {
    append_bytes(line, "\n", 1);
    writing = 1;
    write_all(event_fd, line->bytes, line->size);
    writing = 0;
    if (deadline_passed) say_deadline();
    free(line->bytes);
    *line = (struct text){0};
}

void say_failed(const char *kind, const char *message) {
    struct text line = {0};
    append(&line, "{\"event\":\"error\",\"kind\":\"%s\",\"message\":%s}", kind, quoted(message));
    emit(&line);
    _exit(1);
}

void fail(const char *kind, const char *format, ...) {
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
