#!/bin/sh
# A recorded Android phone. Installed under the name of each command it answers; what a command only
# tells comes from ../recorded, what can be set is kept in a folder of state, one file a value.
LC_ALL=C
export LC_ALL
here=$(dirname -- "$0")
recorded=$here/../recorded
state=${EDGELOOP_PHONE_STATE:-$here/../state}
mkdir -p "$state" || exit 1

put() { # NAME VALUE, whole or not at all
  printf '%s\n' "$2" > "$state/$1.$$" && mv -f "$state/$1.$$" "$state/$1"
}

kept() { # NAME: into $value; false if it was never set
  [ -f "$state/$1" ] && IFS= read -r value < "$state/$1"
}

broken() { # NAME [HOW]: a test made this command fail, with what it says
  [ -f "$state/${2:-broken}.$1" ] || return 1
  cat "$state/${2:-broken}.$1" >&2
}

do_getprop() {
  [ $# -gt 0 ] || exec cat "$recorded/getprop.txt"
  while IFS= read -r line; do
    case $line in "[$1]: ["*) line=${line#*]: [}; echo "${line%]}"; return ;; esac
  done < "$recorded/getprop.txt"
  echo "${2:-}"
}

setting() { # KEY: into $value, "null" where there is none
  if kept "global.$1"; then
    case $value in =*) value=${value#=} ;; *) value=null ;; esac
    return
  fi
  value=$(grep "^$1=" "$recorded/settings-global.txt") || { value=null; return; }
  value=${value#*=}
}

do_settings() {
  broken settings && exit 255
  [ "${2:-}" = global ] || { echo "Invalid namespace '${2:-}'" >&2; exit 255; }
  case $1 in put|delete) ! broken settings readonly || exit 255 ;; esac
  case ${3:-x} in *[!A-Za-z0-9_.]*) echo "Bad key" >&2; exit 255 ;; esac
  case $1 in
    get) setting "$3"; echo "$value" ;;
    put) put "global.$3" "=$4" ;;
    delete)
      setting "$3"
      if [ "$value" = null ]; then echo "Deleted 0 rows"; else put "global.$3" deleted; echo "Deleted 1 rows"; fi ;;
    list)
      { cut -d= -f1 "$recorded/settings-global.txt"; cd "$state" && ls | sed -n 's/^global\.//p'; } | sort -u |
        while read -r key; do setting "$key"; [ "$value" = null ] || echo "$key=$value"; done ;;
    *) echo "Unknown command: $1" >&2; exit 255 ;;
  esac
}

battery_shows() { # KEY, the recorded line: the line, with what was set instead
  if kept "battery.$1"; then echo "${2%%:*}: $value"; else echo "$2"; fi
}

show_battery() {
  while IFS= read -r line; do
    case $line in
      Current*) echo "$line"; [ ! -f "$state/battery.stopped" ] || echo "  (UPDATES STOPPED -- use 'reset' to restart)" ;;
      *"AC powered:"*) battery_shows ac "$line" ;;
      *"USB powered:"*) battery_shows usb "$line" ;;
      *"Wireless powered:"*) battery_shows wireless "$line" ;;
      *"Dock powered:"*) battery_shows dock "$line" ;;
      *" status:"*) battery_shows status "$line" ;;
      *" present:"*) battery_shows present "$line" ;;
      *" level:"*) battery_shows level "$line" ;;
      *" temperature:"*) battery_shows temp "$line" ;;
      *) echo "$line" ;;
    esac
  done < "$recorded/battery.txt"
}

do_battery() {
  [ "${2:-}" != -f ] || { first=$1; shift 2; set -- "$first" "$@"; }
  case ${1:-} in
    "") show_battery ;;
    unplug) for key in ac usb wireless dock; do put "battery.$key" false; done; put battery.stopped yes ;;
    reset) rm -f "$state"/battery.* ;;
    set)
      case $2 in
        ac|usb|wireless|dock|present) [ "$3" = 0 ] && put "battery.$2" false || put "battery.$2" true ;;
        status|level|temp) put "battery.$2" "$3" ;;
        *) echo "Unknown set option: $2" >&2; exit 255 ;;
      esac
      put battery.stopped yes ;;
    *) echo "Unknown command: $1" >&2; exit 255 ;;
  esac
}

show_thermal() {
  while IFS= read -r line; do
    case $line in
      IsStatusOverride:*) if kept thermal_status; then line="IsStatusOverride: true"; fi ;;
      "Thermal Status:"*) if kept thermal_status; then line="Thermal Status: $value"; fi ;;
      *"Temperature{"*)
        name=${line#*mName=}
        if kept "temperature.${name%%,*}"; then line="${line%%mValue=*}mValue=$value, ${line#*, }"; fi ;;
    esac
    printf '%s\n' "$line"
  done < "$recorded/thermalservice.txt"
}

show_power() {
  kept wakefulness || value=Awake
  awake=$value
  setting stay_on_while_plugged_in
  [ "$value" = 0 ] && stay=false || stay=true
  [ "$awake" = Awake ] && interactive=true || interactive=false
  sed -e "s/^  mWakefulness=.*/  mWakefulness=$awake/" -e "s/^  mStayOn=.*/  mStayOn=$stay/" \
    -e "s/^\(  mHalInteractiveModeEnabled\)=.*/\1=$interactive/" \
    -e "s/^\(  mHoldingDisplaySuspendBlocker\)=.*/\1=$interactive/" "$recorded/power.txt"
}

do_dumpsys() {
  broken "dumpsys.${1:-}" && exit 1
  if [ -f "$state/dumpsys.${1:-}" ] && [ $# -eq 1 ]; then exec cat "$state/dumpsys.$1"; fi
  case ${1:-} in
    battery) shift; do_battery "$@" ;;
    thermalservice) show_thermal ;;
    power) show_power ;;
    -l) echo "Currently running services:"; printf '  %s\n' battery power thermalservice ;;
    *) echo "Can't find service: ${1:-}" >&2; exit 1 ;;
  esac
}

do_cmd() {
  service=${1:-}
  [ $# -eq 0 ] || shift
  broken "cmd.$service" && exit 255
  case $service:${1:-} in
    power:set-fixed-performance-mode-enabled)
      [ "${2:-}" = true ] && put fixed_performance true || put fixed_performance false ;;
    power:*) cat "$recorded/cmd-power-help.txt" ;;
    thermalservice:override-status) put thermal_status "$2" ;;
    thermalservice:reset) rm -f "$state/thermal_status" ;;
    connectivity:airplane-mode)
      setting airplane_mode_on
      case ${2:-} in
        enable) put global.airplane_mode_on "=1" ;;
        disable) put global.airplane_mode_on "=0" ;;
        "") [ "$value" = 1 ] && echo enabled || echo disabled ;;
        *) exit 255 ;;
      esac ;;
    battery:*) do_battery "$@" ;;
    settings:*) do_settings "$@" ;;
    *) echo "cmd: Can't find service: $service" >&2; exit 20 ;;
  esac
}

do_svc() {
  case ${1:-}:${2:-}:${3:-} in
    power:stayon:true) put global.stay_on_while_plugged_in "=15" ;;
    power:stayon:false) put global.stay_on_while_plugged_in "=0" ;;
    power:stayon:ac) put global.stay_on_while_plugged_in "=1" ;;
    power:stayon:usb) put global.stay_on_while_plugged_in "=2" ;;
    power:stayon:wireless) put global.stay_on_while_plugged_in "=4" ;;
    wifi:enable:*) put global.wifi_on "=1" ;;
    wifi:disable:*) put global.wifi_on "=0" ;;
    *) echo "Available commands: help power wifi" >&2; exit 1 ;;
  esac
}

do_input() {
  [ "${1:-}" = keyevent ] || exit 255
  case ${2:-} in
    223|KEYCODE_SLEEP) put wakefulness Asleep ;;
    224|KEYCODE_WAKEUP) put wakefulness Awake ;;
    26|KEYCODE_POWER)
      kept wakefulness || value=Awake
      [ "$value" = Awake ] && put wakefulness Asleep || put wakefulness Awake ;;
  esac
}

do_wm() {
  case ${1:-} in
    size) echo "Physical size: 1440x3120" ;;
    density) echo "Physical density: $(do_getprop ro.sf.lcd_density)" ;;
    *) exit 255 ;;
  esac
}

"do_${0##*/}" "$@"
