"""Stages: pure functions of their inputs, cached by content, safe to kill at any moment.

A stage's key is a sha256 over its inputs' bytes, its configuration, the versions of the packages
that do the work and the source of the product itself.  Its result is a folder that gets its name
by a rename once everything in it is on disk, so a folder with that name is whole.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from profiles.canonical import canonical_json, digest, file_sha256
from profiles.errors import UsageError
from profiles.records import SUFFIX_OF, ArtifactFormat
from profiles.store import Store

Progress = Callable[[str], None]
_RESULT = "result.json"
_CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, slots=True)
class Stage:
    """What makes a stage's result what it is.

    Args:
        name: of the kind of work, part of the folder's name.
        inputs: anything with a canonical form: configuration, sha256 of input files...
        packages: distributions that do the work; their versions are in the key.
    """

    name: str
    inputs: Mapping[str, Any]
    packages: Sequence[str] = ()

    @property
    def key(self) -> str:
        """The cache key."""
        return digest(
            {
                "stage": self.name,
                "inputs": self.inputs,
                "product": _product_digest(),
                "packages": package_versions(self.packages),
            }
        )


@dataclass(frozen=True, slots=True)
class StageResult:
    """A finished stage: its key, its folder, and what it returned."""

    key: str
    folder: Path
    value: Mapping[str, Any]


@dataclass(slots=True)
class Workspace:
    """A folder that holds everything one recipe produces.

    ``artifacts/`` by sha256, ``stages/`` by key, ``checkpoints/`` of stages that are not done,
    ``store.db`` with the measurements, ``report/``.
    Opened by :meth:`open`; one process at a time may work in it.
    """

    root: Path
    store: Store
    progress: Progress
    _lock: FileLock

    @classmethod
    def open(cls, root: Path, progress: Progress = lambda text: None) -> Workspace:
        """Open or make a workspace, and clear what a killed process left half-written.

        Raises:
            UsageError: if another process works in it, or it cannot be written.
        """
        root = root.absolute()
        try:
            (root / "stages").mkdir(parents=True, exist_ok=True)
            (root / "artifacts").mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(f"{root} cannot be used as a workspace: {error.strerror}") from error
        lock = FileLock(root / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise UsageError(
                f"another process works in {root}", "wait for it, or name another workspace"
            ) from None
        for leftover in [*root.glob("stages/.partial-*"), *root.glob("artifacts/.partial-*")]:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        return cls(root, Store(root / "store.db"), progress, lock)

    def close(self) -> None:
        """Give the workspace back."""
        self.store.close()
        self._lock.release()

    def run(self, stage: Stage, work: Callable[[Path], Mapping[str, Any]]) -> StageResult:
        """The result of a stage, worked out only if it is not there yet.

        Args:
            stage: decides the key.
            work: called with an empty folder to write files into; what it returns is kept as
                JSON beside them.
        """
        key = stage.key
        folder = self.root / "stages" / f"{stage.name}-{key[:16]}"
        if not folder.exists():
            self.progress(f"{stage.name} ...")
            partial = folder.with_name(f".partial-{folder.name}")
            partial.mkdir()
            try:
                value = {"key": key, "value": work(partial)}
            except BaseException:
                shutil.rmtree(partial)  # another format may come to the same stage
                raise
            (partial / _RESULT).write_text(canonical_json(value))
            _sync(partial)
            partial.rename(folder)
            _sync_folder(folder.parent)
            for leftover in (self.root / _CHECKPOINTS).glob(f"{self.checkpoint(stage).name}*"):
                leftover.unlink()
        return StageResult(key, folder, self._read(folder))

    def checkpoint(self, stage: Stage) -> Path:
        """Where a stage may keep files, by names that begin so, until it has a result."""
        folder = self.root / _CHECKPOINTS
        folder.mkdir(exist_ok=True)
        return folder / stage.key[:16]

    def _read(self, folder: Path) -> Mapping[str, Any]:
        value: Mapping[str, Any] = json.loads((folder / _RESULT).read_text())["value"]
        return value

    def adopt(self, path: Path, format_: ArtifactFormat) -> tuple[str, Path]:
        """Copy a file into the artifact store.

        Returns:
            Its sha256 and its path there.
        """
        sha256 = file_sha256(path)
        target = self.artifact_path(sha256, format_)
        if not target.exists():
            partial = target.with_name(f".partial-{target.name}")
            shutil.copyfile(path, partial)
            _sync_file(partial)
            partial.rename(target)
            _sync_folder(target.parent)
        return sha256, target

    def artifact_path(self, sha256: str, format_: ArtifactFormat) -> Path:
        """Where an artifact's bytes are."""
        return self.root / "artifacts" / f"{sha256}{SUFFIX_OF[format_]}"


@cache
def _product_digest() -> str:
    """All source that can have a part in a stage: whatever changed, what it made is made again."""
    return digest([module_digest(room) for room in ("profiles", "devices", "pipeline")])


def module_digest(name: str) -> str:
    """The sha256 of a module's source; for a package, of all its Python files.

    Raises:
        UsageError: if there is no such module.
    """
    origin = _origin(name)
    is_package = origin.name == "__init__.py"
    return _files_digest(origin.parent, origin.parent.rglob("*.py") if is_package else [origin])


def source_digest(import_path: str) -> str:
    """What a user's ``package.module:function`` is made of.

    All source of its top package; for a module that is a file of its own, all modules and packages
    beside it too, for it may import them.

    Raises:
        UsageError: if the module cannot be found.
    """
    top = import_path.partition(":")[0].partition(".")[0]
    origin = _origin(top)
    folder = origin.parent
    if origin.name == "__init__.py" or "site-packages" in origin.parts:
        return module_digest(top)
    packages = [path.parent for path in folder.glob("*/__init__.py")]
    beside = [path for package in packages for path in package.rglob("*.py")]
    return _files_digest(folder, [*folder.glob("*.py"), *beside])


def _origin(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise UsageError(f"there is no module {name}")
    if spec.origin is None:  # a package without an __init__.py
        return Path(next(iter(spec.submodule_search_locations or ()))) / "__init__.py"
    return Path(spec.origin)


def _files_digest(root: Path, files: Iterable[Path]) -> str:
    return digest([[str(f.relative_to(root)), file_sha256(f)] for f in sorted(files)])


def package_versions(names: Sequence[str]) -> dict[str, str]:
    """The installed versions of these distributions; ``absent`` for one that is not there."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            _sync_file(path)
    _sync_folder(folder)


def _sync_file(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
