"""A device says what it is, whatever it is and whatever shell it has; garbage is not believed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.facts import disagreements, look, parse
from devices.facts.dump import core_list, whole_number
from devices.facts.script import SCRIPT
from devices.transport.base import Completed
from devices.transport.local import LocalTransport
from profiles.catalog import load_profile, profile_names
from profiles.errors import ConnectionLost
from tests.builders import ssh

GOLDEN = Path(__file__).parent.parent / "golden/facts"
RECORDINGS = sorted(path.stem for path in GOLDEN.glob("*.txt"))
NONCE = "@@@"


def recording(name: str) -> str:
    return (GOLDEN / f"{name}.txt").read_text()


def sections(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text[text.index(f"{NONCE} ") :].splitlines():
        if line.startswith(f"{NONCE} "):
            lines = found.setdefault(line.removeprefix(f"{NONCE} "), [])
        else:
            lines.append(line)
    return found


@pytest.mark.parametrize("name", RECORDINGS)
def test_recordings_are_understood(name):
    """To renew: print ``parse`` of the recording as JSON, and read every line of it."""
    assert parse(recording(name), NONCE) == json.loads((GOLDEN / f"{name}.json").read_text())


# --- the script -------------------------------------------------------------------------------

SHELLS = {
    "dash": ("dash", None),
    "bash": ("bash", None),
    "busybox": ("busybox sh", "busybox"),
    "mksh and toybox": ("mksh", "toybox"),
}
TOOLS = ("cat", "readlink")


def programs(folder: Path, multicall: str | None) -> Path:
    """A PATH that holds the few tools the script may use, and nothing else."""
    folder.mkdir()
    for tool in TOOLS:
        source = shutil.which(multicall or tool)
        if source is None:
            pytest.skip(f"no {multicall or tool} on this machine")
        (folder / tool).symlink_to(source)
    return folder


def pretend(folder: Path, recorded: dict[str, list[str]], programs: Path) -> None:
    """Lay a recording out as files under a folder and programs that print what was recorded."""
    commands = {
        "uname": "uname",
        "getprop": "getprop",
        "battery": "dumpsys",
        "vcgencmd": "vcgencmd",
    }
    for name, lines in recorded.items():
        path = folder / name.lstrip("/")
        text = "".join(f"{line.removeprefix(' ')}\n" for line in lines)
        if name.startswith("/proc/device-tree"):
            text = text.rstrip("\n").replace("\n", "\0") + "\0"
        if name.startswith("/"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        elif name in commands:
            (folder / name).write_text(text)
            program = programs / commands[name]
            program.write_text(f"#!/bin/sh\nexec /bin/cat '{folder / name}'\n")
            program.chmod(0o755)
    for reading in recorded["readings"]:
        path = folder / reading.strip().lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def run_script(
    shell: str, path: Path, root: Path, nonce: str = NONCE
) -> subprocess.CompletedProcess:
    program, *rest = shell.split()
    argv = [str(shutil.which(program)), *rest, "-c", SCRIPT, "sh", nonce, str(root)]
    return subprocess.run(
        argv, capture_output=True, check=False, env={"PATH": str(path)}, timeout=60
    )


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("name", [name for name in RECORDINGS if name != "qemu-user"])
def test_the_script_reads_the_same_on_every_shell(tmp_path, shell, name):
    command, multicall = SHELLS[shell]
    if shutil.which(command.split()[0]) is None:
        pytest.skip(f"no {command} on this machine")
    path = programs(tmp_path / "bin", multicall)
    root = tmp_path / "a root"
    root.mkdir()
    pretend(root, sections(recording(name)), path)
    done = run_script(command, path, root)
    assert (done.returncode, done.stderr) == (0, b"")
    printed = done.stdout.decode()
    assert printed.endswith(f"{NONCE} end\n")
    assert parse(printed, NONCE) == json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.mark.parametrize("shell", SHELLS)
def test_a_device_that_tells_nothing_is_no_failure(tmp_path, shell):
    """No /proc, no /sys, no program but what the shell has itself."""
    command, multicall = SHELLS[shell]
    if shutil.which(command.split()[0]) is None:
        pytest.skip(f"no {command} on this machine")
    done = run_script(command, programs(tmp_path / "bin", multicall), tmp_path / "nothing")
    assert (done.returncode, done.stderr) == (0, b"")
    found = parse(done.stdout.decode(), NONCE)
    assert found == found | {"meters": [], "clusters": [], "thermal_zones": []}
    assert (found["governor"], found["power_source"]) == ("unknown", "unknown")
    assert not {"serial", "cores", "memory_bytes", "model", "soc"} & set(found)


# --- through a transport ----------------------------------------------------------------------


def check_this_machine(found: dict[str, Any]) -> None:
    assert found["machine"] == os.uname().machine
    assert found["system"] == "linux"
    assert found["kernel"] == os.uname().release
    assert found["cores"] == os.cpu_count()
    assert found["memory_bytes"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = [core for cluster in found["clusters"] for core in cluster["cores"]]
    assert sorted(cores) == sorted(set(cores))
    assert len(cores) == found["cores"]
    machine_id = Path("/etc/machine-id")
    if machine_id.is_file() and machine_id.read_text().strip():
        assert found["serial"]


def test_this_machine(tmp_path):
    check_this_machine(look(LocalTransport(tmp_path)))


@pytest.mark.sshd
def test_this_machine_over_ssh(loopback, tmp_path):
    transport = ssh(loopback)
    try:
        assert look(transport) == look(LocalTransport(tmp_path))
    finally:
        transport.close()


class Answering:
    """A transport whose device answers everything with the same text."""

    name = "answering"

    def __init__(self, answer) -> None:
        self.answer = answer
        self.argv: list[str] = []

    def run(self, argv, *, deadline_s, on_line=None) -> Completed:
        self.argv = list(argv)
        return Completed(self.answer(argv[4]), b"", 0)


def test_what_looks_like_an_answer_to_another_question_is_none():
    with pytest.raises(ConnectionLost, match="does not say what it is"):
        look(Answering(lambda nonce: recording("pixel-8").encode()))


@pytest.mark.parametrize("kept", [0, 10, 1000, -2, -6])
def test_an_answer_that_is_cut_off_is_not_believed(kept):
    def cut(nonce):
        return recording("rock-5b").replace(NONCE, nonce).encode()[:kept]

    with pytest.raises(ConnectionLost, match="does not say what it is") as caught:
        look(Answering(cut))
    assert caught.value.retryable


def test_each_question_has_its_own_nonce_and_the_same_script():
    transport, asked = Answering(lambda nonce: f"{nonce} end\n".encode()), []
    for _ in range(2):
        look(transport)
        asked.append(transport.argv)
    assert asked[0][:4] == asked[1][:4] == ["sh", "-c", SCRIPT, "sh"]
    assert asked[0][4] != asked[1][4]


# --- understanding ----------------------------------------------------------------------------


def told(texts: dict[str, str]) -> dict[str, Any]:
    return parse("".join(f"{NONCE} {name}\n{text}\n" for name, text in texts.items()), NONCE)


TREE = "/proc/device-tree/serial-number"
MACHINE_ID = "/etc/machine-id"


def test_the_serial_is_the_hardwares_where_it_has_one():
    everything = {
        MACHINE_ID: "5a0c7f6f2d4f4b2b8e0f3c1d9b7a6e5c",
        "getprop": "[ro.boot.serialno]: [BOOT1]\n[ro.serialno]: [SERIAL1]",
        TREE: "10000000a1b2c3d4",
    }
    expected = {
        TREE: ("10000000a1b2c3d4", "device-tree"),
        "getprop": ("SERIAL1", "android"),
        MACHINE_ID: ("5a0c7f6f2d4f4b2b8e0f3c1d9b7a6e5c", "installation"),
    }
    for source, serial in expected.items():
        found = told(everything)
        assert (found["serial"], found["serial_source"]) == serial
        del everything[source]
    assert not {"serial", "serial_source"} & set(told(everything))


def interface(name: str, address: str, kind: str = "DRIVER=igc", **more: str) -> dict[str, str]:
    folder = f"/sys/class/net/{name}"
    files = {"address": address, "addr_assign_type": "0", "device/uevent": kind, **more}
    return {f"{folder}/{file}": text for file, text in files.items()}


USB = "DEVTYPE=usb_interface\nDRIVER=r8152"
FIRST, SECOND = "d8:3a:dd:00:00:01", "d8:3a:dd:00:00:02"
PHY, BOND = {"phy80211/macaddress": FIRST}, {"bonding_slave/perm_hwaddr": FIRST}


@pytest.mark.parametrize(
    ("interfaces", "address"),
    [
        (interface("eth0", FIRST) | interface("eth1", SECOND), FIRST),
        (interface("eth10", SECOND) | interface("eth2", FIRST), FIRST),
        (interface("docker0", SECOND, kind="") | interface("eth0", FIRST), FIRST),
        (interface("enx0", SECOND, USB) | interface("wlan0", FIRST), FIRST),
        (interface("enx0", FIRST, USB), FIRST),
        (interface("eth0", SECOND, addr_assign_type="1") | interface("eth1", FIRST), FIRST),
        (interface("wlan0", SECOND, **PHY, addr_assign_type="3"), FIRST),
        (interface("eth0", SECOND, **BOND), FIRST),
        (interface("eth0", "00:00:00:00:00:00"), None),
        (interface("ib0", "80:00:02:08:fe:80:00:00:00:00:00:00:00:02:c9:03:00:00:00:01"), None),
        ({}, None),
    ],
    ids=[
        *("the first", "by number", "not a bridge", "not on USB", "on USB if need be"),
        *(
            "not a random one",
            "not the one in use",
            "not the bond's",
            "none",
            "no MAC",
            "container",
        ),
    ],
)
def test_machines_of_one_image_are_told_apart_by_their_first_network_interface(interfaces, address):
    machine_id = "5a0c7f6f2d4f4b2b8e0f3c1d9b7a6e5c"
    expected = f"{machine_id}-{address.replace(':', '')}" if address else machine_id
    assert told({MACHINE_ID: machine_id, **interfaces})["serial"] == expected
    assert "serial" not in told(interfaces)


def test_nothing_that_only_root_may_read_is_asked_for():
    """Else a device would be another one, with another lease, by who logs in."""
    assert "product_uuid" not in SCRIPT
    assert "product_serial" not in SCRIPT


@pytest.mark.parametrize(
    "placeholder",
    [
        "0000000000000000",
        "0",
        "unknown",
        "To be filled by O.E.M.",
        "00000000-0000-0000-0000-000000000000",
        "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
        "03000200-0400-0500-0006-000700080009",
        "0123456789ABCDEF",
        "two words",
        "\N{SNOWMAN}" * 8,
    ],
)
def test_a_serial_that_many_share_is_none(placeholder):
    for source in (TREE, MACHINE_ID):
        assert "serial" not in told({source: placeholder})
    assert told({TREE: placeholder, MACHINE_ID: "ab12cd34"})["serial"] == "ab12cd34"


def test_cores_that_are_off_are_in_no_cluster():
    found = parse(recording("rock-5b").replace(" 0-7\n", " 0-4\n"), NONCE)
    assert found["cores"] == 5
    assert [cluster["cores"] for cluster in found["clusters"]] == [[0, 1, 2, 3], [4]]


def test_cores_that_share_a_clock_are_a_cluster_without_the_kernels_word():
    text = recording("rock-5b").replace("cluster_id", "unknown_id")
    assert [cluster["mask"] for cluster in parse(text, NONCE)["clusters"]] == ["f", "30", "c0"]


def test_without_cpufreq_clusters_are_told_by_design_and_by_the_kernels_cluster():
    lines = [
        line
        for name, body in sections(recording("rock-5b")).items()
        if "cpufreq" not in name
        for line in (f"{NONCE} {name}", *body)
    ]
    found = parse("\n".join(lines), NONCE)
    assert [cluster["mask"] for cluster in found["clusters"]] == ["f", "30", "c0"]
    assert found["governor"] == "unknown"
    assert not any("max_khz" in cluster for cluster in found["clusters"])


def test_an_unknown_design_is_named_by_its_number():
    found = parse(
        recording("raspberry-pi-4").replace("0xd08", "0xfff").replace("fd083", "ffff3"), NONCE
    )
    assert found["clusters"][0]["part"] == "0x41:0xfff"


def test_an_interpreted_processor_is_called_emulated():
    board = {"uname": "Linux 6.1 aarch64", "/proc/device-tree/compatible": "linux,dummy-virt"}
    arm = "processor : 0\nCPU implementer : 0x{}\nCPU part : 0x051"
    assert told(board | {"/proc/cpuinfo": arm.format("00")})["emulated"] is True
    real = told(board | {"/proc/cpuinfo": arm.format("41")})
    assert (real["virtualisation"], "emulated" in real, "soc" in real) == ("qemu", False, False)
    tcg = {"uname": "Linux 6.1 x86_64", "/proc/cpuinfo": "model name : QEMU TCG CPU version 2.5+"}
    assert told(tcg)["emulated"] is True
    foreign = {"uname": "Linux 6.1 aarch64", "/proc/cpuinfo": "vendor_id : GenuineIntel"}
    assert told(foreign)["virtualisation"] == "qemu-user"
    phone = "[ro.boot.qemu]: [1]\n[ro.build.fingerprint]: [x]"
    assert told({"getprop": phone})["virtualisation"] == "android-emulator"


@pytest.mark.parametrize(
    ("supply", "battery", "expected"),
    [
        ({"AC/type": "Mains", "AC/online": "1", "BAT0/type": "Battery"}, "", "mains"),
        ({"AC/type": "Mains", "AC/online": "0", "BAT0/type": "Battery"}, "", "battery"),
        ({"AC/type": "Mains", "AC/online": "0"}, "", "unknown"),
        # A charger with a programmable voltage; a wireless mouse, its battery and its cradle.
        ({"usb/type": "USB", "usb/online": "2"}, "", "mains"),
        ({"mouse/type": "Battery", "mouse/scope": "Device", "mouse/online": "1"}, "", "unknown"),
        ({"mouse/type": "USB", "mouse/scope": "Device", "mouse/online": "1"}, "", "unknown"),
        ({"BAT0/type": "Battery", "BAT0/scope": "System", "BAT0/online": "1"}, "", "battery"),
        ({"pad/type": "Wireless", "pad/scope": "System", "pad/online": "1"}, "", "mains"),
        ({}, "AC powered: false\nUSB powered: true\npresent: true", "mains"),
        ({}, "AC powered: false\nUSB powered: false\npresent: true", "battery"),
        # "dumpsys battery unplug" makes the service say so while the phone charges.
        ({"usb/online": "1"}, "AC powered: false\nUSB powered: false\npresent: true", "mains"),
        ({}, "", "unknown"),
    ],
)
def test_where_the_power_is_from(supply, battery, expected):
    files = {f"/sys/class/power_supply/{name}": text for name, text in supply.items()}
    assert told(files | {"battery": battery})["power_source"] == expected


def test_the_chargers_of_a_battery_are_no_mouse():
    root = "/sys/class/power_supply"
    files = {"BAT0/type": "Battery", "BAT0/online": "1", "AC/type": "Mains", "AC/online": "0"}
    files |= {"BAT1/type": "Battery", "BAT1/online": "1", "mouse/type": "Battery"}
    files |= {"pen/type": "USB", "pen/scope": "Device", "pen/online": "1"}
    sources = {f"{root}/{name}": text for name, text in files.items()}
    (meter,) = told(sources | {"readings": f" {root}/BAT0/current_now"})["meters"]
    assert meter["chargers"] == [f"{root}/AC/online"]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_reads_scopes_and_places(tmp_path, shell):
    """As sysfs has them: classes are full of links."""
    command, multicall = SHELLS[shell]
    if shutil.which(command.split()[0]) is None:
        pytest.skip(f"no {command} on this machine")
    root = tmp_path / "a root"
    bus, hwmon = root / "sys/devices/soc/i2c-1", root / "sys/class/hwmon"
    iio, supply = root / "sys/bus/iio/devices", root / "sys/class/power_supply/pen"
    for folder in (hwmon, iio, supply):
        folder.mkdir(parents=True)
    for number, address in enumerate(("1-0041", "1-0040")):
        real = bus / address / f"hwmon/hwmon{number}"
        real.mkdir(parents=True)
        (real / "device").symlink_to(f"../../../{address}")
        (real / "name").write_text("ina226\n")
        (real / "power1_input").write_text("1\n")
        (hwmon / real.name).symlink_to(real)
    real = bus / "1-0044/iio:device0"
    real.mkdir(parents=True)
    (real / "name").write_text("ina219\n")
    (real / "in_power2_raw").write_text("1\n")
    (iio / real.name).symlink_to(real)
    for name, text in {"type": "USB", "scope": "Device", "online": "1"}.items():
        (supply / name).write_text(f"{text}\n")
    done = run_script(command, programs(tmp_path / "bin", multicall), root)
    assert (done.returncode, done.stderr) == (0, b"")
    found = parse(done.stdout.decode(), NONCE)
    assert [(meter["path"].rpartition("/")[2], meter["device"]) for meter in found["meters"]] == [
        ("hwmon0", "1-0041"),
        ("hwmon1", "1-0040"),
        ("iio:device0", "1-0044"),
    ]
    assert found["power_source"] == "unknown"


# --- garbage ----------------------------------------------------------------------------------

NAMES = sorted({name for each in RECORDINGS for name in sections(recording(each))})
LINES = sorted({line for each in RECORDINGS for line in recording(each).splitlines()})
PROFILES = [load_profile(name) for name in profile_names()]
GARBAGE = st.text() | st.sampled_from(LINES) | st.from_regex(r"[\[\]:, 0-9a-fx-]*", fullmatch=True)


def check_shape(found: dict[str, Any]) -> None:
    assert json.loads(json.dumps(found)) == found
    assert None not in found.values()
    assert found.get("cores", 1) > 0
    assert found.get("memory_bytes", 1) > 0
    assert found["power_source"] in ("mains", "battery", "unknown")
    for cluster in found["clusters"]:
        assert int(cluster["mask"], 16) == sum(1 << core for core in cluster["cores"])
    for profile in PROFILES:
        assert all(isinstance(text, str) for text in disagreements(profile, found))


@given(st.lists(st.tuples(st.sampled_from(NAMES) | st.text(), st.lists(GARBAGE)), max_size=12))
def test_garbage_is_left_out(body):
    lines = [line for name, texts in body for line in (f"{NONCE} {name}", *texts)]
    check_shape(parse("\n".join(lines), NONCE))


@given(st.sampled_from(RECORDINGS), st.data())
def test_a_damaged_recording_is_still_understood_in_part(name, data):
    lines = recording(name).splitlines()
    start, end = sorted(data.draw(st.integers(0, len(lines))) for _ in range(2))
    check_shape(parse("\n".join(lines[:start] + data.draw(st.lists(GARBAGE)) + lines[end:]), NONCE))


def test_numbers_too_long_for_python_are_no_failure():
    digits = "9" * 5000
    names = [f"/sys/class/thermal/thermal_zone{digits}/type", "/proc/cpuinfo", "/proc/meminfo"]
    text = f"processor : {digits}\nMemTotal: {digits} kB"
    check_shape(parse("\n".join(f"{NONCE} {name}\n{text}" for name in names), NONCE))


@given(st.text())
def test_without_the_nonce_nothing_is_said(text):
    assert parse(text, "a nonce that is not in it") == parse("", NONCE)


@given(st.sets(st.integers(0, 4095), max_size=50))
def test_core_lists_of_both_forms(cores):
    assert core_list(",".join(map(str, sorted(cores)))) == sorted(cores)
    assert core_list(" ".join(map(str, cores))) == sorted(cores)


@pytest.mark.parametrize("text", ["", "all", "0-", "-1", "1-2-3", "0x3", "0-99999999", "3;4"])
def test_what_is_no_core_list_has_no_cores(text):
    assert core_list(text) == []


def test_numbers():
    assert (whole_number("-12"), whole_number("0x1F"), whole_number("0")) == (-12, 31, 0)
    for text in ("", "1.5", "1_000", "0x", "9" * 19, "\N{ARABIC-INDIC DIGIT ONE}", " 1"):
        assert whole_number(text) is None


# --- against the profile ----------------------------------------------------------------------

#: What the recordings rightly disagree about.
EXPECTED = {
    "jetson-orin-nano": ["cores 6", "first"],
    "pixel-8": ["s2mpg14-odpm", "*battery*"],
    "galaxy-s23": ["*battery*"],
}


@pytest.mark.parametrize("name", sorted(set(RECORDINGS) & set(profile_names())))
def test_a_device_agrees_with_its_own_profile(name):
    found = disagreements(load_profile(name), parse(recording(name), NONCE))
    expected = [text for text in EXPECTED.get(name, []) if text != "first"]
    assert len(found) == len(expected)
    for sentence, part in zip(found, expected, strict=True):
        assert part in sentence


@pytest.mark.parametrize("name", sorted(set(RECORDINGS) & set(profile_names())))
def test_a_phone_or_board_agrees_with_the_generic_profile(name):
    facts = parse(recording(name), NONCE)
    generic = "android" if facts["system"] == "android" else "linux-aarch64"
    assert disagreements(load_profile(generic), facts) == []


def test_the_wrong_profile_is_told_in_every_respect():
    found = " | ".join(
        disagreements(load_profile("pixel-7"), parse(recording("raspberry-pi-5"), NONCE))
    )
    for part in ("system android", "model Pixel 7", "soc GS201", "cores 8", "s2mpg12-odpm"):
        assert part in found
    assert "little cores are Cortex-A55 (unverified), the device says Cortex-A76" in found
    assert "highest frequency is 1803000 kHz (unverified), the device says 2400000 kHz" in found
    found = disagreements(load_profile("linux-x86_64"), parse(recording("pixel-7"), NONCE))
    assert [text.split(",")[0] for text in found] == [
        "the profile says system linux",
        "the profile says machine x86_64",
    ]


def test_memory_is_compared_with_what_is_sold():
    profile = load_profile("raspberry-pi-4")
    facts = parse(recording("raspberry-pi-4"), NONCE)
    for gib in (0.9, 1.8, 3.7, 7.6):
        assert disagreements(profile, facts | {"memory_bytes": int(gib * 2**30)}) == []
    for gib in (0.4, 1.2, 15.5):
        (sentence,) = disagreements(profile, facts | {"memory_bytes": int(gib * 2**30)})
        assert sentence.endswith(f"the device says {gib} GiB")


def test_a_meter_without_a_promised_rail_is_told():
    facts = parse(recording("jetson-orin-nano").replace("VDD_IN", "VDD_OTHER"), NONCE)
    found = disagreements(load_profile("jetson-orin-nano"), facts | {"cores": 6})
    assert found == ["the meter ina3221 (hwmon) has no rail VDD_IN"]


def test_a_meter_whose_rails_this_login_may_not_read_is_no_disagreement():
    text = recording("pixel-7").replace("/energy_value\nt=", "/unreadable\nt=")
    facts = parse(text, NONCE)
    assert [meter.get("rails") for meter in facts["meters"]] == [None, None]
    assert facts["meters"][0]["kind"] == "odpm"
    assert disagreements(load_profile("pixel-7"), facts) == []


def test_what_a_device_does_not_tell_is_no_disagreement():
    for name in profile_names():
        profile = load_profile(name).model_copy(update={"meters": ()})
        assert disagreements(profile, {}) == []
