"""Every block of the pages in ``docs/`` that can be run is run, page by page, in its order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.projects import device_lab, environment, make_project, scripted_device

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.glob("*.md"))
BLOCK = re.compile(r"```(sh|python)\n(.*?)```", flags=re.DOTALL)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted: ``recipe.yaml``, and ``work``, where it ran on ``pi5``."""
    root = tmp_path_factory.mktemp("docs")
    made = make_project(root, variants=["fp32", "int8"], formats=["onnx"], devices=["pi5"])
    made.write_inventory(scripted_device(root / "device", id="pi5"))
    done = device_lab("run", made.recipe, "--workspace", root / "work", cwd=root)
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_a_page_works(page: Path, project: Path):
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = environment(PATH=programs, HOME=str(project), XDG_CONFIG_HOME="")
    blocks = BLOCK.findall(page.read_text())
    assert blocks
    for language, text in blocks:
        words = ["sh", "-euc", text] if language == "sh" else [sys.executable, "-c", text]
        done = subprocess.run(
            words, cwd=project, env=settings, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
