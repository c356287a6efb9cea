"""``devices.yaml``: every mistake is named with its key, all at once, and no secret is repeated."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from devices.discovery import attached, fitting_profile
from devices.inventory import Device, Inventory, load_inventory
from devices.transport.adb import Attached
from devices.transport.local import LocalTransport
from devices.transport.scripted import ScriptedTransport
from profiles.catalog import profile_names
from profiles.errors import ConfigError, UsageError
from tools.device_lab.devices import discover

GOOD = {"id": "pi5", "profile": "linux-aarch64", "address": "ssh://pi@192.0.2.7"}


def load(folder: Path, *devices: Any, text: str | None = None) -> Inventory:
    path = folder / "devices.yaml"
    path.write_text(yaml.safe_dump({"devices": list(devices)}) if text is None else text)
    return load_inventory(path)


def problems(folder: Path, *devices: Any, text: str | None = None) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(folder, *devices, text=text)
    assert str(folder / "devices.yaml") in str(caught.value)
    assert caught.value.exit_code == 2
    return caught.value.problems


def test_a_good_inventory(tmp_path):
    (tmp_path / "key").touch()
    (tmp_path / "known_hosts").touch()
    inventory = load(
        tmp_path,
        {**GOOD, "key_file": "key", "known_hosts": "known_hosts", "root": "/data", "python": "py"},
        {"id": "here", "profile": "linux-x86_64", "address": "local:", "emulated": True},
    )
    pi = inventory.find("pi5")
    assert (pi.transport_name, pi.root, pi.python, pi.emulated) == ("ssh", "/data", "py", False)
    assert pi.details().architecture == "aarch64"
    here = inventory.find("here")
    assert (here.transport_name, here.emulated) == ("local", True)
    assert [device.id for device in inventory.devices] == ["pi5", "here"]


def test_all_mistakes_are_listed_at_once_with_their_keys(tmp_path):
    found = problems(
        tmp_path,
        {"id": "bad id!", "profile": "linux-z80", "address": "telnet://x", "colour": "red"},
        {**GOOD, "key_file": "nowhere/key", "emulated": "perhaps"},
        {"profile": "linux-aarch64"},
        "pi6",
    )
    keys = [problem.split(":")[0] for problem in found]
    assert sorted(keys) == sorted(
        [
            *("devices.0.id", "devices.0.profile", "devices.0.address", "devices.0.colour"),
            *("devices.1.key_file", "devices.1.emulated"),
            *("devices.2.id", "devices.2.address"),
            "devices.3",
        ]
    )
    told = dict(problem.split(": ", 1) for problem in found)
    assert told["devices.0.colour"] == "no such key"
    assert told["devices.2.id"] == "is required"
    assert "linux-aarch64" in told["devices.0.profile"]  # what there is instead
    assert "perhaps" in told["devices.1.emulated"]
    assert str(tmp_path / "nowhere/key") in told["devices.1.key_file"]


def test_an_unknown_device_is_answered_with_the_known_ones(tmp_path):
    inventory = load(tmp_path, GOOD, {**GOOD, "id": "pixel"})
    with pytest.raises(UsageError, match="pi6") as caught:
        inventory.find("pi6")
    assert "pi5, pixel" in caught.value.hint


def test_an_empty_inventory_knows_no_device(tmp_path):
    with pytest.raises(UsageError, match="none"):
        load(tmp_path).find("pi5")


@pytest.mark.parametrize(
    "address",
    [
        "pi@192.0.2.7",
        "192.0.2.7",
        "telnet://192.0.2.7",
        "ssh:",
        "ssh://",
        "ssh://pi@",
        "ssh://pi@host:port",
        "ssh://pi@host:99999",
        "ssh://[::1",
        "adb:",
        "adb://192.0.2.7:5555",
        "",
    ],
)
def test_bad_addresses(tmp_path, address):
    (problem,) = problems(tmp_path, {**GOOD, "address": address})
    assert problem.startswith("devices.0.address: ")


@pytest.mark.parametrize(
    "address",
    [
        *("ssh://host", "ssh://pi@host", "ssh://pi@host:2222", "ssh://[::1]:22", "SSH://host"),
        *("local:", "adb:28291FDH2000AB", "adb:192.0.2.7:5555"),
    ],
)
def test_good_addresses(tmp_path, address):
    device = load(tmp_path, {**GOOD, "address": address}).find("pi5")
    assert device.transport_name == address.split(":")[0].lower()


def test_a_password_is_refused_and_not_repeated(tmp_path):
    (problem,) = problems(tmp_path, {**GOOD, "address": "ssh://pi:raspberry@192.0.2.7"})
    assert "key file" in problem
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {**GOOD, "address": "ssh://pi:raspberry@192.0.2.7"})
    assert "raspberry" not in str(caught.value)
    assert caught.value.__cause__ is None  # whose text would hold it
    assert caught.value.__suppress_context__


def test_relative_paths_start_at_the_files_folder(tmp_path, monkeypatch):
    lab, elsewhere = tmp_path / "lab", tmp_path / "elsewhere"
    (lab / "keys").mkdir(parents=True)
    elsewhere.mkdir()
    (lab / "keys" / "board").touch()
    monkeypatch.chdir(elsewhere)
    device = load(lab, {**GOOD, "key_file": "keys/board"}).find("pi5")
    assert device.key_file == lab / "keys" / "board"
    monkeypatch.chdir(lab)
    relative = load_inventory(Path("devices.yaml")).find("pi5")
    monkeypatch.chdir(elsewhere)
    assert relative.key_file.is_file()  # and stay where they are, wherever one goes


def test_home_folders_in_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "id").touch()
    device = load(tmp_path, {**GOOD, "key_file": "~/id"}).find("pi5")
    assert device.key_file == tmp_path / "id"


def test_a_folder_is_no_key_file(tmp_path):
    (tmp_path / "folder").mkdir()
    (problem,) = problems(tmp_path, {**GOOD, "key_file": "folder"})
    assert problem.startswith("devices.0.key_file: ")


def test_ids_must_differ(tmp_path):
    (problem,) = problems(tmp_path, GOOD, {**GOOD, "id": "other"}, GOOD)
    assert problem == "devices.2.id: device ids must differ: devices.0 is pi5, too"


def test_equal_ids_are_told_with_all_other_mistakes(tmp_path):
    found = problems(tmp_path, {**GOOD, "colour": "red"}, {**GOOD, "address": "x:"}, "odd", GOOD)
    assert [problem.split(": ")[0] for problem in found] == [
        *("devices.0.colour", "devices.1.address", "devices.2", "devices.1.id", "devices.3.id")
    ]
    assert found[0] == "devices.0.colour: no such key"
    assert "an address starts with one of" in found[1]


@pytest.mark.parametrize("id_", ["", "a/b", "..", ".hidden", "-rf", "a b", "a\n", "pi5\n", "ö"])
def test_an_id_is_safe_in_file_names(tmp_path, id_):
    (problem,) = problems(tmp_path, {**GOOD, "id": id_})
    assert problem.startswith("devices.0.id: ")


@pytest.mark.parametrize("text", ["", "devices:", "[]", "devices: {pi5: {}}", "- a"])
def test_files_of_another_shape(tmp_path, text):
    assert problems(tmp_path, text=text)


@pytest.mark.parametrize("text", ["devices: [", "a: b: c", "\tx: 1", "devices: \x00"])
def test_what_is_not_yaml_is_a_usage_error(tmp_path, text):
    with pytest.raises(UsageError, match="not valid YAML"):
        load(tmp_path, text=text)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"there is no inventory .*devices\.yaml"):
        load_inventory(tmp_path / "devices.yaml")


def test_connecting_without_ssh(tmp_path):
    local, played = load(
        tmp_path,
        {"id": "here", "profile": "linux-x86_64", "address": "local:"},
        {"id": "fake", "profile": "linux-x86_64", "address": f"scripted:{tmp_path}/home"},
    ).devices
    assert type(local.connect()) is LocalTransport
    assert type(played.connect()) is ScriptedTransport
    assert played.connect().run(["pwd"], deadline_s=10).stdout == f"{tmp_path}/home\n".encode()


PHONE = {"id": "pixel", "profile": "pixel-8", "address": "adb:28291FDH2000AB"}


def phone(folder: Path, **changes: Any) -> Device:
    return load(folder, {**PHONE, **changes}).find("pixel")


def test_a_phone(tmp_path):
    for name in ("libonnxruntime.so", "libLiteRt.so"):
        (tmp_path / name).write_bytes(name.encode())
    device = phone(
        tmp_path,
        libraries={"onnxruntime": "libonnxruntime.so", "litert": "libLiteRt.so"},
        adb_server="127.0.0.1:5038",
        serial="28291FDH2000AB",
        gates={"battery_percent": [40, 80], "screen": "off"},
    )
    assert device.libraries["litert"] == tmp_path / "libLiteRt.so"
    assert device.interpreter is None
    assert device.folder == "/data/local/tmp/edgeloop"
    assert [device.agent_for(name) for name in ("onnxruntime", "litert", "executorch")] == [
        *("native", "native", "python")
    ]


def test_a_devices_own_gates_change_its_profiles(tmp_path):
    device = phone(tmp_path, gates={"battery_percent": [40, 80], "max_thermal_status": None})
    gates, profile = device.all_gates(), device.details().gates
    assert gates.battery_percent == (40, 80)
    assert profile.max_thermal_status is not None
    assert gates.max_thermal_status is None
    assert gates.settle_s == profile.settle_s


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"libraries": {"executorch": "lib.so"}}, "the native agent loads onnxruntime and litert"),
        ({"libraries": {"litert": "nowhere.so"}}, "there is no file"),
        ({"adb_server": "localhost"}, "HOST:PORT"),
        ({"adb_server": "localhost:99999"}, "HOST:PORT"),
        ({"serial": "two words"}, "devices.0.serial: "),
        ({"gates": {"battery_percent": [80, 40]}}, "LOW, HIGH"),
        ({"gates": {"warmth": 3}}, "no such key"),
        ({"key_file": "lib.so"}, "key_file is for ssh addresses only"),
        ({"address": "local:", "adb_server": "localhost:5038"}, "is for adb addresses only"),
    ],
)
def test_mistakes_about_a_phone(tmp_path, changes, told):
    (tmp_path / "lib.so").touch()
    (problem,) = problems(tmp_path, {**PHONE, **changes})
    assert told in problem


def test_the_place_of_a_measurement_is_hardware_way_and_program(tmp_path):
    """It stays where address and name change, and is another where what measures is."""
    library = tmp_path / "libonnxruntime.so"
    library.write_bytes(b"1.31")

    def place(serial: str = "S1", runtime: str = "onnxruntime", **changes: Any) -> str:
        given = {"libraries": {"onnxruntime": library.name}, **changes}
        (device,) = load(tmp_path, {**PHONE, **given}).devices
        return device.place(serial, runtime)

    here = place()
    assert here == place(id="other", address="adb:192.0.2.7:5555", root="/data/x")
    others = [
        place(serial="S2"),
        place(address="ssh://pi@192.0.2.7"),
        place(libraries={}, python="python3"),
        place(libraries={}, python="other/python3"),
        place(emulated=True),
    ]
    library.write_bytes(b"1.32")
    others.append(place())
    assert len({here, *others}) == 7


def test_what_to_type_to_run_something_on_a_device(tmp_path):
    typed = [
        load(tmp_path, {**GOOD, "address": address}).find("pi5").typed("pip install 'numpy<2'")
        for address in ("ssh://pi@192.0.2.7:2222", "adb:SER1AL", "local:")
    ]
    assert [shlex.split(line)[:-1] for line in typed[:2]] == [
        ["ssh", "-p", "2222", "pi@192.0.2.7"],
        ["adb", "-s", "SER1AL", "shell"],
    ]
    assert {shlex.split(line)[-1] for line in typed[:2]} == {"pip install 'numpy<2'"}
    assert typed[2] == "pip install 'numpy<2'"


def test_what_to_type_has_the_keys_and_servers_of_the_entry(tmp_path):
    """A board or phone of ``make endpoints`` is in no file of this user's."""
    for name in ("my key", "known hosts"):
        (tmp_path / name).touch()
    files = {"key_file": "my key", "known_hosts": "known hosts"}
    board = load(tmp_path, {**GOOD, **files}).find("pi5")
    assert shlex.split(board.typed("true")) == [
        *("ssh", "-i", str(tmp_path / "my key")),
        *("-o", f'UserKnownHostsFile="{tmp_path / "known hosts"}"', "pi@192.0.2.7", "true"),
    ]
    assert shlex.split(phone(tmp_path, adb_server="127.0.0.1:5038").typed("a b")) == [
        *("adb", "-H", "127.0.0.1", "-P", "5038", "-s", "28291FDH2000AB", "shell", "a b")
    ]


@pytest.mark.parametrize(
    ("facts", "profile"),
    [
        ({"system": "android", "model": "Pixel 8"}, "pixel-8"),
        ({"system": "android", "model": "Something Else"}, "android"),
        ({"system": "android"}, "android"),
        ({"system": "linux", "machine": "x86_64"}, "linux-x86_64"),
        ({"system": "linux", "machine": "aarch64", "model": "unheard of"}, "linux-aarch64"),
        ({"system": "linux", "machine": "armv7l"}, "linux-aarch64"),
        ({}, "linux-aarch64"),
    ],
)
def test_the_profile_that_fits_a_found_device(facts, profile):
    assert fitting_profile(facts) == profile
    assert profile in profile_names()


@pytest.fixture
def plugged_in(monkeypatch):
    """Two phones of one model over TCP, and one of them on a cable as well."""
    serials = {"192.0.2.7:5555": "SERIAL0001", "192.0.2.8:5555": "SERIAL0002"}
    serials["SERIAL0001"] = "SERIAL0001"
    monkeypatch.setattr(
        "devices.discovery.discover", lambda _: [Attached(each, "device") for each in serials]
    )
    monkeypatch.setattr("devices.discovery.AdbTransport", lambda serial, _: serial)
    monkeypatch.setattr(
        "devices.discovery.look",
        lambda serial: {"system": "android", "model": "Pixel 8", "serial": serials[serial]},
    )


@pytest.mark.usefixtures("plugged_in")
def test_phones_are_found_with_ids_that_differ_and_tell_which_is_which():
    assert [each.entry["id"] for each in attached()] == [
        *("pixel-8-0001", "pixel-8-0002", "pixel-8-0001-2")
    ]


@pytest.mark.usefixtures("plugged_in")
def test_what_is_discovered_can_be_appended_to_an_inventory(tmp_path, capsys):
    discover(server=None, as_json=False)
    said = capsys.readouterr()
    assert "'devices:' first" in said.err
    before = yaml.safe_dump({"devices": []}).replace(" []", "")
    assert len(load(tmp_path, text=before + said.out).devices) == 3
    mine = "devices:\n  - id: mine\n    profile: android\n    address: adb:X\n"
    assert [each.id for each in load(tmp_path, text=mine + said.out).devices][:2] == [
        *("mine", "pixel-8-0001")
    ]
    with pytest.raises(ConfigError, match="line 5: devices stands in line 1, too"):
        load(tmp_path, text=mine + "devices:\n" + said.out)
