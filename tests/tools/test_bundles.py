"""``device-lab bundle``: made, verified, refused; with exit codes and one line of why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.projects import Project
from tests.tools.conftest import Lab


@pytest.fixture
def workspace(project: Project, lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    work = project.root / "work"
    assert lab("run", project.recipe, "-w", work).code == 0
    return work


def test_a_bundle_is_made_verified_and_refused_once_it_is_changed(
    workspace: Path, lab: Lab, tmp_path: Path
):
    zip_ = tmp_path / "app.zip"
    made = lab("bundle", "make", "-w", workspace, "-o", zip_, "--not-after", "2099-12-31")
    assert made.code == 0
    assert max(map(len, made.out.splitlines()[:6])) <= 80
    public_key = lab("bundle", "key").out.strip()
    assert f"public key: {public_key}" in made.out
    told = json.loads(lab("bundle", "verify", zip_, "--json").out)
    assert told["verified"] and told["signer"] == {
        "algorithm": "ed25519",
        "public_key": public_key,
        "not_after": "2099-12-31T23:59:59Z",
    }
    assert "board (emulated)" in lab("bundle", "verify", zip_, "--public-key", public_key).out
    content = bytearray(zip_.read_bytes())
    content[500] ^= 1
    zip_.write_bytes(content)
    refused = lab("bundle", "verify", zip_)
    assert refused.code == 2
    assert f"{zip_} is refused: " in refused.problem


def test_what_cannot_be_made_is_said_with_what_could(workspace: Path, lab: Lab, tmp_path: Path):
    zip_ = tmp_path / "app.zip"
    make = ("bundle", "make", "-w", workspace, "-o", zip_)
    said = lab(*make, "--limit", "latency<=1us", "--limit", "size<=1kB on board")
    assert said.code == 2
    assert (
        "board: nothing keeps latency<=1us and size<=1kB on board; nearest: fp32:onnx" in said.err
    )
    said = lab(*make, "--limit", "latency<=1", "--limit", "colour<=1")
    assert (said.code, "--limit: 2 problems" in said.err) == (2, True)
    said = lab(*make, "--not-after", "soon")
    assert (said.code, "--not-after: 'soon' is no date" in said.problem) == (2, True)
    said = lab(*make, "--not-after", "2020-01-01")
    assert (said.code, "lies in the past" in said.problem) == (2, True)
    said = lab(*make, "--key", tmp_path / "none")
    assert (said.code, "cannot be read" in said.problem) == (2, True)
    said = lab("bundle", "make", "-w", tmp_path / "none", "-o", zip_)
    assert (said.code, "is no workspace" in said.problem) == (2, True)
    assert not zip_.exists()


def test_a_bundle_of_nobody_known_is_refused(
    workspace: Path, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    zip_ = tmp_path / "app.zip"
    assert json.loads(lab("bundle", "make", "-w", workspace, "-o", zip_, "--json").out)["sha256"]
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "elsewhere"))
    said = lab("bundle", "verify", zip_)
    assert (said.code, "--public-key" in said.problem) == (2, True)
    assert lab("bundle", "key").code == 0  # another one
    said = lab("bundle", "verify", zip_)
    assert (said.code, "not signed by a key that is trusted here" in said.problem) == (2, True)
    said = lab("bundle", "verify", tmp_path / "none.zip")
    assert (said.code, "cannot be read" in said.problem) == (2, True)
