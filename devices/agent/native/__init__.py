"""The native agent: its C files, how it is built, and the runtimes' C libraries on this host."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from profiles.errors import AgentError

System = Literal["linux", "android"]

#: Where its C files and their headers are.
FOLDER = Path(__file__).parent
#: Machines as ``uname -m`` names them, and the GNU names of their compilers.
MACHINES = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}
#: The oldest Android it is built for: 7.0.
#: *Source*: the NDK's table of API levels.
ANDROID_API = 24
# Hidden: no function of the agent is ever taken for one of a runtime's library.
_FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden")
_BUILD_DEADLINE_S = 120
_HINTS = {
    "linux": "on Debian: apt-get install gcc-{target}",
    "android": "set ANDROID_NDK to the folder of an NDK, or name its clang with --compiler",
}


def native_agent(
    machine: str,
    system: System = "linux",
    *,
    compiler: Path | None = None,
    folder: Path | None = None,
) -> Path:
    """The native agent for a kind of machine; built where it has not been built before.

    Args:
        machine: as ``uname -m`` says it: ``x86_64`` or ``aarch64``.
        system: ``linux`` for boards (glibc), ``android`` for phones (bionic).
        compiler: use this one; else the one of the machine, of ``$ANDROID_NDK`` for phones.
        folder: where builds are kept; ``~/.cache/edgeloop/native`` unless told.

    Returns:
        The program's path; the same sources and compiler always give the same path.

    Raises:
        AgentError: there is no compiler for that machine, or it fails.
    """
    if machine not in MACHINES:
        raise AgentError(
            f"there is no native agent for {machine}", f"it is built for {', '.join(MACHINES)}"
        )
    found = compiler or _compiler(machine, system)
    flags = _flags(found, machine, system)
    contents = [source.read_bytes() for source in sources()]
    key = hashlib.sha256(
        b"\0".join([*contents, _version(found), *(flag.encode() for flag in flags)])
    ).hexdigest()[:16]
    folder = folder or Path.home() / ".cache" / "edgeloop" / "native"
    program = folder / f"agent-{system}-{machine}-{key}"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".build-") as aside:
            built = Path(aside) / "agent"
            _run(found, [*flags, "-o", str(built), *map(str, compiled()), "-ldl"])
            built.replace(program)
    return program


def sources() -> tuple[Path, ...]:
    """Everything the agent is made of: C files and headers."""
    return (*compiled(), *sorted(FOLDER.glob("*.h")))


def compiled() -> tuple[Path, ...]:
    """The C files, which a compiler is given."""
    return tuple(sorted(FOLDER.glob("*.c")))


def runtime_libraries() -> dict[str, Path]:
    """C libraries of runtimes inside the Python packages installed here, by runtime."""
    places = {
        "onnxruntime": ("onnxruntime", "capi/libonnxruntime.so*"),
        "litert": ("ai_edge_litert", "libLiteRt.so"),
    }
    found: dict[str, Path] = {}
    for runtime, (package, pattern) in places.items():
        spec = find_spec(package)
        for root in (spec.submodule_search_locations if spec else None) or ():
            for library in sorted(Path(root).glob(pattern)):
                found.setdefault(runtime, library)
    return found


def _compiler(machine: str, system: System) -> Path:
    target = MACHINES[machine]
    if system == "android":
        names = _ndk_clangs(machine)
    else:
        names = [f"{target}-gcc"]
        if machine == platform.machine():
            names += ["cc", "gcc", "clang"]
    for name in names:
        path = shutil.which(name)
        if path:
            return Path(path)
    raise AgentError(
        f"there is no C compiler for {system} on {machine} here",
        _HINTS[system].format(target=target.replace("_", "-")),
    )


def _ndk_clangs(machine: str) -> list[str]:
    """An NDK keeps one driver for each target and API level, in a folder named by the host."""
    root = os.environ.get("ANDROID_NDK") or os.environ.get("ANDROID_NDK_HOME")
    if not root:
        return []
    bins = Path(root).glob("toolchains/llvm/prebuilt/*/bin")
    return [str(path / f"{machine}-linux-android{ANDROID_API}-clang") for path in bins]


def _flags(compiler: Path, machine: str, system: System) -> list[str]:
    # Android loads position-independent programs only; a bare clang must be told its target.
    flags = [*_FLAGS, "-fPIE", "-pie"]
    if system == "android" and compiler.name in ("clang", "clang++"):
        flags.append(f"--target={machine}-linux-android{ANDROID_API}")
    return flags


def _version(compiler: Path) -> bytes:
    return _run(compiler, ["--version"])


def _run(compiler: Path, arguments: list[str]) -> bytes:
    try:
        done = subprocess.run(
            [str(compiler), *arguments],
            capture_output=True,
            check=False,
            timeout=_BUILD_DEADLINE_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AgentError(f"{compiler} cannot be run: {error}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise AgentError(
            f"{compiler} cannot build the native agent: {said[0] if said else 'no reason given'}",
            "a C compiler with the headers of its C library is needed",
        )
    return done.stdout
