"""A network cut into blocks: programs of their own that, one after the other, compute the same.

Blocks hand float tensors to each other.  Where a border falls between integer operators, the
conversion to integers and back is repeated on both sides, so that both run the integer kernels that
they run in the whole network; the values stay the same, for what has been rounded once is rounded
to itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen
from torch.fx.passes.utils.fuser_utils import fuse_as_graphmodule

from pipeline.profile.grouping import (
    Group,
    constants,
    group,
    is_dequantize,
    is_quantize,
    sources,
)
from pipeline.quiet import quiet
from pipeline.training import torch_threads
from profiles.canonical import digest
from profiles.errors import ModelError, StageError, UsageError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

#: Largest difference between the network and its blocks in a row, as a share of its output.
TOLERANCE = 1e-5

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a network.

    Args:
        name: path of the module that it begins with.
        kind: that module's class.
        module: the part; takes and gives tensors.
        inputs: what it reads in a real forward pass of the network,
        outputs: and what it gives.
        reads, gives: names of these values, the same in all blocks of a network.
        signature: the same for blocks that differ in weights and scales alone.
        operators: names of its operators and parameters in the network's program.
    """

    name: str
    kind: str
    module: GraphModule
    inputs: Tensors
    outputs: Tensors
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    signature: str
    operators: tuple[str, ...]

    def program(self) -> ExportedProgram:
        """The part as a program, to be lowered to any format.

        Raises:
            ModelError: if ``torch.export`` cannot capture it, with the reason.
        """
        try:
            with quiet(), torch.no_grad():
                return torch.export.export(self.module, self.inputs, strict=False)
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), "")
            raise ModelError(
                f"{self.name} cannot stand alone: {type(error).__name__}: {reason}",
                "cut it elsewhere with another depth",
            ) from error


@dataclass(frozen=True, slots=True)
class Cut:
    """A network in blocks.

    Args:
        blocks: in the order in which they are computed.
        depth: levels of modules that were gone down.
        reads, gives: names of the network's own inputs and outputs.
        outputs: what it gives.
        repeated: conversions to integers and back that the borders added.
    """

    blocks: tuple[Block, ...]
    depth: int
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    outputs: Tensors
    repeated: int


def cut(program: ExportedProgram, inputs: Sequence[torch.Tensor], depth: int | None = None) -> Cut:
    """Cut a network along its modules.

    Args:
        program: in FP32, or quantized by :mod:`pipeline.compress`.
        inputs: real ones, one for each of the program's.
        depth: see :func:`pipeline.profile.grouping.group`.

    Raises:
        UsageError: if it does not take such inputs.
        ModelError: if a part of it cannot stand alone.
        StageError: if the blocks in a row compute something else.
    """
    with torch_threads(1):  # as in reference_outputs
        return _cut(program, inputs, depth)


def _cut(program: ExportedProgram, inputs: Sequence[torch.Tensor], depth: int | None) -> Cut:
    expected = _call(program, inputs)
    module = _plain(program)
    groups, depth = group(module.graph, depth)
    if _writes_over_borders(module.graph, groups):
        # Once nothing is written to in place, no block can change what another one reads.
        module = _plain(program.run_decompositions({}))
        groups, depth = group(module.graph, depth)
    owner = {node: number for number, one in enumerate(groups) for node in one.nodes}
    repeated = _separate(module.graph, owner, len(groups) - 1)
    module.recompile()
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    values = dict(zip((node.name for node in placeholders), inputs, strict=True))
    blocks = tuple(_block(module, one, number, owner, values) for number, one in enumerate(groups))
    results = tuple(node.name for node in module.graph.output_node().all_input_nodes)
    reads = tuple(node.name for node in placeholders)
    found = Cut(blocks, depth, reads, results, expected, repeated)
    _demand_same(chained(found, inputs), expected)
    return found


def chained(parts: Cut, inputs: Sequence[torch.Tensor]) -> Tensors:
    """What the blocks compute one after the other."""
    values = dict(zip(parts.reads, inputs, strict=True))
    with torch.no_grad():
        for block in parts.blocks:
            given = block.module(*[values[name] for name in block.reads])
            values |= zip(block.gives, given, strict=True)
    return tuple(values[name] for name in parts.gives)


def is_quantized(program: ExportedProgram) -> bool:
    """Whether a program has operators on integers."""
    return any(is_quantize(node) or is_dequantize(node) for node in program.graph.nodes)


def _call(program: ExportedProgram, inputs: Sequence[torch.Tensor]) -> Tensors:
    try:
        with torch.no_grad():
            given = program.module(check_guards=False)(*inputs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(f"the network does not take inputs of shape {shapes}: {reason}") from error
    found, _ = torch.utils._pytree.tree_flatten(given)
    return tuple(found)


def _plain(program: ExportedProgram) -> GraphModule:
    """The program as a module that takes and gives plain tensors."""
    module = program.module(check_guards=False)
    module.graph.set_codegen(CodeGen())
    output = module.graph.output_node()
    output.args = (tuple(output.all_input_nodes),)
    module.recompile()
    return module


def _writes_over_borders(graph: Graph, groups: Sequence[Group]) -> bool:
    owner = {node: number for number, one in enumerate(groups) for node in one.nodes}
    return any(
        node.target._schema.is_mutable and owner.get(_written(node)) != number
        for node, number in owner.items()
        if isinstance(node.target, torch._ops.OpOverload)
    )


def _written(node: Node) -> Node:
    """The node whose memory an operator writes to: what it is given, or what that is a view of."""
    given = node.args[0] if node.args else None
    if not isinstance(given, Node) or (is_dequantize(given) and len(given.users) == 1):
        return node
    schema = getattr(given.target, "_schema", None)
    aliases = schema is not None and any(a.alias_info is not None for a in schema.arguments)
    return _written(given) if aliases else given


def _separate(graph: Graph, owner: dict[Node, int], last: int) -> int:
    """Give each block constants and conversions of its own; returns how many pairs that adds.

    Args:
        graph: changed in place.
        owner: the block of each operator; completed for all other nodes.
        last: the number of the last block.
    """
    constant = constants(graph)
    for node in graph.nodes:
        if is_quantize(node) and node not in constant and _ends_integer_unit(node, owner, constant):
            owner[node] = owner[_read(node)]
    fixed = set(owner)
    for node in reversed(graph.nodes):
        if node.op in ("placeholder", "output") or node in fixed:
            continue
        _spread(graph, node, owner, last)
    pairs = 0
    for node in list(graph.nodes):
        if node in fixed and is_quantize(node):
            pairs += _repeat(graph, node, owner)
    return pairs


def _ends_integer_unit(node: Node, owner: dict[Node, int], constant: set[Node]) -> bool:
    """Whether what is quantized here is computed in integers already.

    A runtime does so where nobody wants the floats, and what it computes it from is quantized, too.
    """
    unit = _read(node)
    if not all(is_quantize(reader) for reader in unit.users):
        return False
    while unit in owner:
        if any(is_dequantize(given) for given in unit.all_input_nodes if given not in constant):
            return True
        before = list(sources(unit, constant))
        if len(before) != 1:
            break
        (unit,) = before
    return False


def _read(node: Node) -> Node:
    """What a conversion reads, its scale apart."""
    return node.all_input_nodes[0]


def _spread(graph: Graph, node: Node, owner: dict[Node, int], last: int) -> None:
    """A node of its own for each block that uses it."""
    users: dict[int, list[Node]] = {}
    for user in node.users:
        users.setdefault(_user(node, user, owner, last), []).append(user)
    for number, own in sorted(users.items()):
        copy = node
        if number != min(users):
            with graph.inserting_after(node):
                copy = graph.node_copy(node)
            for user in own:
                user.replace_input_with(node, copy)
        owner[copy] = number
    if not users:
        graph.erase_node(node)


def _user(node: Node, user: Node, owner: dict[Node, int], last: int) -> int:
    """The block of a user; what the network gives belongs to the block that makes it."""
    if user.op != "output":
        return owner[user]
    while node not in owner and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return owner.get(node, last)


def _repeat(graph: Graph, node: Node, owner: dict[Node, int]) -> int:
    """Hand a quantized value on as floats, and quantize it again in each block that reads it."""
    home = owner[node]
    readers: dict[int, list[Node]] = {}
    for user in node.users:
        readers.setdefault(owner[user], []).append(user)
    abroad = {number: users for number, users in readers.items() if number != home}
    if not abroad:
        return 0
    pattern = next(iter(abroad.values()))[0]
    with graph.inserting_after(node):
        handed = graph.node_copy(pattern)
    owner[handed] = home
    for number, users in abroad.items():
        with graph.inserting_after(handed):
            again = graph.node_copy(node)
        again.replace_input_with(_read(node), handed)
        owner[again] = number
        for user in users:
            user.replace_input_with(node, again)
    return len(abroad)


def _block(
    module: GraphModule,
    one: Group,
    number: int,
    owner: dict[Node, int],
    values: dict[str, torch.Tensor],
) -> Block:
    nodes = [node for node in module.graph.nodes if owner.get(node) == number]
    part, reads, gives = fuse_as_graphmodule(module, nodes, "Block", always_return_tuple=True)
    inputs = tuple(values[node.name] for node in reads)
    with torch.no_grad():
        outputs: Tensors = part(*inputs)
    values |= {node.name: value for node, value in zip(gives, outputs, strict=True)}
    return Block(
        name=one.name,
        kind=one.kind,
        module=part,
        inputs=inputs,
        outputs=outputs,
        reads=tuple(node.name for node in reads),
        gives=tuple(node.name for node in gives),
        signature=_signature(part),
        operators=tuple(str(n.target) if n.op == "get_attr" else n.name for n in nodes),
    )


def _signature(part: GraphModule) -> str:
    """What a block's latency depends on: operators, shapes and settings, but no values."""
    places = {node: number for number, node in enumerate(part.graph.nodes)}

    def plain(value: Any) -> Any:
        if isinstance(value, Node):
            return ["node", places[value]]
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return repr(value)

    lines = []
    for node in part.graph.nodes:
        given = list(node.args)
        if is_quantize(node) or is_dequantize(node):
            del given[1:3]  # scale and zero point
        target = node.target if node.op == "call_function" else node.op
        kwargs = sorted((key, plain(value)) for key, value in node.kwargs.items())
        lines.append([str(target), plain(given), kwargs, _shape(node)])
    return digest(lines)


def _shape(node: Node) -> str:
    value = node.meta.get("val")
    tensors = value if isinstance(value, list | tuple) else [value]
    return str([(tuple(t.shape), str(t.dtype)) for t in tensors if isinstance(t, torch.Tensor)])


def _demand_same(found: Tensors, expected: Tensors) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        error = float((mine - theirs).abs().max())
        if not error <= TOLERANCE * float(theirs.abs().max()):
            raise StageError(
                f"the blocks in a row differ from the network by {error:.3g}: not measured",
                "cut it elsewhere with another depth",
            )
