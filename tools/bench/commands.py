"""What does a command on a device cost? The median of ``true``, against the bare client.

    python -m tools.bench.commands [--json] [--rounds 300] [--link ssh] [--link adb]

Both servers are real and on loopback, and both clients hold what they can hold open: paramiko its
connection (with TCP_NODELAY), adbutils the adb server.  They take turns.  The ratio is of times:
1 means that the transport adds nothing to the client's own cost.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from devices.endpoints.adbd import serve_phone
from devices.endpoints.sshd import serve
from devices.transport.adb import AdbTransport
from devices.transport.base import Transport
from devices.transport.ssh import SshTransport
from tools.bench.paired import Action, Paired, compare, in_turns
from tools.bench.push import bare_paramiko

_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Cost:
    """One command over a transport of ours and over the bare client; medians and ratio of times."""

    link: str
    raw: str
    rounds: int
    ours_s: float
    raw_s: float
    ratio: Paired


def measure(link: str, transport: Transport, raw: str, bare: Action, rounds: int) -> Cost:
    """Run ``true`` both ways in turns."""

    def ours() -> None:
        if transport.run(["true"], deadline_s=_DEADLINE_S).exit_code != 0:
            raise RuntimeError("true failed")

    taken = in_turns({"ours": ours, "bare": bare}, rounds)
    return Cost(
        link=link,
        raw=raw,
        rounds=rounds,
        ours_s=statistics.median(taken["ours"]),
        raw_s=statistics.median(taken["bare"]),
        ratio=compare(taken["ours"], taken["bare"]),
    )


def over_ssh(folder: Path, rounds: int) -> Cost:
    """Against a channel of paramiko's, opened, used and closed."""
    with serve(folder / "sshd") as server, bare_paramiko(server) as bare:
        ours = SshTransport(
            "127.0.0.1", server.port, server.user, server.key_file, server.known_hosts
        )

        def bare_true() -> None:
            channel = bare.open_session()
            channel.exec_command("true")
            channel.makefile("rb").read()
            channel.makefile_stderr("rb").read()
            if channel.recv_exit_status() != 0:
                raise RuntimeError("true failed")
            channel.close()

        try:
            return measure("ssh", ours, "paramiko", bare_true, rounds)
        finally:
            ours.close()


def over_adb(folder: Path, rounds: int) -> Cost:
    """Against adbutils' ``shell2``."""
    import adbutils  # type: ignore[import-untyped]

    with serve_phone(folder / "adbd") as phone:
        ours = AdbTransport(phone.serial, phone.server)
        bare = adbutils.AdbClient(*phone.server).device(phone.serial)

        def bare_true() -> None:
            if bare.shell2("true", v2=True).returncode != 0:
                raise RuntimeError("true failed")

        return measure("adb", ours, "adbutils", bare_true, rounds)


LINKS: dict[str, Callable[[Path, int], Cost]] = {"ssh": over_ssh, "adb": over_adb}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--link", action="append", choices=sorted(LINKS), help="only this one")
    options = parser.parse_args()
    found = []
    for link in options.link or LINKS:
        with TemporaryDirectory() as folder:
            found.append(LINKS[link](Path(folder), options.rounds))
    if options.json:
        print(json.dumps([asdict(item) for item in found], indent=2))
        return
    print(f"true, {options.rounds} rounds in turns; medians, ratio of times")
    print(f"{'link':5}{'raw client':11} {'ours ms':>8} {'raw ms':>8}  ratio  95 % interval")
    for item in found:
        ours_ms, raw_ms = 1000 * item.ours_s, 1000 * item.raw_s
        print(f"{item.link:5}{item.raw:11} {ours_ms:8.2f} {raw_ms:8.2f} {item.ratio}")


if __name__ == "__main__":
    main()
