/* Measure artifacts on this device without Python; one process is one run.
 *
 *     agent PLAN.json                      measure, one JSON object a line on standard output
 *     agent --probe NAME[=LIBRARY]...      say which runtimes work here
 *
 * The plan and the lines are those of the Python agent (agent.py), which says what they mean.  A
 * runtime is its C library, opened by path while this runs: nothing but libc is linked, so the same
 * file builds for a board and for a phone.  Nothing is written inside a timed slice.
 */

#include "agent.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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
