"""Debian packages unpacked into a folder: no root, and nothing installed on this machine."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from profiles.errors import DeviceUnreachable

_DOWNLOAD_TIMEOUT_S = 300
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# A package manager of its own: its state is in one folder, and it knows of nothing installed.
_APT_CONFIG = """\
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "20";
"""


def unpack(packages: Sequence[str], suite: str, architecture: str, folder: Path) -> None:
    """Fetch packages with all they depend on, and unpack them.

    Signatures are verified as for any installation; the archive is the one that this machine's
    own apt uses.

    Args:
        packages: their names.
        suite: Debian's name for the release they are taken from.
        architecture: Debian's name for the machine they are for, which need not be this one.
        folder: what becomes the packages' root folder.

    Raises:
        DeviceUnreachable: if this machine is no Debian, or its archive cannot be reached.
    """
    archive = _archive()
    signed = f"[signed-by={_KEYRING}] " if _KEYRING.exists() else ""
    with TemporaryDirectory(prefix="edgeloop-apt-") as name:
        private = Path(name)
        for part in ("state/lists/partial", "cache/archives/partial"):
            (private / part).mkdir(parents=True)
        (private / "status").touch()
        (private / "sources.list").write_text(f"deb {signed}{archive} {suite} main\n")
        config = private / "apt.conf"
        config.write_text(_APT_CONFIG.format(folder=private, architecture=architecture))
        apt = ["apt-get", "-q", "-y", "-c", str(config)]
        _ask([*apt, "update"])
        _ask([*apt, "--download-only", "install", *packages])
        for package in sorted((private / "cache/archives").glob("*.deb")):
            _ask(["dpkg-deb", "-x", str(package), str(folder)])


def _archive() -> str:
    """The address of the Debian archive among the sources of this machine's apt."""
    release = Path("/etc/os-release")
    told = (
        dict(re.findall(r'^(\w+)="?([^"\n]*)', release.read_text(), re.M))
        if release.exists()
        else {}
    )
    codename = told.get("VERSION_CODENAME", "")
    if told.get("ID") != "debian" or not codename:
        raise DeviceUnreachable("this machine is no Debian, whose packages are needed")
    addresses = _ask(["apt-get", "-o", "Debug::NoLocking=true", "update", "--print-uris"])
    found = re.search(rf"^'(\S+)/dists/{re.escape(codename)}/InRelease'", addresses, re.M)
    if found is None:
        raise DeviceUnreachable(
            f"apt has no source for Debian {codename}", "see /etc/apt/sources.list.d"
        )
    return found[1]


def _ask(argv: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_DOWNLOAD_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise DeviceUnreachable(f"no {argv[0]} on this machine, to fetch packages") from error
    except subprocess.TimeoutExpired as error:
        raise DeviceUnreachable(f"{argv[0]} takes more than {_DOWNLOAD_TIMEOUT_S} s") from error
    if done.returncode != 0:
        complaints = [line for line in done.stderr.splitlines() if line.startswith("E:")]
        why = (complaints or done.stderr.splitlines() or ["no reason given"])[0]
        raise DeviceUnreachable(
            f"packages cannot be fetched from the Debian archive: {why.removeprefix('E:').strip()}",
            "is this machine online, and may it reach the archive?",
        )
    return done.stdout
