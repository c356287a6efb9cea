"""Every device profile of the catalog is whole and says where its constants come from."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from devices.agent.engines import RUNTIMES
from profiles import catalog
from profiles.catalog import load_profile, profile_names
from profiles.errors import ConfigError, UsageError
from profiles.records import RUNTIME_OF


def test_there_are_profiles():
    assert {"linux-aarch64", "linux-x86_64"} <= set(profile_names())
    assert profile_names() == sorted(profile_names())


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_loads(name):
    profile = load_profile(name)
    assert profile.description
    assert profile.sources
    assert profile.os in ("linux", "android")
    assert set(profile.runtimes) <= set(RUNTIME_OF.values()) == set(RUNTIMES)
    assert profile.runtimes
    assert not PurePosixPath(profile.root).is_absolute() or profile.os == "android"
    assert profile.cores is None or profile.cores > 0


@pytest.mark.parametrize("name", ["linux-z80", "", "../catalog/linux-x86_64", "LINUX-X86_64"])
def test_an_unknown_profile_is_answered_with_the_known_ones(name):
    with pytest.raises(UsageError, match="no device profile") as caught:
        load_profile(name)
    for known in profile_names():
        assert known in caught.value.hint


def test_a_profile_with_a_mistake_is_not_loaded(tmp_path: Path, monkeypatch):
    text = (Path(catalog.__file__).parent / "linux-x86_64.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text + "corse: 4\n")
    monkeypatch.setattr(catalog, "_FOLDER", tmp_path)
    with pytest.raises(ConfigError, match="corse: no such key"):
        load_profile("mine")
