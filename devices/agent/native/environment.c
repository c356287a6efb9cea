/* The device's state, and the cores this process may use. */

#include "agent.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

void emit_environment(const char *when) {
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
