"""``devices.yaml``: every mistake is named with its key, all at once, and no secret is repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from devices.inventory import Inventory, load_inventory
from devices.transport.local import LocalTransport
from devices.transport.scripted import ScriptedTransport
from profiles.errors import ConfigError, UsageError

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
        "",
    ],
)
def test_bad_addresses(tmp_path, address):
    (problem,) = problems(tmp_path, {**GOOD, "address": address})
    assert problem.startswith("devices.0.address: ")


@pytest.mark.parametrize(
    "address",
    ["ssh://host", "ssh://pi@host", "ssh://pi@host:2222", "ssh://[::1]:22", "local:", "SSH://host"],
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
    assert "pi5" in problem
    assert "other" not in problem


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
