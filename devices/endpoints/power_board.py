"""A whole x86 board with power sensors: the kernel's own drivers on a bus that is mere memory.

What they read are the registers of an INA219 (IIO) and of a smart battery (power_supply and hwmon),
which a test sets while the board runs.  All above the bus is as on hardware: the drivers, their
files in sysfs, their signs and scales.

*Sources*: the kernel's Documentation/i2c/i2c-stub.rst; Texas Instruments, INA219 data sheet
(SBOS448), register maps; Smart Battery Data Specification 1.1, commands 0x08 to 0x16.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devices.endpoints import board as boards
from devices.endpoints.board import Board, Hardware
from devices.endpoints.image import DRIVERS, Image
from devices.endpoints.rootfs import CURRENT, DEBIAN, System
from devices.transport.base import Transport
from devices.transport.ssh import SshTransport
from profiles.errors import DeviceError

_INA, _BATTERY = 0x40, 0x0B
_VOLTAGE, _CURRENT, _AVERAGE_CURRENT, _CHARGE, _STATUS, _TEMPERATURE = 9, 10, 11, 13, 22, 8
_DISCHARGING = 0x40
_INA_SHUNT, _INA_BUS, _INA_POWER, _INA_CURRENT = 1, 2, 3, 4
# What one step of an INA219 register is with the driver's own shunt of 10 mΩ and calibration.
_SHUNT_OHM = 0.01
_SHUNT_STEP_UV, _BUS_STEP_UV, _POWER_STEP_UW, _CURRENT_STEP_UA = 10, 4_000, 20_000, 1_000
_BUS_SHIFT = 3  # below the bus voltage are two flags and a bit that is not used
_SET_DEADLINE_S = 30.0

X86_64 = System("amd64", "x86_64", DEBIAN, (("current", CURRENT),))

#: Python for programs on the board: ``set_words(chip, {register: word, ...})``; some microseconds,
#: where a program for each word, say i2cset, would take the emulated processor 50 ms.
#: *Source*: Linux, include/uapi/linux/i2c-dev.h (I2C_SLAVE_FORCE, I2C_SMBUS) and i2c.h.
SET_WORDS = """\
import array, fcntl, os, struct, sys, time
bus = os.open("/dev/i2c-0", os.O_RDWR)
def set_words(chip, words):
    fcntl.ioctl(bus, 0x0706, chip)
    for register, word in words.items():
        data = array.array("H", [word])
        asked = struct.pack("BBIP", 0, register, 3, data.buffer_info()[0])
        fcntl.ioctl(bus, 0x0720, asked)
"""
# The chip, then a register and its word in turns.
_SET = f"""{SET_WORDS}
chip, *told = map(int, sys.argv[1:])
words = dict(zip(told[::2], told[1::2]))
begun_ns = time.monotonic_ns()
set_words(chip, words)
print(begun_ns, time.monotonic_ns())
"""
# A battery that says nothing looks like none; this one is 25 °C warm and four fifths full.
_START = f"""\
python3 -IS - {_BATTERY} {_VOLTAGE} 3850 {_CHARGE} 80 {_STATUS} {_DISCHARGING} \\
  {_TEMPERATURE} 2982 <<'END'
{_SET}
END
echo ina219 {_INA:#x} > /sys/bus/i2c/devices/i2c-0/new_device
echo sbs-battery {_BATTERY:#x} > /sys/bus/i2c/devices/i2c-0/new_device
"""

#: The board; interpreted, so that it is the same wherever it runs.
POWER_BOARD = Hardware(
    X86_64,
    "qemu-system-x86",
    ("-M", "q35", "-cpu", "max", "-accel", "tcg,thread=multi"),
    console="ttyS0",
    drivers=(
        *DRIVERS,
        "i2c_dev",
        f"i2c_stub chip_addr={_INA:#x},{_BATTERY:#x}",
        "ina2xx_adc",
        "sbs_battery",
    ),
    start=_START,
)


@dataclass(frozen=True, slots=True)
class PowerBoard:
    """A running board, and a connection through which its sensors are told what to see."""

    board: Board
    line: Transport

    def inventory_entry(self, device_id: str) -> dict[str, Any]:
        """This board as a device of ``devices.yaml``, with Python as the agent's."""
        return self.board.inventory_entry(device_id)

    def set_battery(self, voltage_uv: int, current_ua: int) -> tuple[int, int]:
        """Let the battery see a voltage and a current, to the next mV and mA.

        Args:
            voltage_uv: between its terminals, in µV.
            current_ua: into the battery, in µA: negative while it discharges, and then it says so.

        Returns:
            Between which times it happened, in ns of the board's monotonic clock.
        """
        current_ma = round(current_ua / 1_000)
        words = {
            _STATUS: _DISCHARGING if current_ua < 0 else 0,
            _VOLTAGE: round(voltage_uv / 1_000),
            _AVERAGE_CURRENT: current_ma,
            _CURRENT: current_ma,
        }
        return self._set(_BATTERY, words)

    def set_ina(self, bus_uv: int, current_ua: int) -> tuple[int, int]:
        """Let the INA219 see a voltage and a current, to the next 4 mV, 1 mA and 20 mW.

        Args:
            bus_uv: of the supply, in µV.
            current_ua: through its shunt of 10 mΩ, in µA.

        Returns:
            Between which times it happened, in ns of the board's monotonic clock.
        """
        power_uw = bus_uv * current_ua / 1_000_000
        words = {
            _INA_BUS: round(bus_uv / _BUS_STEP_UV) << _BUS_SHIFT,
            _INA_SHUNT: round(current_ua * _SHUNT_OHM / _SHUNT_STEP_UV),
            _INA_CURRENT: round(current_ua / _CURRENT_STEP_UA),
            _INA_POWER: round(power_uw / _POWER_STEP_UW),
        }
        return self._set(_INA, {register: _swapped(word) for register, word in words.items()})

    def _set(self, chip: int, words: Mapping[int, int]) -> tuple[int, int]:
        told = [str(number & 0xFFFF) for item in words.items() for number in item]
        argv = ["python3", "-IS", "-c", _SET, str(chip), *told]
        done = self.line.run(argv, deadline_s=_SET_DEADLINE_S)
        if done.exit_code != 0:
            raise DeviceError(f"the sensors cannot be set: {done.complaint()}")
        begun_ns, ended_ns = map(int, done.stdout.split())
        return begun_ns, ended_ns


def _swapped(word: int) -> int:
    """An INA219 sends the high byte first, the bus the low one."""
    return int.from_bytes((word & 0xFFFF).to_bytes(2, "big"), "little")


@contextmanager
def serve(image: Image, folder: Path) -> Iterator[PowerBoard]:
    """Start the board, connect to it, and end both on any way out.

    Args:
        image: of :data:`POWER_BOARD`.
        folder: for keys and logs; made if needed.

    Raises:
        DeviceUnreachable: if it does not come up.
    """
    with boards.serve(image, folder, POWER_BOARD) as board:
        line = SshTransport("127.0.0.1", board.port, "root", board.key_file, board.known_hosts)
        try:
            yield PowerBoard(board, line)
        finally:
            line.close()
