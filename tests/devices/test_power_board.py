"""What the power board's sensors are told, word by word; the board itself is for the nightly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from devices.endpoints.board import Board
from devices.endpoints.power_board import PowerBoard
from devices.transport.base import Completed
from profiles.errors import DeviceError


class Bus:
    """Takes what is set, and answers as the board does."""

    def __init__(self, answer: Completed) -> None:
        self.answer = answer
        self.words: dict[tuple[int, int], int] = {}

    def run(self, argv: Sequence[str], *, deadline_s: float) -> Completed:
        chip, *told = map(int, argv[4:])
        for register, word in zip(told[::2], told[1::2], strict=True):
            assert 0 <= word < 1 << 16
            self.words[chip, register] = word
        return self.answer


def power_board(answer: Completed) -> tuple[PowerBoard, Bus]:
    bus = Bus(answer)
    return PowerBoard(cast(Board, None), cast(Any, bus)), bus


def test_the_ina219_gets_big_endian_words_of_its_data_sheet():
    board, bus = power_board(Completed(b"42570000000 42570500000\n", b"", 0))
    happened = board.set_ina(bus_uv=3_000_000, current_ua=2_000_000)
    # 2000 mA are d007 on the bus; 750 steps of 4 mV stand above three bits; 6 W are 300 of 20 mW,
    # and 20 mV on 10 mΩ are 2000 of 10 µV.
    assert bus.words == {
        (0x40, 4): 0xD007,
        (0x40, 2): int.from_bytes((750 << 3).to_bytes(2, "big"), "little"),
        (0x40, 3): 0x2C01,
        (0x40, 1): 0xD007,
    }
    assert happened == (42_570_000_000, 42_570_500_000)


def test_a_battery_that_gives_current_has_it_negative():
    board, bus = power_board(Completed(b"1000 1001\n", b"", 0))
    board.set_battery(voltage_uv=3_850_000, current_ua=-500_000)
    currents = {(0x0B, 10): 0x10000 - 500, (0x0B, 11): 0x10000 - 500}
    assert bus.words == {(0x0B, 9): 3850, **currents, (0x0B, 22): 0x40}


def test_a_battery_that_takes_current_says_that_it_is_charged():
    board, bus = power_board(Completed(b"1000 1001\n", b"", 0))
    board.set_battery(voltage_uv=4_100_000, current_ua=800_000)
    assert (bus.words[0x0B, 10], bus.words[0x0B, 22]) == (800, 0)


def test_what_the_bus_refuses_is_said():
    board, _ = power_board(Completed(b"", b"OSError: [Errno 6]\n", 1))
    with pytest.raises(DeviceError, match="cannot be set: OSError"):
        board.set_ina(bus_uv=5_000_000, current_ua=1)
