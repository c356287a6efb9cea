"""A link of a given speed, between a client here and a server here.

    python -m tools.bench.paced PORT MEGABYTES_PER_S

Loopback is faster than anything a device hangs on.  This passes on what it is given, both ways, at
the pace of a cable or a network, and prints the port it listens on.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from devices.endpoints.processes import end_with_parent

_CHUNK_BYTES = 1 << 16


@contextmanager
def paced(port: int, megabytes_per_s: float | None) -> Iterator[int]:
    """The port at which a server is reached at that pace; its own where no pace is given."""
    if megabytes_per_s is None:
        yield port
        return
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.bench.paced", str(port), str(megabytes_per_s)],
        stdout=subprocess.PIPE,
        preexec_fn=end_with_parent,  # noqa: PLW1509 - one system call, nothing to lock
    )
    try:
        assert process.stdout is not None  # noqa: S101 - it was given a pipe
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()


def forward(source: socket.socket, sink: socket.socket, bytes_per_s: float) -> None:
    """Pass one direction on until it ends; never faster than that."""
    free_at = time.monotonic()
    with contextlib.suppress(OSError):
        while chunk := source.recv(_CHUNK_BYTES):
            sink.sendall(chunk)
            free_at = max(free_at, time.monotonic() - 0.01) + len(chunk) / bytes_per_s
            time.sleep(max(free_at - time.monotonic(), 0))
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def main() -> None:
    """Serve until ended."""
    port, bytes_per_s = int(sys.argv[1]), float(sys.argv[2]) * 1e6
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            near, _ = listener.accept()
            far = socket.create_connection(("127.0.0.1", port))
            for one, other in ((near, far), (far, near)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                # A small buffer, or what was sent and what has arrived are two things.
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * _CHUNK_BYTES)
                threading.Thread(
                    target=forward, args=(one, other, bytes_per_s), daemon=True
                ).start()


if __name__ == "__main__":
    main()
