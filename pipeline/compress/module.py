"""A program as a module of standard layers, to be trained and changed, and back.

Compression that learns or changes shapes works on ``nn.Conv2d``, ``nn.Linear`` and their like,
under the names that the user's model gives them; everything between them stays the graph that was
captured.  So these methods need a ``.pt2`` alone, not the user's code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from pipeline.quiet import quiet
from profiles.errors import ModelError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_ATEN = torch.ops.aten
#: Largest batch a program of open batch size takes.
MOST = 4096


def module_of(program: ExportedProgram) -> GraphModule:
    """A program's layers as modules, with its weights; in evaluation mode.

    Args:
        program: in FP32; where its batch size is open, so is the module's.

    Returns:
        A module whose ``named_modules`` are the model's own paths (``model.layer1.0.conv1``).
        ``train()`` and ``eval()`` switch its batch norms and dropouts as they do anywhere.  Its
        weights are the program's own: what changes them changes the program.
    """
    with quiet():
        module: GraphModule = program.module(check_guards=False)
    # A captured graph refuses to change its mode; its layers will know how.
    for name in ("train", "eval"):
        module.__dict__.pop(name, None)
    nodes = list(module.graph.nodes)
    # All at once: a layer that is put where its weight was hides what else was there.
    values = {node: _held(module, node) for node in nodes if node.op == "get_attr"}
    put: dict[tuple[Any, ...], str] = {}
    for node in nodes:
        make = _LAYERS.get(node.target) if node.op == "call_function" else None
        if make is not None:
            _put(module, node, make, put, values)
    module.graph.eliminate_dead_code()
    forget_unused(module)
    module.graph.lint()
    module.recompile()
    return module.eval()


def program_of(module: nn.Module, example: torch.Tensor) -> ExportedProgram:
    """Export a changed module.

    Args:
        module: from :func:`module_of`, in whatever mode; it is left in evaluation mode.
        example: inputs of the batch size to export for.

    Raises:
        ModelError: if what was changed does not fit together.
    """
    return _exported(module, (example,), None)


def open_program_of(module: nn.Module, example: torch.Tensor) -> ExportedProgram:
    """As :func:`program_of`, for any batch size.

    Args:
        module: as there.
        example: inputs of any batch size.

    Raises:
        ModelError: if the module computes with its batch size in a way that fixes it.
    """
    # PyTorch takes a size of 1 for a constant.
    several = example if len(example) > 1 else torch.cat([example, example])
    return _exported(module, (several,), ({0: torch.export.Dim("batch", min=1, max=MOST)},))


def _exported(module: nn.Module, inputs: tuple[torch.Tensor], open_: Any) -> ExportedProgram:
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(module.eval(), inputs, strict=False, dynamic_shapes=open_)
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise ModelError(
            f"torch.export cannot capture the model: {type(error).__name__}: {reason}"
        ) from error


def _put(
    module: GraphModule,
    node: Node,
    make: Callable[..., nn.Module],
    put: dict[tuple[Any, ...], str],
    values: Mapping[Node, Any],
) -> None:
    """Call a layer that holds the parameters instead of an operator that is given them."""
    read, *rest = node.args
    held = [value for value in rest if isinstance(value, Node)]
    if any(value.op != "get_attr" for value in held) or node.kwargs:
        return  # its weights are computed: no layer could hold them
    # A layer that is called twice stays one.
    key = (node.target, str(rest)) if held else (node.name,)
    if key not in put:
        given = [values[v] if isinstance(v, Node) else v for v in rest]
        put[key] = _free(_path(node, held), set(put.values()))
        _set(module, put[key], make(*given))
    with module.graph.inserting_before(node):
        call = module.graph.call_module(put[key], (read,))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    module.graph.erase_node(node)


def _held(module: GraphModule, node: Node) -> Any:
    holder, _, name = str(node.target).rpartition(".")
    return getattr(module.get_submodule(holder), name)


def _path(node: Node, held: list[Node]) -> str:
    """Where a layer belongs: where its parameters are, or under the operator's own name."""
    if not held:
        return node.name
    holder, _, name = str(held[0].target).rpartition(".")
    own = name.removesuffix("weight").removesuffix("running_mean").rstrip("_")
    return f"{holder}.{own}" if own else holder


def _free(path: str, taken: set[str]) -> str:
    """The path, or another one where two layers share a weight."""
    while path in taken:
        path += "_again"
    return path


def _set(module: nn.Module, path: str, layer: nn.Module) -> None:
    holder, _, name = path.rpartition(".")
    setattr(module.get_submodule(holder), name, layer)


def forget_unused(module: GraphModule) -> None:
    """Drop parameters that no node reads any more: they would be counted and trained as well."""
    calls = {str(n.target) for n in module.graph.nodes if n.op == "call_module"}
    read = {str(n.target) for n in module.graph.nodes if n.op == "get_attr"}
    for path, holder in module.named_modules():
        if any(path == call or path.startswith(f"{call}.") for call in calls):
            continue
        own = [*holder._parameters, *holder._buffers]
        for name in own:
            if (f"{path}.{name}" if path else name) not in read:
                delattr(holder, name)


def _conv(
    weight: nn.Parameter,
    bias: nn.Parameter | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> nn.Module:
    make = nn.Conv1d if weight.ndim == 3 else nn.Conv2d
    dimensions = weight.ndim - 2
    layer = make(
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),  # type: ignore[arg-type]
        _each(stride, dimensions),
        padding if isinstance(padding, str) else _each(padding, dimensions),
        _each(dilation, dimensions),
        groups,
        bias is not None,
        device="meta",
    )
    layer.weight, layer.bias = weight, bias
    return layer


def _each(value: Any, dimensions: int) -> Any:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return tuple(values if len(values) == dimensions else values * dimensions)


def _linear(weight: nn.Parameter, bias: nn.Parameter | None = None) -> nn.Module:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = weight
    if bias is not None:
        layer.bias = bias
    return layer


def _batch_norm(
    weight: nn.Parameter | None,
    bias: nn.Parameter | None,
    mean: torch.Tensor,
    variance: torch.Tensor,
    training: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> nn.Module:
    layer = _BatchNorm(len(mean), eps, momentum, affine=weight is not None)
    if weight is not None and bias is not None:
        layer.weight, layer.bias = weight, bias
    layer.running_mean, layer.running_var = mean, variance
    return layer.train(training)


class _BatchNorm(nn.BatchNorm2d):
    """Over inputs of any number of dimensions; a 2d one to all that look for batch norms."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        pass


def _layer_norm(
    shape: list[int],
    weight: nn.Parameter | None = None,
    bias: nn.Parameter | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> nn.Module:
    layer = nn.LayerNorm(shape, eps, weight is not None, bias is not None)
    if weight is not None:
        layer.weight = weight
    if bias is not None:
        layer.bias = bias
    return layer


def _dropout(share: float, *_: Any) -> nn.Module:
    return nn.Dropout(share)


#: Operators that hold parameters, or do something else in training, and the layers for them.
_LAYERS: dict[Any, Callable[..., nn.Module]] = {
    _ATEN.conv1d.default: _conv,
    _ATEN.conv1d.padding: _conv,
    _ATEN.conv2d.default: _conv,
    _ATEN.conv2d.padding: _conv,
    _ATEN.linear.default: _linear,
    _ATEN.batch_norm.default: _batch_norm,
    _ATEN.layer_norm.default: _layer_norm,
    _ATEN.dropout.default: _dropout,
    _ATEN.dropout_.default: _dropout,
}
