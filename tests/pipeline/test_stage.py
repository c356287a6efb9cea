"""Stages: what makes a key, and that only whole results are results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipeline import stage as stage_module
from pipeline.stage import Stage, Workspace, module_digest, source_digest
from profiles.canonical import file_sha256
from profiles.errors import StageError, UsageError
from tests.processes import eventually
from tests.projects import environment


@pytest.fixture
def workspace(tmp_path: Path):
    opened = Workspace.open(tmp_path / "workspace")
    yield opened
    opened.close()


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the import path, with a package of two modules and a lone module."""
    folder = tmp_path / "code"
    (folder / "worker_pkg").mkdir(parents=True)
    (folder / "worker_pkg" / "__init__.py").write_text("")
    (folder / "worker_pkg" / "inner.py").write_text("A = 1\n")
    (folder / "worker_alone.py").write_text("B = 1\n")
    monkeypatch.syspath_prepend(folder)
    return folder


def stages_in(workspace: Workspace) -> list[str]:
    return sorted(path.name for path in (workspace.root / "stages").iterdir())


class Work:
    """Writes a file, returns a value, and counts how often it was asked to."""

    def __init__(self, value: int = 1) -> None:
        self.calls = 0
        self.value = value

    def __call__(self, folder: Path) -> dict[str, int]:
        self.calls += 1
        assert list(folder.iterdir()) == [], "work starts in an empty folder"
        (folder / "made.txt").write_text("made")
        return {"value": self.value}


def test_a_finished_stage_is_not_done_again(workspace: Workspace):
    work = Work()
    first = workspace.run(Stage("step", {"a": 1}), work)
    second = workspace.run(Stage("step", {"a": 1}), work)
    assert work.calls == 1
    assert first.value == second.value == {"value": 1}
    assert first.folder == second.folder
    assert (second.folder / "made.txt").read_text() == "made"


def test_a_result_survives_the_process(tmp_path: Path):
    work = Work()
    for _ in range(2):
        workspace = Workspace.open(tmp_path / "workspace")
        assert workspace.run(Stage("step", {}), work).value == {"value": 1}
        workspace.close()
    assert work.calls == 1


@pytest.mark.parametrize(
    "other",
    [Stage("other", {"a": 1}), Stage("step", {"a": 2}), Stage("step", {"b": 1}), Stage("step", {})],
)
def test_name_and_inputs_are_in_the_key(workspace: Workspace, other: Stage):
    work = Work()
    workspace.run(Stage("step", {"a": 1}), work)
    workspace.run(other, work)
    assert work.calls == 2


def test_bytes_of_an_input_are_in_the_key(workspace: Workspace, tmp_path: Path):
    weights = tmp_path / "weights.bin"
    keys = []
    for content in (b"one", b"two", b"one"):
        weights.write_bytes(content)
        keys.append(Stage("step", {"weights": file_sha256(weights)}).key)
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.parametrize("changed", ["worker_pkg/inner.py", "worker_pkg/__init__.py"])
def test_a_packages_digest_is_of_all_its_files(importable: Path, changed: str):
    before = module_digest("worker_pkg")
    (importable / changed).write_text("A = 2\n")
    assert module_digest("worker_pkg") != before


def test_a_modules_digest_is_of_its_file_alone(importable: Path):
    before = module_digest("worker_alone")
    (importable / "unrelated.py").write_text("C = 1\n")
    assert module_digest("worker_alone") == before
    (importable / "worker_alone.py").write_text("B = 2\n")
    assert module_digest("worker_alone") != before


@pytest.mark.parametrize("room", ["profiles", "devices", "pipeline"])
def test_our_own_source_is_in_every_key(room: str, monkeypatch: pytest.MonkeyPatch):
    before = Stage("step", {}).key
    honest = stage_module.module_digest
    monkeypatch.setattr(
        stage_module, "module_digest", lambda name: "changed" if name == room else honest(name)
    )
    stage_module._product_digest.cache_clear()
    changed = Stage("step", {}).key
    monkeypatch.undo()
    stage_module._product_digest.cache_clear()
    assert changed != before
    assert Stage("step", {}).key == before


@pytest.mark.parametrize("neighbour", ["layers.py", "worker_pkg/inner.py"])
def test_a_users_module_stands_for_what_lies_beside_it(importable: Path, neighbour: str):
    """It may import its neighbours, and a cache must never mix two models."""
    (importable / neighbour).write_text("W = 1\n")
    before = source_digest("worker_alone:factory")
    (importable / neighbour).write_text("W = 2\n")
    assert source_digest("worker_alone:factory") != before


def test_a_package_without_an_init_file_is_found(importable: Path):
    (importable / "bare_pkg").mkdir()
    (importable / "bare_pkg" / "net.py").write_text("A = 1\n")
    before = source_digest("bare_pkg.net:factory")
    (importable / "bare_pkg" / "net.py").write_text("A = 2\n")
    assert source_digest("bare_pkg.net:factory") != before


def test_a_new_file_in_a_package_is_in_the_key(importable: Path):
    before = module_digest("worker_pkg")
    (importable / "worker_pkg" / "added.py").write_text("")
    assert module_digest("worker_pkg") != before


def test_a_users_factory_stands_for_its_whole_top_package(importable: Path):
    before = source_digest("worker_pkg.inner:factory")
    (importable / "worker_pkg" / "__init__.py").write_text("X = 1\n")
    assert source_digest("worker_pkg.inner:factory") != before


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(UsageError, match="no module surely_missing"):
        module_digest("surely_missing")


def test_versions_of_packages_are_in_the_key(monkeypatch: pytest.MonkeyPatch):
    stage = Stage("step", {}, packages=("numpy",))
    before = stage.key
    real = stage_module.version
    monkeypatch.setattr(
        stage_module, "version", lambda name: "0.0" if name == "numpy" else real(name)
    )
    assert stage.key != before


def test_a_package_that_is_not_installed_has_a_version_of_its_own():
    assert stage_module.package_versions(["numpy", "surely-missing"])["surely-missing"] == "absent"


def test_a_failed_stage_leaves_no_result_and_can_be_tried_again(workspace: Workspace):
    def fail(folder: Path) -> dict[str, int]:
        (folder / "half.txt").write_text("half")
        raise StageError("no luck")

    for _ in range(2):  # the same stage fails for each of several formats in one process
        with pytest.raises(StageError, match="no luck"):
            workspace.run(Stage("step", {}), fail)
    work = Work()
    result = workspace.run(Stage("step", {}), work)
    assert work.calls == 1
    assert not (result.folder / "half.txt").exists()


def test_what_a_killed_process_left_is_removed_and_never_a_result(tmp_path: Path):
    root = tmp_path / "workspace"
    stage = Stage("step", {})
    name = f"step-{stage.key[:16]}"
    (root / "stages" / f".partial-{name}").mkdir(parents=True)
    (root / "stages" / f".partial-{name}" / "result.json").write_text(
        json.dumps({"key": stage.key, "value": {"value": 0}})
    )
    (root / "artifacts").mkdir()
    (root / "artifacts" / ".partial-abc.onnx").write_text("half")
    workspace = Workspace.open(root)
    try:
        assert stages_in(workspace) == []
        assert list((root / "artifacts").iterdir()) == []
        assert workspace.run(stage, Work()).value == {"value": 1}
    finally:
        workspace.close()


_KILLED = """
    import os, sys, time
    from pathlib import Path
    from pipeline.stage import Stage, Workspace

    root, where = Path(sys.argv[1]), sys.argv[2]
    workspace = Workspace.open(root)

    def pause():
        (root / "reached").touch()
        time.sleep(60)

    def work(folder):
        (folder / "made.txt").write_text("made")
        if where == "work":
            pause()
        return {"value": 1}

    if where == "rename":
        Path.rename = lambda self, target: pause()
    if where == "adopt":
        Path.rename = lambda self, target: pause()
        source = root / "source.bin"
        source.write_bytes(b"bytes")
        workspace.adopt(source, "onnx")
    workspace.run(Stage("step", {"a": 1}), work)
"""


@pytest.mark.parametrize("where", ["work", "rename", "adopt"])
def test_a_killed_process_leaves_nothing_that_looks_finished(tmp_path: Path, where: str):
    root = tmp_path / "workspace"
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_KILLED), str(root), where],
        env=environment(),
        cwd=Path(__file__).parents[2],
    )
    assert eventually((root / "reached").exists, within_s=60)
    with pytest.raises(UsageError, match="another process works in"):
        Workspace.open(root)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    leftovers = [*(root / "stages").iterdir(), *(root / "artifacts").iterdir()]
    assert leftovers, "it was killed before it wrote anything: this test tests nothing"
    assert all(path.name.startswith(".partial-") for path in leftovers)
    workspace = Workspace.open(root)
    try:
        work = Work()
        workspace.run(Stage("step", {"a": 1}), work)
        assert work.calls == 1
    finally:
        workspace.close()


def test_a_workspace_is_free_again_once_closed(tmp_path: Path):
    for _ in range(2):
        Workspace.open(tmp_path / "workspace").close()


def test_a_file_is_no_workspace(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be used as a workspace"):
        Workspace.open(tmp_path / "file")


def test_adopted_files_are_kept_by_content(workspace: Workspace, tmp_path: Path):
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    one.write_bytes(b"bytes")
    same.write_bytes(b"bytes")
    other.write_bytes(b"other bytes")
    sha256, path = workspace.adopt(one, "onnx")
    assert sha256 == file_sha256(one)
    assert path == workspace.artifact_path(sha256, "onnx")
    assert path.read_bytes() == b"bytes"
    assert workspace.adopt(same, "onnx") == (sha256, path)
    assert workspace.adopt(other, "onnx")[1] != path
    assert one.exists(), "adopting copies"
    assert len(list((workspace.root / "artifacts").iterdir())) == 2


def test_progress_names_the_stages_that_do_something(tmp_path: Path):
    said: list[str] = []
    workspace = Workspace.open(tmp_path / "workspace", said.append)
    try:
        for _ in range(2):
            workspace.run(Stage("step", {}), Work())
    finally:
        workspace.close()
    assert said == ["step ..."]
