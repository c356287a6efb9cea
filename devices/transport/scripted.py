"""The public fake: a device whose answers are written down beforehand.

It keeps files in a folder and runs ordinary commands there for real, so that it passes the same
conformance suite as the other transports; only the programs it has a script for are played.
:func:`play_agent` is the script of an agent whose latencies are a fixed function of the artifact,
for tests and dry runs that must come out the same every time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from devices.agent.engines import RUNTIMES
from devices.transport.base import Completed, LineSink, LineSplitter, quote
from devices.transport.local import LocalTransport

Script = Callable[[Path, Sequence[str]], bytes]


class ScriptedTransport(LocalTransport):
    """A local folder with scripted programs.

    Args:
        home: the folder that stands for the device's file system.
        scripts: from a program's name to what it writes to standard output, given
            the home folder and its arguments.
    """

    name = "scripted"

    def __init__(self, home: Path, scripts: Mapping[str, Script]) -> None:
        home.mkdir(parents=True, exist_ok=True)
        super().__init__(home)
        self._scripts = scripts

    def run(
        self, argv: Sequence[str], *, deadline_s: float, on_line: LineSink | None = None
    ) -> Completed:
        """Play the first program there is a script for; without one, run the command."""
        quote(argv)  # for the errors the contract promises
        played = [place for place, word in enumerate(argv) if word in self._scripts]
        if not played:
            return super().run(argv, deadline_s=deadline_s, on_line=on_line)
        # A program may come behind the shell that starts it.
        output = self._scripts[argv[played[0]]](self._home, argv[played[0] + 1 :])
        lines = LineSplitter(on_line)
        lines.feed(output)
        lines.finish()
        return Completed(output, b"", 0)


def play_agent(home: Path, arguments: Sequence[str]) -> bytes:
    """What the agent would print if an inference took 20 µs and 1 ns a byte of its artifact.

    The spread (up to 5 % between runs, 2 % within one) is a hash of plan and artifact, so the
    same plan always has the same answer.
    """
    if arguments[1] == "--probe":
        names = [argument.partition("=")[0] for argument in arguments[2:]]
        found = {"version": "scripted", "delegates": ["scripted"]}
        runtimes = dict.fromkeys(names or RUNTIMES, found)
        return _lines([{"event": "probe", "agent": "python", "runtimes": runtimes}])
    plan = json.loads((home / arguments[1]).read_text())
    events: list[dict[str, Any]] = [
        {
            "event": "hello",
            "agent": "python",
            "runtime": plan["runtime"],
            "version": "scripted",
            "build": None,
        }
    ]
    for job in plan["jobs"]:
        base = 20_000 + (home / job["path"]).stat().st_size
        run = 1 + 0.05 * _fraction(plan["seed"], job["id"])
        noise = [1 + 0.02 * _fraction(plan["seed"], job["id"], i) for i in range(8)]
        ns = [round(base * run * noise[i % 8]) for i in range(plan["iterations"])]
        events += [
            {
                "event": "loaded",
                "job": job["id"],
                "load_ns": 10 * base,
                "first_ns": 2 * base,
                "delegates": ["scripted"],
                "threads": plan["threads"],
            },
            {"event": "warmup", "job": job["id"], "ns": ns[:1]},
            {"event": "samples", "job": job["id"], "ns": ns, "start_ns": 0, "khz": None},
        ]
    events.append({"event": "done"})
    return _lines(events)


def _fraction(*parts: object) -> float:
    word = hashlib.sha256(repr(parts).encode()).digest()[:4]
    return int.from_bytes(word, "big") / 2**32


def _lines(events: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)
