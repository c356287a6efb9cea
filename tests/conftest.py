"""Fixtures of the whole suite: real servers on loopback, and a model that costs nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from devices.endpoints.adbd import Phone, adbd_files, build_shim, serve_phone
from devices.endpoints.sshd import LoopbackServer, find_sshd, serve
from profiles.errors import DeviceUnreachable
from tests.builders import TinyModel, build_tiny_model

# Nothing reports home from a test either; each runtime is told before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# How long one example takes depends on what else the machine does.
settings.register_profile("edgeloop", deadline=None, print_blob=True)
settings.load_profile("edgeloop")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if {"loopback", "own_sshd"} & fixtures:
            item.add_marker(pytest.mark.sshd)
        if {"phone", "own_phone"} & fixtures:
            item.add_marker(pytest.mark.adbd)
    # Files with tests of minutes come first: two processes then end at about the same time.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _private_leases(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    """Leases of a test are its own: neither a real campaign nor another test disturbs it."""
    monkeypatch.setenv("EDGELOOP_LAB", str(tmp_path_factory.mktemp("lab")))


def _require_sshd() -> None:
    if find_sshd() is None:
        pytest.skip("no OpenSSH server on this machine (apt-get install openssh-server)")


@pytest.fixture(scope="session")
def loopback(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackServer]:
    """A real OpenSSH server, shared by all tests that do it no harm."""
    _require_sshd()
    with serve(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def own_sshd(tmp_path: Path) -> Iterator[LoopbackServer]:
    """A real OpenSSH server of this test's own, to be killed, frozen or tampered with."""
    _require_sshd()
    with serve(tmp_path / "own-sshd") as server:
        yield server


@pytest.fixture(scope="session")
def _adbd() -> None:
    """Have adbd ready, or skip what needs it."""
    try:
        adbd_files()
        build_shim()
    except DeviceUnreachable as error:
        pytest.skip(f"no adbd on this machine: {error}")


@pytest.fixture(scope="session")
def phone(_adbd: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phone]:
    """A real adbd with an adb server, shared by all tests that do it no harm."""
    with serve_phone(tmp_path_factory.mktemp("phone")) as served:
        yield served


@pytest.fixture
def own_phone(_adbd: None, tmp_path: Path) -> Iterator[Phone]:
    """A real adbd of this test's own, to be killed, frozen or tampered with."""
    with serve_phone(tmp_path / "own-phone") as served:
        yield served


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Two matrix products and a ReLU in ONNX, with one input."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny"))
