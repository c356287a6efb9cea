"""The search benchmark's way of counting, and its reading of measured networks."""

from pathlib import Path

import numpy as np

from tools.bench.search import _first_reaching
from tools.bench.search_problems import Problem, digits_like, measured_subnets

HEADER = "Sub-network,Date,Model Parameters,Latency (ms),MACs,Top-1 Acc (%)\n"
ROW = (
    "\"{{'wid': None, 'ks': {ks}, 'e': {e}, 'd': [2, 2, 2, 2, 2], 'r': [224]}}\",-,1,0,{macs},75\n"
)


def problem() -> Problem:
    small = digits_like()
    return Problem("two objectives", small.space, small.values, np.array([4.0, 4.0]))


def test_counted_is_up_to_the_measurement_that_reached_the_goal():
    values = np.array([[3.0, 3.0], [3.5, 3.5], [1.0, 2.0], [0.0, 0.0]])
    assert _first_reaching(problem(), values, 1.0) == 1
    assert _first_reaching(problem(), values, 6.0) == 3
    assert _first_reaching(problem(), values, 16.0) == 4
    assert _first_reaching(problem(), values, 16.5) is None


def test_networks_that_differ_only_in_blocks_that_do_not_run_are_one(tmp_path: Path):
    assert measured_subnets(tmp_path) is None
    (tmp_path / "subnet_accuracy").mkdir()
    kernels, idle, other = [3] * 20, [3, 3, 7, *[3] * 17], [7, *[3] * 19]
    rows = [
        ROW.format(ks=ks, e=[3] * 20, macs=macs)
        for ks, macs in ((kernels, 2e6), (idle, 3e6), (other, 4e6))
    ]
    (tmp_path / "subnet_accuracy" / "a.csv").write_text(HEADER + "".join(rows))
    found = measured_subnets(tmp_path)
    assert found is not None and found.pool is not None
    assert found.values(found.pool).tolist() == [[25.0, 2.0], [25.0, 4.0]]
