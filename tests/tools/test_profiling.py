"""How a profile reads in a terminal, and what the command says when something is amiss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer

from pipeline.model import trace
from pipeline.profile.record import read_profiles
from pipeline.programs import save_program
from profiles.findings import Figure
from tests.pipeline.networks import image
from tests.pipeline.test_profile_blocks import PROFILE, figure
from tests.projects import device_lab, local_device
from tools.device_lab.profiling import _finish, print_profile

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning:torch",
    "ignore::FutureWarning:copyreg",
    "ignore::DeprecationWarning:torch",
)


def printed(capsys: pytest.CaptureFixture[str], profile) -> str:
    print_profile(profile)
    return capsys.readouterr().out


def words(text: str) -> list[str]:
    """Lines with one space between words."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_a_profile_shows_blocks_shares_and_the_gap(capsys):
    text = printed(capsys, PROFILE)
    (row,) = [line for line in text.splitlines() if line.strip().startswith("a x2")]
    assert row.split() == ["a", "x2", "Block", "0.200", "0.190-0.210", "80.0", "%", "######"]
    assert "sum 0.498 ms (0.490-0.500) 3 blocks less 2 calls" in words(text)
    assert "whole 0.400 ms (0.390-0.410) the network, in turns with its blocks" in words(text)
    assert "gap +0.0980 ms +24.5 %, 95 %: +20.0 to +30.0" in words(text)
    assert "nothing is fused over a border" in text
    assert "Conv" in text and "16.7 %" in text  # the operator's share of all operators
    assert "slower than one that is not" in text


def test_what_is_not_known_says_so(capsys):
    lost = replace(PROFILE.blocks[0], latency_ns=None, share=None, status="failed", reason="why")
    profile = replace(
        PROFILE, blocks=(lost, PROFILE.blocks[1]), sum_ns=None, ratio=None, operators=None
    )
    text = printed(capsys, profile)
    (row,) = [line for line in text.splitlines() if line.strip().startswith("a x2")]
    assert row.split() == ["a", "x2", "Block", "unknown", "-", "-", "failed"]
    assert "gap" not in text
    assert "sum unknown 3 blocks less 2 calls" in words(text)
    with pytest.raises(typer.Exit) as ending:
        _finish(replace(profile, unknown={"whole": "failed: why"}))
    assert ending.value.exit_code == 1
    assert capsys.readouterr().err == "failed: a, whole: failed: why\n"
    _finish(PROFILE)


def test_names_of_any_length_fit_into_80_columns(capsys):
    long = replace(
        PROFILE.blocks[0],
        names=tuple(f"features.{'x' * 60}.{n}" for n in range(12)),
        kind="K" * 60,
        latency_ns=figure(123_456.0, 123_000.0, 124_000.0),
        share=1.0,
    )
    slow = replace(long, latency_ns=Figure(9.87654e9, (9.1e9, 9.9e9), 1, 3))
    operator = replace(PROFILE.operators.operators[0], name="n" * 90, type="T" * 50, block="b" * 70)
    operators = replace(PROFILE.operators, operators=(operator,) * 30)
    text = printed(
        capsys, replace(PROFILE, blocks=(long, slow), operators=operators, remarks=("w " * 90,))
    )
    assert max(map(len, text.splitlines())) <= 80
    assert "x.0 x12" in text  # the end of the name, and how many there are
    assert text.count("~nnn") == 12


@pytest.fixture
def project(tmp_path: Path) -> Path:
    import yaml

    device = local_device(tmp_path / "device")
    (tmp_path / "devices.yaml").write_text(yaml.safe_dump({"devices": [device]}))
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 4, 3), torch.nn.Conv2d(4, 4, 3), torch.nn.Conv2d(4, 1, 3)]
    module = torch.nn.Sequential(*layers).eval()
    save_program(trace(module, torch.from_numpy(image(1))), tmp_path / "model.pt2")
    return tmp_path


def test_the_command_profiles_a_real_network_on_this_machine(project):
    done = device_lab(
        *("profile", "model.pt2", "-d", "board", "--operators", "--runs", "3"),
        *("--iterations", "20", "--json"),
        cwd=project,
    )
    # A busy machine's data is refused, and says so; what is measured and what not is the same.
    (found,) = read_profiles(project / "workspace")
    assert [block.names for block in found.blocks] == [("0",), ("1",), ("2",)]
    assert (done.returncode == 0) == (found.lacking() == {}), done.stderr
    assert found.operators is not None, done.stderr
    assert {operator.block for operator in found.operators.operators} >= {"0", "1", "2"}
    assert "refused" in done.stderr or found.sum_ns is not None


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("nothing.pt2", "-d", "board"), "there is no file nothing.pt2"),
        (("model.pt2", "-d", "other"), "other"),
        (("model.pt2", "-d", "board", "--data", "devices.yaml"), "is not an .npz"),
    ],
)
def test_mistakes_are_one_line(project, arguments, what):
    done = device_lab("profile", *arguments, cwd=project)
    assert done.returncode == 2
    assert what in done.stderr.splitlines()[-1]
