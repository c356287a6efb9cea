"""Is a push as fast as the plain copy? Against ``cat >`` over SSH, and against ``adb push``.

    python -m tools.bench.push [--json] [--rounds 12] [--megabytes 50] [--link ssh] [--link adb]
                               [--link-megabytes-per-s 40]

Both servers are real and on loopback.  A push of ours asks the device what it has, sends, has the
device hash what arrived, and names it.  The raw ways only copy.  All of them go over a connection
that is open already (OpenSSH shares a master connection, adb has its server), and take turns.  The
ratio is of speeds: 1 is as fast as the raw copy.  The file is named by its hash, as artifacts are.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import secrets
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from devices.endpoints.adbd import serve_phone
from devices.endpoints.sshd import LoopbackServer, serve
from devices.push import RemoteStore
from devices.transport.adb import AdbTransport, adb_program
from devices.transport.base import Completed, LineSink, Transport
from devices.transport.ssh import SshTransport
from tools.bench.paced import paced
from tools.bench.paired import Action, Paired, compare, in_turns

if TYPE_CHECKING:
    import paramiko

_CHUNK_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Speed:
    """A push of ours against one raw way.

    Args:
        ours_s, raw_s: medians.
        speed: ratio of speeds.
        again_s, again_calls: the same push when the bytes are there; calls of the transport.
    """

    link: str
    raw: str
    megabytes: float
    rounds: int
    ours_s: float
    raw_s: float
    speed: Paired
    again_s: float
    again_calls: int


class Counting:
    """A transport that counts what is asked of it."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.name = inner.name
        self.calls = 0

    def run(
        self, argv: Sequence[str], *, deadline_s: float, on_line: LineSink | None = None
    ) -> Completed:
        """See :class:`devices.transport.base.Transport`."""
        self.calls += 1
        return self._inner.run(argv, deadline_s=deadline_s, on_line=on_line)

    def push(self, source: Path, target: str, *, deadline_s: float, offset: int = 0) -> None:
        """See :class:`devices.transport.base.Transport`."""
        self.calls += 1
        self._inner.push(source, target, deadline_s=deadline_s, offset=offset)

    def pull(self, source: str, target: Path, *, deadline_s: float) -> None:
        """See :class:`devices.transport.base.Transport`."""
        self.calls += 1
        self._inner.pull(source, target, deadline_s=deadline_s)

    def probe(self, *, deadline_s: float) -> float:
        """See :class:`devices.transport.base.Transport`."""
        self.calls += 1
        return self._inner.probe(deadline_s=deadline_s)

    def close(self) -> None:
        """See :class:`devices.transport.base.Transport`."""
        self._inner.close()


def measure(
    link: str,
    transport: Transport,
    raw: Mapping[str, Callable[[Path, Path], None]],
    folder: Path,
    megabytes: float,
    rounds: int,
) -> list[Speed]:
    """Push one file over one link by all ways.

    Args:
        link: its name in the results.
        transport: ours.
        raw: by name, what copies a file to a path on the device.
        folder: for the files; the device's file system is this machine's.
    """
    content = os.urandom(round(megabytes * 1e6))
    source = folder / f"{hashlib.sha256(content).hexdigest()}.bin"
    source.write_bytes(content)
    target = folder / "raw"
    counting = Counting(transport)
    store = RemoteStore(counting, str(folder / "root"))

    def push() -> None:
        store.ensure([source])

    def clear() -> None:
        target.unlink(missing_ok=True)
        for file in (folder / "root").glob("*/*"):
            file.unlink()
        os.sync()  # what one way has written is not for the next one to write back

    def copying(way: Callable[[Path, Path], None]) -> Action:
        return lambda: way(source, target)

    ways = {"ours": push} | {name: copying(way) for name, way in raw.items()}
    taken = in_turns(ways, rounds, clear)
    push()
    counting.calls = 0
    again = in_turns({"again": push}, rounds)["again"]
    calls = counting.calls // (rounds + 1)
    return [
        Speed(
            link=link,
            raw=name,
            megabytes=megabytes,
            rounds=rounds,
            ours_s=statistics.median(taken["ours"]),
            raw_s=statistics.median(taken[name]),
            speed=compare(taken["ours"], taken[name]).inverse(),
            again_s=statistics.median(again),
            again_calls=calls,
        )
        for name in raw
    ]


def over_ssh(folder: Path, megabytes: float, rounds: int, pace: float | None) -> list[Speed]:
    """Against OpenSSH's client and against bare paramiko, each with ``cat >``."""
    with contextlib.ExitStack() as closing:
        server = closing.enter_context(serve(folder / "sshd"))
        port = closing.enter_context(paced(server.port, pace))
        known_hosts = folder / "known_hosts"
        key = server.known_hosts.read_text().partition(" ")[2]
        known_hosts.write_text(f"[127.0.0.1]:{port} {key}")
        server = replace(server, port=port, known_hosts=known_hosts)
        ours = SshTransport(
            "127.0.0.1", server.port, server.user, server.key_file, server.known_hosts
        )
        closing.callback(ours.close)
        bare = closing.enter_context(bare_paramiko(server))
        openssh = closing.enter_context(openssh_master(server, folder))

        def by_openssh(source: Path, target: Path) -> None:
            with source.open("rb") as stream:
                subprocess.run([*openssh, f"cat > '{target}'"], stdin=stream, check=True)

        def by_paramiko(source: Path, target: Path) -> None:
            channel = bare.open_session()
            channel.exec_command(f"cat > '{target}'")
            with source.open("rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    channel.sendall(chunk)
            channel.shutdown_write()
            if channel.recv_exit_status() != 0:
                raise RuntimeError("cat failed")
            channel.close()

        raw = {"ssh cat": by_openssh, "paramiko cat": by_paramiko}
        return measure("ssh", ours, raw, folder, megabytes, rounds)


@contextmanager
def bare_paramiko(server: LoopbackServer) -> Iterator[paramiko.Transport]:
    """What a program would write with paramiko that knows of TCP_NODELAY."""
    import paramiko

    link = socket.create_connection(("127.0.0.1", server.port))
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    bare = paramiko.Transport(link)
    bare.connect(username=server.user, pkey=paramiko.PKey.from_path(server.key_file))
    try:
        yield bare
    finally:
        bare.close()


@contextmanager
def openssh_master(server: LoopbackServer, folder: Path) -> Iterator[list[str]]:
    """The command line of OpenSSH's client over one connection that stays open."""
    options = ["-p", str(server.port), "-i", str(server.key_file), "-o", "BatchMode=yes"]
    options += ["-o", f"UserKnownHostsFile={server.known_hosts}", "-S", str(folder / "master")]
    where = f"{server.user}@127.0.0.1"
    master = subprocess.Popen(["ssh", *options, "-M", "-N", where], stdin=subprocess.DEVNULL)  # noqa: S607
    try:
        while not (folder / "master").exists() and master.poll() is None:
            time.sleep(0.02)
        yield ["ssh", *options, where]
    finally:
        master.terminate()
        master.wait()


def over_adb(folder: Path, megabytes: float, rounds: int, pace: float | None) -> list[Speed]:
    """Against ``adb push``."""
    with (
        serve_phone(folder / "adbd") as phone,
        paced(int(phone.serial.rpartition(":")[2]), pace) as port,
    ):
        serial = f"127.0.0.1:{port}"
        ours = AdbTransport(serial, phone.server)
        command = [adb_program(), "-P", str(phone.server[1]), "-s", serial, "push"]

        def by_adb(source: Path, target: Path) -> None:
            subprocess.run([*command, source, target], check=True, capture_output=True)

        return measure("adb", ours, {"adb push": by_adb}, folder, megabytes, rounds)


LINKS = {"ssh": over_ssh, "adb": over_adb}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--megabytes", type=float, default=50.0)
    parser.add_argument("--link", action="append", choices=sorted(LINKS), help="only this one")
    parser.add_argument(
        "--link-megabytes-per-s",
        type=float,
        help="as fast as a cable or a network; as fast as loopback if not given",
    )
    options = parser.parse_args()
    found = []
    for link in options.link or LINKS:
        with TemporaryDirectory(prefix=f"push-{secrets.token_hex(2)}-") as folder:
            found += LINKS[link](
                Path(folder), options.megabytes, options.rounds, options.link_megabytes_per_s
            )
    if options.json:
        print(json.dumps([asdict(item) for item in found], indent=2))
        return
    print(f"{options.megabytes:g} MB, {options.rounds} rounds in turns, medians")
    print(f"{'link':5}{'raw way':13} {'ours s':>7} {'raw s':>7}  speed  95 % interval   push again")
    for item in found:
        print(
            f"{item.link:5}{item.raw:13} {item.ours_s:7.3f} {item.raw_s:7.3f} {item.speed}"
            f"  {1000 * item.again_s:5.1f} ms, {item.again_calls} call"
        )


if __name__ == "__main__":
    main()
