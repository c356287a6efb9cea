"""One visit to a device: lease, connect, see who it is, clear up, hand over a session."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from devices.conditions.journal import restore
from devices.facts import look
from devices.inventory import Device
from devices.lab import DeviceState, Lab
from devices.launch import clear_leftovers, host_word
from devices.lease import Lease, lease
from devices.session import Session
from devices.transport.base import Transport
from profiles.errors import (
    ConnectionLost,
    DeadlineExceeded,
    DeviceError,
    DeviceUnreachable,
    EdgeError,
    WrongDevice,
)

_PROBE_DEADLINE_S = 10.0
#: What a scripted device says of itself.
_SCRIPTED_FACTS = {"machine": "scripted", "system": "scripted", "cores": 1}


@contextmanager
def visit(
    device: Device,
    *,
    purpose: str = "measure",
    wait_s: float = 0.0,
) -> Iterator[Session]:
    """Hold a device, connect, clear up after a dead holder; give everything back on any way out.

    Args:
        device: of the inventory.
        purpose: shown to others who want it meanwhile.
        wait_s: how long to wait for another holder of the device.

    Raises:
        DeviceError: every one of them names the device.
    """
    try:
        lab = Lab()
        serial = identify(device, lab)
        with lease(lab, serial, device.id, purpose, wait_s) as held:
            session = _meet(device, lab, held)
            try:
                clear_leftovers(session.transport, device.folder)
                restore(session.transport, device.folder, host_word())
                lab.set_state(serial, DeviceState.READY)
                yield session
            finally:
                session.transport.close()
    except DeviceError as error:
        error.device = error.device or device.id
        raise


def identify(device: Device, lab: Lab) -> str:
    """The hardware serial of a device: of the inventory, remembered from an earlier visit to this
    address, or asked for now.

    Raises:
        DeviceError: if it has to be asked for and cannot be reached.
    """
    if device.known_serial:
        return device.known_serial
    for seen in lab.devices():
        if seen.id == device.id and seen.facts.get("address") == device.address:
            return seen.serial
    transport, facts = _connect(device)
    transport.close()
    return _remembered(device, lab, facts)


def serial_of(device: Device) -> str:
    """:func:`identify` with this host's lab."""
    try:
        return identify(device, Lab())
    except DeviceError as error:
        error.device = error.device or device.id
        raise


def sign_of_life(device: Device, lab: Lab) -> float:
    """Seconds a device takes to answer; the lab learns whether it does.

    Raises:
        DeviceError: it does not, or another device does.
    """
    serial = identify(device, lab)
    try:
        transport, facts = _connect(device)
        try:
            taken_s = transport.probe(deadline_s=_PROBE_DEADLINE_S)
        finally:
            transport.close()
    except (DeviceUnreachable, ConnectionLost, DeadlineExceeded) as error:
        _note_absence(lab, serial, error)
        raise
    _remembered(device, lab, facts, serial)
    return taken_s


def give_up(device: Device, error: DeviceError) -> None:
    """Take a device out of use that froze again and again, until a person lets it back."""
    lab = Lab()
    serial = lab.serial_of(device.id)
    if serial:
        lab.quarantine(serial, error.message)


def _note_absence(lab: Lab, serial: str, error: DeviceError) -> None:
    """A device that somebody works with is not away, whoever cannot reach it."""
    known = {seen.serial: seen.state for seen in lab.devices()}
    if known.get(serial) in (DeviceState.PREPARING, DeviceState.READY, DeviceState.COOLING):
        lab.set_state(serial, DeviceState.ABSENT, error.message)


def _remembered(
    device: Device, lab: Lab, facts: Mapping[str, Any], expected: str | None = None
) -> str:
    """Note who has answered; its serial.

    Raises:
        WrongDevice: if it is not the one that is expected.
    """
    serial = _serial(device, facts)
    if expected not in (None, serial):
        raise WrongDevice(
            f"there is {serial} where {expected} was",
            f"if it was replaced, write 'serial: {serial}' into its entry",
        )
    lab.remember(device.id, serial, {**facts, "address": device.address})
    return serial


def _meet(device: Device, lab: Lab, held: Lease) -> Session:
    """Connect, and make sure, now and with each new connection, that it is the device we hold."""

    def connect() -> tuple[Transport, dict[str, Any]]:
        transport, facts = _connect(device)
        try:
            _remembered(device, lab, facts, held.serial)
        except BaseException:
            transport.close()
            raise
        return transport, facts

    try:
        return Session(device, connect, held, partial(lab.set_state, held.serial))
    except DeviceUnreachable as error:
        if held.serial in {seen.serial for seen in lab.devices()}:
            lab.set_state(held.serial, DeviceState.ABSENT, error.message)
        raise


def _connect(device: Device) -> tuple[Transport, dict[str, Any]]:
    """A connection, and what the device says of itself; tried three times."""

    def attempt() -> tuple[Transport, dict[str, Any]]:
        transport = device.connect()
        try:
            return transport, dict(_SCRIPTED_FACTS) if device.is_scripted else look(transport)
        except BaseException:
            transport.close()
            raise

    return _retrying()(attempt)


def _serial(device: Device, facts: Mapping[str, Any]) -> str:
    """A device that does not tell its serial goes by its id, which is the best there is."""
    if device.is_scripted:
        return device.address
    return str(facts.get("serial") or f"id:{device.id}")


def _retrying() -> Retrying:
    """Three attempts, for errors that may pass."""
    return Retrying(
        stop=stop_after_attempt(3),
        wait=wait_exponential(multiplier=0.2, max=2),
        retry=retry_if_exception(lambda error: isinstance(error, EdgeError) and error.retryable),
        reraise=True,
    )
