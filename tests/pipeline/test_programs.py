"""Programs as files: what is read back, and the code in a file that must never run."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import sympy
import torch
from torch import nn
from torch.utils._sympy import functions

from pipeline.model import trace
from pipeline.programs import _is_arithmetic, load_program, save_program
from profiles.errors import ModelError
from tests.pipeline.archives import ATTACKS, planted, save_open

pytestmark = pytest.mark.filterwarnings(
    # PyTorch's own tree utilities and graph module, while it exports.
    "ignore::FutureWarning:torch",
    "ignore::DeprecationWarning:torch",
)


IMAGE = torch.zeros(1, 1, 16, 16)
#: Where PyTorch looks itself, finds nothing to run, or cannot make sense of what is planted.
CAREFUL = {"custom object", "argument name", "keyword", "parameter name", "function"}
CAREFUL |= {"compiled code"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    layers = (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    save_program(trace(nn.Sequential(*layers, nn.Identity(), nn.Linear(4, 3)), IMAGE), path)
    return path.read_bytes()


@pytest.fixture
def program_file(folder: Path, written: bytes) -> Path:
    path = folder / "model.pt2"
    path.write_bytes(written)
    return path


def test_the_same_program_has_the_same_bytes(folder: Path, program_file: Path):
    (folder / "again").mkdir()
    save_program(load_program(program_file), folder / "again" / "model.pt2")
    assert (folder / "again" / "model.pt2").read_bytes() == program_file.read_bytes()


@pytest.mark.parametrize("attack", sorted(ATTACKS.keys() - {"guard"}))
def test_a_program_with_code_is_refused_and_the_code_does_not_run(
    folder: Path, program_file: Path, attack: str
):
    marker = folder / "marker"
    ATTACKS[attack](program_file, marker)
    with pytest.raises(ModelError, match=r"refused|is not a torch.export program") as refusal:
        load_program(program_file).module()(IMAGE)
    assert "\n" not in str(refusal.value)
    assert not marker.exists()


def test_guards_are_dropped_and_do_not_run(folder: Path, program_file: Path):
    ATTACKS["guard"](program_file, folder / "marker")
    assert load_program(program_file).module()(IMAGE).shape == (1, 3)
    assert not (folder / "marker").exists()


@pytest.mark.parametrize("attack", sorted(ATTACKS.keys() - CAREFUL))
def test_pytorch_itself_would_run_that_code(folder: Path, program_file: Path, attack: str):
    """What the refusals are good for; where this fails, PyTorch has become careful itself."""
    marker = folder / "marker"
    ATTACKS[attack](program_file, marker)
    with pytest.raises(Exception):  # noqa: B017 - whatever comes after the code ran
        torch.export.load(program_file).module()(IMAGE)
        raise RuntimeError
    assert marker.exists()


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04" + b"\0" * 100])
def test_a_file_that_is_no_program_is_refused(folder: Path, content: bytes):
    (folder / "model.pt2").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.pt2 is not a torch.export program"):
        load_program(folder / "model.pt2")


def test_a_program_cut_short_is_refused(program_file: Path):
    program_file.write_bytes(program_file.read_bytes()[:-500])
    with pytest.raises(ModelError, match=r"model\.pt2"):
        load_program(program_file)


def test_a_program_with_an_open_batch_takes_any(folder: Path):
    save_open(folder / "open.pt2")
    program = load_program(folder / "open.pt2")
    x = torch.rand(5, 3, 4, 4)
    found = program.module(check_guards=False)(x)
    torch.testing.assert_close(found, x.mean((2, 3)))
    assert len(program.module(check_guards=False)(torch.rand(1, 3, 4, 4))) == 1
    (folder / "again").mkdir()
    save_program(program, folder / "again" / "open.pt2")
    assert (folder / "again" / "open.pt2").read_bytes() == (folder / "open.pt2").read_bytes()


class Sizes(nn.Module):
    """Computes with its batch size in all the ways networks do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, c = x.shape[0], x.shape[1]
        windows = x.reshape(b, c, 2, 2, 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, 2, 2)
        pooled = windows.mean((2, 3)).view(b, -1, c).flatten(0, 1)
        return pooled.sum(0, keepdim=True).expand(2 * b - 1, c) / b


def test_arithmetic_of_the_batch_size_comes_back(folder: Path):
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        Sizes(), (torch.rand(2, 3, 4, 4),), dynamic_shapes=({0: batch},), strict=False
    )
    save_program(program, folder / "sizes.pt2")
    with zipfile.ZipFile(folder / "sizes.pt2") as archive:
        text = next(archive.read(n) for n in archive.namelist() if n.endswith("model.json"))
    assert all(f"{name}(".encode() in text for name in ("Add", "Mul", "Symbol"))
    x = torch.rand(6, 3, 4, 4)
    found = load_program(folder / "sizes.pt2").module(check_guards=False)(x)
    torch.testing.assert_close(found, Sizes()(x))


@pytest.mark.parametrize(
    "write",
    [
        lambda s: functions.FloorDiv(4 * s + 1, sympy.Integer(5)),
        lambda s: functions.Mod(s, sympy.Integer(3)),
        lambda s: functions.Max(s, sympy.Integer(3)) - functions.Min(s, sympy.Integer(7)),
        lambda s: functions.IntTrueDiv(s, sympy.Integer(2)),
        lambda s: s**2 - s / 3,
        lambda s: sympy.And(sympy.Not(sympy.Eq(s, 3)), s < 9, s >= 2),
        lambda s: sympy.Integer(-(2**62)) * sympy.Symbol("u3", integer=True),
    ],
)
def test_arithmetic_as_pytorch_prints_it_is_let_through(write):
    assert _is_arithmetic(sympy.srepr(write(sympy.Symbol("s77", positive=True, integer=True))))


@pytest.mark.parametrize(
    "expression",
    [
        "print(1)",
        "s1.__class__",
        "Symbol('s1').free_symbols",
        "Symbol('print')",
        "Symbol('s1', positive=print(1))",
        "Symbol('s1', **{'integer': True})",
        "Symbol('s1', cls=True)",
        "Symbol(name='s1')",
        "Integer(print(1))",
        "Integer('7')",
        "Add(Integer(1), *[print(1)])",
        "[s1 for s1 in (1,)]",
        "(lambda: 1)()",
        "Max(s1, eval('1'))",
        "evalf",
        "Lambda(s1, s1)",
        "Pow(Integer(9), Integer(999999999))",
        "Pow(Pow(Integer(9), Integer(8)), Integer(8))",
        "Integer(1e300)",
        "True",
        "s1 if s1 else s1",
        "s1; s1",
        "",
        "Add(" * 400 + "s1" + ")" * 400,
        f"Integer({2**63})",
        "Add(Integer(1), Integer(1))" * 100,
    ],
)
def test_what_is_no_plain_arithmetic_of_sizes_is_refused(folder: Path, expression: str):
    path = folder / "open.pt2"
    save_open(path)

    def change(program: dict) -> None:
        (size,) = program["graph_module"]["graph"]["sym_int_values"].values()
        size["as_expr"]["expr_str"] = expression

    planted(change)(path)
    with pytest.raises(ModelError, match="which may be code: refused") as refusal:
        load_program(path)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300


def test_a_string_that_ends_a_quotation_is_refused(program_file: Path):
    def change(program: dict) -> None:
        node = program["graph_module"]["graph"]["nodes"][0]
        node["inputs"].append({"name": "a", "arg": {"as_string": "' + 1 + '"}, "kind": 1})

    planted(change)(program_file)
    with pytest.raises(ModelError, match=r"the as_string .* may be code: refused"):
        load_program(program_file)


def test_what_was_looked_at_is_what_is_loaded(program_file: Path, monkeypatch):
    """A file that another process replaces in between, or that two readers see differently."""
    load = torch.export.load

    def replaced(archive, **kwargs):
        ATTACKS["guard"](program_file, program_file.with_name("marker"))
        return load(archive, **kwargs)

    monkeypatch.setattr(torch.export, "load", replaced)
    assert load_program(program_file)._guards_code == []
