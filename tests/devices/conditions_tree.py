"""A board's /sys and /proc as plain files, and the shells that a device may have."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import pytest

_CPU = "sys/devices/system/cpu"
#: Four small cores, two big ones and two that are bigger still, as a Pixel has them.
BIG_LITTLE = {
    "policy0": ("0-3", 300_000, 1_803_000),
    "policy4": ("4-5", 400_000, 2_253_000),
    "policy6": ("6-7", 500_000, 2_802_000),
}
#: A phone's shell and tools are mksh and toybox; a small board's are all busybox.
SHELLS = ("dash", "busybox", "android")


def write(root: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def make_board(root: Path, governor: str = "schedutil") -> Path:
    """The files of a board of eight cores that is cool, idle and as it was when it started."""
    write(root, {f"{_CPU}/online": "0-7", "proc/stat": "cpu  10 0 10 100 0 0 0 0 0 0"})
    for name, (cores, low, high) in BIG_LITTLE.items():
        first, last = map(int, cores.split("-"))
        policy = {
            "affected_cpus": " ".join(map(str, range(first, last + 1))),
            "scaling_governor": governor,
            "scaling_available_governors": "schedutil performance powersave",
            "scaling_min_freq": low,
            "scaling_max_freq": high,
            "cpuinfo_min_freq": low,
            "cpuinfo_max_freq": high,
        }
        write(root, {f"{_CPU}/cpufreq/{name}/{key}": value for key, value in policy.items()})
    heat(root, 45_000)
    return root


def heat(root: Path, mdegc: int, kind: str = "cpu-thermal", number: int = 0) -> None:
    zone = f"sys/class/thermal/thermal_zone{number}"
    write(root, {f"{zone}/type": kind, f"{zone}/temp": mdegc})


def snapshot(root: Path) -> dict[str, str]:
    """Every file under a folder."""
    return {
        str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()
    }


def clock(root: Path, policy: str) -> tuple[str, int, int]:
    folder = root / _CPU / "cpufreq" / policy
    governor = (folder / "scaling_governor").read_text().strip()
    low, high = (int((folder / f"scaling_{end}_freq").read_text()) for end in ("min", "max"))
    return governor, low, high


def put_shell_first(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ``sh`` and its tools be those of one kind of device.

    What the recorded phone's own programs need besides (grep, sed, cut) stays this machine's where
    the kind has none.
    """
    needed = {"dash": ["dash"], "busybox": ["busybox"], "android": ["mksh", "toybox"]}[name]
    programs = {program: shutil.which(program) for program in needed}
    if None in programs.values():
        pytest.skip(
            f"no {' or '.join(needed)} on this machine (apt-get install {' '.join(needed)})"
        )
    folder.mkdir()
    shell = programs["mksh" if name == "android" else needed[0]]
    (folder / "sh").symlink_to(str(shell))
    box = programs.get("busybox") or programs.get("toybox")
    tools = "cat grep mkdir mv nohup printf rm rmdir sed setsid sleep sort sync cut ls dirname"
    for tool in tools.split() if box else ():
        (folder / tool).symlink_to(str(box))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def guards(root: Path) -> list[int]:
    """The processes of guards that watch a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if len(words) > 4 and words[1] == "-c" and words[4] == str(root):
                found.append(int(process.name))
    return found
