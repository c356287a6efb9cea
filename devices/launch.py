"""Which agent measures which runtime on a device, how it is started, and what a dead one left.

An agent notes its process id in ``ROOT/agent.pid``, with the host that started it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from devices.agent.program import build
from devices.inventory import Device
from devices.lab import lab_folder
from devices.transport.base import Transport
from profiles.canonical import digest
from profiles.errors import AgentError, DeviceBusy, DeviceError

_DEADLINE_S = 30.0

# Note the process id that the agent is going to have, and become the agent.
_START = """
mkdir -p "$1" && echo "$$ $2" > "$1/agent.pid" && echo $$ > "$1/alive" || exit 1
shift 2
exec "$@"
"""
# An agent of ours that outlived its host is killed, and gone before anything else begins; another
# host's is left alone.
_CLEAR = """
[ -f "$1/agent.pid" ] && read -r pid host < "$1/agent.pid" || exit 0
root=$1
# busybox' grep looks no further than the first NUL; not every toybox has a tr.
ours() {
  grep -qF "$root/store/" "/proc/$pid/cmdline" ||
    tr '\\0' '\\n' < "/proc/$pid/cmdline" | grep -qF "$root/store/"
} 2> /dev/null
ours || exit 0
if [ "$host" != "$2" ]; then echo "$pid"; exit 3; fi
kill -9 "$pid"
n=0
while ours; do
  n=$((n + 1)); [ $n -lt 50 ] || exit 1
  sleep 0.1
done
rm -f "$1/agent.pid"
"""


class Agents:
    """The agents of one connected device, put there when they are first needed.

    Args:
        device: of the inventory.
        facts: what it says of itself.
        ensure: puts files on the device.
    """

    def __init__(
        self,
        device: Device,
        facts: Mapping[str, Any],
        ensure: Callable[[Sequence[Path]], dict[Path, str]],
    ) -> None:
        self._device = device
        self._machine = str(facts.get("machine", "unknown"))
        self._system: Literal["linux", "android"] = (
            "android" if facts.get("libc") == "bionic" else "linux"
        )
        self._ensure = ensure
        self._placed: dict[str, str] = {}

    def measure(self, agent: str) -> list[str]:
        """The command that an agent's plan is appended to."""
        root = self._device.folder
        return ["sh", "-c", _START, "sh", root, host_word(), *self._program(agent)]

    def probe(self, agent: str, runtimes: Sequence[str]) -> tuple[list[str], list[str]]:
        """The agent's command, and the words that name these runtimes to its probe."""
        words = []
        for name in runtimes:
            library = self.library(name)
            words.append(name if library is None else f"{name}={library}")
        return self._program(agent), words

    def library(self, runtime: str) -> str | None:
        """Where a runtime's C library is on the device, or ``None`` for the Python agent's."""
        if self._device.agent_for(runtime) == "python":
            return None
        if runtime not in self._placed:
            path = self._device.libraries[runtime]
            self._placed[runtime] = self._ensure([path])[path]
        return self._placed[runtime]

    def advice(self, agent: str) -> str:
        """What to do where an agent does not run."""
        if agent == "native":
            return f"are its libraries built for {self._machine}?"
        return "set 'python' of this device to a Python 3.9 or newer that has the runtimes"

    def _program(self, agent: str) -> list[str]:
        if agent == "python" and self._device.interpreter is None:
            raise AgentError(
                "there is no Python on this kind of device",
                "name the runtime's C library under 'libraries', or an interpreter as 'python'",
            )
        if agent not in self._placed:
            self._placed[agent] = self._place(agent)
        place = self._placed[agent]
        return [place] if agent == "native" else [self._device.interpreter or "", place]

    def _place(self, agent: str) -> str:
        if agent == "native":
            from devices.agent.native import native_agent

            program = native_agent(self._machine, self._system)
            return self._ensure([program])[program]
        with TemporaryDirectory() as folder:
            archive = build(Path(folder) / "agent.pyz")
            return self._ensure([archive])[archive]


def clear_leftovers(transport: Transport, root: str) -> None:
    """End an agent that a dead holder of this device left running.

    Raises:
        DeviceBusy: if another host measures on the device.
        DeviceError: if a leftover cannot be ended.
    """
    done = transport.run(["sh", "-c", _CLEAR, "sh", root, host_word()], deadline_s=_DEADLINE_S)
    if done.exit_code == 3:
        raise DeviceBusy(
            f"another host measures on it (process {done.stdout.decode().strip()} there)",
            "wait until it has finished: a device belongs to one host's lab",
        )
    if done.exit_code != 0:
        raise DeviceError(
            f"an agent left from an earlier visit cannot be ended: {done.complaint()}",
            "restart the device",
        )


def host_word() -> str:
    """This host and lab, as one word that no other has."""
    return digest([socket.gethostname(), str(lab_folder())])[:16]
