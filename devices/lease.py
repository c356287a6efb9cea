"""One holder per device: a kernel file lock on this host, free again the moment its holder dies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from profiles.errors import DeviceBusy


def lease_folder() -> Path:
    """Where the locks are: ``$XDG_RUNTIME_DIR``, else ``~/.cache``, in ``edgeloop/leases``."""
    base = os.environ.get("XDG_RUNTIME_DIR") or Path.home() / ".cache"
    return Path(base) / "edgeloop" / "leases"


@contextmanager
def lease(device_id: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a device; two measurements at once would disturb each other.

    Args:
        device_id: of the inventory.
        wait_s: how long to wait for another holder to finish.

    Raises:
        DeviceBusy: if another process still holds it.
    """
    folder = lease_folder()
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / f"{device_id}.holder"
    try:
        with FileLock(folder / f"{device_id}.lock", timeout=wait_s):
            holder.write_text(str(os.getpid()))
            yield
            holder.unlink(missing_ok=True)
    except Timeout:
        pid = holder.read_text() if holder.exists() else "unknown"
        raise DeviceBusy(
            f"held by process {pid}", "wait until it has finished", device_id
        ) from None
