"""Bundles of a real run: real artifacts of all three runtimes, loaded in Python and in C++."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.agent.native import runtime_libraries
from pipeline.bundle.archive import zipped
from pipeline.bundle.choosing import Wish
from pipeline.bundle.loaders import edgeloop_bundle as loader
from pipeline.bundle.loading import load_bundle
from pipeline.bundle.making import make_bundle, oldest_version
from pipeline.bundle.manifest import SCHEMA, Manifest, schema
from pipeline.bundle.signing import SigningKey
from profiles.errors import StoreError, UsageError
from profiles.records import RUNTIME_OF
from tests.pipeline.bundles import (
    FILES,
    a_key,
    archive,
    broken,
    manifest_of,
    plain_zip,
    signed,
    small_bundle,
)
from tests.projects import DEVICE_LAB, device_lab, environment, make_project, stripes

LOADERS = Path(loader.__file__).parent
APP = Path(__file__).parent / "pipeline/bundle_app"
DATA = {"npz": {"train": "train.npz", "test": "test.npz"}, "mean": [0.5], "std": [0.25]}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on images in bytes, channels last."""
    root = tmp_path_factory.mktemp("project")
    project = make_project(root, variants=["fp32"], data=DATA)
    for name, count, seed in (("train", 48, 0), ("test", 12, 1)):
        x, y = stripes(count, seed)
        pixels = np.clip(128 + 64 * x, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
        np.savez(root / f"{name}.npz", x=pixels, y=y)
    done = device_lab("run", project.recipe, "--workspace", root / "work")
    assert done.returncode == 0, done.stderr
    return root / "work"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    with pytest.MonkeyPatch.context() as patch:
        return a_key(tmp_path_factory.mktemp("config"), patch)


@pytest.fixture(scope="module")
def path(workspace: Path, key: SigningKey) -> Path:
    found = workspace.parent / "app.zip"
    make_bundle(workspace, found, Wish(), key)
    return found


@pytest.fixture
def bundle(path: Path, key: SigningKey) -> tuple[loader.Bundle, Manifest]:
    return load_bundle(path, [key.public_key])


def test_a_bundle_says_what_was_measured_and_what_is_unknown(bundle: Any):
    _, manifest = bundle
    board, anyone = manifest.devices
    assert board.names[1] == "board" and board.names[0].startswith("linux-")
    assert anyone.names == ("*",)
    assert {a.format for a in manifest.artifacts} == {"onnx", "tflite", "executorch"}
    latencies = [choice.evidence.latency_ns for choice in board.choices]
    assert [each.value for each in latencies] == sorted(each.value for each in latencies)
    assert all(each.ci95[0] < each.value < each.ci95[1] and each.n == 30 for each in latencies)
    assert all(choice.evidence.emulated and choice.threads == 1 for choice in board.choices)
    assert all(choice.evidence.energy_uj is None for choice in board.choices)
    assert all(choice.evidence is choice.threads is None for choice in anyone.choices)
    for artifact in manifest.artifacts:
        assert artifact.labels is None  # the files do not tell
        assert artifact.preprocessing.model_dump() == {
            "raw_dtype": "uint8", "raw_layout": "nhwc", "divide_by": 255.0,
            "mean": (0.5,), "std": (0.25,),
        }  # fmt: skip
        (spec,) = artifact.inputs
        assert (spec.shape, spec.dtype, spec.layout) == ((1, 1, 16, 16), "float32", "nchw")
        assert artifact.outputs[0].layout is None
        assert artifact.runtime.name == RUNTIME_OF[artifact.format]
        assert artifact.parity.n == 12
        assert len(artifact.vectors) == 2


@pytest.mark.parametrize(
    ("versions", "oldest"),
    [
        (("1.31.1", "1.9.0", "1.10.2"), "1.9.0"),
        (("ai_edge_litert 2.3.0",), "2.3.0"),
        (("tflite_runtime 2.14.0", "libLiteRt 0123456789012345", "unknown"), None),
        ((), None),
    ],
)
def test_the_oldest_version_is_of_those_that_count_alike(versions: Any, oldest: str | None):
    assert oldest_version(versions) == oldest


def test_golden_vectors_are_an_image_before_and_after_and_what_came_out(bundle: Any):
    loaded, manifest = bundle
    for artifact in manifest.model_dump()["artifacts"]:
        how = artifact["preprocessing"]
        for vector in artifact["vectors"]:
            raw, given, expected = (
                loaded.array(vector[side]) for side in ("raw", "input", "output")
            )
            image = raw.transpose(0, 3, 1, 2).astype("f4") / how["divide_by"]
            image = (image - np.float32(how["mean"][0])) / np.float32(how["std"][0])
            np.testing.assert_allclose(image, given, rtol=1e-6)
            assert expected.shape == (1, 3)


@pytest.mark.parametrize("runtime", sorted(RUNTIME_OF.values()))
def test_the_python_loader_gives_the_reference_outputs(path: Path, key: SigningKey, runtime: str):
    """In a process of its own, with nothing but the one file that an app takes with it."""
    script = (
        "import sys; from edgeloop_bundle import Bundle, Model, check;"
        "path, key, runtime = sys.argv[1:]; bundle = Bundle.open(path, [key]);"
        "choice = bundle.choose(['board'], {runtime: None});"
        "error = check(bundle, choice, Model(bundle, choice));"
        "assert not any(n in sys.modules for n in ('pipeline', 'profiles')); print(error)"
    )
    words = [sys.executable, "-P", "-c", script, str(path), key.public_key, runtime]
    done = subprocess.run(
        words,
        env=environment(PYTHONPATH=str(LOADERS)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) < 1e-5


def test_outputs_that_are_off_are_refused(bundle: Any):
    loaded, _ = bundle
    choice = loaded.choose(["board"], {"onnxruntime": None})
    with pytest.raises(loader.BundleError, match="outputs are off by"):
        loader.check(loaded, choice, lambda x: [np.zeros((1, 3), "f4")])  # type: ignore[arg-type]


def test_another_number_of_inputs_than_the_model_takes_is_refused(bundle: Any):
    loaded, _ = bundle
    choice = loaded.choose(["board"], {"onnxruntime": None})
    with pytest.raises(loader.BundleError, match="takes 1 inputs, not 0"):
        loader.Model(loaded, choice)()


def test_the_schema_is_published_and_holds(bundle: Any):
    import jsonschema

    published = json.loads(SCHEMA.read_text())
    assert published == schema(), "python -m pipeline.bundle.manifest"
    jsonschema.validate(bundle[0].manifest, published)


def test_a_bundle_is_the_same_bit_by_bit_wherever_and_whenever_it_is_made(
    workspace: Path, tmp_path: Path
):
    """Elsewhere in the file system, with other settings of the process, an hour later."""
    config = tmp_path / "config"
    (tmp_path / "other").mkdir()
    moved = shutil.copytree(workspace, tmp_path / "other/workspace")
    for file in moved.rglob("*"):
        os.utime(file, (1, 1))
    made = []
    for number, (folder, root, more) in enumerate([
        (tmp_path, workspace, {"PYTHONHASHSEED": "1", "TZ": "UTC"}),
        (tmp_path / "other", moved, {"PYTHONHASHSEED": "2", "TZ": "Asia/Tokyo", "LANG": "C"}),
    ]):  # fmt: skip
        output = tmp_path / f"{number}.zip"
        subprocess.run(
            [DEVICE_LAB, "bundle", "make", "--workspace", str(root), "--output", str(output)],
            cwd=folder,
            env=environment(XDG_CONFIG_HOME=str(config), **more),
            umask=0o077 if number else 0o022,
            check=True,
            capture_output=True,
        )
        made.append(output.read_bytes())
    assert made[0] == made[1]
    for word in (str(workspace), str(workspace.parent), os.uname().nodename):
        assert word.encode() not in made[0]


def test_a_workspace_of_an_earlier_version_gives_a_bundle_in_which_less_is_known(
    workspace: Path, key: SigningKey, tmp_path: Path
):
    old = shutil.copytree(workspace, tmp_path / "old")
    summary = json.loads((old / "run.json").read_text())
    del summary["facts"]
    (old / "run.json").write_text(json.dumps(summary))
    manifest = make_bundle(old, tmp_path / "old.zip", Wish(), key)
    assert manifest.devices[0].names == ("board",)
    for artifact in manifest.artifacts:
        assert (artifact.preprocessing, artifact.labels, artifact.vectors) == (None, None, ())
    load_bundle(tmp_path / "old.zip", [key.public_key])


def test_a_damaged_or_absent_artifact_makes_no_bundle(
    workspace: Path, key: SigningKey, tmp_path: Path
):
    broken_one = shutil.copytree(workspace, tmp_path / "broken")
    victim = next((broken_one / "artifacts").glob("*.onnx"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"!")
    with pytest.raises(StoreError, match="is damaged"):
        make_bundle(broken_one, tmp_path / "app.zip", Wish(), key)
    victim.unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        make_bundle(broken_one, tmp_path / "app.zip", Wish(), key)
    with pytest.raises(UsageError, match="is no workspace"):
        make_bundle(tmp_path / "none", tmp_path / "app.zip", Wish(), key)
    with pytest.raises(UsageError, match="cannot be written"):
        make_bundle(workspace, tmp_path / "none/app.zip", Wish(), key)
    with pytest.raises(UsageError, match="is a folder"):
        make_bundle(workspace, tmp_path, Wish(), key)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.bundle.making.MAX_BYTES", 1000)
        with pytest.raises(UsageError, match="too much for a bundle"):
            make_bundle(workspace, tmp_path / "app.zip", Wish(), key)
    assert [each.name for each in tmp_path.iterdir()] == ["broken"]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An app in C++ with the loader, every access to memory checked."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler on this machine")
    for header, package in (("openssl/evp.h", "libssl-dev"), ("nlohmann/json.hpp",) * 2):
        if not any(
            (Path(root) / header).exists() for root in ("/usr/include", "/usr/local/include")
        ):
            pytest.skip(f"no {package}: the C++ loader cannot be built")
    program = tmp_path_factory.mktemp("app") / "app"
    sources = [*APP.glob("*.cpp"), *LOADERS.glob("*.cpp")]
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{LOADERS}", "-O0"]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    words = [compiler, *flags, *map(str, sources), "-o", str(program), "-lcrypto", "-ldl"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


def said(app: Path, *words: str | Path) -> str:
    # What the runtimes' libraries keep to their end is theirs.
    done = subprocess.run(
        [app, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "ORT_DISABLE_TELEMETRY": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("runtime", ["onnxruntime", "litert"])
def test_the_cpp_loader_gives_the_reference_outputs(
    app: Path, path: Path, key: SigningKey, runtime: str
):
    library = runtime_libraries()[runtime]
    found = json.loads(said(app, "run", key.public_key, path, "Board", f"{runtime}={library}"))
    assert (found["runtime"], found["variant"], found["threads"]) == (runtime, "fp32", 1)
    assert len(found["output_errors"]) == 2
    assert max(found["output_errors"]) < 1e-5
    assert max(found["input_errors"]) < 1e-6


def test_a_thousand_broken_bundles_are_refused_by_both_loaders(
    app: Path, path: Path, key: SigningKey, tmp_path: Path
):
    whole = path.read_bytes()
    files = [path]
    for number, content in enumerate(broken(whole, 900)):
        files.append(tmp_path / f"real-{number}")
        files[-1].write_bytes(content)
    for number, content in enumerate(broken(small_bundle(key), 100)):
        files.append(tmp_path / f"small-{number}")
        files[-1].write_bytes(content)
    lines = said(app, "verify", key.public_key, *files).splitlines()
    assert lines[0] == "whole"
    assert len(lines) == 1001
    assert {line.partition(":")[0] for line in lines[1:]} == {"refused"}
    for file in files[1:]:
        with pytest.raises(loader.BundleError):
            loader.Bundle.open(file, [key.public_key])


def test_the_cpp_loader_refuses_what_the_python_loader_refuses(
    app: Path, key: SigningKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What is wrong though it is signed, or though it is a zip."""
    entries = signed(key)
    expired = manifest_of(signer={"not_after": "2020-01-01T00:00:00Z"})
    cases = {
        "signed by a key": small_bundle(a_key(tmp_path / "other", monkeypatch)),
        "has expired": zipped(signed(key, manifest=expired)),
        "extra is not in its manifest": zipped({**entries, "extra": b""}),
        "its sha256 differs": zipped({**entries, "vectors/v.bin": b"\1" * 8}),
        "another size": zipped({**entries, "vectors/v.bin": b""}),
        "name is none": archive(sorted(signed(key, {**FILES, "../evil": b""}).items())),
        "twice or out of order": archive(sorted(entries.items())[::-1]),
        "bytes between": archive(sorted(entries.items()), gap=b"hidden"),
        "or its end": archive(sorted(entries.items()), tail=bytes(100)),
        "the checksum of": archive(sorted(entries.items()), checksum=lambda part: 5),
        "too many entries": zipped(signed(key, {f"f{n}": b"" for n in range(1001)})),
        "is not a bundle's": plain_zip(entries, 8),
        "this loader reads": zipped(signed(key, manifest=manifest_of(format="other"))),
        "its manifest is none": zipped(signed(key, manifest=manifest_of(files=5))),
        "no manifest.sig": zipped({n: c for n, c in entries.items() if n != loader.SIGNATURE}),
        "size is no bundle's": b"PK",
    }
    for number, content in enumerate(cases.values()):
        (tmp_path / str(number)).write_bytes(content)
        with pytest.raises(loader.BundleError):
            loader.Bundle.verified(content, [key.public_key])
    files = [tmp_path / str(number) for number in range(len(cases))]
    lines = said(app, "verify", key.public_key, *files, tmp_path / "absent").splitlines()
    for reason, line in zip((*cases, "cannot be read"), lines, strict=True):
        assert line.startswith("refused: ") and reason in line, (reason, line)
    (line,) = said(app, "verify", "short", files[0]).splitlines()
    assert "is no public key" in line


@pytest.mark.parametrize("name", ["EdgeloopBundle.kt", "EdgeloopBundle.swift"])
def test_what_was_never_compiled_says_so_and_keeps_the_contract_s_constants(name: str):
    text = (LOADERS / name).read_text()
    assert "NOT COMPILED, NOT RUN" in text[:600]
    for constant in (loader.FORMAT, loader.MANIFEST, loader.SIGNATURE):
        assert f'"{constant}"' in text
    numbers = {int(n) for n in re.findall(r"(?:ALIGNMENT|alignment) = (\d+)", text)}
    assert numbers == {loader.ALIGNMENT}
