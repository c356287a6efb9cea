"""Power sensors of every kind, and what they would say of a power that is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from devices.meter.base import Meter
from devices.meter.kinds import build
from devices.meter.wanted import Wanted

#: µW at a moment in s, and the integral of that from 0 in µJ.
Curve = Callable[[np.ndarray], np.ndarray]
START_NS = 5_000_000_000_000


@dataclass(frozen=True)
class Wave:
    power_uw: Curve
    energy_uj: Curve


def constant(level_uw: float = 2e6) -> Wave:
    return Wave(lambda s: np.full_like(s, level_uw), lambda s: level_uw * s)


def ramp() -> Wave:
    return Wave(lambda s: 1e6 + 1e5 * s, lambda s: 1e6 * s + 5e4 * s**2)


def sine(period_s: float = 12.0) -> Wave:
    turn = 2 * np.pi / period_s
    return Wave(
        lambda s: 2e6 + 1e6 * np.sin(turn * s),
        lambda s: 2e6 * s + 1e6 / turn * (1 - np.cos(turn * s)),
    )


def steps(edges_s: Sequence[float] = (20.0, 40.0), low: float = 1e6, high: float = 3e6) -> Wave:
    """Low, high between the edges, low again."""
    up, down = edges_s
    return Wave(
        lambda s: np.where((s >= up) & (s < down), high, low),
        lambda s: low * s + (high - low) * np.clip(s - up, 0, down - up),
    )


WAVES = {"constant": constant(), "ramp": ramp(), "sine": sine(), "steps": steps()}


@dataclass(frozen=True)
class Kind:
    """A sensor as facts show it, and its texts at a power in µW, an energy since the beginning
    in µJ and a moment in s."""

    entries: tuple[dict[str, Any], ...]
    texts: Callable[[float, float, float], Sequence[str]]
    wanted: Wanted = field(default_factory=Wanted)
    counts: bool = False
    downstream: bool = True
    length_s: float = 66.0

    def meter(self, **changes: Any) -> Meter:
        known = {name: getattr(self.wanted, name) for name in Wanted.__slots__}
        return build(self.entries, Wanted(**{**known, **changes}))

    def times(self, seed: int = 0, period_ns: int = 0) -> np.ndarray:
        """When it is read: on its grid, each reading up to a tenth of a period late."""
        period_ns = period_ns or self.meter().sampling().period_ns
        count = int(self.length_s * 1e9 / period_ns) + 1
        late = np.random.default_rng(seed).integers(0, period_ns // 10, count)
        return START_NS + np.arange(count) * period_ns + late

    def values(self, wave: Wave, at_ns: np.ndarray) -> list[list[str]]:
        seconds = (at_ns - START_NS) / 1e9
        # No power stands quite still: a sensor that does seems not to be renewed.
        noise = 1 + 1e-3 * np.random.default_rng(1).standard_normal(len(at_ns))
        power_uw = wave.power_uw(seconds) * noise
        rows = zip(power_uw, wave.energy_uj(seconds), seconds, strict=True)
        return [list(self.texts(float(p), float(e), float(s))) for p, e, s in rows]


def truth_uj(wave: Wave, start_ns: int, end_ns: int) -> float:
    ends = (np.array([start_ns, end_ns]) - START_NS) / 1e9
    return float(np.diff(wave.energy_uj(ends))[0])


def _hwmon(name: str, files: Sequence[str], **texts: str) -> dict[str, Any]:
    path = "/sys/class/hwmon/hwmon3"
    return {"kind": "hwmon", "name": name, "path": path, "files": list(files), "texts": texts}


def _iio(files: Sequence[str], **texts: str) -> dict[str, Any]:
    path = "/sys/bus/iio/devices/iio:device0"
    return {"kind": "iio", "name": "ina219", "path": path, "files": list(files), "texts": texts}


def zone(path: str, name: str, range_uj: int = 262_143_328_850) -> dict[str, Any]:
    return {
        "kind": "powercap",
        "name": name,
        "path": f"/sys/class/powercap/{path}",
        "files": ["energy_uj"],
        "texts": {"max_energy_range_uj": str(range_uj)},
    }


def battery(*files: str, type_: str = "Battery") -> dict[str, Any]:
    return {
        "kind": "power_supply",
        "name": "battery",
        "path": "/sys/class/power_supply/battery",
        "files": list(files or ("current_now", "voltage_now", "status")),
        "texts": {"type": type_},
        "chargers": ["/sys/class/power_supply/usb/online"],
    }


RAILS = ("S2M_VDD_CPUCL2", "S3M_VDD_CPUCL1", "S4M_VDD_CPUCL0")
ODPM = {
    "kind": "odpm",
    "name": "s2mpg12-odpm",
    "path": "/sys/bus/iio/devices/iio:device1",
    "files": ["energy_value"],
    "rails": ["VSYS_PWR_MODEM", *RAILS],
}


def odpm_text(energy_uj: float, since_boot_ms: int, modem: int = 2**64 - 1) -> str:
    """Half of the energy on the big cores; the modem's channel cannot be read."""
    shares = zip(RAILS, (0.5, 0.3, 0.2), strict=True)
    lines = [f"t={since_boot_ms}", f"CH0(T={since_boot_ms})[VSYS_PWR_MODEM], {modem}"]
    lines += [
        f"CH{place}(T={since_boot_ms})[{rail}], {round(share * energy_uj) + 1_000_000 * place}"
        for place, (rail, share) in enumerate(shares, start=1)
    ]
    return "\n".join(lines) + "\n"


def _odpm(power: float, energy: float, second: float) -> Sequence[str]:
    """The chip is read every 100 ms: till then it says what was."""
    late_s = second % 0.1
    return [odpm_text(energy - power * late_s, 8_000_000 + round(1000 * (second - late_s)))]


PMIC = {"kind": "pmic", "name": "vcgencmd", "rails": ["3V3_SYS", "VDD_CORE"]}


def pmic_text(power_uw: float) -> str:
    rows = [("3V3_SYS", 3.31, 0.25), ("VDD_CORE", 0.8765, 0.75)]
    amperes = "".join(
        f"{rail:>12}_A current({place})={power_uw / 1e6 * share / volts:.8f}A\n"
        for place, (rail, volts, share) in enumerate(rows)
    )
    volts = "".join(
        f"{rail:>12}_V volt({8 + place})={volts:.8f}V\n"
        for place, (rail, volts, _) in enumerate(rows)
    )
    return f"{amperes}{volts}     EXT5V_V volt(24)=5.15400000V\n      BATT_V volt(25)=0.00000000V\n"


def _packages(power: float, energy: float, second: float) -> Sequence[str]:
    """The first of two wraps on the way."""
    return [f"{(262_143_300_000 + round(energy * 0.75)) % 262_143_328_850}\n", f"{energy / 4:.0f}"]


def _battery(scale_ua: int, sign: int) -> Callable[[float, float, float], Sequence[str]]:
    def texts(power: float, energy: float, second: float) -> Sequence[str]:
        voltage_uv = 3_900_000 - 1000 * second
        current = round(sign * power / voltage_uv * 1e6 / scale_ua)
        return [f"{current}\n", f"{voltage_uv:.0f}\n", "Discharging\n", "0\n"]

    return texts


KINDS: dict[str, Kind] = {
    "ina219": Kind(
        (_hwmon("ina219", ["in0_input", "in1_input", "curr1_input", "power1_input"]),),
        lambda p, e, s: [f"{p:.0f}\n"],
    ),
    "ina226 without a power": Kind(
        (_hwmon("ina226", ["in0_input", "in1_input", "curr1_input"]),),
        lambda p, e, s: ["5012\n", f"{p / 5012:.0f}\n"],
    ),
    "ina3221": Kind(
        (
            _hwmon(
                "ina3221",
                [f"in{n}_input" for n in range(1, 8)] + [f"curr{n}_input" for n in range(1, 5)],
                in1_label="VDD_IN",
                in2_label="VDD_CPU_GPU_CV",
                in3_label="VDD_SOC",
                in7_label="sum of shunt voltages",
            ),
        ),
        lambda p, e, s: ["5040\n", f"{p * 0.7 / 5040:.0f}\n", "4980\n", f"{p * 0.3 / 4980:.0f}\n"],
        Wanted(rails=("VDD_CPU_GPU_CV", "VDD_SOC"), covers="two rails"),
    ),
    "iio power": Kind(
        (
            _iio(
                ["in_voltage0_raw", "in_voltage1_raw", "in_power2_raw", "in_current3_raw"],
                in_power2_scale="0.250000000",
                in_power2_offset="-8",
                in_voltage1_scale="4.000000000",
            ),
        ),
        lambda p, e, s: [f"{p / 250 + 8:.0f}\n"],
    ),
    "iio volts and amperes": Kind(
        (
            _iio(
                ["in_voltage1_raw", "in_current1_raw"],
                in_voltage_scale="4.000000000",
                in_current1_scale="0.100000000",
                in_current1_offset="100",
            ),
        ),
        lambda p, e, s: ["1250\n", f"{p / 5000 / 0.1 - 100:.0f}\n"],
    ),
    "odpm": Kind((ODPM,), _odpm, Wanted(rails=RAILS), counts=True),
    "powercap": Kind(
        (
            zone("intel-rapl:0", "package-0"),
            zone("intel-rapl:0:0", "core"),
            zone("intel-rapl:0:1", "dram"),
            zone("intel-rapl:1", "package-1"),
            zone("intel-rapl-mmio:0", "package-0"),
            zone("intel-rapl:2", "psys"),
        ),
        _packages,
        counts=True,
    ),
    "pmic": Kind((PMIC,), lambda p, e, s: [pmic_text(p)]),
    "battery": Kind(
        (battery(),), _battery(1, -1), Wanted(current_sign=-1, current_ua=1), downstream=False
    ),
    "battery in mA": Kind(
        (battery(),), _battery(1000, 1), Wanted(current_sign=1, current_ua=1000), downstream=False
    ),
    "battery in watts": Kind(
        (battery("power_now", "status"),),
        lambda p, e, s: [f"{p:.0f}\n", "Discharging\n", "0\n"],
        Wanted(current_sign=1),
        downstream=False,
    ),
}


def marks(length_s: float, calls: int = 1000) -> Iterator[dict[str, Any]]:
    """Idle, active and idle again, a third each, half a second in between."""
    for place, what in enumerate(("idle-before", "active", "idle-after")):
        start_ns = START_NS + round(1e9 * length_s * place / 3)
        end_ns = START_NS + round(1e9 * (length_s * (place + 1) / 3 - 0.5))
        yield {
            "what": what,
            "start_ns": start_ns,
            "end_ns": end_ns,
            "calls": calls if what == "active" else 0,
        }
