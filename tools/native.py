"""Build the native agent, which measures where there is no Python.

    python -m tools.native [--target aarch64] [--system android] [--compiler PATH] [--output DIR]

Prints the program's path, and where this host has C libraries of runtimes, how to try it here.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from pathlib import Path

from devices.agent.native import MACHINES, native_agent, runtime_libraries
from profiles.errors import EdgeError


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", choices=list(MACHINES), default=platform.machine())
    parser.add_argument("--system", choices=["linux", "android"], default="linux")
    parser.add_argument("--compiler", type=Path, help="such as an NDK's clang")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where it is put")
    options = parser.parse_args(arguments)
    try:
        program = native_agent(
            options.target, options.system, compiler=options.compiler, folder=options.output
        )
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(program)
    if options.target == platform.machine() and options.system == "linux":
        known = [f"{name}={path}" for name, path in runtime_libraries().items()]
        print("try:", shlex.join([str(program), "--probe", *known]), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
