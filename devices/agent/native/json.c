/* Reading the plan as JSON; what cannot be read ends the process with an error event. */

#include "base.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const KINDS[] = {"null", "a boolean", "a number", "a string", "a list",
                                    "an object"};

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

struct text read_file(const char *path) {
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

struct value *read_json(const char *path) {
    struct text text = read_file(path);
    struct reader in = {text.bytes, 0};
    struct value *value = read_value(&in);
    if (!take(&in, 0) || in.at <= text.bytes + text.size)
        unreadable("something follows its end");
    return value;
}

static struct value *member(const struct value *object, const char *name) {
    struct value *found = NULL;
    if (object->kind != OBJECT)
        fail("failed", "%s is to be found in %s", name, KINDS[object->kind]);
    for (struct value *each = object->first; each; each = each->next)
        if (!strcmp(each->name, name)) found = each;
    return found;
}

struct value *find(const struct value *object, const char *name, enum kind kind) {
    struct value *found = member(object, name);
    if (!found || found->kind == NOTHING) return NULL;
    if (found->kind != kind)
        fail("failed", "%s is %s, not %s", name, KINDS[found->kind], KINDS[kind]);
    return found;
}

struct value *need(const struct value *object, const char *name, enum kind kind) {
    struct value *found = find(object, name, kind);
    if (!found) fail("failed", "the plan has no %s", name);
    return found;
}

struct value *need_or_null(const struct value *object, const char *name, enum kind kind) {
    if (!member(object, name)) fail("failed", "the plan has no %s", name);
    return find(object, name, kind);
}

int64_t need_integer(const struct value *object, const char *name, int64_t least,
                            int64_t most) {
    struct value *found = need(object, name, NUMBER);
    if (!found->whole || found->integer < least || found->integer > most)
        fail("failed", "%s must be an integer from %" PRId64 " to %" PRId64, name, least, most);
    return found->integer;
}

char *find_string(const struct value *object, const char *name) {
    struct value *found = find(object, name, STRING);
    return found ? found->string : NULL;
}
