"""A small Debian in a folder, with Python, an SSH server and the runtimes.

Built once by :func:`rootfs` and kept in the user's cache; :mod:`devices.endpoints.machine` runs the
aarch64 one's programs under qemu-user, :mod:`devices.endpoints.board` makes a whole board's disk of
one.  Packages are unpacked, not configured: no foreign program runs while it is built.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from filelock import FileLock

from devices.endpoints.debian import unpack
from profiles.errors import DeviceUnreachable

SUITE = "bookworm"
ARCHITECTURE = "arm64"
#: What every folder has.
DEBIAN = (
    *("base-files", "base-passwd", "libc-bin", "bash", "dash", "coreutils", "findutils", "sed"),
    *("grep", "mawk", "gzip", "tar", "util-linux", "mount", "procps", "hostname", "kmod"),
    *("iproute2", "openssh-server", "openssh-sftp-server", "libstdc++6", "python3"),
)
#: The Python that every folder has.
CURRENT = ("onnxruntime==1.31.1", "ai-edge-litert==2.3.0", "numpy==2.4.6")
#: What SUITE's Python 3.11 and C library 2.36 run; pip takes the tags one by one.
_MANYLINUX = (36, 34, 31, 28, 27, 26, 17)
_SSHD_USER = "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
_UNREAD = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info")


@dataclass(frozen=True, slots=True)
class System:
    """What a folder is built of; all of it is part of the folder's name.

    Args:
        architecture: Debian's name for the machine it is for.
        machine: the kernel's and the wheels' name for the same.
        packages: of Debian, those they depend on left out.
        environments: name and wheels of each of its Pythons, a virtual environment each.
    """

    architecture: str
    machine: str
    packages: tuple[str, ...]
    environments: tuple[tuple[str, tuple[str, ...]], ...]


#: Two Pythons, because tflite-runtime cannot use numpy 2.
AARCH64 = System(
    ARCHITECTURE,
    "aarch64",
    DEBIAN,
    (("current", CURRENT), ("tflite", ("tflite-runtime==2.14.0", "numpy==1.26.4"))),
)


@dataclass(frozen=True, slots=True)
class Rootfs:
    """A built folder; shared by all who use it, and written by none of them."""

    path: Path
    system: System = AARCH64

    @staticmethod
    def python(environment: str = "current") -> str:
        """A Python inside: ``current`` (ONNX Runtime, LiteRT) or ``tflite`` (tflite-runtime)."""
        return f"/opt/{environment}/bin/python"

    def libraries(self) -> dict[str, Path]:
        """Per runtime the C library of its wheel, as a path on this host."""
        packages = self.path / "opt/current/lib/python3.11/site-packages"
        (onnxruntime,) = packages.glob("onnxruntime/capi/libonnxruntime.so.*")
        return {"onnxruntime": onnxruntime, "litert": packages / "ai_edge_litert/libLiteRt.so"}


def missing() -> str | None:
    """Why the folder cannot be built here, in one sentence; ``None`` if nothing speaks against."""
    if os.geteuid() != 0:
        return "only root may unpack another machine's packages with their owners"
    if shutil.which("apt-get") is None:
        return "this machine has no apt-get to fetch Debian's packages with"
    return None


def cache_folder() -> Path:
    """Where built folders and images are kept on this host."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "edgeloop"


def rootfs(cache: Path | None = None, system: System = AARCH64) -> Rootfs:
    """The folder of a system, built first where it is not there yet.

    Its name is the hash of this module and of the system, which name every version: an old one is
    never used.  It gets that name when it is whole, and one process at a time builds it.

    Args:
        cache: where it is kept; by default :func:`cache_folder`.
        system: what it holds.

    Raises:
        DeviceUnreachable: if it cannot be built here.
    """
    key = hashlib.sha256(Path(__file__).read_bytes() + repr(system).encode()).hexdigest()[:16]
    folder = (cache or cache_folder()) / "rootfs"
    path = folder / key
    if not path.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{key}.lock"):
            if not path.is_dir():
                _build_aside(system, path)
    return Rootfs(path, system)


def _build_aside(system: System, path: Path) -> None:
    reason = missing()
    if reason:
        raise DeviceUnreachable(f"the {system.machine} system cannot be built: {reason}")
    for left in path.parent.glob(f".{path.name}-*"):  # by a builder that was killed
        shutil.rmtree(left)
    aside = Path(mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        _build(system, aside / "root")
        os.sync()
        (aside / "root").rename(path)
    finally:
        shutil.rmtree(aside)


def _build(system: System, root: Path) -> None:
    unpack(system.packages, SUITE, system.architecture, root)
    _merge_usr(root)
    _settle(root)
    for name, packages in system.environments:
        _make_environment(root / "opt" / name, packages, system.machine)


def _merge_usr(root: Path) -> None:
    """Make /bin, /sbin and /lib names of the folders in /usr, as every Debian has them now."""
    for name in ("bin", "sbin", "lib"):
        shutil.copytree(root / name, root / "usr" / name, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(root / name)
        (root / name).symlink_to(f"usr/{name}")


def _settle(root: Path) -> None:
    """What the packages' own scripts would have done, as far as it is needed here."""
    masters = root / "usr/share/base-passwd"
    (root / "etc/passwd").write_text((masters / "passwd.master").read_text() + _SSHD_USER)
    shutil.copyfile(masters / "group.master", root / "etc/group")
    (root / "usr/bin/awk").symlink_to("mawk")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    (root / "run/sshd").mkdir(parents=True)
    (root / "etc/edgeloop").mkdir()  # for what each board has of its own
    for folder in _UNREAD:
        shutil.rmtree(root / folder, ignore_errors=True)


def _make_environment(folder: Path, packages: tuple[str, ...], machine: str) -> None:
    """A virtual environment, its wheels chosen on this host for that machine."""
    platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in _MANYLINUX]
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").symlink_to("/usr/bin/python3")
    (folder / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--no-warn-conflicts", "--only-binary=:all:", "--implementation=cp"),
            *("--python-version=3.11", *platforms),
            *("--target", str(folder / "lib/python3.11/site-packages"), *packages),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["no message"]
        raise DeviceUnreachable(f"pip cannot fetch {' '.join(packages)}: {said[-1]}")
