/* The device's state, and the cores this process may use. */

#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static FILE *open_numbered(const char *prefix, int number, const char *file) {
    char path[128];
    snprintf(path, sizeof path, "%s%d/%s", prefix, number, file);
    return fopen(path, "r");
}

/* Append the numbers in the files PREFIX0/FILE, PREFIX1/FILE and so on, where there are such. */
static void append_numbers(struct text *text, const char *prefix, const char *file) {
    const char *comma = "";
    append(text, "[");
    for (int i = 0; i < MAX_NUMBERED; i++) {
        long number;
        FILE *stream = open_numbered(prefix, i, file);
        if (stream && fscanf(stream, "%ld", &number) == 1) {
            append(text, "%s%ld", comma, number);
            comma = ",";
        }
        if (stream) fclose(stream);
    }
    append(text, "]");
}

/* The cores' governors, each once. */
static void append_governors(struct text *line) {
    struct text names = {0};
    for (int i = 0; i < MAX_NUMBERED; i++) {
        char name[64];
        FILE *stream = open_numbered(CORES, i, "cpufreq/scaling_governor");
        if (stream && fscanf(stream, "%63s", name) == 1 && !lists(&names, name))
            add_name(&names, name);
        if (stream) fclose(stream);
    }
    if (names.size) append(line, ",\"governors\":[%s]", names.bytes);
    free(names.bytes);
}

/* How long the cores were busy since the system began, and were taken away by a hypervisor.
 * Source: proc(5), /proc/stat: user, nice, system, idle, iowait, irq, softirq and steal. */
static void append_busy(struct text *line) {
    long long user, nice, system, irq, soft, steal, tick_ms = 1000 / sysconf(_SC_CLK_TCK);
    FILE *stream = fopen("/proc/stat", "r");
    if (stream && fscanf(stream, "cpu %lld %lld %lld %*d %*d %lld %lld %lld", &user, &nice, &system,
                         &irq, &soft, &steal) == 6)
        append(line, ",\"busy_ms\":%lld,\"stolen_ms\":%lld",
               (user + nice + system + irq + soft) * tick_ms, steal * tick_ms);
    if (stream) fclose(stream);
}

static int64_t used_us(const struct rusage *usage) {
    return ((int64_t)usage->ru_utime.tv_sec + usage->ru_stime.tv_sec) * 1000000
           + usage->ru_utime.tv_usec + usage->ru_stime.tv_usec;
}

/* What a living child has used of the cores, with its own children that have ended; none, once it
 * has ended itself.  Source: proc(5), /proc/PID/stat: utime, stime, cutime and cstime, in ticks. */
static int64_t used_ms(int child) {
    char path[40];
    long long user = 0, system = 0, of_user = 0, of_system = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", child);
    FILE *stream = child ? fopen(path, "r") : NULL;
    if (!stream || fscanf(stream, "%*d (%*[^)]) %*c %*d %*d %*d %*d %*d %*d %*d %*d %*d"
                          "%*d %lld %lld %lld %lld", &user, &system, &of_user, &of_system) != 4)
        user = system = of_user = of_system = 0;
    if (stream) fclose(stream);
    return (user + system + of_user + of_system) * 1000 / sysconf(_SC_CLK_TCK);
}

/* What this process has used, with its children that have ended, and a living one. */
static void append_own(struct text *line, int child) {
    struct rusage self, children;
    if (getrusage(RUSAGE_SELF, &self) || getrusage(RUSAGE_CHILDREN, &children)) return;
    append(line, ",\"own_ms\":%" PRId64,
           (used_us(&self) + used_us(&children)) / 1000 + used_ms(child));
}

/* How long this process' threads were ready to run and did not.
 * Source: the kernel's sched-stats.rst: the second number of schedstat, in ns. */
static void append_waited(struct text *line) {
    DIR *tasks = opendir("/proc/self/task");
    long long sum = 0;
    bool told = false;
    for (struct dirent *task; tasks && (task = readdir(tasks));) {
        char path[300];
        long long waited;
        snprintf(path, sizeof path, "/proc/self/task/%s/schedstat", task->d_name);
        FILE *stream = fopen(path, "r");
        if (stream && fscanf(stream, "%*d %lld", &waited) == 1) {
            sum += waited;
            told = true;
        }
        if (stream) fclose(stream);
    }
    if (tasks) closedir(tasks);
    if (told) append(line, ",\"waited_ms\":%lld", sum / 1000000);
}

/* Sums of time come first: what matters is the difference of two, and the looking itself, which may
 * take long, is to count for neither side. */
void emit_environment(const char *when, int child) {
    struct text line = {0};
    double load;
    append(&line, "{\"event\":\"environment\",\"when\":\"%s\",\"at_ns\":%" PRId64, when,
           now_ns());
    append_busy(&line);
    append_own(&line, child);
    append_waited(&line);
    FILE *stream = fopen("/proc/loadavg", "r");
    if (stream && fscanf(stream, "%lf", &load) == 1) append(&line, ",\"load_1min\":%.2f", load);
    if (stream) fclose(stream);
    append(&line, ",\"frequencies_khz\":");
    append_numbers(&line, CORES, "cpufreq/scaling_cur_freq");
    append(&line, ",\"temperatures_mdegc\":");
    append_numbers(&line, "/sys/class/thermal/thermal_zone", "temp");
    append_governors(&line);
    append(&line, ",\"clock\":\"clock_gettime(CLOCK_MONOTONIC)\"}");
    emit(&line);
}

void pin(const char *mask) {
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
