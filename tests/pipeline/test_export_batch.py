"""Artifacts for one example, four, or any number: of networks that compression left odd."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from devices.agent.engines import ENGINES
from pipeline.compress.module import open_program_of
from pipeline.compress.quantize import quantize
from pipeline.export import export_stage, write_artifact
from pipeline.export.batch import LARGEST, batch_of, with_batch
from pipeline.export.parity import host_outputs
from pipeline.inspect import read_artifact
from pipeline.model import trace
from pipeline.programs import save_program
from pipeline.stage import Workspace
from profiles.errors import ExportError
from profiles.export import Export
from profiles.records import FORMATS, RUNTIME_OF, SUFFIX_OF, Artifact

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning:torch",
    "ignore::DeprecationWarning:torch",
)


class Odd(nn.Module):
    """Channel counts as pruning leaves them, and a linear layer split in two as low rank does."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 13, 3, stride=2, padding=1),
            nn.BatchNorm2d(13),
            nn.ReLU(),
            nn.Conv2d(13, 13, 3, padding=1, groups=13),
            nn.ReLU(),
            nn.Conv2d(13, 5, 1, bias=False),
            nn.Conv2d(5, 19, 1),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Linear(19, 3, bias=False), nn.Linear(3, 7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.features(x)).flatten(1))


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3, 12, 12)).astype(np.float32)


def network() -> nn.Module:
    torch.manual_seed(0)
    return Odd().eval()


def eager(x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network()(torch.from_numpy(x)).numpy()


@pytest.fixture(scope="module")
def opened():
    return open_program_of(network(), torch.from_numpy(images(2)))


@pytest.fixture(scope="module")
def written(opened, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Each format for each batch that it can take."""
    folder = tmp_path_factory.mktemp("artifacts")
    found = {}
    for format_ in FORMATS:
        for batch in (1, 4, "dynamic"):
            if (format_, batch) != ("tflite", "dynamic"):
                path = folder / f"{batch}{SUFFIX_OF[format_]}"
                settings = Export(batch=batch)
                record = write_artifact(opened, format_, path, settings, {"model": "odd"})
                found[format_, batch] = (read_artifact(path), record)
    return found


FIXED = [(format_, batch) for format_ in FORMATS for batch in (1, 4)]
OPEN = [("executorch", "dynamic"), ("onnx", "dynamic")]


@pytest.mark.parametrize("place", FIXED + OPEN)
def test_every_batch_computes_what_pytorch_does(written: dict, place: tuple):
    x = images(6)  # no multiple of four
    outputs, _ = host_outputs(written[place][0], x)
    np.testing.assert_allclose(outputs, eager(x), atol=1e-5)


@pytest.mark.parametrize("place", FIXED + OPEN)
def test_the_file_and_the_record_say_which_batch_it_takes(written: dict, place: tuple):
    artifact, record = written[place]
    size = -1 if place[1] == "dynamic" else place[1]
    assert record["batch"] == place[1]
    for io in (artifact.io, record["io"]):
        assert [spec.shape for spec in io.inputs] == [(size, 3, 12, 12)]
        assert [spec.shape for spec in io.outputs] == [(size, 7)]
    assert artifact.io.batch == max(size, 1)
    assert artifact.io.closed().inputs[0].shape == (max(size, 1), 3, 12, 12)
    assert artifact.details["says"]["batch"] == place[1]


@pytest.mark.parametrize("place", OPEN)
@pytest.mark.parametrize("count", [1, 3, LARGEST])
def test_a_dynamic_batch_takes_any_at_once(written: dict, place: tuple, count: int):
    artifact: Artifact = written[place][0]
    engine = ENGINES[RUNTIME_OF[artifact.format]](str(artifact.path), 1)
    x = images(count)
    engine.feed([x])
    engine.prepare()
    engine.call()
    np.testing.assert_allclose(engine.outputs()[0], eager(x), atol=1e-5)


def test_onnx_calls_the_open_dimension_batch(written: dict):
    import onnx

    graph = onnx.load(written["onnx", "dynamic"][0].path).graph
    names = {
        dimension.dim_param
        for value in (*graph.input, *graph.output, *graph.value_info)
        for dimension in value.type.tensor_type.shape.dim
        if dimension.dim_param
    }
    assert names == {"batch"}


def test_a_format_that_needs_the_batch_says_so(opened, tmp_path: Path):
    with pytest.raises(ExportError) as refusal:
        write_artifact(opened, "tflite", tmp_path / "model", Export(batch="dynamic"))
    assert "no tflite: LiteRT's converter cannot leave the batch open" in str(refusal.value)
    assert "fixed batch" in refusal.value.hint
    assert list(tmp_path.iterdir()) == []


def test_tflite_leaves_the_batch_open_where_nothing_reshapes(tmp_path: Path):
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).mean((2, 3))

    torch.manual_seed(0)
    module = Plain().eval()
    program = open_program_of(module, torch.from_numpy(images(2)))
    path = tmp_path / "open.tflite"
    write_artifact(program, "tflite", path, Export(batch="dynamic"))
    artifact = read_artifact(path)
    assert artifact.io.inputs[0].shape == (-1, 3, 12, 12)
    x = images(2)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(host_outputs(artifact, x)[0], expected, atol=1e-5)


def test_a_program_for_one_example_is_made_for_more_where_it_computes_each_alone():
    program = trace(network(), torch.from_numpy(images(1)))
    assert batch_of(program) == 1
    four = with_batch(program, 4)
    x = images(4)
    found = four.module()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(found, eager(x), atol=1e-5)
    assert batch_of(with_batch(program, "dynamic")) == "dynamic"
    assert with_batch(program, 1) is program


class Written(nn.Module):
    """Holds its batch as a constant; two examples come out as one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(1, -1, 12).mean(1)


class Mixed(nn.Module):
    """Has an output for each example, and mixes them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) - x.mean((0, 2, 3))


@pytest.mark.parametrize("module", [Written(), Mixed()])
@pytest.mark.parametrize("batch", [4, "dynamic"])
def test_a_program_that_holds_its_batch_is_refused_with_a_hint(module: nn.Module, batch):
    program = trace(module, torch.from_numpy(images(1)))
    with pytest.raises(ExportError, match=f"takes a batch of 1 only, not {batch}") as refusal:
        with_batch(program, batch)
    assert "constants in forward" in refusal.value.hint


@pytest.mark.parametrize("batch", [4, "dynamic"])
def test_an_open_program_that_mixes_examples_is_refused_too(batch):
    program = open_program_of(Mixed(), torch.from_numpy(images(2)))
    assert batch_of(program) == "dynamic"
    with pytest.raises(ExportError, match=f"its examples one by one only, not {batch}"):
        with_batch(program, batch)


def test_what_is_no_number_may_be_one_nowhere_else():
    class Logarithm(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.log().flatten(1)

    program = trace(Logarithm(), torch.from_numpy(images(1)))
    found = with_batch(program, 4)
    x = torch.from_numpy(images(4))
    with torch.no_grad():
        torch.testing.assert_close(found.module()(x), x.log().flatten(1), equal_nan=True)

    class Lost(nn.Module):
        """Gives numbers for one example, and none for those behind it."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1) + (x.flatten(1).cumsum(0) / x.flatten(1) - 1).log() * 0

    with pytest.raises(ExportError, match="a batch of 1 only"):
        with_batch(trace(Lost(), torch.ones(1, 3, 4, 4)), 4)


class Looked(nn.Module):
    """Numbers of words, which only some numbers are, times one number for all."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 4)

    def forward(self, scale: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        vectors = self.table(words - 100)
        return scale * vectors.mean(1)


@pytest.mark.parametrize("batch", [4, "dynamic"])
def test_inputs_without_a_batch_and_numbers_of_words_are_kept(batch):
    torch.manual_seed(0)
    module, words = Looked().eval(), torch.arange(100, 106)[None]
    given = (torch.tensor(2.0), words)
    program = torch.export.export(module, given, strict=False)
    found = with_batch(program, batch)
    assert batch_of(found) == batch
    many = torch.cat([words, words + 1, words + 2, words + 3])
    with torch.no_grad():
        got = found.module(check_guards=False)(given[0], many)
        torch.testing.assert_close(got, module(given[0], many))


def test_numbers_of_words_that_are_mixed_are_found():
    """All examples alike, as zeros would be, show no mixing."""

    class Compared(Looked):
        def forward(self, scale: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
            first = self.table(words - 100)[:, 0]
            return scale * (first - first.mean(0))

    torch.manual_seed(0)
    given = (torch.tensor(2.0), torch.arange(100, 106)[None])
    with pytest.raises(ExportError, match="a batch of 1 only"):
        with_batch(torch.export.export(Compared().eval(), given, strict=False), 4)


def test_a_program_without_a_batch_is_left_alone_or_refused():
    class Number(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    program = torch.export.export(Number(), (torch.tensor(1.0),), strict=False)
    assert with_batch(program, 1) is program
    for batch in (4, "dynamic"):
        with pytest.raises(ExportError, match="takes no batch"):
            with_batch(program, batch)


def test_executorch_says_per_input_which_is_open(tmp_path: Path):
    class Weighted(nn.Module):
        def forward(self, picture: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return (picture * weight).mean((2, 3))

    dim = torch.export.Dim("batch", min=1, max=8)
    inputs = (torch.ones(2, 3, 4, 4), torch.full((3, 1, 1), 2.0))
    program = torch.export.export(Weighted(), inputs, strict=False, dynamic_shapes=({0: dim}, None))
    path = tmp_path / "two.pte"
    write_artifact(program, "executorch", path, None, {"model": "two"})
    io = read_artifact(path).io
    assert [spec.shape for spec in io.inputs] == [(-1, 3, 4, 4), (3, 1, 1)]
    assert [spec.shape for spec in io.outputs] == [(-1, 3)]


def test_int8_is_made_for_four_with_the_same_integers(tmp_path: Path):
    program = trace(network(), torch.from_numpy(images(1)))
    quantized = quantize(program, "onnx", images(8))
    records, outputs = [], []
    for batch in (1, 4):
        path = tmp_path / f"{batch}.onnx"
        records.append(write_artifact(quantized, "onnx", path, Export(batch=batch)))
        outputs.append(host_outputs(read_artifact(path), images(4))[0])
    assert records[0]["layout"] == records[1]["layout"]
    assert records[1]["placement"]["integer"] == records[0]["placement"]["integer"] > 0
    np.testing.assert_allclose(outputs[0], outputs[1], atol=0.02)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    workspace = Workspace.open(tmp_path / "workspace")
    yield workspace
    workspace.close()


def test_another_batch_is_another_stage(workspace: Workspace, opened, tmp_path: Path):
    path = tmp_path / "open.pt2"
    save_program(opened, path)
    words = {"model": "odd", "variant": "fp32", "dtype": "float32"}
    four = export_stage(workspace, path, "onnx", settings=Export(batch=4), **words)
    one = export_stage(workspace, path, "onnx", settings=Export(), **words)
    assert (four.io.batch, one.io.batch) == (4, 1)
    assert four.details["batch"] == 4
    assert four.recipe_key != one.recipe_key


def test_a_partitioner_is_executorch_s_alone(workspace: Workspace, opened, tmp_path: Path):
    path = tmp_path / "open.pt2"
    save_program(opened, path)
    words = {"model": "odd", "variant": "fp32", "dtype": "float32"}
    asked = (Export(), Export(partitioner="none"))
    onnx = [export_stage(workspace, path, "onnx", settings=each, **words) for each in asked]
    assert onnx[0].recipe_key == onnx[1].recipe_key
    own = [export_stage(workspace, path, "executorch", settings=each, **words) for each in asked]
    assert own[0].recipe_key != own[1].recipe_key
