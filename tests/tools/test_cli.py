"""The command line: what people type, what machines read, and what goes wrong with either."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
from torch import nn

from devices.endpoints.sshd import LoopbackServer
from pipeline.model import trace
from pipeline.programs import save_program
from pipeline.stage import Workspace
from profiles.store import Store
from tests.projects import (
    DEVICE_LAB,
    SEARCH,
    TOLERATE,
    Project,
    device_lab,
    environment,
    local_device,
    scripted_device,
    stripes,
)
from tests.tools.conftest import Lab
from tools.device_lab import app

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning:torch",
    "ignore::DeprecationWarning:torch",
    # JAX, which LiteRT's converter brings, of the fork that starts the SSH server.
    r"ignore:os\.fork\(\) was called:RuntimeWarning",
)

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "pydantic", "sqlalchemy", "onnxruntime", "nncf", "executorch", "scipy", "altair")
#: Of a machine that does other things, too.
TOLERANT = [word for code in TOLERATE for word in ("--tolerate", code)]


def commands() -> Iterator[list[str]]:
    """Every command and group, as words."""

    def walk(command: Any, words: list[str]) -> Iterator[list[str]]:
        yield words
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, [*words, name])

    yield from walk(typer.main.get_command(app), [])


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_every_command_explains_itself(lab: Lab, words: list[str]):
    said = lab(*words, "--help")
    assert said.code == 0
    assert "Usage:" in said.out
    leaf = not any(other[: len(words)] == words and other != words for other in commands())
    if leaf:
        assert f"Example: device-lab {' '.join(words)} " in " ".join(said.out.split())


def test_help_needs_none_of_the_heavy_libraries():
    code = f"import sys, tools.device_lab; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_installed_command_answers():
    done = device_lab("--version")
    assert done.returncode == 0
    assert re.fullmatch(r"edgeloop \d+\.\d+\.\d+\n", done.stdout)
    assert done.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [["--surely-missing"], ["surely-missing"], ["run"], ["run", "a.yaml", "--runs", "3"]],
)
def test_a_command_that_does_not_exist_is_a_usage_error(lab: Lab, arguments: list[str]):
    assert lab(*arguments).code == 2


def test_a_recipe_with_many_mistakes_lists_them_all(lab: Lab, project: Project, tmp_path: Path):
    project.write_recipe(
        name="no spaces, please",
        model={"factory": "stripes.Net", "weights": "gone.safetensors"},
        data={"npz": {"train": "train.npz"}, "calibration": 0},
        variants=["fp32", "int4", {"name": "half", "method": "int8", "sparsity": 0.5}],
        formats=["onnx", "coreml"],
        measure={"runs": 1, "speed": "high"},
        colour="blue",
        devices=[],
    )
    said = lab("run", project.recipe, "--workspace", tmp_path / "work")
    assert said.code == 2
    first, *problems = said.err.splitlines()
    assert first == f"error: {project.recipe}: {len(problems)} problems"
    found = {problem.strip().partition(": ")[0] for problem in problems}
    assert found >= {
        "name",
        "model.factory",
        "model.weights.file",
        "data.npz.test",
        "data.calibration",
        "variants.1.method",
        "variants.2.int8.sparsity",
        "formats.1",
        "measure.runs",
        "measure.speed",
        "colour",
        "devices",
    }
    assert not (tmp_path / "work").exists()


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("bomb-went-off",)


def _bad_device(project: Project) -> None:
    project.write_recipe(devices=["board", "nowhere"])


def _bad_search_device(project: Project) -> None:
    project.write_recipe(search={**SEARCH, "device": "nowhere"})


def _no_inventory(project: Project) -> None:
    project.inventory.unlink()


def _missing_weights(project: Project) -> None:
    project.write_recipe(model={"factory": "stripes:Net", "weights": "gone.pt"})


def _misfit(project: Project) -> None:
    torch.save({"stem.weight": torch.zeros(8, 1, 3, 3)}, project.root / "weights.pt")
    project.write_recipe(model={"factory": "stripes:Net", "weights": "weights.pt"})


def _pickle(project: Project) -> None:
    (project.root / "weights.pt").write_bytes(pickle.dumps(_Bomb()))
    project.write_recipe(model={"factory": "stripes:Net", "weights": "weights.pt"})


def _empty_data(project: Project) -> None:
    x, y = stripes(0, 0)
    np.savez(project.root / "test.npz", x=x, y=y)


def _objects(project: Project) -> None:
    np.savez(project.root / "test.npz", x=np.array([_Bomb()]), y=[0])


def _no_module(project: Project) -> None:
    project.write_recipe(model={"factory": "surely_missing:Net"})


def _no_factory(project: Project) -> None:
    project.write_recipe(model={"factory": "stripes:Nett"})


def _other_channels(project: Project) -> None:
    x, y = stripes(6, 0)
    for name in ("train", "test"):
        np.savez(project.root / f"{name}.npz", x=np.repeat(x, 3, axis=1), y=y)


def _no_supernet(project: Project) -> None:
    project.write_recipe(search={**SEARCH, "supernet": "stripes:Net"})


def _not_yaml(project: Project) -> None:
    project.recipe.write_text("name: [unclosed\n")


def _no_recipe(project: Project) -> None:
    project.recipe.unlink()


MISTAKES = {
    "unknown device": (_bad_device, "devices: there is no device 'nowhere' in"),
    "unknown search device": (_bad_search_device, "there is no device 'nowhere'"),
    "no inventory": (_no_inventory, "there is no inventory"),
    "missing weights": (_missing_weights, "model.weights.file: there is no file"),
    "weights that do not fit": (_misfit, "weights.pt does not fit the model: "),
    "weights with code": (_pickle, "weights.pt holds more than plain tensors"),
    "empty data": (_empty_data, "test.npz is empty"),
    "objects in the data": (_objects, "test.npz is not an .npz with plain arrays"),
    "unknown module": (_no_module, "there is no module surely_missing"),
    "unknown function": (_no_factory, "stripes has no 'Nett'"),
    "other channels": (_other_channels, "channels"),
    "not YAML": (_not_yaml, "recipe.yaml is not valid YAML at line"),
    "no recipe": (_no_recipe, "recipe.yaml cannot be read"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_explained_and_nothing_is_left_behind(
    lab: Lab, project: Project, tmp_path: Path, mistake: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    make, expected = MISTAKES[mistake]
    make(project)
    said = lab("run", project.recipe, "--workspace", tmp_path / "work")
    assert said.code == 2
    assert said.out == ""
    assert expected in said.err
    assert len([line for line in said.err.splitlines() if "error:" in line]) == 1
    assert not (tmp_path / "bomb-went-off").exists()
    assert not list((tmp_path / "work").glob("*/*")), "nothing half-done stays"
    assert not (tmp_path / "work" / "run.json").exists()


def test_a_search_for_something_that_is_no_supernet_is_explained(
    lab: Lab, project: Project, tmp_path: Path
):
    _no_supernet(project)
    said = lab("search", project.recipe, "--workspace", tmp_path / "work")
    assert said.code == 2
    assert "stripes:Net gives no super-network: no space, forward_genome" in said.problem


def test_a_search_without_a_search_is_explained(lab: Lab, project: Project, tmp_path: Path):
    for words in (["search"], ["table", "build"]):
        said = lab(*words, project.recipe, "--workspace", tmp_path / "work")
        assert said.code == 2
        assert "the recipe has no search" in said.problem


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("measure.runs=2", "measure.runs: input should be greater than or equal to 3, got 2"),
        ("measure", "is not of the form key.of.setting=value"),
        ("=3", "is not of the form"),
        ("name.first=x", "name is not a mapping"),
        ("measure.runs=[", "--set measure.runs=["),
    ],
)
def test_an_override_is_checked_like_the_recipe(
    lab: Lab, project: Project, tmp_path: Path, override: str, expected: str
):
    said = lab("run", project.recipe, "--workspace", tmp_path / "work", "--set", override)
    assert said.code == 2
    assert expected in said.err


def test_a_workspace_that_is_none_is_refused(lab: Lab, tmp_path: Path):
    for words in (["results"], ["report"], ["results", "--json"]):
        said = lab(*words, "--workspace", tmp_path / "nothing")
        assert said.code == 2
        assert "is no workspace" in said.problem
    assert not (tmp_path / "nothing").exists(), "looking makes no workspace"


def test_a_store_that_is_none_is_refused(lab: Lab, tmp_path: Path):
    (tmp_path / "store.db").write_text("this is no database, but long enough to look like one" * 9)
    said = lab("results", "--workspace", tmp_path)
    assert said.code == 1
    assert "cannot be opened as a store" in said.problem


def test_a_workspace_in_use_is_refused(lab: Lab, project: Project, tmp_path: Path):
    held = Workspace.open(tmp_path / "work")
    try:
        said = lab("run", project.recipe, "--workspace", tmp_path / "work")
    finally:
        held.close()
    assert said.code == 2
    assert "another process works in" in said.problem


def test_debug_shows_where_it_happened(project: Project):
    project.recipe.unlink()
    done = device_lab("--debug", "run", project.recipe)
    assert done.returncode != 0
    assert "Traceback" in done.stderr


#: The contract of ``results --json``; people's scripts read these.
FIELDS = {
    "artifact_sha256",
    "model",
    "variant",
    "format",
    "runtime",
    "device",
    "transport",
    "condition",
    "n",
    "runs",
    "median_ns",
    "ci95_ns",
    "p90_ns",
    "size_bytes",
    "parity",
    "status",
}


def test_a_run_and_what_it_lists(lab: Lab, project: Project, tmp_path: Path):
    work = tmp_path / "work"
    said = lab("run", project.recipe, "--workspace", work)
    assert said.code == 0, said.err
    assert "emulated" in said.out
    assert f"report: {work / 'report' / 'index.html'}" in said.out
    listed = lab("results", "--workspace", work, "--json")
    (row,) = json.loads(listed.out)
    assert row.keys() >= FIELDS
    assert (row["model"], row["variant"], row["format"]) == ("stripes", "fp32", "onnx")
    assert (row["runtime"], row["device"], row["transport"]) == ("onnxruntime", "board", "scripted")
    assert (row["n"], row["runs"], row["status"]) == (30, 3, "accepted")
    assert row["condition"]["threads"] == 1
    low, high = row["ci95_ns"]
    assert low < row["median_ns"] < high
    assert row["parity"]["passed"] is True
    (artifact,) = (work / "artifacts").iterdir()
    assert artifact.name == f"{row['artifact_sha256']}.onnx"
    assert artifact.stat().st_size == row["size_bytes"]
    again = lab("run", project.recipe, "--workspace", work, "--json")
    summary = json.loads(again.out)
    assert summary["failures"] == []
    assert summary["measurements"] == [row]
    assert "..." not in again.err.replace("report ...", ""), "nothing is done again"
    assert "measure:" not in again.err, "the device is left alone"
    path = json.loads(lab("report", "--workspace", work, "--json").out)["report"]
    assert Path(path).read_text().lstrip().startswith("<!doctype html>")


def test_two_names_for_the_same_bytes_are_both_listed_and_measured_once(
    lab: Lab, project: Project, tmp_path: Path
):
    project.write_recipe(variants=["fp32", {"name": "plain", "method": "fp32"}], formats=["onnx"])
    assert lab("run", project.recipe, "--workspace", tmp_path / "work").code == 0
    listed = json.loads(lab("results", "--workspace", tmp_path / "work", "--json").out)
    assert [row["variant"] for row in listed] == ["fp32", "plain"]
    assert len({row["artifact_sha256"] for row in listed}) == 1
    assert listed[0]["median_ns"] == listed[1]["median_ns"]


def test_an_artifact_that_fails_parity_is_listed_and_not_measured(
    lab: Lab, project: Project, tmp_path: Path
):
    project.write_recipe(
        variants=["fp32"],
        formats=["onnx"],
        tolerances={
            "float32": {"max_abs_error": 1e-12, "cosine": 0.5, "top1_agreement": 0},
        },
    )
    said = lab("run", project.recipe, "--workspace", tmp_path / "work")
    assert said.code == 1
    assert said.problem.startswith("failed: parity: fp32 onnx: max abs error ")
    (row,) = json.loads(lab("results", "--workspace", tmp_path / "work", "--json").out)
    assert row["status"] == "refused"
    assert row["reason"].startswith("parity: max abs error")
    assert (row["median_ns"], row["n"]) == (None, 0)
    with Store(tmp_path / "work" / "store.db") as store:
        assert store.trials() == []


def test_a_device_that_is_away_does_not_stop_the_others(lab: Lab, project: Project, tmp_path: Path):
    key = tmp_path / "key"
    key.write_text("")
    project.write_inventory(
        scripted_device(tmp_path / "device"),
        scripted_device(
            tmp_path, id="away", address="ssh://nobody@127.0.0.1:1", known_hosts=str(key)
        ),
    )
    project.write_recipe(variants=["fp32"], formats=["onnx"], devices=["away", "board"])
    said = lab("run", project.recipe, "--workspace", tmp_path / "work")
    assert said.code == 1
    assert said.problem.startswith("failed: measure: away: away: ")
    (row,) = json.loads(lab("results", "--workspace", tmp_path / "work", "--json").out)
    assert (row["device"], row["status"]) == ("board", "accepted")


def test_interrupted_it_ends_at_once_and_can_go_on(project: Project, tmp_path: Path):
    project.write_recipe(
        model={"factory": "stripes:Net", "train": {"epochs": 100000}}, formats=["onnx"]
    )
    process = subprocess.Popen(
        [DEVICE_LAB, "run", str(project.recipe), "--workspace", str(tmp_path / "work")],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    for line in process.stderr:
        if "model: epoch" in line:
            break
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - started < 30
    assert process.returncode == 130
    assert "Traceback" not in err + out
    Workspace.open(tmp_path / "work").close()
    assert list((tmp_path / "work" / "stages").iterdir()) == []


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program and inputs for it."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 3),
    )
    save_program(trace(module, torch.zeros(1, 1, 16, 16)), folder / "model.pt2")
    np.savez(folder / "inputs.npz", x=stripes(8, 0)[0])
    return folder


def test_each_stage_alone_on_files(lab: Lab, files: Path, tmp_path: Path):
    program, inputs = files / "model.pt2", files / "inputs.npz"
    small, model, plain = tmp_path / "int8.pt2", tmp_path / "int8.tflite", tmp_path / "fp32.onnx"
    said = lab("compress", program, "-m", "int8", "-f", "tflite", "--data", inputs, "-o", small)
    assert said.code == 0, said.err
    assert json.loads(said.out)["calibration_samples"] == 8
    exported = lab("export", small, "-f", "tflite", "-o", model)
    assert exported.code == 0, exported.err
    assert json.loads(exported.out)["io"]["inputs"][0]["shape"] == [1, 1, 16, 16]
    assert lab("export", program, "-f", "onnx", "-o", plain).code == 0
    inventory = tmp_path / "devices.yaml"
    inventory.write_text(json.dumps({"devices": [local_device(tmp_path / "board")]}))
    arguments = [model, plain, "-d", "board", "-i", inventory, "-w", tmp_path / "work"]
    arguments += ["--runs", 3, "--iterations", 5, *TOLERANT]
    said = lab("measure", *arguments, "--json")
    assert said.code == 0, said.err
    rows = {row["model"]: row for row in json.loads(said.out)}
    assert rows.keys() == {"int8", "fp32"}
    for row in rows.values():
        assert row.keys() >= FIELDS
        assert 3 <= row["runs"] <= 9
        assert (row["n"], row["status"]) == (5 * row["runs"], "accepted")
        assert row["parity"] is None
        assert row["transport"] == "local"
        assert not row["emulated"]
        assert 100 < row["median_ns"] < 1e9
    assert rows["int8"]["artifact_sha256"] == json.loads(exported.out)["sha256"]
    again = lab("measure", *arguments, "--json")
    assert json.loads(again.out) == json.loads(said.out), "nothing is measured twice"
    assert "measure:" not in again.err, "the device is left alone"
    assert sorted(p.name for p in tmp_path.glob("*.*")) == [
        "devices.yaml",
        "fp32.onnx",
        "int8.pt2",
        "int8.tflite",
    ]


def test_pruning_alone_on_files(lab: Lab, files: Path, tmp_path: Path):
    output = tmp_path / "sparse.pt2"
    said = lab(
        "compress",
        files / "model.pt2",
        "--method=sparse",
        "--set=sparsity=0.4",
        f"--data={files / 'inputs.npz'}",
        f"--output={output}",
    )
    assert said.code == 0, said.err
    assert json.loads(said.out)["settings"]["scope"] == "global", "as a recipe's variant has it"
    assert json.loads(said.out)["sparsity_found"] == pytest.approx(0.4, abs=0.01)
    assert output.exists()


DATA = ("--data", "inputs.npz", "-o", "c.pt2")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["export", "gone.pt2", "-f", "onnx", "-o", "m.onnx"], "gone.pt2"),
        (["export", "inputs.npz", "-f", "onnx", "-o", "m.onnx"], "inputs.npz"),
        (["export", "model.pt2", "-f", "onnx", "-o", "gone/m.onnx"], "there is no folder"),
        (["export", "model.pt2", "-f", "onnx", "-o", "."], "is a folder"),
        (["export", "model.pt2", "-f", "onnx", "-o", "m.onnx", "--batch", "0"], "--batch"),
        (["export", "model.pt2", "-f", "onnx", "-o", "m.onnx", "--batch", "few"], "--batch"),
        (
            ["compress", "model.pt2", "-m", "int8", "--data", "inputs.npz", "-o", "gone/c.pt2"],
            "there is no folder",
        ),
        (
            ["compress", "model.pt2", "-m", "int8", "--data", "gone.npz", "-o", "c.pt2"],
            "gone.npz is not an .npz",
        ),
        (
            ["compress", "model.pt2", "-m", "int8", "--data", "model.pt2", "-o", "c.pt2"],
            "model.pt2 is not an .npz",
        ),
        (
            ["compress", "model.pt2", "-m", "int8", "--data", "wide.npz", "-o", "c.pt2"],
            "wide.npz",
        ),
        (
            ["compress", "model.pt2", "-m", "sparse", "--set", "sparsity=1.5", *DATA],
            "sparsity",
        ),
        (
            ["compress", "model.pt2", "-m", "int8", "--samples", "0", *DATA],
            "samples",
        ),
        (
            ["compress", "model.pt2", "-m", "int8", "--set", "max_dorp=0.1", *DATA],
            "max_dorp: no such key",
        ),
        (
            ["compress", "model.pt2", "-m", "int8", "--set", "max_drop=0.1", *DATA],
            "max_drop needs labels",
        ),
        (
            ["compress", "model.pt2", "-m", "finetune", "--set", "train.epochs=1", *DATA],
            "train needs labels",
        ),
        (
            ["compress", "model.pt2", "-m", "int8", "--set", "precision=measured", *DATA],
            "name one with --device",
        ),
        (
            ["compress", "model.pt2", "-m", "structured", "--set", "budget.latency=0.5", *DATA],
            "name one with --device",
        ),
        (
            ["compress", "model.pt2", "-m", "int8", "--set", "keep", *DATA],
            "is not of the form",
        ),
        (
            ["compress", "model.pt2", "-m", "int8", "--set", "keep=[model.no]", *DATA],
            "model.no",
        ),
        (["measure", "gone.onnx", "-d", "board", "-i", "devices.yaml"], "there is no file"),
        (["measure", "inputs.npz", "-d", "board", "-i", "devices.yaml"], "expected one of .pte"),
        (["measure", "model.onnx", "-d", "nowhere", "-i", "devices.yaml"], "no device 'nowhere'"),
        (
            ["measure", "model.onnx", "-d", "board", "-i", "gone.yaml"],
            "there is no inventory gone.yaml",
        ),
        (["devices", "doctor", "nowhere", "-i", "devices.yaml"], "no device 'nowhere'"),
        (["table", "show", "inputs.npz"], "inputs.npz is no latency table"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)
def test_files_that_cannot_be_used_are_named(
    lab: Lab,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    expected: str,
):
    for name in ("model.pt2", "inputs.npz"):
        (tmp_path / name).write_bytes((files / name).read_bytes())
    np.savez(tmp_path / "wide.npz", x=np.zeros((4, 1, 20, 20), dtype=np.float32))
    (tmp_path / "model.onnx").write_bytes(b"no model")
    (tmp_path / "devices.yaml").write_text(json.dumps({"devices": [scripted_device(tmp_path)]}))
    monkeypatch.chdir(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    said = lab(*words)
    assert said.code == 2, said.err
    assert expected in said.err
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize(("batch", "expected"), [("4", 4), ("dynamic", -1)])
def test_a_program_is_exported_for_the_batch_that_is_asked_for(
    lab: Lab, files: Path, tmp_path: Path, batch: str, expected: int
):
    output = tmp_path / "model.onnx"
    said = lab("export", files / "model.pt2", "-f", "onnx", "-o", output, "--batch", batch)
    assert said.code == 0, said.err
    assert json.loads(said.out)["io"]["inputs"][0]["shape"] == [expected, 1, 16, 16]


def test_a_format_that_cannot_express_a_program_is_a_failure(lab: Lab, tmp_path: Path):
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cdist(x, x)

    save_program(trace(Net(), torch.zeros(1, 8, 8)), tmp_path / "model.pt2")
    said = lab("export", tmp_path / "model.pt2", "-f", "onnx", "-o", tmp_path / "model.onnx")
    assert said.code == 1
    assert said.problem.startswith("error: no onnx: ")
    assert "cdist" in said.problem
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt2"]


@pytest.fixture
def onnx_file(tiny_model: Any) -> Path:
    return tiny_model.path


def write_inventory(folder: Path, *devices: dict[str, Any]) -> Path:
    path = folder / "devices.yaml"
    path.write_text(json.dumps({"devices": list(devices)}))
    return path


def test_an_unreachable_device_is_one_line(lab: Lab, onnx_file: Path, tmp_path: Path):
    (tmp_path / "known_hosts").write_text("")
    away = scripted_device(
        tmp_path, id="away", address="ssh://nobody@127.0.0.1:1", known_hosts="known_hosts"
    )
    inventory = write_inventory(tmp_path, away)
    said = lab("measure", onnx_file, "-d", "away", "-i", inventory, "-w", tmp_path / "work")
    assert said.code == 1
    assert said.problem.startswith("error: away: ")
    doctor = lab("devices", "doctor", "-i", inventory, "--json")
    assert doctor.code == 1
    ((check,),) = [report["checks"] for report in json.loads(doctor.out)]
    assert (check["name"], check["ok"]) == ("connection", False)


@pytest.mark.parametrize("known", ["nobody", "another key"])
def test_a_peer_that_is_not_who_it_should_be_is_refused(
    lab: Lab, loopback: LoopbackServer, onnx_file: Path, tmp_path: Path, known: str
):
    hosts = tmp_path / "known_hosts"
    hosts.write_text("")
    if known == "another key":
        kind, key = loopback.key_file.with_suffix(".pub").read_text().split()[:2]
        hosts.write_text(f"[127.0.0.1]:{loopback.port} {kind} {key}\n")
    entry = {**loopback.inventory_entry("board", str(tmp_path / "b")), "known_hosts": str(hosts)}
    inventory = write_inventory(tmp_path, entry)
    before = hosts.read_text()
    said = lab("measure", onnx_file, "-d", "board", "-i", inventory, "-w", tmp_path / "work")
    assert said.code == 1
    assert said.problem.startswith("error: board: ")
    assert "key" in said.problem
    assert hosts.read_text() == before, "nothing is trusted on first use"
    assert not (tmp_path / "b").exists(), "nothing was sent"
    doctor = lab("devices", "doctor", "-i", inventory)
    assert doctor.code == 1
    assert "connection" in doctor.out


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with nothing but its standard library, as a new board has."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return str(folder / "bin" / "python")


def test_a_runtime_missing_on_the_device_says_what_to_install(
    lab: Lab, onnx_file: Path, tmp_path: Path, bare_python: str
):
    inventory = write_inventory(tmp_path, local_device(tmp_path / "board", python=bare_python))
    doctor = lab("devices", "doctor", "-i", inventory, "--json")
    assert doctor.code == 1
    (report,) = json.loads(doctor.out)
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["connection"]["ok"]
    assert checks["identity"]["ok"]
    assert "pip install onnxruntime" in checks["onnxruntime"]["remedy"]
    assert "pip install executorch" in checks["executorch"]["remedy"]
    assert "pip install ai-edge-litert" in checks["litert"]["remedy"]
    said = lab("devices", "doctor", "board", "-i", inventory)
    assert "pip install onnxruntime" in " ".join(said.out.split())
    measured = lab("measure", onnx_file, "-d", "board", "-i", inventory, "-w", tmp_path, "--json")
    assert measured.code == 1
    (row,) = json.loads(measured.out)
    assert (row["status"], row["median_ns"]) == ("failed", None)
    assert "onnxruntime is missing on the device" in row["reason"]
    assert "pip install onnxruntime" in row["reason"]


def test_once_the_runtime_is_there_the_same_command_measures(
    lab: Lab, onnx_file: Path, tmp_path: Path, bare_python: str
):
    arguments = [onnx_file, "-d", "board", "-i", tmp_path / "devices.yaml", "-w", tmp_path]
    arguments += ["--runs", "3", "--iterations", "5", "--json", *TOLERANT]
    write_inventory(tmp_path, local_device(tmp_path / "board", python=bare_python))
    assert lab("measure", *arguments).code == 1
    write_inventory(tmp_path, local_device(tmp_path / "board"))
    said = lab("measure", *arguments)
    assert said.code == 0, said.err
    (row,) = json.loads(said.out)
    assert (row["status"], row["reason"]) == ("accepted", "")


def test_a_python_that_is_none_says_so(lab: Lab, onnx_file: Path, tmp_path: Path):
    inventory = write_inventory(tmp_path, local_device(tmp_path / "b", python="/surely/missing"))
    arguments = [onnx_file, "-d", "board", "-i", inventory, "-w", tmp_path / "work"]
    said = lab("measure", *arguments, "--json")
    assert said.code == 1
    (row,) = json.loads(said.out)
    assert "/surely/missing cannot run the agent" in row["reason"]
    assert "set 'python' of this device" in row["reason"]


def test_devices_are_listed(lab: Lab, project: Project):
    said = lab("devices", "list", "-i", project.inventory)
    assert said.code == 0
    assert "board" in said.out
    (device,) = json.loads(lab("devices", "list", "-i", project.inventory, "--json").out)
    assert (device["id"], device["address"].partition(":")[0]) == ("board", "scripted")


def test_a_healthy_device_is_healthy(lab: Lab, project: Project):
    said = lab("devices", "doctor", "-i", project.inventory)
    assert said.code == 0
    assert "MISSING" not in said.out


def test_an_inventory_with_many_mistakes_lists_them_all(lab: Lab, project: Project):
    project.write_inventory(
        {"id": "a b", "profile": "toaster", "address": "telnet://x", "colour": "blue"},
        {"id": "ok", "address": "ssh://user:secret@host"},
    )
    said = lab("devices", "list", "-i", project.inventory)
    assert said.code == 2
    assert all(
        key in said.err
        for key in (
            "devices.0.id",
            "devices.0.profile",
            "devices.0.address",
            "devices.0.colour",
            "devices.1.profile",
            "devices.1.address",
        )
    )


def test_progress_goes_to_standard_error_alone(project: Project, tmp_path: Path):
    """Whoever pipes --json gets JSON, whatever the converters print."""
    done = device_lab("run", project.recipe, "-w", tmp_path / "work", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "stripes"
    strange = [line for line in done.stderr.splitlines() if not re.match(r" *\d+ s  \w", line)]
    assert strange == []
