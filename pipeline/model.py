"""The model stage: whatever the user has becomes one exported program with its reference outputs.

From here on everything works on ``torch.export`` programs (``.pt2`` files): compression turns one
into another, export lowers one to a runtime's format.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data import DataHandle, Images
from pipeline.importing import load_object
from pipeline.programs import load_program, save_program
from pipeline.stage import Stage, StageResult, Workspace, source_digest
from profiles.canonical import file_sha256
from profiles.errors import ModelError
from profiles.recipe import ModelSource, Recipe, Weights

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.export import ExportedProgram

PROGRAM = "model.pt2"
TRAINABLE = "trainable.pt2"
REFERENCE = "reference.npy"
INPUT_NAME = "input"


def model_stage(workspace: Workspace, recipe: Recipe, data: DataHandle) -> StageResult:
    """Build (and train) the recipe's model, export it, and keep its outputs on the test split.

    Returns:
        A folder with ``model.pt2``, for one example at a time, ``trainable.pt2``, the same for any
        batch size, where the model takes more than one, and ``reference.npy`` (logits, shape
        ``(n, classes)``); the value holds ``accuracy`` and ``parameters``.

    Raises:
        ModelError: if the model cannot be built or loaded, or is no classifier.
        DataError: if it does not take the data.
    """
    source = recipe.model
    inputs = {
        "source": source.model_dump(mode="json", exclude={"program": True, "weights": {"file"}}),
        "code": source_digest(source.factory) if source.factory else None,
        "weights": file_sha256(source.weights.file) if source.weights else None,
        "program": file_sha256(source.program) if source.program else None,
        "data": data.key,
    }
    stage = Stage("model", inputs, ("torch", "numpy", "timm"))

    def work(folder: Path) -> dict[str, Any]:
        import torch

        from pipeline.training import demand_classes, train_classifier

        test = data.arrays.test
        example = torch.from_numpy(test.x[:1])
        if source.program:
            program, trainable = _given(load_program(source.program), example)
        else:
            torch.manual_seed(source.train.seed if source.train else 0)
            module = _build(source)
            if source.train:
                train_classifier(
                    module, data.arrays.train, source.train, workspace.progress, "model"
                )
            program, trainable = trace(module, example), _open(_named(module), example)
        save_program(program, folder / PROGRAM)
        if trainable is not None:
            save_program(trainable, folder / TRAINABLE)
        reference = reference_outputs(program, test.x)
        demand_classes(reference, test.y, "the model")
        np.save(folder / REFERENCE, reference, allow_pickle=False)
        return {
            "accuracy": float(np.mean(reference.argmax(1) == test.y)),
            "parameters": sum(p.numel() for p in program.parameters()),
        }

    return workspace.run(stage, work)


def _given(
    program: ExportedProgram, example: torch.Tensor
) -> tuple[ExportedProgram, ExportedProgram | None]:
    """A user's program for one example, and for any number of them where it takes them."""
    from pipeline.compress.module import module_of, program_of

    module: Any = module_of(program)
    module._forward_pre_hooks.clear()  # of what was exported for one example: it is seen below
    fixed = program if not program.range_constraints else program_of(module, example)
    opened = _open(module, example)
    return fixed, opened if opened is not None and _computes_rows(opened, fixed, example) else None


def _computes_rows(opened: ExportedProgram, fixed: ExportedProgram, example: torch.Tensor) -> bool:
    """Whether two examples at once give what each gives alone.

    A size of 1 that was written into the program may make one large example of two.
    """
    import torch

    pair = torch.cat([example, example.flip(-1)])
    rows = torch.from_numpy(reference_outputs(fixed, pair.numpy()))
    try:
        with torch.no_grad():
            both = opened.module(check_guards=False)(pair)
    except RuntimeError:
        return False
    return both.shape == rows.shape and torch.allclose(both, rows, rtol=1e-3, atol=1e-4)


def _open(module: nn.Module, example: torch.Tensor) -> ExportedProgram | None:
    from pipeline.compress.module import open_program_of

    try:
        return open_program_of(module, example)
    except ModelError:
        return None  # it computes with a batch size of its own; it can be quantized all the same


def reference_outputs(program: ExportedProgram, x: Images) -> Images:
    """The program's own logits, one example at a time as it was exported.

    Raises:
        DataError: if it does not take such inputs.
        ModelError: if its output is not one row of class scores per example.
    """
    from pipeline.training import logits_of, torch_threads

    # One example at a time leaves little to share, and threads that wait for each other on a busy
    # machine are many times slower; the sums do not depend on the number of cores, either.
    with torch_threads(1):
        outputs = logits_of(program.module(), x, batch=1)
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise ModelError(
            f"the model's output has shape {outputs.shape[1:]} for one input, expected one score"
            " for each class"
        )
    return outputs


def trace(module: nn.Module, example: torch.Tensor) -> ExportedProgram:
    """Export a module in evaluation mode for inputs like ``example``, batch size included.

    Raises:
        ModelError: if ``torch.export`` cannot capture it, with the reason.
    """
    from pipeline.quiet import quiet

    try:
        with quiet():
            return trace_graph(_named(module).eval(), example)
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise ModelError(
            f"torch.export cannot capture the model: {type(error).__name__}: {reason}"
        ) from error


def trace_graph(module: nn.Module, example: torch.Tensor) -> ExportedProgram:
    """Export a module that came out of an exported program; raises what ``torch.export`` raises."""
    import torch

    with torch.no_grad():
        return torch.export.export(module, (example,), strict=False)


def _named(module: nn.Module) -> nn.Module:
    """Put the module under a name.

    The parameters of a bare ``nn.Sequential`` are called ``0.weight`` and so on, which XNNPACK's
    batch-norm fusion cannot look up (executorch 1.4).
    """
    from torch import nn

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, input: Any) -> Any:
            return self.model(input)

    return Model()


def _build(source: ModelSource) -> nn.Module:
    from torch import nn

    if source.timm:
        from pipeline.timm_models import create

        module = create(source.timm, source.arguments)
    else:
        factory = load_object(source.factory or "")
        try:
            module = factory(**source.arguments)
        except Exception as error:
            raise ModelError(f"{source.factory} failed: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{source.factory} returned a {type(module).__name__}, not a torch module")
    if source.weights:
        _load_weights(module, source.weights)
    return module.eval()


def _load_weights(module: nn.Module, weights: Weights) -> None:
    state = read_state_dict(weights)
    try:
        result = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        mismatch = str(error).strip().splitlines()[-1].strip()
        raise ModelError(f"{weights.file} does not fit the model: {mismatch}") from error
    if result.missing_keys or result.unexpected_keys:
        details = [
            f"{len(names)} {what} (first: {names[0]})"
            for what, names in (
                ("missing", result.missing_keys),
                ("not in the model", result.unexpected_keys),
            )
            if names
        ]
        raise ModelError(f"{weights.file} does not fit the model: {', '.join(details)}")


def read_state_dict(weights: Weights) -> dict[str, torch.Tensor]:
    """The tensors in a weights file, by the model's own names.

    Raises:
        ModelError: if the file is not safetensors or a pickle of plain tensors, or has no such
            ``key``.
    """
    import torch

    path = weights.file
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(
            f"{path} holds more than plain tensors, or is damaged: refused"
            f" ({type(error).__name__})",
            "save model.state_dict() with safetensors",
        ) from error
    if weights.key is not None:
        if not isinstance(content, dict) or weights.key not in content:
            raise ModelError(f"{path} has no entry {weights.key!r}")
        content = content[weights.key]
    if not isinstance(content, dict) or not all(
        isinstance(value, torch.Tensor) for value in content.values()
    ):
        keys = ", ".join(list(content)[:5]) if isinstance(content, dict) else "none"
        raise ModelError(f"{path} is no state dict; its entries: {keys}", "set weights.key")
    return {name.removeprefix(weights.strip_prefix): value for name, value in content.items()}
