"""Programs as files: ``.pt2`` archives of plain tensors, read without running what is in them.

PyTorch unpickles whatever an archive asks it to, evaluates the sizes of open dimensions and the
guards as Python, and writes names into the source of the module it generates.  So an archive is
looked through first, and only what was looked at is loaded.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiles.errors import ModelError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

#: What an archive may hold: what ``torch.export.load`` reads without unpickling or running code.
_PLAIN_ENTRY = re.compile(
    r"[^/]+/(archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
    r"|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json))"
)
_NAME = re.compile(r"[\w.]*")
_OPERATOR = re.compile(
    r"torch\.ops\.higher_order\.\w+|torch\.ops\.[a-z]\w*\.(_?[a-z]\w*|__[a-z]+__)\.[a-zA-Z]\w*"
    r"|_operator\.[a-z]\w*|math\.[a-z]\w*|torch\.sym_[a-z]+|torch\._sym_[a-z]+"
)
_NOT_QUOTED = re.compile(r"[^'\"\\\r\n]*")
_ANYTHING = re.compile(r".*", re.DOTALL)
#: Which strings a program may hold under which key: those that become source or are looked up are
#: names; those that are printed into source cannot end a quotation; the rest is kept as text only.
_STRINGS = {
    "name": _NAME,
    "as_name": _NAME,
    "forward_arg_names": _NAME,
    "target": _OPERATOR,
    "as_operator": _OPERATOR,
    "as_string": _NOT_QUOTED,
    "as_strings": _NOT_QUOTED,
    "stack_trace": _ANYTHING,
    "nn_module_stack": _ANYTHING,
    "source_fn_stack": _ANYTHING,
    "torch_fn": _ANYTHING,
    "from_node": _ANYTHING,
    "custom": _ANYTHING,
}
_OTHERWISE = re.compile(r"[^'\"\\()=\r\n]*")
#: How PyTorch writes the arithmetic of sizes.  *Source*: ``sympy.printing.repr`` and PyTorch's own
#: functions in ``torch.utils._sympy.functions``.
_FUNCTIONS = frozenset(
    [
        "Add",
        "Mul",
        "Max",
        "Min",
        "Rational",
        "FloorDiv",
        "CeilDiv",
        "CleanDiv",
        "Mod",
        "PythonMod",
        "ModularIndexing",
        "IntTrueDiv",
        "ToFloat",
        "Equality",
        "Unequality",
        "LessThan",
        "GreaterThan",
        "StrictLessThan",
        "StrictGreaterThan",
        "And",
        "Or",
        "Not",
    ]
)
_SYMBOL = re.compile(r"z?[su]\d+")
_ASSUMPTIONS = frozenset(("positive", "integer", "nonnegative", "negative", "nonpositive", "zero"))
_LONGEST_EXPRESSION = 2000
_LARGEST_EXPONENT = 8
_LARGEST_INTEGER = 2**63 - 1


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write a program; the same program always gives the same bytes."""
    import torch

    torch.export.save(program, path)


def load_program(path: Path) -> ExportedProgram:
    """Read a program that holds no pickles and no code.

    Its batch dimension may be open.  Guards that PyTorch would check in front of it are dropped:
    inputs that do not fit are refused by the operator they do not fit.

    Raises:
        ModelError: if it is not one, or holds what only unpickling or running could bring back.
    """
    import torch

    # Programs quantized here call operators that exist once these are imported.
    import torch.ao.quantization.fx._decomposed

    archive = _looked_through(path)
    try:
        return torch.export.load(archive)
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise ModelError(f"{path} cannot be loaded: {type(error).__name__}: {reason}") from error


def _looked_through(path: Path) -> io.BytesIO:
    """The archive, entry by entry as it was looked at: no other reader's view of the file counts.

    Raises:
        ModelError: if it holds what may be code.
    """
    copy = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as plain:
            names = archive.namelist()
            strange = [n for n in names if not _PLAIN_ENTRY.fullmatch(n) or names.count(n) > 1]
            if strange:
                raise ModelError(f"{path} holds {strange[0]}, which may be code: refused")
            for name in names:
                plain.writestr(name, _checked(path, name, archive.read(name)))
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{path} is not a torch.export program of plain tensors: {type(error).__name__}",
            "save it with torch.export.save",
        ) from error
    copy.seek(0)
    return copy


def _checked(path: Path, name: str, content: bytes) -> bytes:
    """One entry's content, without guards."""
    import torch

    if name.endswith("_config.json"):
        entries = json.loads(content).get("config", {})
        if any(entry.get("use_pickle") for entry in entries.values()):
            raise ModelError(f"{path} holds pickled objects: refused")
    elif name.endswith("/models/model.json"):
        program = json.loads(content)
        program["guards_code"] = []
        _refuse_code(path, program, "")
        return json.dumps(program).encode()
    elif "/sample_inputs/" in name:
        torch.load(io.BytesIO(content), weights_only=True)
    return content


def _refuse_code(path: Path, value: Any, key: str) -> None:
    """Look at each string of a program, by the key it stands under."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _refuse_code(path, name, "")
            _refuse_code(path, inner, name)
    elif isinstance(value, list):
        for inner in value:
            _refuse_code(path, inner, key)
    elif isinstance(value, str):
        if key == "expr_str":
            plain = _is_arithmetic(value)
        elif key in ("in_spec", "out_spec"):
            plain = _is_tree(json.loads(value)) if value else True
        else:
            plain = _STRINGS.get(key, _OTHERWISE).fullmatch(value) is not None
        if not plain:
            what = f"the {key} " if key else "the key "
            raise ModelError(f"{path} has {what}{value[:80]!r}, which may be code: refused")


def _is_tree(value: Any) -> bool:
    """Whether a description of nested inputs or outputs has plain names alone."""
    if isinstance(value, dict):
        return all(_is_tree(inner) for inner in value.values())
    if isinstance(value, list):
        return all(_is_tree(inner) for inner in value)
    if isinstance(value, str) and value[:1] in ("[", '"', "{"):
        return _is_tree(json.loads(value))  # the keys of a dictionary, as JSON in JSON
    return not isinstance(value, str) or _NAME.fullmatch(value) is not None


def _is_arithmetic(text: str) -> bool:
    """Whether a size is computed from symbols and integers by known functions, in bounded time."""
    if len(text) > _LONGEST_EXPRESSION:
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return _is_term(tree.body, powers=True)


def _is_term(node: ast.expr, powers: bool) -> bool:
    match node:
        case ast.Name(id=name):
            return _SYMBOL.fullmatch(name) is not None
        case ast.Call(
            func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))], keywords=given
        ):
            return _SYMBOL.fullmatch(name) is not None and all(map(_is_assumption, given))
        case ast.Call(func=ast.Name(id="Pow" | "PowByNatural"), args=[base, exponent], keywords=[]):
            # Powers of powers of numbers would be worked out, however large.
            return (
                powers and _is_term(base, powers=False) and _is_integer(exponent, _LARGEST_EXPONENT)
            )
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name != "Integer":
            return name in _FUNCTIONS and all(_is_term(a, powers) for a in arguments)
    return _is_integer(node, _LARGEST_INTEGER)


def _is_assumption(keyword: ast.keyword) -> bool:
    constant = keyword.value
    return (
        keyword.arg in _ASSUMPTIONS
        and isinstance(constant, ast.Constant)
        and isinstance(constant.value, bool)
    )


def _is_integer(node: ast.expr, largest: int) -> bool:
    match node:
        case ast.Call(func=ast.Name(id="Integer"), args=[number], keywords=[]):
            return _is_integer(number, largest)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant() as number):
            return _is_integer(number, largest)
        case ast.Constant(value=int(number)) if not isinstance(number, bool):
            return number <= largest
    return False
