/* What really executes a model; a child finds out, so that the models timed are not touched. */

#include "agent.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static int child_fd;

/* A child's failure is told to its parent: "!kind message". */
static void tell_failure(const char *kind, const char *message) {
    struct text said = {0};
    append(&said, "!%s %s", kind, message);
    write_all(child_fd, said.bytes, said.size);
    _exit(1);
}

struct text in_child(struct text (*work)(void *given), void *given, int *status) {
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

/* In a child: one call of each model, loaded to be examined; a line of names for each. */
static struct text examine(void *given) {
    const struct visit *visit = given;
    struct text lines = {0};
    for (size_t i = 0; i < visit->plan->job_count; i++) {
        const struct job *job = &visit->plan->jobs[i];
        struct text list = {0};
        void *model = visit->runtime->load(visit->plan, job, EXAMINED);
        visit->runtime->feed(model, job);
        visit->runtime->call(model);
        visit->runtime->taking_part(model, &list);
        append(&lines, "%s\n", list.size ? list.bytes : "");
    }
    return lines;
}

/* Let a child find out for every job what executes it. */
static void ask_child(struct visit *visit) {
    const struct plan *plan = visit->plan;
    int status;
    struct text said = in_child(examine, visit, &status);
    char *message = *said.bytes == '!' ? strchr(said.bytes, ' ') : NULL;
    if (message) {
        *message = 0;
        fail(said.bytes + 1, "%s", message + 1);
    }
    if (WIFSIGNALED(status))
        fail("failed", "%s died of signal %d", visit->runtime->name, WTERMSIG(status));
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

void find_delegates(struct visit *visit) {
    const struct runtime *runtime = visit->runtime;
    const struct plan *plan = visit->plan;
    bool standard = runtime->standard
                    && (!plan->delegate || !strcmp(plan->delegate, runtime->standard));
    if (!standard) ask_child(visit);
    for (size_t i = 0; i < plan->job_count; i++) {
        struct job *job = &plan->jobs[i];
        if (!job->delegates.size)
            add_name(&job->delegates, standard ? runtime->standard : "unknown");
        if (plan->delegate) require(plan, job, plan->delegate);
        for (const struct value *name = job->expect; name; name = name->next)
            require(plan, job, name->string);
    }
}
