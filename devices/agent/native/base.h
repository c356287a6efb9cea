/* What every part of the agent stands on: memory, texts that grow, events, JSON. */

#ifndef BASE_H
#define BASE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PRINTF(text, first) __attribute__((format(printf, text, first)))
#define LENGTH(array) (sizeof(array) / sizeof *(array))
#define HEX "0123456789abcdefABCDEF"

/* A text that grows; always ends with a zero byte. */
struct text {
    char *bytes;
    size_t size, room;
};

/* events.c */

/* Where events go: a copy of standard output, which itself is given to standard error. */
extern int event_fd;
/* What `fail` says it by: in a child that only looks at something, failing is an answer. */
extern void (*failing)(const char *kind, const char *message);

void write_all(int fd, const char *bytes, size_t size);
void out_of_memory(void);
/* Zeroed memory for `count` things. */
void *zeroed(size_t count, size_t size);
char *copy_of(const char *bytes);
void append_bytes(struct text *text, const char *bytes, size_t size);
void append(struct text *text, const char *format, ...) PRINTF(2, 3);
/* A JSON string; what is not UTF-8 becomes a question mark, so that a line stays JSON.  Like all
 * that is not freed here it lives as long as the process, which measures one plan. */
char *quoted(const char *value);
/* A list of names is kept as the inside of a JSON list. */
void add_name(struct text *list, const char *name);
bool lists(const struct text *list, const char *name);
/* Write a line, at once, and begin a new one. */
void emit(struct text *line);
/* Say why on one line, and end. */
void fail(const char *kind, const char *format, ...) PRINTF(2, 3) __attribute__((noreturn));
/* The end by an error event, as `failing` of a process that measures. */
void say_failed(const char *kind, const char *message);
/* The plan's deadline, a signal handler. */
void on_alarm(int number);

/* clock.c */

/* CLOCK_MONOTONIC in ns. */
int64_t now_ns(void);
void sleep_until(int64_t at_ns);

/* json.c */

enum kind { NOTHING, BOOLEAN, NUMBER, STRING, ARRAY, OBJECT };

/* A value; members of an array or object form a list. */
struct value {
    enum kind kind;
    char *name; /* of a member of an object */
    char *string;
    bool whole; /* the number is an integer that fits */
    int64_t integer;
    struct value *first, *next;
};

struct text read_file(const char *path);
struct value *read_json(const char *path);
/* The member of that name, or NULL where there is none or it is null; the last one counts. */
struct value *find(const struct value *object, const char *name, enum kind kind);
struct value *need(const struct value *object, const char *name, enum kind kind);
/* The same where it must be there, and may be null. */
struct value *need_or_null(const struct value *object, const char *name, enum kind kind);
int64_t need_integer(const struct value *object, const char *name, int64_t least, int64_t most);
char *find_string(const struct value *object, const char *name);

#endif
