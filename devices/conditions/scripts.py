"""What the device itself does: the shell scripts of the journal, of its guard and of the visits.

They run on dash, busybox and Android's mksh with toybox.
"""

from __future__ import annotations

# One function for each kind of change: NAME TARGET VALUE.  Each looks whether it was done, but for
# ``lift``, which makes room for the next.  Since Linux 5.4 a clock's bounds take a moment to show
# what was written, and the upper one shows the tightest of all that are asked for, the thermal
# governor's among them: ``cap`` takes a lower one while that one is at work.  Source:
# drivers/cpufreq/cpufreq.c, cpufreq_notifier_max; drivers/thermal/cpufreq_cooling.c.
PUT = r"""
LC_ALL=C; export LC_ALL
failed=0 tries=0
newline='
'
no() { echo "$1 stays $2, not $3" >&2; failed=1; }
lift() {
  written=
  { echo "$2" > "$1"; } 2>/dev/null && written=yes
  line=
  { read -r line < "$1"; } 2>/dev/null
}
takes() {
  few=0
  lift "$1" "$2"
  while [ "$line" != "$2" ]; do
    few=$((few + 1)) tries=$((tries + 1))
    [ "$few" -le 3 ] || [ "$tries" -le 30 ] || return 1  # all of them within some seconds
    sleep 0.1 2>/dev/null || sleep 1
    lift "$1" "$2"
  done
}
cooled() {
  for cooling in "${1%%/sys/devices/*}"/sys/class/thermal/cooling_device*; do
    kind= state=
    { read -r kind < "$cooling/type"; read -r state < "$cooling/cur_state"; } 2>/dev/null
    case $kind in
      *cpufreq* | Processor) [ "${state:-0}" = 0 ] || return 0 ;;
    esac
  done
  return 1
}
file() { takes "$1" "$2" || no "$1" "${line:-unknown}" "$2"; }
cap() {
  lift "$1" "$2"
  if [ -n "$written" ] && [ "${line:-$2}" -lt "$2" ] && cooled "$1"; then return; fi
  file "$1" "$2"
}
setting() {
  case $2 in
    null) settings delete global "$1" ;;
    *) settings put global "$1" "$2" ;;
  esac < /dev/null > /dev/null 2>&1
  line=$(settings get global "$1" < /dev/null 2>/dev/null)
  [ "$line" = "$2" ] || no "the setting $1" "${line:-unknown}" "$2"
}
fixed() {
  line=$(cmd power set-fixed-performance-mode-enabled "$2" < /dev/null 2>&1) ||
    no "fixed performance mode" "as it is (${line%%"$newline"*})" "$2"
}
airplane() {
  case $2 in 1) word=enable ;; *) word=disable ;; esac
  cmd connectivity airplane-mode "$word" < /dev/null > /dev/null 2>&1
  line=$(settings get global airplane_mode_on < /dev/null 2>/dev/null)
  [ "$line" = "$2" ] || setting airplane_mode_on "$2"
}
screen() {
  case $2 in on) word=KEYCODE_WAKEUP ;; *) word=KEYCODE_SLEEP ;; esac
  input keyevent "$word" < /dev/null > /dev/null 2>&1 || no "the screen" "as it is" "$2"
}
"""
# The boot; and the journal's own, which its second line tells with the visit's token and holder.
_WHOSE = r"""
boot=unknown by= name= booted=
{ read -r boot < /proc/sys/kernel/random/boot_id; } 2>/dev/null
if [ -f "$journal" ]; then
  { { read -r skip; read -r skip name booted by; } < "$journal"; } 2>/dev/null
fi
"""
# A restart has undone what was written to sysfs; it may not even be there any more.
JOURNAL_HEAD = f"""# Puts back what edgeloop changed on this device, and removes itself once
# all of it is back.
{PUT}
journal=$0
{_WHOSE}
[ "$booted" = "$boot" ] || {{
  lift() {{ :; }}
  file() {{ :; }}
  cap() {{ :; }}
}}
"""
JOURNAL_TAIL = """[ "$failed" -ne 0 ] || rm -f "$0"
exit "$failed"
"""
# Which process one is, of all that ever get its number: that, and the time of its start.
# A dead one that nobody has waited for is none.  Source: proc(5), /proc/pid/stat, fields 1, 3 and
# 22; a shell's name, field 2, has no space in it.
_PROCESS = r"""
process() {
  number= state= start=
  { read -r number a state b c d e f g h i j k l m n o p q r s start rest < "/proc/$1/stat"; } \
    2>/dev/null
  [ "$state" != Z ] || start=
}
"""
# Two at once wait for each other; one that was killed in the midst of it is not waited for longer
# than this takes.
_PLAY = r"""
play() {
  [ -f "$root/restore.sh" ] || return 0
  turns=0
  until mkdir "$root/restoring" 2>/dev/null; do
    turns=$((turns + 1))
    [ "$turns" -lt 10 ] || break
    sleep 1
  done
  played=0
  if [ -f "$root/restore.sh" ]; then sh "$root/restore.sh"; played=$?; fi
  rmdir "$root/restoring" 2>/dev/null
  return "$played"
}
"""
# Another holder's journal is left alone until its guard has heard nothing for too long, or is gone.
RESTORE = f"""root=$1 holder=$2 journal=$1/restore.sh
{_PLAY}
{_PROCESS}
{_WHOSE}
if [ -n "$name" ] && [ "$by" != "$holder" ] && [ "$booted" = "$boot" ]; then
  guard= pid= since= over=
  {{ read -r guard pid since over < "$root/guard"; }} 2>/dev/null
  process "$pid"
  if [ "$guard" = "$name" ] && [ -n "$since" ] && [ "$since" = "$start" ] && [ -z "$over" ]
  then exit 3; fi
fi
rm -f "$journal.part"
play
"""
# Runs in a session of its own; returns at once and leaves the loop behind.
GUARD = (
    f"""root=$1 patience=$2 name=$3
{_PLAY}
{_PROCESS}"""
    + r"""
step=$((patience / 20))
[ "$step" -le 60 ] || step=60
[ "$step" -ge 1 ] || step=1
trap '' HUP
mine() {
  [ -f "$root/restore.sh" ] || return 1
  guard=
  { read -r guard rest < "$root/guard"; } 2>/dev/null
  [ "$guard" = "$name" ]
}
echo "$name" > "$root/guard" || exit 1
(
  process self  # the loop: $$ is its parent
  echo "$name $number $start" > "$root/guard"
  seen= quiet=0
  while [ "$quiet" -lt "$patience" ]; do
    sleep "$step"
    mine || exit 0
    alive=
    { read -r alive < "$root/alive"; } 2>/dev/null
    if [ "$alive" = "$seen" ]; then quiet=$((quiet + step)); else seen=$alive quiet=0; fi
  done
  echo "$name $number $start over" > "$root/guard"
  until play; do
    sleep "$step"
    mine || exit 0
  done
) &
"""
)
SET = (
    f"""{PUT}
root=$1 journal= way_back=$2 guard=$3 patience=$4 token=$5 holder=$6
shift 6
{_WHOSE}"""
    + r"""
mkdir -p "$root" || exit 1
if [ -e "$root/restore.sh" ]; then echo "an earlier visit has not been put back" >&2; exit 1; fi
printf '#!/bin/sh\n# %s\n%s' "$token $boot $holder" "$way_back" > "$root/restore.sh.part" || exit 1
sync "$root/restore.sh.part" 2>/dev/null || sync
mv -f "$root/restore.sh.part" "$root/restore.sh" || exit 1
echo "$token" > "$root/alive" || exit 1
own=setsid
command -v setsid > /dev/null || own=nohup
"$own" sh -c "$guard" sh "$root" "$patience" "$token" < /dev/null > /dev/null 2>&1 || exit 1
while [ $# -gt 0 ]; do
  "$1" "$2" "$3"
  [ "$failed" -eq 0 ] || exit 3
  shift 3
done
"""
)
STILL = f"""root=$1 token=$2 journal=$1/restore.sh
{_WHOSE}
guard= pid= since= over=
{{ read -r guard pid since over < "$root/guard"; }} 2>/dev/null
[ "$name" = "$token" ] && [ "$guard" = "$token" ] && [ -z "$over" ] || exit 3
[ "$booted" = "$boot" ] || exit 4
echo "$3" > "$root/alive"
"""
