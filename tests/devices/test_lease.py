"""One holder per device, through kills, freezes and many processes at once."""

from __future__ import annotations

import os
import threading

import pytest

from devices.lab import Lab
from devices.lease import lease
from profiles.errors import DeviceBusy

SERIAL = "100000004f2a"


@pytest.fixture
def lab(tmp_path) -> Lab:
    return Lab(tmp_path / "lab")


def test_one_process_cannot_hold_a_device_twice(lab):
    with lease(lab, SERIAL, "board", "first"):
        with (
            pytest.raises(DeviceBusy, match=str(os.getpid())),
            lease(lab, SERIAL, "board", "again"),
        ):
            pass
        seen: list[BaseException] = []

        def other_thread() -> None:
            try:
                with lease(lab, SERIAL, "board", "another thread"):
                    pass
            except DeviceBusy as error:
                seen.append(error)

        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
        assert len(seen) == 1
    with lease(lab, SERIAL, "board", "after"):
        pass
