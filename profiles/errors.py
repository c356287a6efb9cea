"""Every error that edgeloop raises on purpose.

::

    EdgeError                      one sentence, a hint, and where known the device
    ├── UsageError                 the user's input is wrong                      exit 2
    │   ├── ConfigError            all problems of one configuration file at once
    │   ├── ModelError             a model or its weights cannot be used
    │   └── DataError              a data set cannot be used
    ├── StageError                 a stage of the pipeline failed                 exit 1
    │   └── ExportError            one format could not be written or lowered
    ├── StoreError                 the store of measurements cannot be used       exit 1
    │   └── StaleFence             a result of a lease that is over is rejected
    ├── TableError                 a latency table does not answer the question   exit 1
    │   └── TableFileError         a file is no latency table, or a damaged one   exit 2
    └── DeviceError                something on or before a device failed         exit 1
        ├── DeviceUnreachable      no connection                                 retryable
        ├── ConnectionLost         the peer went away in mid command             retryable
        ├── DeadlineExceeded       the peer is silent past a deadline            retryable
        ├── HostKeyError           the peer is not who known_hosts says it is
        ├── AuthenticationError    the peer does not accept our key
        ├── WrongDevice            another device answers at this address
        ├── DeviceBusy             another process holds the device
        ├── LeaseLost              our lease of the device is over before we were done
        ├── NotReady               the device is not in the state to be measured in
        ├── DeviceFull             no space for an artifact
        ├── IntegrityError         bytes on the device are not the bytes sent
        ├── MeterError             a power sensor cannot be read or understood
        └── AgentError             the measuring program reported a failure

``retryable`` says whether trying the same call again may succeed; retries wrap connecting and
copying, never a measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class EdgeError(Exception):
    """A failure that is explained to the user in one line.

    Args:
        message: what is wrong and where, one sentence without a final full stop.
        hint: what to do about it; empty when nothing useful can be said.
        device: id of the device concerned, or ``None``.
    """

    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, hint: str = "", device: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.device = device

    def __str__(self) -> str:
        where = f"{self.device}: " if self.device else ""
        advice = f" ({self.hint})" if self.hint else ""
        return f"{where}{self.message}{advice}"


class UsageError(EdgeError):
    """The user's input is wrong."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration file has mistakes; all of them are listed.

    Args:
        source: the file the mistakes are in.
        problems: one ``key: what is wrong`` line each.
    """

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "".join(f"\n  {problem}" for problem in problems)
        super().__init__(f"{source}: {count}{lines}")
        self.source = source
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[object, ...]:
        # An exception is rebuilt from its message alone unless told otherwise.
        return type(self), (self.source, self.problems), self.__dict__


class ModelError(UsageError):
    """A model or its weights cannot be used."""


class DataError(UsageError):
    """A data set cannot be used."""


class StageError(EdgeError):
    """A stage of the pipeline failed."""


class ExportError(StageError):
    """One format could not be written or lowered."""


class StoreError(EdgeError):
    """The store of measurements cannot be used."""


class StaleFence(StoreError):
    """The device has been leased anew since: results of an earlier lease are rejected.

    Args:
        newer: the fence of the lease it was last opened under; ``None`` if that is unknown.
    """

    def __init__(
        self, message: str, hint: str = "", device: str | None = None, newer: int | None = None
    ) -> None:
        super().__init__(message, hint, device)
        self.newer = newer


class TableError(EdgeError):
    """A latency table does not answer the question asked."""


class TableFileError(TableError):
    """A file is no latency table, is damaged, or is not of what it is asked to be of."""

    exit_code = UsageError.exit_code


class DeviceError(EdgeError):
    """Something on or before a device failed."""


class DeviceUnreachable(DeviceError):
    """No connection to the device could be made."""

    retryable = True


class ConnectionLost(DeviceError):
    """The peer went away in the middle of a command."""

    retryable = True


class DeadlineExceeded(DeviceError):
    """The peer was silent past a deadline."""

    retryable = True


class HostKeyError(DeviceError):
    """The peer is unknown, or not who known_hosts says it is."""


class AuthenticationError(DeviceError):
    """The peer does not accept our key."""


class WrongDevice(DeviceError):
    """Another device answers at this address than the one that is expected."""


class DeviceBusy(DeviceError):
    """Another process holds the device."""


class LeaseLost(DeviceError):
    """Our lease of the device is over: it expired, or somebody else has taken the device."""


class NotReady(DeviceError):
    """The device is not in the state that it is to be measured in.

    Args:
        reasons: what is wrong, one clause each.
        advice: what to do about it, one clause each; what is said twice is said once.
    """

    def __init__(
        self, reasons: Sequence[str], advice: Sequence[str] = (), device: str | None = None
    ) -> None:
        super().__init__("; ".join(reasons), "; ".join(dict.fromkeys(advice)), device)
        self.reasons = tuple(reasons)
        self.advice = tuple(advice)

    def __reduce__(self) -> tuple[object, ...]:
        # As for ConfigError.
        return type(self), (self.reasons, self.advice), self.__dict__


class DeviceFull(DeviceError):
    """The device has no space left for an artifact."""


class IntegrityError(DeviceError):
    """The bytes on the device are not the bytes that were sent."""


class MeterError(DeviceError):
    """A power sensor cannot be read or understood."""


class AgentError(DeviceError):
    """The measuring program on the device reported a failure."""
