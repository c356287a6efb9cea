"""Every device profile of the catalog is whole, agrees with itself and says where it is from."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from devices.agent.engines import RUNTIMES
from devices.facts.cores import PARTS
from profiles import catalog
from profiles.catalog import DeviceProfile, Gates, load_profile, profile_names
from profiles.config import parse
from profiles.errors import ConfigError, UsageError
from profiles.records import RUNTIME_OF

FOLDER = Path(catalog.__file__).parent
ALL = {
    *("android", "galaxy-s23", "jetson-orin-nano", "linux-aarch64", "linux-x86_64"),
    *("pixel-7", "pixel-8", "raspberry-pi-4", "raspberry-pi-5", "rock-5b"),
}
GENERIC = {"android", "linux-aarch64", "linux-x86_64"}
#: What the native agent can load.
NATIVE = {"onnxruntime", "litert"}

every_profile = pytest.mark.parametrize("name", profile_names())


def raw(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


def read(data: dict[str, Any]) -> DeviceProfile:
    return parse(DeviceProfile, data, "mine.yaml")


def test_there_are_profiles():
    assert set(profile_names()) >= ALL
    assert profile_names() == sorted(profile_names())


@every_profile
def test_every_profile_loads(name):
    profile = load_profile(name)
    assert profile.description
    assert profile.runtimes
    assert set(profile.runtimes) <= set(RUNTIME_OF.values()) <= set(RUNTIMES)
    assert PurePosixPath(profile.root).is_absolute() == (profile.os == "android")
    assert (profile.python is None) == (profile.os == "android")
    assert profile.python or set(profile.runtimes) <= NATIVE
    assert profile.store_bytes >= 10**9


def keys(data: dict[str, Any]) -> list[str]:
    """The constants of a file, read without the code that checks them."""
    gates = [f"gates.{key}" for key in data.get("gates", {})]
    not_constants = {"description", "os", "architecture", "gates", "sources"}
    return gates + [key for key in data if key not in not_constants]


@every_profile
def test_every_constant_says_where_it_is_from(name):
    profile = load_profile(name)
    assert keys(raw(name))
    for key in keys(raw(name)):
        sourced = profile.sourced(key)
        assert sourced.source
        owner: Any = profile
        for part in key.split("."):
            owner = getattr(owner, part)
        assert sourced.value == owner


@every_profile
def test_nothing_claims_to_have_been_seen_on_a_device(name):
    """Nobody has had one: whoever verifies a constant on a device changes this test with it."""
    for source in load_profile(name).sources:
        assert source.evidence != "device"


@every_profile
def test_what_was_chosen_or_listed_by_others_is_not_called_verified(name):
    profile = load_profile(name)
    for key in keys(raw(name)):
        sourced = profile.sourced(key)
        if sourced.source.startswith("chosen") or "public" in sourced.source:
            assert not sourced.verified


def test_the_closest_source_counts():
    profile = load_profile("raspberry-pi-5")
    assert "bcm2712.dtsi" in profile.sourced("gates.temperature_zones").source
    assert "chosen" in profile.sourced("gates.settle_s").source
    assert profile.sourced("throttle_mdegc").verified
    assert load_profile("pixel-8").sourced("gates.max_thermal_status").value == 0
    for key in ("gates.governors", "gates", "battery", "description", "corse"):
        with pytest.raises(KeyError, match=key):
            profile.sourced(key)


@every_profile
def test_clusters_count_each_core_once(name):
    profile = load_profile(name)
    if name in GENERIC:
        assert (profile.cores, profile.clusters, profile.soc, profile.models) == (None, (), (), ())
        return
    masks = [int(cluster.mask, 16) for cluster in profile.clusters]
    assert sum(masks) == 2**profile.cores - 1
    for cluster, mask in zip(profile.clusters, masks, strict=True):
        assert [core for core in range(64) if mask >> core & 1] == list(cluster.cores)
        assert cluster.part in PARTS.values()
    assert len({cluster.name for cluster in profile.clusters}) == len(profile.clusters)


@pytest.mark.parametrize(
    ("name", "cores"),
    [
        ("raspberry-pi-4", [4]),
        ("raspberry-pi-5", [4]),
        ("jetson-orin-nano", [4, 2]),
        ("rock-5b", [4, 2, 2]),
        ("pixel-7", [4, 2, 2]),
        ("pixel-8", [4, 4, 1]),
        ("galaxy-s23", [3, 2, 2, 1]),
    ],
)
def test_cores(name, cores):
    profile = load_profile(name)
    assert [len(cluster.cores) for cluster in profile.clusters] == cores
    assert profile.cores == sum(cores)


@every_profile
def test_gates_leave_room(name):
    profile = load_profile(name)
    gates = profile.gates
    if gates.max_temperature_mdegc and profile.throttle_mdegc:
        assert gates.max_temperature_mdegc <= profile.throttle_mdegc - 10_000
    if profile.os == "android":
        assert gates.battery_percent[1] == 100, "a phone that stays on its cable is full"
    assert (gates.settle_s is None) == (gates == Gates())


@pytest.mark.parametrize("name", ["linux-aarch64", "linux-x86_64"])
def test_a_machine_of_which_nothing_is_known_has_no_gates(name):
    assert load_profile(name).gates == Gates()


@pytest.mark.parametrize("name", ["linux-z80", "", "../catalog/linux-x86_64", "LINUX-X86_64"])
def test_an_unknown_profile_is_answered_with_the_known_ones(name):
    with pytest.raises(UsageError, match="no device profile") as caught:
        load_profile(name)
    for known in profile_names():
        assert known in caught.value.hint


def test_a_profile_with_a_mistake_is_not_loaded(tmp_path: Path, monkeypatch):
    text = (FOLDER / "linux-x86_64.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text + "corse: 4\n")
    monkeypatch.setattr(catalog, "_FOLDER", tmp_path)
    with pytest.raises(ConfigError, match="corse: no such key"):
        load_profile("mine")


CLUSTER = {"name": "big", "part": "Cortex-A76", "cores": [4, 5], "mask": "30"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"throttle_mdegc": 90_000, "memory_gib": [4]}, "memory_gib has no source; throttle_mdegc"),
        ({"gates": {"settle_s": 5}}, r"gates\.settle_s has no source"),
        ({"os": "plan9"}, "os"),
        ({"clusters": [CLUSTER]}, r"cores are \[4, 5\], not each once from 0"),
        ({"clusters": [CLUSTER | {"mask": "31"}]}, r"mask 31 is not cores \[4, 5\]"),
        ({"clusters": [CLUSTER | {"mask": "0x30"}]}, "mask"),
        ({"runtimes": []}, "runtimes"),
        ({"throttle_mdegc": 80_000, "gates": {"max_temperature_mdegc": 80_000}}, "not below"),
        ({"gates": {"battery_percent": [90, 30]}}, r"battery_percent: a window is \[LOW, HIGH\]"),
        ({"gates": {"battery_percent": [30, 101]}}, "battery_percent"),
        ({"gates": {"max_thermal_status": 7}}, "max_thermal_status"),
        ({"gates": {"max_foreign_load_cores": float("nan")}}, "max_foreign_load_cores"),
        ({"gates": {"settle_s": -1}}, "settle_s"),
        ({"gates": {"screen": "off"}}, r"gates\.screen: no such key"),
    ],
)
def test_mistakes_are_told(change, message):
    with pytest.raises(ConfigError, match=message):
        read(raw("linux-aarch64") | change)


def test_a_source_names_something_and_only_once():
    data = raw("linux-aarch64")
    source = {"source": "somewhere", "evidence": "unverified"}
    for of, message in (
        (["root"], "root has two sources"),
        (["soc"], "sources name soc, which is not set"),
        (["gates"], "sources name gates, which is not set"),
    ):
        with pytest.raises(ConfigError, match=message):
            read(data | {"sources": [*data["sources"], {"of": of} | source]})
    with pytest.raises(ConfigError, match="evidence"):
        read(data | {"sources": [{"of": ["root"], "source": "x", "evidence": "sure"}]})
