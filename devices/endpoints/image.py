"""The disk, kernel and initial memory disk of a whole emulated board.

All three are made from Debian's packages on this host without running anything foreign: the disk of
the folder that :mod:`devices.endpoints.rootfs` builds, the kernel of its own package, and a memory
disk that holds just the drivers the board needs to reach its disk, and those of a bad link.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from filelock import FileLock

from devices.endpoints.debian import unpack
from devices.endpoints.rootfs import SUITE, Rootfs, cache_folder
from profiles.errors import DeviceUnreachable

_DISK_SIZE = "1536M"
#: What every board is made of, and (from ``ifb`` on) what
#: :func:`~devices.endpoints.board.flaky_link` needs; each with the drivers it depends on.
DRIVERS = (
    *("virtio_pci", "virtio_blk", "virtio_net", "crc32c_generic", "ext4"),
    *("ifb", "sch_netem", "sch_ingress", "act_mirred", "cls_matchall"),
)
_START = """\
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs devtmpfs /dev
while read -r driver options; do
  /bin/busybox insmod "/drivers/$driver" $options
done < /drivers/order
while [ ! -b /dev/vdb ]; do /bin/busybox usleep 50000; done
/bin/busybox mount -t ext4 /dev/vda /root
/bin/busybox mount -t ext4 -o ro /dev/vdb /root/etc/edgeloop
exec /bin/busybox switch_root /root /etc/edgeloop/init
"""


@dataclass(frozen=True, slots=True)
class Image:
    """What a whole board starts from; shared by all who use it, and written by none of them."""

    folder: Path

    @property
    def disk(self) -> Path:
        """The file system, ext4 without partitions."""
        return self.folder / "disk.img"

    @property
    def kernel(self) -> Path:
        """The kernel as Debian packages it."""
        return self.folder / "vmlinuz"

    @property
    def memory_disk(self) -> Path:
        """What the kernel unpacks and starts first."""
        return self.folder / "initrd.img"


def board_image(
    rootfs: Rootfs, drivers: tuple[str, ...] = DRIVERS, cache: Path | None = None
) -> Image:
    """The image of that folder, made first where it is not there yet.

    Named, finished and guarded as :func:`devices.endpoints.rootfs.rootfs` does it.

    Args:
        rootfs: what the board's disk holds.
        drivers: what its kernel loads at the start, a name and options each.
        cache: where it is kept; by default the user's cache.

    Raises:
        DeviceUnreachable: if it cannot be made here.
    """
    made_of = Path(__file__).read_bytes() + f"{rootfs.path.name} {drivers}".encode()
    key = hashlib.sha256(made_of).hexdigest()[:16]
    folder = (cache or cache_folder()) / "board"
    path = folder / key
    if not path.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{key}.lock"):
            if not path.is_dir():
                _make_aside(rootfs, drivers, path)
    return Image(path)


def _make_aside(rootfs: Rootfs, drivers: tuple[str, ...], path: Path) -> None:
    for left in path.parent.glob(f".{path.name}-*"):  # by a builder that was killed
        shutil.rmtree(left)
    aside = Path(mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        image = Image(aside / "image")
        image.folder.mkdir()
        packages = aside / "packages"
        architecture = rootfs.system.architecture
        unpack([f"linux-image-{architecture}", "busybox-static"], SUITE, architecture, packages)
        (kernel,) = packages.glob("boot/vmlinuz-*")
        kernel.rename(image.kernel)
        image.memory_disk.write_bytes(archive(_memory_disk(packages, drivers)))
        make_disk(rootfs.path, image.disk, _DISK_SIZE)
        os.sync()
        image.folder.rename(path)
    finally:
        shutil.rmtree(aside)


def make_disk(folder: Path, disk: Path, size: str) -> None:
    """Write an ext4 image with what a folder holds.

    Args:
        folder: becomes the root of the file system.
        disk: the file to write.
        size: as mke2fs takes it.

    Raises:
        DeviceUnreachable: if it fails, say for want of space in the image.
    """
    done = subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-d", str(folder), str(disk), size],  # noqa: S607
        env={**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["no message"]
        raise DeviceUnreachable(f"mke2fs cannot make {disk.name}: {said[-1]}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One member of an archive: its path, its mode with the kind of file, and its content."""

    name: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def _memory_disk(packages: Path, wanted: Iterable[str]) -> Iterator[Entry]:
    for folder in ("bin", "dev", "drivers", "root"):
        yield Entry(folder, stat.S_IFDIR | 0o755)
    yield Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    yield Entry("init", stat.S_IFREG | 0o755, _START.encode())
    yield Entry("bin/busybox", stat.S_IFREG | 0o755, (packages / "bin/busybox").read_bytes())
    drivers = {path.stem.replace("-", "_"): path for path in packages.glob("lib/modules/**/*.ko")}
    options = dict(each.partition(" ")[::2] for each in wanted)
    order = _with_dependencies(options, drivers)
    for name in order:
        yield Entry(f"drivers/{name}.ko", stat.S_IFREG | 0o644, drivers[name].read_bytes())
    names = "".join(f"{name}.ko {options.get(name, '')}\n" for name in order)
    yield Entry("drivers/order", stat.S_IFREG | 0o644, names.encode())


def _with_dependencies(wanted: Iterable[str], drivers: dict[str, Path]) -> list[str]:
    """Drivers in an order in which the kernel accepts them.

    A driver's file names what it depends on, as ``depends=ONE,TWO`` between NUL characters.
    """
    order: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name not in drivers:
            raise DeviceUnreachable(f"Debian's kernel has no driver {name}")
        named = re.search(rb"\0depends=([^\0]*)\0", drivers[name].read_bytes())
        for needed in (named[1].decode() if named else "").split(","):
            if needed:
                visit(needed.replace("-", "_"))
        order.append(name)

    for name in wanted:
        visit(name)
    return order


def archive(entries: Iterable[Entry]) -> bytes:
    """The entries in the format that a kernel unpacks.

    Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst ("newc").
    """
    parts: list[bytes] = []
    for number, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        name = entry.name.encode() + b"\0"
        fields = (number, entry.mode, 0, 0, 1, 0, len(entry.content), 0, 0, *entry.device)
        header = b"070701" + b"".join(b"%08x" % field for field in (*fields, len(name), 0))
        parts += [_padded(header + name), _padded(entry.content)]
    return b"".join(parts)


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 4)
