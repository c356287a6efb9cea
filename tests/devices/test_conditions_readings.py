"""What a device says of its state is understood, or unknown; nothing it prints is an error."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.conditions import android, linux
from devices.conditions.readings import read, understand
from devices.endpoints.phone import install_phone
from devices.transport.local import LocalTransport
from profiles.errors import DeviceError
from tests.devices.conditions_tree import SHELLS, heat, make_board, put_shell_first, write

GOLDEN = Path(__file__).parent.parent / "golden" / "phone"


def golden(name: str) -> str:
    return (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "samsung-a52",
            {"AP": 25600, "BAT": 23800, "LRB": 24700, "LRF": 24700, "LRP": 24700, "PA": 25700},
        ),
        (
            "samsung-old",
            {"TYPE_CPU": 24000, "TYPE_BATTERY": 24400, "TYPE_SKIN": 25300, "TYPE_USB_PORT": 24200},
        ),
        ("shield", {"GPU": 36000, "CPU0": 37000, "CPU1": 37000, "CPU2": 37000, "CPU3": 37000}),
    ],
)
def test_temperatures_of_several_makes(name: str, expected: dict[str, int]) -> None:
    dump = golden(f"thermalservice-{name}")
    assert android.temperatures_mdegc(dump) == expected
    assert android.thermal_status(dump) == 0


def test_what_is_cached_is_not_what_is_now() -> None:
    found = android.temperatures_mdegc(golden("thermalservice-qualcomm"))
    assert found["cpu0-gold-usr"] == 33_800
    assert "cpu1-gold-usr" not in found  # 48.3 °C, some time ago
    assert max(found.values()) == 44_100


@pytest.mark.parametrize(
    ("name", "percent", "mdegc"),
    [
        ("pixel", 80, 18_000),
        ("hyperos", 80, 36_400),
        ("dragon", 19, 27_500),
        ("emulator", 89, None),
    ],
)
def test_batteries_of_several_versions(name: str, percent: int, mdegc: int | None) -> None:
    dump = golden(f"battery-{name}")
    assert android.battery_percent(dump) == percent
    assert android.battery_mdegc(dump) == mdegc
    assert android.plugged(dump) is True


def test_the_charge_is_not_another_line_that_ends_alike() -> None:
    backwards = "\n".join(reversed(golden("battery-pixel").splitlines()))
    assert android.battery_percent(backwards) == 80  # and not "Capacity level: 3"


def test_a_faked_battery_is_unknown() -> None:
    head, rest = golden("battery-pixel").split("\n", 1)
    faked = f"{head}\n  (UPDATES STOPPED -- use 'reset' to restart)\n{rest}"
    assert android.battery_percent(faked) is None
    assert android.plugged(faked) is None
    assert android.battery_mdegc(faked) is None


@pytest.mark.parametrize(
    ("name", "on"), [("hyperos", False), ("galaxy-s9", True), ("samsung-7", True)]
)
def test_screens_of_several_versions(name: str, on: bool) -> None:
    assert android.screen_on(golden(f"power-{name}")) is on


@given(st.text() | st.sampled_from(sorted(GOLDEN.glob("*.txt"))).map(lambda path: path.read_text()))
def test_no_dump_is_an_error(text: str) -> None:
    for torn in (text, text[: len(text) // 2], text.replace("\n", " "), text.replace("=", "=-")):
        for understood in (
            android.temperatures_mdegc,
            android.thermal_status,
            android.battery_percent,
            android.battery_mdegc,
            android.plugged,
            android.screen_on,
            linux.cores_of,
        ):
            understood(torn)


POLICY = ["affected_cpus", "scaling_governor", "scaling_min_freq", "scaling_max_freq"]
POLICY += ["cpuinfo_min_freq", "cpuinfo_max_freq"]
PATHS = st.sampled_from(
    [
        "/proc/stat",
        "/sys/devices/system/cpu/online",
        *(f"/sys/devices/system/cpu/cpufreq/policy0/{name}" for name in POLICY),
        "/sys/class/thermal/thermal_zone0/temp",
        "/sys/class/power_supply/battery/type",
        "/sys/class/power_supply/battery/capacity",
        "global.airplane_mode_on",
    ]
)
VALUES = st.text() | st.integers().map(str) | st.sampled_from(["cpu 1 2 3 4 5 6 7", "Battery", "-"])


@given(st.lists(st.tuples(PATHS, VALUES)))
def test_no_file_s_content_is_an_error(lines: list[tuple[str, str]]) -> None:
    text = "".join(f"nonce {path} = {value}\n" for path, value in lines)
    found = understand(text + "nonce end = end\n", "nonce")
    assert found.battery_percent is None or 0 <= found.battery_percent <= 100
    assert found.environment() == found.environment()


def test_nothing_told_is_nothing_known() -> None:
    found = understand("a greeting\nnonce end = end\n", "nonce")
    assert found.environment() == {}
    assert found.governor == "unknown"


def test_foreign_load_is_the_work_between_two_looks() -> None:
    # user nice system idle iowait irq softirq steal guest guest_nice, in ticks of any length
    before = "cpu  1000 0 500 8000 100 0 10 0 0 0"
    after = "cpu  1090 0 510 8190 110 0 10 0 0 0"
    assert linux.busy_cores([before, after], 4) == pytest.approx(4 * 100 / 300, abs=0.01)
    assert linux.busy_cores([before, before], 4) is None
    assert linux.busy_cores([before], 4) is None


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("0-3,6", {0, 1, 2, 3, 6}),
        ("0 1 2", {0, 1, 2}),
        ("5", {5}),
        ("", None),
        ("0-", None),
        ("a", None),
    ],
)
def test_lists_of_cores(text: str, cores: set[int] | None) -> None:
    assert linux.cores_of(text) == (None if cores is None else frozenset(cores))


@pytest.fixture(params=SHELLS)
def shell(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> LocalTransport:
    put_shell_first(request.param, tmp_path / "shell", monkeypatch)
    return LocalTransport(tmp_path)


def test_a_board_is_read(shell: LocalTransport, tmp_path: Path) -> None:
    board = make_board(tmp_path / "a board")
    heat(board, 61_234, "gpu-thermal", 1)
    heat(board, -274_000, "broken", 2)
    heat(board, 47_000, "cpu-thermal", 3)
    supplies = "sys/class/power_supply"
    write(
        board,
        {
            f"{supplies}/mouse/type": "Battery",
            f"{supplies}/mouse/scope": "Device",
            f"{supplies}/mouse/capacity": 3,
            f"{supplies}/bat0/type": "Battery",
            f"{supplies}/bat0/capacity": 77,
            f"{supplies}/ac/type": "Mains",
            f"{supplies}/ac/online": 0,
        },
    )
    found = read(shell, "linux", tree=str(board))
    assert found.temperatures_mdegc == {"cpu-thermal": 47_000, "gpu-thermal": 61_234}
    assert found.online == frozenset(range(8))
    assert found.governor == "schedutil"
    assert [sorted(policy.cores) for policy in found.policies] == [[0, 1, 2, 3], [4, 5], [6, 7]]
    assert found.policies[1].path == "/sys/devices/system/cpu/cpufreq/policy4"
    assert (found.policies[2].min_khz, found.policies[2].highest_khz) == (500_000, 2_802_000)
    assert all(policy.writable for policy in found.policies)
    assert found.battery_percent == 77
    assert found.plugged is False
    assert (found.screen_on, found.airplane, found.thermal_status) == (None, None, None)


@pytest.mark.parametrize(
    ("files", "plugged"),
    [
        ({"usb/type": "USB", "usb/online": "2"}, True),
        ({"usb/type": "USB", "usb/online": "0"}, False),
        ({"usb/type": "USB", "usb/online": "0", "ac/type": "Mains", "ac/online": "1"}, True),
        ({"mouse/type": "USB", "mouse/scope": "Device", "mouse/online": "1"}, None),
        ({"bat/type": "Battery", "bat/online": "1"}, None),
        ({"usb/type": "USB"}, None),
    ],
)
def test_what_powers_a_board_from_outside(files: dict[str, str], plugged: bool | None) -> None:
    values = {f"/sys/class/power_supply/{name}": text for name, text in files.items()}
    assert linux.supplies(values) == (None, plugged)


def test_an_old_kernel_shows_its_policies_by_core(shell: LocalTransport, tmp_path: Path) -> None:
    cpu = make_board(tmp_path / "board") / "sys/devices/system/cpu"
    for core, policy in enumerate(["policy0"] * 4 + ["policy4"] * 2 + ["policy6"] * 2):
        (cpu / f"cpu{core}").mkdir()
        (cpu / f"cpu{core}/cpufreq").symlink_to(cpu / "hidden" / policy)
    (cpu / "cpufreq").rename(cpu / "hidden")
    found = read(shell, "linux", tree=str(tmp_path / "board"))
    assert [sorted(policy.cores) for policy in found.policies] == [[0, 1, 2, 3], [4, 5], [6, 7]]
    assert found.policies[1].path == "/sys/devices/system/cpu/cpu4/cpufreq"


def test_a_phone_is_read(
    shell: LocalTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = install_phone(tmp_path / "phone")
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    board = make_board(tmp_path / "board")
    heat(board, 99_000, "in-what-unit")
    found = read(shell, "android", tree=str(board))
    # Of 43 values of the service, those that are degrees of a sensor that is there.
    assert found.temperatures_mdegc == {
        "BIG": 26_000,
        "MID": 27_000,
        "LITTLE": 27_000,
        "G3D": 26_000,
        "TPU": 25_000,
        "VIRTUAL-SKIN": 24_833,
        "battery": 22_100,
        "cellular-emergency": 24_833,
    }
    assert found.thermal_status == 0
    assert (found.battery_percent, found.plugged) == (80, True)
    assert (found.screen_on, found.airplane) == (True, False)
    assert found.settings == {"airplane_mode_on": "0", "stay_on_while_plugged_in": "0"}


def test_this_machine_is_read() -> None:
    found = read(LocalTransport(), "linux", load=True)
    assert found.online
    assert found.busy_cores is not None
    assert 0 <= found.busy_cores <= len(found.online)


def test_a_device_without_a_shell_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sh").symlink_to("/bin/false")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(DeviceError, match="cannot tell its state"):
        read(LocalTransport(tmp_path), "linux")
