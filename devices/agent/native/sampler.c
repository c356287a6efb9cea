/* The child that reads the power sensor: it understands nothing of what it reads, keeps it in
 * memory, and ends when it is told to, or with its parent. */

#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000
/* What is taken of a file, or of what a command prints.  Chosen: no sensor says more, and a whole
 * page of the kernel's is 4096. */
#define MOST_BYTES 65536
/* How long the child may take to answer beyond its commands' time.  Chosen: what it has read in
 * an hour is written within a second. */
#define ANSWER_NS (10 * (int64_t)NS_PER_S)

static int64_t command_limit_ns(const struct meter *meter) {
    return meter->period_ns > NS_PER_S ? meter->period_ns : NS_PER_S;
}

/* poll, until a time; 0 when it has passed. */
static int poll_until(struct pollfd *what, nfds_t count, int64_t at_ns) {
    for (;;) {
        int64_t left = at_ns - now_ns();
        if (left < 0) left = 0;
        struct timespec limit = {.tv_sec = (time_t)(left / NS_PER_S), .tv_nsec = left % NS_PER_S};
        int ready = ppoll(what, count, &limit, NULL);
        if (ready >= 0 || errno != EINTR) return ready;
    }
}

/* Add what can be read now; false at the end, or where there is too much of it. */
static bool add_some(int fd, struct text *text) {
    char piece[4096];
    size_t left = MOST_BYTES - text->size;
    ssize_t got = read(fd, piece, left < sizeof piece ? left : sizeof piece);
    if (got > 0) append_bytes(text, piece, (size_t)got);
    return got > 0 && text->size < MOST_BYTES;
}

static void empty(struct text *text) {
    text->size = 0;
    append_bytes(text, "", 0);
}

/* A file's text; none where it cannot be read. */
static void read_sensor(const char *path, struct text *text) {
    empty(text);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return;
    while (add_some(fd, text)) continue;
    close(fd);
}

/* In the command's own process, which ends with the sampler. */
static void become(char **command, int output) {
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(output, 1);
    execvp(*command, command);
    _exit(127);
}

/* What a command prints; nothing where it takes too long.  It and all that it has started is killed
 * then, and when the parent is gone. */
static void run_command(const struct meter *meter, int parent, struct text *text) {
    int ends[2];
    empty(text);
    if (pipe2(ends, O_CLOEXEC)) return;
    pid_t child = fork();
    if (!child) become(meter->command, ends[1]);
    close(ends[1]);
    if (child > 0) {
        struct pollfd what[] = {{.fd = ends[0], .events = POLLIN}, {.fd = parent}};
        int64_t limit = now_ns() + command_limit_ns(meter);
        bool more = true, gone = false;
        setpgid(child, child);
        while (more && !gone) {
            int ready = poll_until(what, LENGTH(what), limit);
            gone = what[1].revents != 0;
            if (ready <= 0) empty(text);
            more = ready > 0 && (!what[0].revents || add_some(ends[0], text));
        }
        kill(-child, SIGKILL);
        while (waitpid(child, NULL, 0) < 0 && errno == EINTR) continue;
    }
    close(ends[0]);
}

struct readings {
    struct text at_ns, values; /* the insides of two JSON lists */
    struct text *texts;        /* of one reading */
    size_t count;
};

/* One reading, its time the middle of it; it becomes JSON afterwards. */
static void read_all(const struct meter *meter, int parent, struct readings *readings) {
    int64_t before = now_ns();
    if (*meter->command) run_command(meter, parent, readings->texts);
    else
        for (size_t i = 0; i < readings->count; i++)
            read_sensor(meter->files[i], &readings->texts[i]);
    int64_t at_ns = before + (now_ns() - before) / 2;
    bool first = !readings->at_ns.size;
    append(&readings->at_ns, first ? "%" PRId64 : ",%" PRId64, at_ns);
    append(&readings->values, first ? "[" : ",[");
    for (size_t i = 0; i < readings->count; i++) {
        char *text = quoted(readings->texts[i].bytes);
        append(&readings->values, i ? ",%s" : "%s", text);
        free(text);
    }
    append(&readings->values, "]");
}

static void give_up(const char *kind, const char *message) {
    (void)kind, (void)message;
    _exit(1);
}

/* The child's own life; it never comes back.  If the parent is dead, nobody takes what it has to say,
 * and saying it ends it (SIGPIPE). */
static void sample(const struct meter *meter, int parent) {
    struct readings readings = {0};
    struct pollfd what = {.fd = parent, .events = POLLIN};
    failing = give_up;
    readings.count = 1;
    if (!*meter->command)
        for (readings.count = 0; meter->files[readings.count];) readings.count++;
    readings.texts = zeroed(readings.count, sizeof *readings.texts);
    int64_t due = now_ns();
    do {
        read_all(meter, parent, &readings);
        /* Readings that came too late are left out, not made up for. */
        int64_t late = now_ns() - due;
        due += (late / meter->period_ns + 1) * meter->period_ns;
    } while (!poll_until(&what, 1, due));
    read_all(meter, parent, &readings); /* one after the end of what is looked at */
    struct text line = {0};
    append(&line, "{\"event\":\"power\",\"at_ns\":[");
    append_bytes(&line, readings.at_ns.bytes, readings.at_ns.size);
    append(&line, "],\"values\":[");
    append_bytes(&line, readings.values.bytes, readings.values.size);
    append(&line, "]}");
    write_all(parent, line.bytes, line.size);
    _exit(0);
}

/* Of the parent's files the child keeps its line to it alone: whoever listens to the parent is to
 * hear when that is gone. */
static void let_go(void) {
    int nowhere = open("/dev/null", O_RDWR);
    for (int fd = 0; fd < 3; fd++) dup2(nowhere, fd);
    if (nowhere > 2) close(nowhere);
    close(event_fd);
}

struct sampler start_sampler(const struct meter *meter) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends))
        fail("failed", "no line to the sampler: %s", strerror(errno));
    pid_t child = fork();
    if (child < 0) fail("failed", "no process: %s", strerror(errno));
    if (!child) {
        close(ends[0]);
        let_go();
        sample(meter, ends[1]);
    }
    close(ends[1]);
    return (struct sampler){child, ends[0]};
}

struct text stop_sampler(const struct sampler *sampler, const struct meter *meter) {
    struct text said = {0};
    struct pollfd what = {.fd = sampler->line, .events = POLLIN};
    int64_t limit = now_ns() + ANSWER_NS + 2 * command_limit_ns(meter);
    empty(&said);
    (void)send(sampler->line, "", 1, MSG_NOSIGNAL); /* where it is dead, it says nothing */
    char piece[1 << 16];
    ssize_t got = 1;
    while (got > 0) {
        if (poll_until(&what, 1, limit) <= 0) fail("failed", "the power sensor does not answer");
        got = read(sampler->line, piece, sizeof piece);
        if (got > 0) append_bytes(&said, piece, (size_t)got);
    }
    while (waitpid(sampler->pid, NULL, 0) < 0 && errno == EINTR) continue;
    if (!said.size || said.bytes[said.size - 1] != '}')
        fail("failed", "the sampler of the power sensor died");
    return said;
}
