"""The whole loop on the digits model, on this machine behind a real SSH server.

    python -m tools.demo [--workspace workspace/demo]

Starts an OpenSSH server on loopback for as long as it runs; where none is installed it says so and
uses the local transport.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from devices.endpoints.processes import end_with_parent
from devices.endpoints.sshd import find_sshd, serve
from profiles.errors import EdgeError

RECIPE = Path(__file__).parents[1] / "pipeline" / "examples" / "digits.yaml"


@contextmanager
def loopback_inventory(folder: Path) -> Iterator[Path]:
    """A ``devices.yaml`` with this machine as device ``loopback``, reachable while in context."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "devices.yaml"
    root = str(folder.absolute() / "device")
    if find_sshd() is None:
        print(
            "no OpenSSH server here (apt-get install openssh-server): using the local transport",
            file=sys.stderr,
        )
        entry = {
            "id": "loopback",
            "profile": f"linux-{os.uname().machine}",
            "address": "local:",
            "python": sys.executable,
            "root": root,
        }
        path.write_text(yaml.safe_dump({"devices": [entry]}))
        yield path
        return
    with serve(folder / "sshd") as server:
        entry = server.inventory_entry("loopback", root)
        path.write_text(yaml.safe_dump({"devices": [entry]}))
        yield path


def main() -> int:
    """Run the demo; returns the exit code of ``device-lab run``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, default=Path("workspace/demo"))
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    options, rest = parser.parse_known_args()
    with loopback_inventory(options.workspace / "lab") as inventory:
        command = [
            str(Path(sys.executable).with_name("device-lab")),
            "run",
            str(options.recipe),
            "--workspace",
            str(options.workspace),
            "--set",
            f"inventory={inventory.absolute()}",
            *rest,
        ]
        # However the demo ends, neither the run nor the server outlives it.
        return subprocess.run(command, check=False, preexec_fn=end_with_parent).returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
