"""A small Debian for aarch64 in a folder, with Python, an SSH server and the runtimes.

Built once by :func:`rootfs` and kept in the user's cache; :mod:`devices.endpoints.machine` runs its
programs under qemu-user, :mod:`devices.endpoints.board` makes a whole board's disk of it.  Packages
are unpacked, not configured: no foreign program runs while it is built.
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
_DEBIAN = (
    *("base-files", "base-passwd", "libc-bin", "bash", "dash", "coreutils", "findutils", "sed"),
    *("grep", "mawk", "gzip", "tar", "util-linux", "mount", "procps", "hostname", "kmod"),
    *("iproute2", "openssh-server", "openssh-sftp-server", "libstdc++6", "python3"),
)
#: The board's Pythons: a virtual environment each, because tflite-runtime cannot use numpy 2.
_ENVIRONMENTS = {
    "current": ("onnxruntime==1.31.1", "ai-edge-litert==2.3.0", "numpy==2.4.6"),
    "tflite": ("tflite-runtime==2.14.0", "numpy==1.26.4"),
}
#: What SUITE's Python 3.11 and C library 2.36 run; pip takes the tags one by one.
_WHEEL_TAGS = [f"manylinux_2_{minor}_aarch64" for minor in (36, 34, 31, 28, 27, 26, 17)]
_SSHD_USER = "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
_UNREAD = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info")


@dataclass(frozen=True, slots=True)
class Rootfs:
    """A built folder; shared by all who use it, and written by none of them."""

    path: Path

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


def rootfs(cache: Path | None = None) -> Rootfs:
    """The folder, built first where it is not there yet.

    Its name is the hash of this module, which names every version: an old one is never used.  It
    gets that name when it is whole, and one process at a time builds it.

    Args:
        cache: where it is kept; by default :func:`cache_folder`.

    Raises:
        DeviceUnreachable: if it cannot be built here.
    """
    key = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    folder = (cache or cache_folder()) / "rootfs"
    path = folder / key
    if not path.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{key}.lock"):
            if not path.is_dir():
                _build_aside(path)
    return Rootfs(path)


def _build_aside(path: Path) -> None:
    reason = missing()
    if reason:
        raise DeviceUnreachable(f"the aarch64 system cannot be built: {reason}")
    for left in path.parent.glob(f".{path.name}-*"):  # by a builder that was killed
        shutil.rmtree(left)
    aside = Path(mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        _build(aside / "root")
        os.sync()
        (aside / "root").rename(path)
    finally:
        shutil.rmtree(aside)


def _build(root: Path) -> None:
    unpack(_DEBIAN, SUITE, ARCHITECTURE, root)
    _merge_usr(root)
    _settle(root)
    for name, packages in _ENVIRONMENTS.items():
        _make_environment(root / "opt" / name, packages)


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


def _make_environment(folder: Path, packages: tuple[str, ...]) -> None:
    """A virtual environment, its wheels chosen on this host for the other architecture."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").symlink_to("/usr/bin/python3")
    (folder / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--no-warn-conflicts", "--only-binary=:all:", "--implementation=cp"),
            *("--python-version=3.11", *(f"--platform={tag}" for tag in _WHEEL_TAGS)),
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
