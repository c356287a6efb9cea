"""A board behind SSH, through paramiko.

Host keys are verified against a known_hosts file and unknown hosts refused.  Nagle's algorithm is
switched off: without that a short command takes 44 ms instead of 2 (paramiko 5 does not set it).
"""

from __future__ import annotations

import contextlib
import io
import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from devices.transport.base import (
    WRITE_FROM,
    Completed,
    LineSink,
    LineSplitter,
    echo,
    quote,
    written_aside,
)
from profiles.errors import (
    AuthenticationError,
    ConnectionLost,
    DeadlineExceeded,
    DeviceError,
    DeviceFull,
    DeviceUnreachable,
    HostKeyError,
)

if TYPE_CHECKING:
    import paramiko

CONNECT_TIMEOUT_S = 10.0
_CHUNK_BYTES = 1 << 18
# Done by the processor itself, and without a separate checksum: over loopback 50 MB took 0.24 s
# so, and 0.30 s with what paramiko prefers.
# Source: own measurement, paramiko 5.1 and OpenSSH 9.2 on x86-64.
_FAST_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")

# paramiko logs the traceback of every failed connection; without a handler Python would print it.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


class SshTransport:
    """One SSH connection; each command has a channel of its own.

    Args:
        host, port, user: where and as whom.
        key_file: private key, or ``None`` for the user's default keys and agent.
        known_hosts: file of accepted host keys.

    Raises:
        HostKeyError: the host is unknown, or its key has changed.
        AuthenticationError: the key is not accepted.
        DeviceUnreachable: there is no connection.
    """

    name = "ssh"

    def __init__(
        self, host: str, port: int, user: str | None, key_file: Path | None, known_hosts: Path
    ) -> None:
        self._client = _connect(host, port, user, key_file, known_hosts)
        transport = self._client.get_transport()
        if transport is None:
            raise DeviceUnreachable(f"{host}:{port} closed the connection at once")
        self._transport = transport
        if isinstance(self._transport.sock, socket.socket):
            self._transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(
        self, argv: Sequence[str], *, deadline_s: float, on_line: LineSink | None = None
    ) -> Completed:
        """See :class:`devices.transport.base.Transport`."""
        sink = io.BytesIO()
        stderr, code = self._exchange(quote(argv), deadline_s, sink, LineSplitter(on_line))
        return Completed(sink.getvalue(), stderr, code)

    def push(self, source: Path, target: str, *, deadline_s: float, offset: int = 0) -> None:
        """See :class:`devices.transport.base.Transport`."""
        # cat tells a full disk from a missing folder, which SFTP reports as the same "Failure";
        # in English, whatever the board's language is.
        path = _plain_path(target)
        command = f"env LC_ALL=C cat > {quote([path])}"
        if offset:
            command = quote(["env", "LC_ALL=C", "sh", "-c", WRITE_FROM, "sh", path, str(offset)])
        with source.open("rb") as stream:
            if offset:
                stream.seek(offset)
            stderr, code = self._exchange(command, deadline_s, io.BytesIO(), source=stream)
        if code != 0:
            complaint = Completed(b"", stderr, code).complaint()
            kind = DeviceFull if b"No space left" in stderr else DeviceError
            raise kind(f"{target} cannot be written: {complaint}")

    def pull(self, source: str, target: Path, *, deadline_s: float) -> None:
        """See :class:`devices.transport.base.Transport`."""
        with written_aside(target) as aside:
            with aside.open("wb") as sink:
                command = quote(["cat", _plain_path(source)])
                stderr, code = self._exchange(command, deadline_s, sink)
            if code != 0:
                complaint = Completed(b"", stderr, code).complaint()
                raise DeviceError(f"{source} cannot be read: {complaint}")

    def probe(self, *, deadline_s: float) -> float:
        """See :class:`devices.transport.base.Transport`."""
        return echo(self, deadline_s)

    def close(self) -> None:
        """See :class:`devices.transport.base.Transport`."""
        self._client.close()

    def _exchange(
        self,
        command: str,
        deadline_s: float,
        sink: BinaryIO,
        lines: LineSplitter | None = None,
        source: BinaryIO | None = None,
    ) -> tuple[bytes, int]:
        """Run ``command``, feed it ``source``, pour its output into ``sink``.

        Returns:
            Standard error and the exit code.
        """
        deadline = time.monotonic() + deadline_s
        # paramiko waits without a timeout for the answer to a request, and on a full socket.
        watchdog = threading.Timer(deadline_s, self._hang_up)
        watchdog.daemon = True
        watchdog.start()
        what = "a copy" if source is not None else command.split(maxsplit=1)[0]
        late = f"{what} did not end within {deadline_s:g} s"
        try:
            return self._converse(command, deadline, sink, lines, source)
        except TimeoutError:
            raise DeadlineExceeded(late) from None
        except ConnectionLost as error:
            if time.monotonic() >= deadline:  # we hung up
                raise DeadlineExceeded(late) from error
            raise
        finally:
            watchdog.cancel()

    def _converse(
        self,
        command: str,
        deadline: float,
        sink: BinaryIO,
        lines: LineSplitter | None,
        source: BinaryIO | None,
    ) -> tuple[bytes, int]:
        with _paramiko_errors():
            channel = self._transport.open_session(timeout=_left(deadline))
        try:
            with _paramiko_errors():
                channel.settimeout(_left(deadline))
                channel.exec_command(command)
            if source is not None:
                _send(channel, source, deadline)
            with _paramiko_errors():
                channel.shutdown_write()
            stderr = _receive(channel, deadline, sink, lines)
            return stderr, self._exit_code(channel, deadline)
        finally:
            with contextlib.suppress(OSError, EOFError):
                channel.close()

    def _exit_code(self, channel: paramiko.Channel, deadline: float) -> int:
        if not channel.status_event.wait(_left(deadline)):
            raise TimeoutError
        code = channel.recv_exit_status()
        if code == -1:
            # A dropped connection and a remote death by signal both read -1, and for a moment
            # paramiko still holds the dropped one for active: only the peer can tell.
            with _paramiko_errors():
                self._transport.open_session(timeout=_left(deadline)).close()
        return code

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._transport.sock.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _paramiko_errors() -> Iterator[None]:
    """Everything that paramiko raises on a broken connection, as one error of ours."""
    import paramiko

    try:
        yield
    except TimeoutError:
        raise
    except (paramiko.SSHException, EOFError, OSError) as error:
        if "Timeout" in str(error):
            raise TimeoutError from error
        raise ConnectionLost("the SSH connection broke in the middle of a command") from error


def _send(channel: paramiko.Channel, source: BinaryIO, deadline: float) -> None:
    while chunk := source.read(_CHUNK_BYTES):
        channel.settimeout(_left(deadline))
        with _paramiko_errors():
            try:
                channel.sendall(chunk)
            except TimeoutError:
                raise
            except OSError:
                return  # the command ended early: its exit code and complaint say why


def _receive(
    channel: paramiko.Channel,
    deadline: float,
    sink: BinaryIO,
    lines: LineSplitter | None,
) -> bytes:
    """Drain both streams until the peer has closed them; standard error is returned."""
    stderr: list[bytes] = []
    while True:
        left = _left(deadline)
        idle = True
        if channel.recv_ready():
            chunk = _taken(channel.recv)
            sink.write(chunk)
            if lines:
                lines.feed(chunk)
            idle = False
        if channel.recv_stderr_ready():
            stderr.append(_taken(channel.recv_stderr))
            idle = False
        if not idle:
            continue
        if channel.eof_received or channel.closed:
            # Data may have come between the looks above and the end of the stream.
            if not channel.recv_ready() and not channel.recv_stderr_ready():
                break
            continue
        if not select.select([channel], [], [], left)[0]:
            raise TimeoutError
    if lines:
        lines.finish()
    return b"".join(stderr)


def _taken(receive: Callable[[int], bytes]) -> bytes:
    """What has come; the peer is told that there is room again, and may be gone."""
    with _paramiko_errors():
        return receive(_CHUNK_BYTES)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _plain_path(path: str) -> str:
    """A path that no program takes for an option."""
    return f"./{path}" if path.startswith("-") else path


def _connect(
    host: str, port: int, user: str | None, key_file: Path | None, known_hosts: Path
) -> paramiko.SSHClient:
    import paramiko
    from paramiko.hostkeys import InvalidHostKey

    where = f"{host}:{port}"
    client = paramiko.SSHClient()  # its default policy rejects unknown hosts
    if key_file:
        _check_key(key_file)
    try:
        if known_hosts.exists():
            client.load_host_keys(str(known_hosts))
        client.connect(
            host,
            port,
            username=user,
            key_filename=str(key_file) if key_file else None,
            allow_agent=key_file is None,
            look_for_keys=key_file is None,
            timeout=CONNECT_TIMEOUT_S,
            banner_timeout=CONNECT_TIMEOUT_S,
            auth_timeout=CONNECT_TIMEOUT_S,
            transport_factory=_fast_transport,
        )
    except InvalidHostKey as error:
        raise HostKeyError(
            f"{known_hosts} has a line that is no host key: {error.line}", "correct or remove it"
        ) from error
    except paramiko.BadHostKeyException as error:
        raise HostKeyError(
            f"{where} presents another host key than {known_hosts} has",
            f"if the board was set up anew, remove its line and add: ssh-keyscan -p {port} {host}",
        ) from error
    except paramiko.AuthenticationException as error:
        raise AuthenticationError(
            f"{where} does not accept the key {key_file or 'of your agent'}",
            f"ssh-copy-id -p {port} {user or ''}{'@' if user else ''}{host}",
        ) from error
    except paramiko.SSHException as error:
        if "not found in known_hosts" in str(error):
            raise HostKeyError(
                f"the host key of {where} is not in {known_hosts}",
                f"compare it on the board, then: ssh-keyscan -p {port} {host} >> {known_hosts}",
            ) from error
        raise DeviceUnreachable(f"no SSH with {where}: {error}") from error
    except OSError as error:
        raise DeviceUnreachable(
            f"no connection to {where}: {error.strerror or error}",
            "is the board on, and sshd running?",
        ) from error
    return client


def _fast_transport(*arguments: Any, **options: Any) -> paramiko.Transport:
    """paramiko's own, asking for the fast ciphers first; what the board lacks is passed over."""
    import paramiko

    made = paramiko.Transport(*arguments, **options)
    security = made.get_security_options()
    security.ciphers = sorted(security.ciphers, key=lambda name: name not in _FAST_CIPHERS)
    return made


def _check_key(key_file: Path) -> None:
    """A key that cannot be read is no fault of the board's, and no reason to try again."""
    import paramiko

    try:
        paramiko.PKey.from_path(key_file)
    except (paramiko.PasswordRequiredException, TypeError) as error:
        raise AuthenticationError(
            f"the key {key_file} has a passphrase",
            "ssh-add it, and leave key_file out: the agent's keys are tried then",
        ) from error
    except (paramiko.SSHException, paramiko.pkey.UnknownKeyType, ValueError, OSError) as error:
        raise AuthenticationError(
            f"{key_file} cannot be read as a private key",
            "name the private key, not its .pub, and one without a passphrase",
        ) from error
