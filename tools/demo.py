"""The whole loop on the digits model, on this machine as a board over SSH and as a phone over ADB.

    python -m tools.demo [--workspace workspace/demo]

Starts an OpenSSH server and an adbd on loopback for as long as it runs.  What cannot run on this
machine is left out and said; where neither can, the local transport is used.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import yaml

from devices.endpoints.processes import end_with_parent
from devices.inventory import load_inventory
from profiles.errors import DeviceUnreachable, EdgeError
from tools.endpoints import lab

RECIPE = Path(__file__).parents[1] / "pipeline" / "examples" / "digits.yaml"


def local_inventory(folder: Path) -> Path:
    """A ``devices.yaml`` with this machine as device ``board``, without a server."""
    folder.mkdir(parents=True, exist_ok=True)
    entry = {
        "id": "board",
        "profile": f"linux-{os.uname().machine}",
        "address": "local:",
        "python": sys.executable,
        "root": str(folder.absolute() / "device"),
    }
    path = folder / "devices.yaml"
    path.write_text(yaml.safe_dump({"devices": [entry]}))
    return path


def demo(recipe: Path, workspace: Path, inventory: Path, rest: list[str]) -> int:
    """Run a recipe on every device of an inventory; returns the exit code of ``device-lab run``."""
    names = ", ".join(device.id for device in load_inventory(inventory).devices)
    command = [
        str(Path(sys.executable).with_name("device-lab")),
        "run",
        str(recipe),
        *("--workspace", str(workspace)),
        *("--set", f"inventory={inventory.absolute()}"),
        *("--set", f"devices=[{names}]"),
        *rest,
    ]
    # However the demo ends, the run does not outlive it.
    return subprocess.run(command, check=False, preexec_fn=end_with_parent).returncode


def main() -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, default=Path("workspace/demo"))
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    options, rest = parser.parse_known_args()
    folder = options.workspace / "lab"
    with ExitStack() as running:
        try:
            inventory = running.enter_context(lab(folder))
        except DeviceUnreachable as error:
            print(f"{error}: using the local transport", file=sys.stderr)
            inventory = local_inventory(folder)
        return demo(options.recipe, options.workspace, inventory, rest)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
