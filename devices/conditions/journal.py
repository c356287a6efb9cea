"""Changes to a device that are put back, whatever becomes of us.

Before anything is changed, the way back is written down on the device itself: ``ROOT/restore.sh``,
a script of the old values that puts them back and then removes itself.  Three play it: the visit
that made it, when it ends; any later visit, before it does anything else; and a guard, a process on
the device that needs neither the host nor the link.  The guard plays it when ``ROOT/alive`` has not
been written for some minutes, and ends when there is nothing to put back any more.  It does not
outlive a restart of the device, which undoes changes to the clocks; a phone's settings then wait
for the next visit.

Playing it twice does no harm.  What cannot be put back stays in the journal, and is said.
"""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from devices.transport.base import Transport
from profiles.errors import DeviceError, NotReady

_DEADLINE_S = 60.0
#: Long enough for the longest single run of an agent, and for the host to come back.
PATIENCE_S = 1200

Kind = Literal["file", "setting", "fixed", "airplane", "screen"]


@dataclass(frozen=True, slots=True)
class Change:
    """One thing to set on a device.

    Args:
        kind: ``file`` in sysfs, Android's global ``setting``, ``fixed`` performance mode,
            ``airplane`` mode or the ``screen``.
        target: the file's path or the setting's name; empty for the others.
        value: the file's text; the setting's, or ``null`` for none; ``true`` or ``false``; ``1`` or
            ``0``; ``on`` or ``off``.
    """

    kind: Kind
    target: str
    value: str


# One function for each kind of change: NAME TARGET VALUE.  Each looks whether it was done.
_PUT = r"""
LC_ALL=C; export LC_ALL
failed=0
newline='
'
no() { echo "$1 stays $2, not $3" >&2; failed=1; }
file() {
  { echo "$2" > "$1"; } 2>/dev/null
  line=
  { read -r line < "$1"; } 2>/dev/null
  [ "$line" = "$2" ] || no "$1" "${line:-unknown}" "$2"
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
_JOURNAL_HEAD = f"""#!/bin/sh
# Puts back what edgeloop changed on this device, and removes itself once all of it is back.
{_PUT}"""
_JOURNAL_TAIL = """[ "$failed" -ne 0 ] || rm -f "$0"
exit "$failed"
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
_RESTORE = f"""root=$1
{_PLAY}
rm -f "$root/restore.sh.part"
play
"""
# Runs in a session of its own; returns at once and leaves the loop behind.
_GUARD = (
    f"""root=$1 patience=$2 name=$3
{_PLAY}"""
    + r"""
step=$((patience / 20))
[ "$step" -le 60 ] || step=60
[ "$step" -ge 1 ] || step=1
trap '' HUP
echo "$name" > "$root/guard" || exit 1
(
  seen= quiet=0
  while [ "$quiet" -lt "$patience" ]; do
    sleep "$step"
    [ -f "$root/restore.sh" ] || exit 0
    guard=
    { read -r guard < "$root/guard"; } 2>/dev/null
    [ "$guard" = "$name" ] || exit 0
    alive=
    { read -r alive < "$root/alive"; } 2>/dev/null
    if [ "$alive" = "$seen" ]; then quiet=$((quiet + step)); else seen=$alive quiet=0; fi
  done
  play
) &
"""
)
_SET = (
    _PUT
    + r"""
root=$1 journal=$2 guard=$3 patience=$4 name=$5
shift 5
mkdir -p "$root" || exit 1
if [ -e "$root/restore.sh" ]; then echo "an earlier visit has not been put back" >&2; exit 1; fi
printf '%s' "$journal" > "$root/restore.sh.part" || exit 1
sync "$root/restore.sh.part" 2>/dev/null || sync
mv -f "$root/restore.sh.part" "$root/restore.sh" || exit 1
echo "$name" > "$root/alive" || exit 1
own=setsid
command -v setsid > /dev/null || own=nohup
"$own" sh -c "$guard" sh "$root" "$patience" "$name" < /dev/null > /dev/null 2>&1 || exit 1
while [ $# -gt 0 ]; do
  "$1" "$2" "$3"
  [ "$failed" -eq 0 ] || exit 3
  shift 3
done
"""
)
_KEEP_ALIVE = 'echo "$2" > "$1/alive"'


def change(
    transport: Transport,
    root: str,
    forward: Sequence[Change],
    back: Sequence[Change],
    *,
    patience_s: int = PATIENCE_S,
) -> None:
    """Write down the way back, leave a guard, and only then change the device.

    Args:
        transport: the connection to it.
        root: folder on the device for the journal; made if needed.
        forward: what to set, in this order.
        back: what to set to undo it, in this order.
        patience_s: how long the guard waits for a sign of life.

    Raises:
        NotReady: the device did not take a change; :func:`restore` undoes those it took.
        DeviceError: the journal could not be written; nothing was changed.
    """
    lines = [shlex.join([item.kind, item.target, item.value]) for item in back]
    journal = _JOURNAL_HEAD + "".join(f"{line}\n" for line in lines) + _JOURNAL_TAIL
    words = [word for item in forward for word in (item.kind, item.target, item.value)]
    name = secrets.token_hex(8)
    done = transport.run(
        ["sh", "-c", _SET, "sh", root, journal, _GUARD, str(patience_s), name, *words],
        deadline_s=_DEADLINE_S,
    )
    if done.exit_code == 3:
        raise NotReady(
            [f"the device cannot be pinned: {done.complaint()}"],
            ["measure as-shipped, or log in as one who may change this"],
        )
    if done.exit_code != 0:
        raise DeviceError(
            f"the device's state cannot be written down in {root}: {done.complaint()}",
            "nothing was changed; see that the folder can be written",
        )


def restore(transport: Transport, root: str) -> None:
    """Put back what any visit to this device has changed and left; nothing, if all is as it was.

    Args:
        transport: the connection to it.
        root: the folder with the journal.

    Raises:
        DeviceError: something could not be put back.  It is tried again at the next visit.
    """
    done = transport.run(["sh", "-c", _RESTORE, "sh", root], deadline_s=_DEADLINE_S)
    if done.exit_code != 0:
        said = "; ".join(done.stderr.decode(errors="replace").split("\n")).strip("; ")
        raise DeviceError(
            f"the device is not as it was before it was pinned: {said or done.complaint()}",
            f"put it back by hand with 'sh {root}/restore.sh', or restart it",
        )


def keep_alive(transport: Transport, root: str) -> None:
    """Tell the guard that the visit goes on; to be called more often than its patience is long."""
    transport.run(
        ["sh", "-c", _KEEP_ALIVE, "sh", root, secrets.token_hex(8)], deadline_s=_DEADLINE_S
    )
