"""The shell script that has a device tell what it is.

It prints what it finds as it finds it, and understands nothing: a device need not be visited again
to be understood better.  Each source begins with a line ``NONCE NAME``, which nothing else on the
device can print by accident; a login's greeting comes before the first of them.  ``NONCE end``
stands last: without it the text is cut off.

    sh -c SCRIPT sh NONCE [ROOT]        ROOT: where /proc, /sys and /etc are, for tests

Runs on dash, busybox and Android's mksh with toybox.  Files in sysfs are read with the shell's own
``read``: some hundreds of processes would take seconds on a phone.
"""

from __future__ import annotations

SCRIPT = r"""
LC_ALL=C; export LC_ALL
n=$1 r=$2
cpu=$r/sys/devices/system/cpu
section() { echo "$n $1"; }
# The first lines of small files that can be read, each under its name without ROOT.
show() {
  for f; do
    line=
    read -r line < "$f"
    if [ -n "$line" ]; then section "${f#"$r"}"; echo " $line"; fi
  done
}
# Which of these files exist.
list() {
  for f; do
    if [ -e "$f" ]; then echo " ${f#"$r"}"; fi
  done
}
# Which of these files exist, and may not be read.
closed() {
  for f; do
    if [ -e "$f" ] && ! [ -r "$f" ]; then echo " ${f#"$r"}"; fi
  done
}
# A folder and the name of the one on the bus that it is of, by the shell alone.
place() {
  if [ -d "$2" ]; then (cd -P "$2" && echo " ${1#"$r"} ${PWD##*/}"); fi
}
# Whole files.  Device trees separate words by NUL, which goes on as it is: not every toybox has tr.
whole() {
  for f; do
    if [ -r "$f" ]; then section "${f#"$r"}"; cat "$f"; echo; fi
  done
}
{
section uname; uname -s -r -m
whole "$r/proc/cpuinfo" "$r/proc/meminfo" "$r/etc/os-release" "$r/proc/device-tree/model" \
  "$r/proc/device-tree/compatible" "$r/proc/device-tree/serial-number"
show "$r/etc/machine-id" "$r/sys/hypervisor/type" "$r/sys/class/dmi/id/product_name" \
  "$r/sys/class/dmi/id/sys_vendor"
for p in "$r"/sys/class/net/*; do
  if [ -e "$p/device" ]; then
    show "$p/address" "$p/addr_assign_type" "$p/phy80211/macaddress" \
      "$p/bonding_slave/perm_hwaddr"
    whole "$p/device/uevent"
  fi
done
show "$cpu/online"
for p in "$cpu"/cpufreq/policy[0-9]*; do
  show "$p/related_cpus" "$p/scaling_governor" "$p/cpuinfo_min_freq" "$p/cpuinfo_max_freq"
done
for p in "$cpu"/cpu[0-9]*; do
  show "$p/cpu_capacity" "$p/topology/cluster_id" "$p/topology/physical_package_id" \
    "$p/regs/identification/midr_el1"
done
show "$r/sys/devices/system/clocksource/clocksource0/current_clocksource"
show "$r"/sys/class/thermal/thermal_zone*/type
show "$r"/sys/class/hwmon/hwmon*/name "$r"/sys/class/hwmon/hwmon*/in*_label \
  "$r"/sys/class/hwmon/hwmon*/curr*_label "$r"/sys/class/hwmon/hwmon*/power*_label
for p in "$r"/sys/bus/iio/devices/iio:device*; do
  show "$p/name" "$p"/in_*_label "$p"/in_*_scale "$p"/in_*_offset
done
whole "$r"/sys/bus/iio/devices/iio:device*/energy_value
show "$r"/sys/class/power_supply/*/type "$r"/sys/class/power_supply/*/scope \
  "$r"/sys/class/power_supply/*/online
show "$r"/sys/class/powercap/*/name "$r"/sys/class/powercap/*/max_energy_range_uj
set -- "$r"/sys/class/hwmon/hwmon*/in*_input "$r"/sys/class/hwmon/hwmon*/curr*_input \
  "$r"/sys/class/hwmon/hwmon*/power*_input "$r"/sys/class/hwmon/hwmon*/power*_average \
  "$r"/sys/bus/iio/devices/iio:device*/in_voltage*_raw \
  "$r"/sys/bus/iio/devices/iio:device*/in_current*_raw \
  "$r"/sys/bus/iio/devices/iio:device*/in_power*_raw \
  "$r"/sys/bus/iio/devices/iio:device*/energy_value \
  "$r"/sys/class/power_supply/*/current_now "$r"/sys/class/power_supply/*/voltage_now \
  "$r"/sys/class/power_supply/*/power_now "$r"/sys/class/power_supply/*/status \
  "$r"/sys/class/power_supply/*/charge_counter "$r"/sys/class/power_supply/*/charge_now \
  "$r"/sys/class/powercap/*/energy_uj
section readings; list "$@"
section places
for p in "$r"/sys/class/hwmon/hwmon*; do place "$p" "$p/device"; done
for p in "$r"/sys/bus/iio/devices/iio:device*; do if [ -L "$p" ]; then place "$p" "$p/.."; fi; done
section unreadable; closed "$@"
if command -v vcgencmd >/dev/null; then section vcgencmd; vcgencmd pmic_read_adc; fi
if command -v getprop >/dev/null; then section getprop; getprop; fi
if command -v dumpsys >/dev/null; then section battery; dumpsys battery; fi
# Android's C library has a loader of its own.
section bionic; list "$r/system/bin/linker64" "$r/system/bin/linker"
# The program that runs this shell: under qemu-user it is qemu, which hides that only from itself.
section interpreter; readlink "/proc/$$/exe"
} 2>/dev/null
section end
"""
