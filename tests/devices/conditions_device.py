"""A device to be pinned, of plain files: a board, or a recorded phone."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from devices.conditions import Applied, Gates, applied
from devices.endpoints.phone import install_phone
from devices.transport.base import Transport
from devices.transport.local import LocalTransport
from profiles.errors import ConnectionLost
from profiles.records import Condition
from tests.devices.conditions_tree import make_board, snapshot

PINNED = Condition(mode="pinned")
#: Guards of these tests look every second, and end when there is nothing to put back.
PATIENCE_S = 20


@dataclass
class Dying:
    """A transport that is lost at one of its commands, before or after the device has done it."""

    inner: Transport
    at: int
    done: bool
    count: int = 0
    name: str = "dying"

    def run(self, argv: Any, *, deadline_s: float, on_line: Any = None) -> Any:
        self.count += 1
        if self.count < self.at:
            return self.inner.run(argv, deadline_s=deadline_s, on_line=on_line)
        if self.count == self.at and self.done:
            self.inner.run(argv, deadline_s=deadline_s, on_line=on_line)
        raise ConnectionLost("the link is cut")


@dataclass
class Device:
    """A board or a phone of plain files, and what it is like when nobody has changed it."""

    home: Path
    system: str
    tree: Path
    state: Path
    gates: Gates
    before: dict[str, str] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.home / "a root"

    @property
    def journal(self) -> Path:
        return self.root / "restore.sh"

    def now(self) -> dict[str, str]:
        settings_of = subprocess.run(
            "settings list global; dumpsys power; cat fixed_performance 2>/dev/null || echo false",
            shell=True,
            cwd=self.state,
            capture_output=True,
            text=True,
            check=False,
        )
        phone = {"phone": settings_of.stdout} if self.system == "android" else {}
        return {**snapshot(self.tree), **phone}

    def is_as_it_was(self) -> bool:
        return self.now() == self.before and not self.journal.exists()

    @contextmanager
    def pinned(self, transport: Transport | None = None, **more: Any) -> Iterator[Applied]:
        options = {"patience_s": PATIENCE_S, "tree": str(self.tree), **more}
        with applied(
            transport or LocalTransport(self.home),
            str(self.root),
            {"system": self.system},
            self.gates,
            PINNED,
            **options,
        ) as visit:
            yield visit

    def abandoned(self, **more: Any) -> None:
        """Pin it, and lose the way to it."""
        dying = Dying(LocalTransport(self.home), at=5, done=False)
        with pytest.raises(ConnectionLost), self.pinned(dying, **more):
            pass
        assert not self.is_as_it_was()


def make_device(home: Path, system: str, monkeypatch: pytest.MonkeyPatch) -> Device:
    tree = make_board(home / "a tree")
    gates = Gates(screen="off", airplane=True) if system == "android" else Gates()
    if system == "android":
        programs = install_phone(home / "a phone")
        monkeypatch.setenv("PATH", str(programs), prepend=":")
    device = Device(home, system, tree, home / "a phone" / "state", gates)
    device.state.mkdir(parents=True, exist_ok=True)
    device.before = device.now()
    return device


def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("it did not come about within a minute")
