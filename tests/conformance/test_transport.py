"""One suite for every transport, the public fake included."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from devices.transport.adb import AdbTransport
from devices.transport.base import Transport
from devices.transport.local import LocalTransport
from devices.transport.scripted import ScriptedTransport
from profiles.errors import DeadlineExceeded, DeviceError, DeviceFull
from tests.builders import ssh

HOSTILE = [
    "two words",
    "  spaces at both ends  ",
    "single ' quote",
    'double " quote',
    "$(touch pwned)",
    "`touch pwned`",
    "; touch pwned",
    "& touch pwned &",
    "| tee pwned",
    "> pwned",
    "$HOME",
    "${PATH}",
    "~",
    "*",
    "?",
    "[a-z]",
    "{a,b}",
    "!!",
    "#comment",
    "back\\slash\\n",
    "new\nline",
    "tab\tcharacter",
    "carriage\rreturn",
    "-rf",
    "--",
    "-",
    "größe-模型-🚀",
    "e\u0301",
    "\x01\x7f",
    "%s%n",
    "'\"'\"'",
]
ECHO_ARGUMENTS = "import json, sys; print(json.dumps(sys.argv[1:]))"


@dataclass
class Peer:
    """A connection, the folder to work in, and the home its relative paths start from."""

    transport: Transport
    folder: Path
    home: Path

    def shell(self, script: str, *arguments: str, deadline_s: float = 30.0, on_line=None):
        return self.transport.run(
            ["sh", "-c", script, "sh", *arguments], deadline_s=deadline_s, on_line=on_line
        )

    def python(self, program: str, *arguments: str, deadline_s: float = 60.0):
        return self.transport.run(
            [sys.executable, "-S", "-E", "-c", program, *arguments], deadline_s=deadline_s
        )


@pytest.fixture(
    params=[
        "local",
        "scripted",
        pytest.param("ssh", marks=pytest.mark.sshd),
        pytest.param("adb", marks=pytest.mark.adbd),
    ]
)
def peer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Peer]:
    folder = tmp_path / "device"
    folder.mkdir()
    if request.param == "local":
        made = Peer(LocalTransport(folder), folder, folder)
    elif request.param == "scripted":
        made = Peer(ScriptedTransport(folder, {}), folder, folder)
    elif request.param == "ssh":
        made = Peer(ssh(request.getfixturevalue("loopback")), folder, Path.home())
    else:
        phone = request.getfixturevalue("phone")
        transport = AdbTransport(phone.serial, phone.server)
        made = Peer(transport, folder, Path(transport.home))
    yield made
    made.transport.close()


@pytest.mark.parametrize("code", [0, 1, 3, 127, 255])
def test_exit_code_is_the_commands_own(peer: Peer, code: int):
    assert peer.shell(f"exit {code}").exit_code == code


def test_a_program_that_is_not_there_is_a_failed_command_not_an_exception(peer: Peer):
    done = peer.transport.run(["edgeloop-no-such-program"], deadline_s=30)
    assert done.exit_code == 127
    assert "not found" in done.complaint()


def test_a_command_that_dies_by_a_signal_has_failed_and_the_connection_lives(peer: Peer):
    done = peer.shell("echo before; kill -KILL $$")
    assert done.exit_code != 0
    assert done.stdout == b"before\n"
    assert peer.shell("exit 0").exit_code == 0


def test_streams_are_kept_apart(peer: Peer):
    done = peer.shell("echo out; echo err >&2; echo out again; exit 4")
    assert (done.stdout, done.stderr, done.exit_code) == (b"out\nout again\n", b"err\n", 4)
    assert done.complaint() == "err"


def test_output_is_bytes_unchanged(peer: Peer):
    every_byte = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 3)"
    assert peer.python(every_byte).stdout == bytes(range(256)) * 3


def test_nothing_is_added_where_the_last_line_has_no_newline(peer: Peer):
    done = peer.shell("printf 'out\\000'; printf 'err\\n\\n' >&2; printf '\\377' >&2; exit 5")
    assert (done.stdout, done.stderr, done.exit_code) == (b"out\0", b"err\n\n\xff", 5)


@pytest.mark.parametrize("argv", [["exit", "3"], ["exec", "sh", "-c", "exit 3"]])
def test_a_command_that_ends_the_shell_has_its_own_exit_code(peer: Peer, argv: list[str]):
    assert peer.transport.run(argv, deadline_s=30).exit_code == 3


def test_ten_megabytes_on_both_streams_at_once(peer: Peer):
    flood = """
import os
for i in range(160):
    for fd in (1, 2):
        left = bytes([(i + fd) % 256]) * 65536
        while left:
            left = left[os.write(fd, left):]
"""
    done = peer.python(flood)
    assert done.exit_code == 0
    for fd, stream in ((1, done.stdout), (2, done.stderr)):
        expected = b"".join(bytes([(i + fd) % 256]) * 65536 for i in range(160))
        assert hashlib.sha256(stream).digest() == hashlib.sha256(expected).digest()


def test_one_stream_may_be_full_while_the_other_is_silent(peer: Peer):
    """A reader that drains one stream to its end first would wait for ever here."""
    lopsided = """
import os, sys
sys.stderr.write("e" * 3_000_000)
sys.stderr.flush()
sys.stdout.write("o" * 3_000_000)
"""
    done = peer.python(lopsided)
    assert (len(done.stdout), len(done.stderr)) == (3_000_000, 3_000_000)


def test_lines_arrive_while_the_command_still_runs(peer: Peer):
    """The command waits for a file that is only made when its first line has arrived."""
    seen: list[str] = []

    def on_line(text: str) -> None:
        seen.append(text)
        (peer.folder / "seen").touch()

    done = peer.shell(
        'echo first; until [ -e "$1/seen" ]; do sleep 0.02; done; echo second',
        str(peer.folder),
        on_line=on_line,
    )
    assert done.exit_code == 0
    assert seen == ["first", "second"]
    assert done.stdout == b"first\nsecond\n"


def test_lines_are_whole_however_they_were_written(peer: Peer):
    """Empty lines count, a character may come in two pieces, the last line may lack its newline."""
    seen: list[str] = []
    peer.shell(
        r"printf 'a\n\nsplit \303'; sleep 0.1; printf '\251\nnot utf-8 \377\nno newline'",
        on_line=seen.append,
    )
    assert seen == ["a", "", "split é", "not utf-8 \ufffd", "no newline"]


def test_a_last_line_with_newline_is_not_followed_by_an_empty_one(peer: Peer):
    seen: list[str] = []
    peer.shell("echo only", on_line=seen.append)
    assert seen == ["only"]


def test_standard_error_is_not_handed_over_as_lines(peer: Peer):
    seen: list[str] = []
    peer.shell("echo err >&2", on_line=seen.append)
    assert seen == []


def test_many_lines_come_in_order_and_complete(peer: Peer):
    seen: list[str] = []
    peer.shell("i=0; while [ $i -lt 5000 ]; do echo $i; i=$((i+1)); done", on_line=seen.append)
    assert seen == [str(i) for i in range(5000)]


def test_an_error_in_the_receiver_of_lines_reaches_the_caller(peer: Peer):
    def on_line(text: str) -> None:
        raise KeyError(text)

    start = time.monotonic()
    with pytest.raises(KeyError, match="first"):
        peer.shell("echo first; exec sleep 20", on_line=on_line)
    assert time.monotonic() - start < 10


def test_standard_input_is_empty(peer: Peer):
    assert peer.transport.run(["cat"], deadline_s=30).stdout == b""


def test_commands_are_independent(peer: Peer):
    peer.shell("cd /; export LEAKED=1")
    assert peer.shell('echo "${LEAKED:-clean}"').stdout == b"clean\n"


def test_commands_start_at_home(peer: Peer):
    assert peer.transport.run(["pwd"], deadline_s=30).stdout.decode().strip() == str(peer.home)


def test_arguments_are_passed_unchanged(peer: Peer):
    arguments = ["", *HOSTILE, "".join(HOSTILE), "x" * 50_000]
    done = peer.python(ECHO_ARGUMENTS, *arguments)
    assert json.loads(done.stdout) == arguments
    assert not (peer.home / "pwned").exists()


def test_arguments_may_be_longer_than_one_request(peer: Peer):
    """An adb request holds 64 KiB; a command that is longer has to get there in another way."""
    arguments = ["y" * 50_000, "'" * 5_000, "z" * 40_000]
    assert json.loads(peer.python(ECHO_ARGUMENTS, *arguments).stdout) == arguments
    done = peer.shell('cat; echo "$#" && exit 7', *arguments)
    assert (done.stdout, done.exit_code) == (b"3\n", 7)


def test_random_arguments_are_passed_unchanged(peer: Peer):
    letters = random.Random(1)
    alphabet = "ab \t\n'\"\\$`!*?;&|<>(){}[]#~=%-é漢🚀"
    arguments = ["".join(letters.choices(alphabet, k=letters.randrange(9))) for _ in range(300)]
    assert json.loads(peer.python(ECHO_ARGUMENTS, *arguments).stdout) == arguments


@pytest.mark.parametrize("argv", [[], ["echo", "nul\0character"]])
def test_what_no_command_line_can_hold_is_refused(peer: Peer, argv: list[str]):
    with pytest.raises(ValueError, match="NUL"):
        peer.transport.run(argv, deadline_s=30)


@pytest.mark.parametrize("size", [0, 1, 255, 4095, 65_536, 65_537, 262_145, 5_000_003])
def test_bytes_survive_the_round_trip(peer: Peer, tmp_path: Path, size: int):
    content = random.Random(size).randbytes(size)
    there, back = str(peer.folder / "blob"), tmp_path / "back"
    (tmp_path / "source").write_bytes(content)
    peer.transport.push(tmp_path / "source", there, deadline_s=60)
    assert (peer.folder / "blob").read_bytes() == content
    peer.transport.pull(there, back, deadline_s=60)
    assert back.read_bytes() == content


def test_push_and_pull_replace_what_was_there(peer: Peer, tmp_path: Path):
    (tmp_path / "source").write_bytes(b"new")
    (peer.folder / "blob").write_bytes(b"old and longer")
    (tmp_path / "back").write_bytes(b"older and longer still")
    peer.transport.push(tmp_path / "source", str(peer.folder / "blob"), deadline_s=30)
    peer.transport.pull(str(peer.folder / "blob"), tmp_path / "back", deadline_s=30)
    assert (peer.folder / "blob").read_bytes() == b"new"
    assert (tmp_path / "back").read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "device", "source"]


@pytest.mark.parametrize(
    ("size", "offset"), [(10, 1), (10, 10), (5_000_003, 4_999_999), (5_000_003, 65_537)]
)
def test_a_push_goes_on_where_another_broke_off(peer: Peer, tmp_path: Path, size: int, offset: int):
    """What stands before the offset is left alone: it differs here, to show that."""
    content = random.Random(size).randbytes(size)
    (tmp_path / "source").write_bytes(content)
    (peer.folder / "-o 'name").write_bytes(b"~" * offset)
    peer.transport.push(
        tmp_path / "source", f"{peer.folder}/-o 'name", deadline_s=60, offset=offset
    )
    assert (peer.folder / "-o 'name").read_bytes() == b"~" * offset + content[offset:]
    assert [path.name for path in peer.folder.iterdir()] == ["-o 'name"]


def test_a_push_that_goes_on_meets_the_full_disk_too(peer: Peer, tmp_path: Path):
    (tmp_path / "source").write_bytes(bytes(100_000))
    with pytest.raises(DeviceFull):
        peer.transport.push(tmp_path / "source", "/dev/full", deadline_s=30, offset=1000)
    assert peer.shell("exit 0").exit_code == 0


def test_hostile_file_names(peer: Peer, tmp_path: Path):
    back: dict[str, bytes] = {}
    for name in HOSTILE:
        (tmp_path / "source").write_bytes(name.encode())
        peer.transport.push(tmp_path / "source", f"{peer.folder}/{name}", deadline_s=30)
        peer.transport.pull(f"{peer.folder}/{name}", tmp_path / "back", deadline_s=30)
        back[name] = (tmp_path / "back").read_bytes()
    assert sorted(path.name for path in peer.folder.iterdir()) == sorted(HOSTILE)
    assert back == {name: name.encode() for name in HOSTILE}
    assert not (peer.home / "pwned").exists()


def test_relative_paths_start_at_home_even_with_a_leading_dash(peer: Peer, tmp_path: Path):
    name = f"-edgeloop-test-{secrets.token_hex(4)}"
    (tmp_path / "source").write_bytes(b"dash")
    try:
        peer.transport.push(tmp_path / "source", name, deadline_s=30)
        assert (peer.home / name).read_bytes() == b"dash"
        peer.transport.pull(name, tmp_path / "back", deadline_s=30)
    finally:
        with contextlib.suppress(FileNotFoundError):
            (peer.home / name).unlink()
    assert (tmp_path / "back").read_bytes() == b"dash"


def test_a_silent_command_ends_by_its_deadline(peer: Peer):
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="sleep"):
        peer.transport.run(["sleep", "30"], deadline_s=1)
    assert 0.9 < time.monotonic() - start < 5


def test_a_command_that_freezes_ends_by_its_deadline(peer: Peer):
    seen: list[str] = []
    start = time.monotonic()
    try:
        with pytest.raises(DeadlineExceeded):
            peer.shell("echo $$; kill -STOP $$", deadline_s=1, on_line=seen.append)
        assert time.monotonic() - start < 5
    finally:
        with contextlib.suppress(ProcessLookupError):  # the local ones are ended already
            os.kill(int(seen[0]), signal.SIGKILL)


def test_a_command_that_never_stops_talking_ends_by_its_deadline(peer: Peer):
    """Its receiver is slower than it, so that there always is something left to read."""
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        peer.shell(
            "exec timeout 8 yes 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            deadline_s=0.5,
            on_line=lambda _text: time.sleep(1e-5),
        )
    assert time.monotonic() - start < 5


def test_lines_before_the_deadline_were_handed_over(peer: Peer):
    seen: list[str] = []
    with pytest.raises(DeadlineExceeded):
        peer.shell("echo early; exec sleep 30", deadline_s=1, on_line=seen.append)
    assert seen == ["early"]


def test_deadlines_are_retryable_and_say_how_long(peer: Peer):
    with pytest.raises(DeadlineExceeded) as caught:
        peer.transport.run(["sleep", "30"], deadline_s=0.2)
    assert caught.value.retryable
    assert "0.2 s" in str(caught.value)


def test_pulling_what_is_not_there(peer: Peer, tmp_path: Path):
    with pytest.raises(DeviceError, match="missing"):
        peer.transport.pull(str(peer.folder / "missing"), tmp_path / "back", deadline_s=30)
    assert [path.name for path in tmp_path.iterdir()] == ["device"]


def test_pulling_what_is_not_there_leaves_an_older_file_alone(peer: Peer, tmp_path: Path):
    (tmp_path / "back").write_bytes(b"precious")
    with pytest.raises(DeviceError):
        peer.transport.pull(str(peer.folder / "missing"), tmp_path / "back", deadline_s=30)
    assert (tmp_path / "back").read_bytes() == b"precious"


def test_pulling_a_folder(peer: Peer, tmp_path: Path):
    with pytest.raises(DeviceError, match="directory"):
        peer.transport.pull(str(peer.folder), tmp_path / "back", deadline_s=30)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_pushing_into_a_folder_that_is_not_there(peer: Peer, tmp_path: Path, size: int):
    """Also when the far side gives up long before everything was sent."""
    (tmp_path / "source").write_bytes(bytes(size))
    with pytest.raises(DeviceError, match="missing") as caught:
        peer.transport.push(
            tmp_path / "source", str(peer.folder / "missing" / "blob"), deadline_s=30
        )
    assert not isinstance(caught.value, DeviceFull)
    assert not caught.value.retryable
    assert peer.shell("exit 0").exit_code == 0


def test_a_full_disk_has_an_error_of_its_own(peer: Peer, tmp_path: Path):
    (tmp_path / "source").write_bytes(bytes(100_000))
    with pytest.raises(DeviceFull):
        peer.transport.push(tmp_path / "source", "/dev/full", deadline_s=30)
    assert peer.shell("exit 0").exit_code == 0


def test_a_probe_says_how_long_the_answer_took(peer: Peer):
    start = time.monotonic()
    taken = peer.transport.probe(deadline_s=30)
    assert 0 < taken <= time.monotonic() - start


def test_a_probe_has_a_deadline(peer: Peer):
    with pytest.raises(DeadlineExceeded):
        peer.transport.probe(deadline_s=1e-6)


def test_closing_twice(peer: Peer):
    peer.transport.close()
    peer.transport.close()
