"""Why a program cannot be lowered, in the user's terms: which operator, in which module."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.export import ExportedProgram

#: How the converters name an operator in their messages.
_OPERATORS = (
    re.compile(r"op='(\w+\.\w+)'"),
    re.compile(r"Operator torch\._ops\.(\w+\.\w+)"),
    re.compile(r"Lowering not found: (\w+\.\w+)"),
    re.compile(r"While executing %\w+.*?target=torch\.ops\.(\w+\.\w+)"),
    re.compile(r"EdgeOpOverload: (\w+\.\w+)"),
    re.compile(r"Missing operator: \[\d+\] (\w+::\w+)"),
)
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def culprit(program: ExportedProgram, error: BaseException) -> str | None:
    """The operator that a converter stumbled over, with its place in the user's model.

    Returns:
        ``aten.fft_rfft2 in model.spectrum (Spectrum), net.py:12``, as far as that is known;
        ``None`` where the message names no operator.
    """
    text = "\n".join(_messages(error))
    name = next((m.group(1) for pattern in _OPERATORS if (m := pattern.search(text))), None)
    if name is None:
        return None
    node = _node_of(program, name.replace("::", "."))
    return name if node is None else f"{_operator(node)}{_place(node)}"


def root_reason(error: BaseException) -> str:
    """The first line of the innermost cause: converters wrap errors several times."""
    *_, text = _messages(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _messages(error: BaseException) -> Iterator[str]:
    """What an error and its causes say, the innermost last."""
    each: BaseException | None = error
    while each is not None:
        yield str(each)
        each = each.__cause__


def _node_of(program: ExportedProgram, name: str) -> Any:
    """The user's call that an operator came from, in the program itself or decomposed."""
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    wanted = _plain(name)
    for node in calls:
        if _plain(_operator(node)) == wanted:
            return node
    from pipeline.quiet import quiet

    try:
        with quiet():
            decomposed = program.run_decompositions().graph.nodes
    except Exception:  # it is an explanation that is looked for here: none is no failure
        return None
    inner = [node for node in decomposed if node.op == "call_function"]
    found = next((node for node in inner if _plain(_operator(node)) == wanted), None)
    if found is None:
        return None
    traced = {node.name: node for node in calls}
    sources = [source.name for source in _sources(found.meta.get("from_node") or ())]
    return next((traced[source] for source in sources if source in traced), found)


def _sources(given: Any) -> Iterator[Any]:
    for source in given:
        yield source
        yield from _sources(getattr(source, "from_node", None) or ())


def _operator(node: Any) -> str:
    """``aten.fft_rfft2`` for its overload."""
    target = str(node.target).removeprefix("torch.ops.")
    return target.rpartition(".")[0] if target.count(".") > 1 else target


def _plain(name: str) -> str:
    """A name without what differs between the levels of PyTorch's operators."""
    return name.rpartition(".")[2].strip("_").removeprefix("special_").removesuffix("_forward")


def _place(node: Any) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = (str(part) for part in stack[-1]) if stack else ("", "")
    where = f" in {path} ({kind.rpartition('.')[2]})" if path else ""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [(file, line) for file, line in frames if "site-packages" not in file]
    return where + (f", {Path(own[-1][0]).name}:{own[-1][1]}" if own else "")
