"""Where an artifact's operators run, as a report says it."""

from __future__ import annotations

from tools.report.lowered import MOST_NAMED, quantization, rows


def lowered(**details) -> dict:
    placed = {
        "in": "XNNPACK",
        "operators": 40,
        "inside": 38,
        "share": 0.95,
        "macs_share": 0.997,
        "partitions": 3,
        "integer": 36,
        "outside": [{"operator": "sort", "module": "model.order", "count": 2}],
    }
    record = {"placement": {**placed, **details.pop("placement", {})}, **details}
    return {"variant": "int8", "format": "onnx", "device": None, "details": record}


def test_a_row_says_what_was_taken_and_what_fell_out():
    (row,) = rows([lowered(batch=4, opset=20)])
    assert (row.format, row.batch) == ("onnx, opset 20", "4")
    assert (row.operators, row.macs, row.partitions) == ("38 of 40", "99.7 %", "3")
    assert (row.integers, row.outside) == ("36", "sort 2x in model.order")
    assert row.quantization == "none"


def test_a_quantization_is_said_in_a_few_words():
    way = {"dtype": "int8", "granularity": "per-channel", "symmetric": True}
    uint8 = {"dtype": "uint8", "granularity": "per-tensor", "symmetric": False}
    assert quantization({"weights": [way, uint8], "activations": [uint8]}) == (
        "weights int8 per-channel symmetric, activations uint8 per-tensor affine"
    )


def test_a_long_list_is_cut_and_the_rest_counted():
    outside = [{"operator": f"op{n}", "module": "", "count": n} for n in range(1, MOST_NAMED + 3)]
    (row,) = rows([lowered(placement={"outside": outside, "macs_share": None})])
    assert row.outside.startswith(f"op{MOST_NAMED + 2} {MOST_NAMED + 2}x, ")
    assert row.outside.endswith(", and 3 more")
    assert row.macs == "unknown"


def test_runs_before_it_was_recorded_have_no_rows():
    assert rows([{"variant": "fp32", "format": "onnx", "details": {}}]) == []
