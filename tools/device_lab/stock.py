"""``devices stock``: a runtime's own benchmark program on a device."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from devices.stock.base import StockResult
from profiles import units
from profiles.errors import UsageError
from tools.device_lab.output import complain, print_json, print_table
from tools.device_lab.running import AsJson
from tools.device_lab.stages import Inventory


def stock(
    device: Annotated[str, typer.Argument(help="Id of the device.")],
    model: Annotated[Path, typer.Argument(help="A .tflite, .pte or .onnx file.")],
    program: Annotated[str, typer.Option(help="Where the runtime's own tool is on the device.")],
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    iterations: Annotated[int, typer.Option(min=1, help="Timed calls.")] = 50,
    delegate: Annotated[
        str | None, typer.Option(help="What has to execute the whole model: gpu, xnnpack, ...")
    ] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Also the peak of memory.")] = False,
    inventory: Inventory = Path("devices.yaml"),
    as_json: AsJson = False,
) -> None:
    """Run the runtime's own benchmark program that is on a device, to compare with ours.

    The figures are the tool's: one run, by its definitions. They are shown, and not stored.

    Example: device-lab devices stock pixel8 model.tflite --program /data/local/tmp/benchmark_model
    """
    from devices.inventory import load_inventory
    from devices.stock.base import run_stock, stock_tool
    from devices.stock.benchmark_model import BenchmarkModel
    from devices.stock.executor_runner import ExecutorRunner
    from devices.stock.onnxruntime_perf_test import OnnxRuntimePerfTest
    from devices.visit import visit

    chosen = load_inventory(inventory).find(device)
    if not model.is_file():
        raise UsageError(f"there is no file {model}")
    tool = stock_tool([BenchmarkModel(), ExecutorRunner(), OnnxRuntimePerfTest()], model.suffix)
    with visit(chosen) as session:
        result = run_stock(
            session.transport,
            tool,
            program,
            session.store.ensure([model])[model],
            threads=threads,
            iterations=iterations,
            delegate=delegate,
            memory=memory,
        )
    if as_json:
        figures = dataclasses.asdict(result)
        print_json({"device": chosen.id, "emulated": chosen.is_emulated, "stored": False} | figures)
        return
    where = f"{chosen.id} (emulated)" if chosen.is_emulated else chosen.id
    print_table("", [model.name, f">{result.tool} on {where} says"], _rows(result))
    for note in result.notes:
        complain(f"note: {note}")
    complain("these are the tool's own figures, of one run; they were not stored")


def _rows(result: StockResult) -> list[list[str]]:
    times = {
        "mean": result.mean_ns,
        "median": result.p50_ns,
        "fastest": result.min_ns,
        "slowest": result.max_ns,
        "first call": result.first_ns,
        "loading": result.load_ns,
    }
    took_part = units.UNKNOWN if result.delegates is None else ", ".join(result.delegates)
    return [
        ["timed calls", str(result.n)],
        *([f"{name} (ms)", units.format_ms(value)] for name, value in times.items()),
        ["peak memory", units.format_bytes(result.peak_bytes)],
        ["executed by", took_part],
    ]
