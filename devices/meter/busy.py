"""A device left alone, kept busy and left alone again, its sensor read all the while.

One shell script does it all, so that a phone can be asked, too; a device needs no agent for it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from devices.meter.base import Meter
from devices.transport.base import Transport
from profiles.errors import ConnectionLost

#: A battery is read so often, in s: its gauge is renewed no faster; others as often as they must,
#: within what a shell can well do.
PAUSE_S = 0.25
_LEAST_PAUSE_S = 0.05
_GRACE_S = 60.0

# The loops that make the load end by their numbers, on every way out; and should the script be
# killed outright, by themselves.
_SCRIPT = r"""
n=$1 seconds=$2 pause=$3 cores=$4 mode=$5
shift 5
pids= me=$$
release() { for p in $pids; do kill "$p" 2>/dev/null; done; pids=; }
trap release EXIT
trap 'exit 1' HUP INT TERM PIPE
now() { read -r up rest < /proc/uptime; }
lines() { while IFS= read -r line || [ -n "$line" ]; do echo " $line"; done; }
load() {
  i=0
  while [ "$i" -lt "$cores" ]; do
    (while kill -0 "$me" 2>/dev/null; do
      j=0; while [ "$j" -lt 20000 ]; do j=$((j+1)); done
    done) < /dev/null > /dev/null 2>&1 &
    pids="$pids $!"
    i=$((i+1))
  done
}
observe() {
  what=$1
  shift
  now; echo "$n begin $what $up"
  ends=$(( ${up%.*} + seconds ))
  while [ "${up%.*}" -lt "$ends" ]; do
    echo "$n at $up"
    if [ "$mode" = command ]; then echo "$n file"; "$@" 2>/dev/null
    else for f; do echo "$n file"; lines < "$f"; done 2>/dev/null
    fi
    sleep "$pause" 2>/dev/null || sleep 1
    now
  done
  echo "$n end $up"
}
observe idle-before "$@"
load
observe active "$@"
release
observe idle-after "$@"
echo "$n done"
"""


def observed(
    transport: Transport, meter: Meter, *, seconds: int, cores: int, more: Sequence[str] = ()
) -> dict[str, Any]:
    """Marks and readings of an idle, a busy and an idle stretch, as of an energy run.

    Args:
        transport: to the device.
        meter: what is read.
        seconds: length of each stretch, one less at most.
        cores: how many are kept busy.
        more: files that are read beside the meter's.

    Raises:
        ConnectionLost: if the answer is cut off.
    """
    sampling, nonce = meter.sampling(), secrets.token_hex(8)
    words = list(sampling.command) or [*sampling.files, *more]
    mode = "command" if sampling.command else "files"
    pause_s = min(max(sampling.period_ns / 1e9, _LEAST_PAUSE_S), PAUSE_S)
    numbers = [str(seconds), str(pause_s), str(cores)]
    argv = ["sh", "-c", _SCRIPT, "sh", nonce, *numbers, mode, *words]
    done = transport.run(argv, deadline_s=4 * seconds + _GRACE_S)
    text = done.stdout.decode(errors="replace")
    if not text.rstrip().endswith(f"{nonce} done"):
        raise ConnectionLost(f"the device did not read its sensor to the end: {done.complaint()}")
    return _parsed(text, nonce)


def _parsed(text: str, nonce: str) -> dict[str, Any]:
    marks: list[dict[str, Any]] = []
    at_ns: list[int] = []
    values: list[list[str]] = []
    for line in text.splitlines():
        match line.split() if line.startswith(f"{nonce} ") else []:
            case [_, "begin", what, up]:
                marks.append({"what": what, "start_ns": _ns(up), "calls": 1})
            case [_, "end", up]:
                marks[-1]["end_ns"] = _ns(up)
            case [_, "at", up]:
                at_ns.append(_ns(up))
                values.append([])
            case [_, "file"]:
                values[-1].append("")
            case [] if values and values[-1]:
                values[-1][-1] += f"{line}\n"
    return {"marks": marks, "power": {"at_ns": at_ns, "values": values}}


def _ns(up: str) -> int:
    return round(float(up) * 1e9)
