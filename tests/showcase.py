"""A workspace in which everything that a report can show has happened, made without a device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.profile.record import (
    BlockCost,
    BlockProfile,
    OperatorCost,
    OperatorProfile,
    write_profile,
)
from profiles.findings import Figure
from profiles.quality import judge
from profiles.records import RUNTIME_OF, Condition, Plan, Run, Samples, Trial
from profiles.store import Store
from tests import builders

MS = 1_000_000
SECOND = 1_000_000_000
KHZ = 1_800_000
CONDITION = Condition(threads=4, governor="schedutil", power_source="mains")
LATENCY = Plan(runs=5, max_runs=15, target=0.005, iterations=200)
APP = Plan(kind="app", runs=3, max_runs=3, iterations=30, period_ns=33_333_333)
MEMORY = Plan(kind="memory", runs=1, max_runs=1, iterations=10)
SUSTAINED = Plan(kind="sustained", runs=3, max_runs=3, window_ns=20 * SECOND)
ENERGY = Plan(kind="energy", runs=5, max_runs=5, meter="ina219")
_UPDATE_NS = 50 * MS


def latencies(rng: np.random.Generator, count: int, median_ns: float) -> Samples:
    """Skewed, correlated from one call to the next, with a spike now and then."""
    wave = np.convolve(rng.standard_normal(count + 9), np.ones(10) / 10, mode="valid")
    noise = 0.01 * wave + 0.01 * rng.gamma(1.5, size=count)
    spikes = np.where(rng.random(count) < 0.01, rng.uniform(0.3, 2.0, count), 0.0)
    return np.asarray(median_ns * (1 + noise + spikes), dtype=np.int64)


def run_of(
    number: int, median_ns: float, *, calls: int = 200, seed: int = 0, **changes: Any
) -> Run:
    """A run of a quiet device at a steady clock."""
    rng = np.random.default_rng([seed, number])
    samples = latencies(rng, calls, median_ns * rng.normal(1, 0.004))
    warmup = latencies(rng, 20, 1.5 * median_ns)
    warmup[0] = round(6 * median_ns)
    made = builders.run(
        number,
        load_ns=round(12 * MS * rng.normal(1, 0.05)),
        first_ns=round(6 * median_ns),
        environment=environment(lasted_ns=int(samples.sum())),
        details={"slices": slices(samples)},
    )
    return replace(made, samples_ns=samples, warmup_ns=warmup, **changes)


def slices(samples: Samples, khz: int | None = KHZ, start_ns: int = SECOND) -> list[list[Any]]:
    """One for each fifty calls, back to back."""
    begins = start_ns + np.cumsum(samples) - samples
    return [[int(begins[at]), min(50, len(samples) - at), khz] for at in range(0, len(samples), 50)]


def environment(
    lasted_ns: int = SECOND, foreign_ms: int = 0, temp_mdegc: int = 52_000
) -> dict[str, Any]:
    """What a Linux board says before, once warm and after, and before the process began."""

    def event(at_ns: int, busy_ms: int, own_ms: int, mdegc: int) -> dict[str, Any]:
        return {
            "at_ns": at_ns,
            "busy_ms": busy_ms,
            "own_ms": own_ms,
            "stolen_ms": 0,
            "waited_ms": 1,
            "load_1min": 0.31,
            "frequencies_khz": [KHZ, KHZ, 600_000, KHZ],
            "temperatures_mdegc": [mdegc, mdegc - 3_000],
            "governors": ["schedutil"],
            "clock": "clock_gettime(CLOCK_MONOTONIC)",
        }

    own_ms = lasted_ns // MS
    return {
        "before": event(0, 100_000, 10, temp_mdegc - 4_000),
        "warm": event(SECOND, 101_000, 900, temp_mdegc),
        "after": event(
            SECOND + lasted_ns, 101_000 + own_ms + foreign_ms, 900 + own_ms, temp_mdegc + 1_000
        ),
        "preflight": {
            "limits": {"foreign_load_cores": 0.3, "throttle_mdegc": 80_000, "tolerate": []},
            "device": {
                "kernel": "Linux 6.6.31+rpt-rpi-v8 #1 SMP PREEMPT Debian 1:6.6.31-1+rpt1",
                "cores": 4,
            },
        },
        "delegates": ["CPUExecutionProvider"],
        "threads": 4,
        "runtime_version": "1.31.1",
        "runtime_build": "ORT Build Info: git-branch=rel-1.31.1, git-commit-id=0123456789, "
        "build type=Release, cmake cxx flags: -O3 -ffunction-sections -fdata-sections",
    }


def energy_run(number: int, median_ns: float, active_uw: float = 3_400_000.0) -> Run:
    """A run beside which a sensor was read every 10 ms, with a gap in the second half."""
    rng = np.random.default_rng([77, number])
    window_ns, start_ns = 2 * SECOND, 5 * SECOND
    marks = []
    for index, what in enumerate(("idle-before", "active", "idle-after")):
        begin = start_ns + index * (window_ns + SECOND // 2)
        calls = round(window_ns / median_ns) if what == "active" else 0
        marks.append({"what": what, "start_ns": begin, "end_ns": begin + window_ns, "calls": calls})
    at_ns = np.arange(start_ns - SECOND // 4, marks[-1]["end_ns"] + SECOND // 4, 10 * MS)
    active = (at_ns >= marks[1]["start_ns"]) & (at_ns < marks[1]["end_ns"])
    power_uw = np.where(active, active_uw, 1_900_000) * rng.normal(1, 0.02, len(at_ns))
    energy_uj = np.concatenate([[0.0], np.cumsum(power_uw[1:] * 0.01)])
    details = {
        "marks": marks,
        "power": {"at_ns": at_ns.tolist(), "values": [["raw"]] * len(at_ns)},
        "trace": {
            "at_ns": at_ns.tolist(),
            "energy_uj": energy_uj.tolist(),
            "covered": [True] * (len(at_ns) - 1),
            "charging": False,
        },
        "meter": {
            "name": "ina219 (hwmon)",
            "kind": "hwmon",
            "covers": "the board, behind its regulator",
            "method": "power integrated over the device's marks",
            "calibration": "1",
            "update_ns": _UPDATE_NS,
            "trouble": "",
        },
    }
    made = run_of(number, median_ns, calls=marks[1]["calls"], seed=5)
    return replace(made, details={**made.details, **details})


def jumping(number: int, median_ns: float, seed: int = 3) -> Run:
    """A run in whose middle the clock falls."""
    steady = run_of(number, median_ns, seed=seed)
    samples = steady.samples_ns.copy()
    samples[100:] = np.asarray(samples[100:] * 1.4, dtype=np.int64)
    halves = [*slices(samples[:100]), *slices(samples[100:], khz=1_200_000, start_ns=2 * SECOND)]
    return replace(steady, samples_ns=samples, details={"slices": halves})


def disturbed(number: int, median_ns: float) -> Run:
    """A run while somebody else kept two cores busy."""
    run = run_of(number, 1.2 * median_ns, seed=4)
    lasted_ns = int(run.samples_ns.sum())
    return replace(run, environment=environment(lasted_ns, foreign_ms=2 * lasted_ns // MS))


def interrupted(number: int, median_ns: float) -> Run:
    """What a run had delivered when the link broke."""
    run = run_of(number, median_ns, calls=90, seed=6)
    return replace(run, complete=False)


def heating(number: int, median_ns: float) -> Run:
    """A run so long that the device slows down."""
    run = run_of(number, median_ns, calls=round(20 * SECOND / median_ns), seed=8)
    slower = 1 + 0.15 * (1 - np.exp(-np.arange(len(run.samples_ns)) / (len(run.samples_ns) / 4)))
    samples = np.asarray(run.samples_ns * slower, dtype=np.int64)
    return replace(run, samples_ns=samples, details={"slices": slices(samples)})


def memory_run(size_bytes: int) -> Run:
    """A run that looked at its memory."""
    told = {
        "base_bytes": 61_440_000,
        "loaded_bytes": 61_440_000 + 3 * size_bytes,
        "peak_bytes": 63_000_000 + 4 * size_bytes,
        "file_bytes": 28_000_000 + size_bytes,
    }
    made = run_of(0, 2 * MS, calls=10, seed=9)
    return replace(made, warmup_ns=made.warmup_ns[:0], details={"memory": told})


def trial_of(sha256: str, format_: str, plan: Plan = LATENCY, **changes: Any) -> Trial:
    """A trial of an artifact on the showcase's board."""
    made = builders.trial(
        sha256=sha256,
        runtime=RUNTIME_OF[format_],
        condition=CONDITION,
        plan_=plan,
        device_serial="10000000abcdef01",
        device_build="Debian 12",
    )
    return replace(made, runtime_version="1.31.1", **changes)


def add_trial(store: Store, trial: Trial, runs: list[Run], status: str, reason: str) -> None:
    """Have a trial made, from its first run to its verdict."""
    store.open_trial(trial)
    for run in runs:
        store.add_run(trial.key, run)
    store.close_trial(trial.key, status, reason)


def add_refused(store: Store, trial: Trial, runs: list[Run]) -> None:
    """Have a trial refused for what its runs say."""
    why = judge(replace(trial, runs=tuple(runs))).why()
    add_trial(store, trial, runs, "refused", why)


def showcase(root: Path) -> Path:
    """Make the workspace: five artifacts, one of them known in every way."""
    root.mkdir(parents=True, exist_ok=True)
    with Store(root / "store.db") as store:
        for place, (variant, format_) in enumerate(
            (v, f) for f in ("onnx", "tflite") for v in ("fp32", "int8", "sparse")
        ):
            passed = (variant, format_) != ("sparse", "tflite")
            drop = 0.004 * place
            store.put_artifact(
                builders.artifact(
                    sha256=sha_of(place),
                    variant=variant,
                    format=format_,
                    model="net",
                    size_bytes=4_200_000 // (1 + 3 * (variant == "int8")),
                ),
                builders.parity(
                    passed=passed,
                    reason="" if passed else "cosine 0.5 < 0.98",
                    accuracy=0.91 - drop,
                    reference_accuracy=0.91,
                    accuracy_drop_ci95=(drop - 0.006, drop + 0.006),
                ),
            )
        _complete(store)
        _slower(store)
        _jumping(store)
        _plain(store)
        _disturbed(store)
    write_profile(root, profile())
    write_profile(root, lacking_profile())
    return root


def profile(**changes: Any) -> BlockProfile:
    """A network of four blocks, two of them alike, and ONNX Runtime's own account of it."""
    stem = BlockCost(("features.0",), "Conv2d", _figure(0.31), 0.14, "accepted")
    body = BlockCost(
        ("features.1", "features.2"), "InvertedResidual", _figure(0.72), 0.66, "accepted"
    )
    head = BlockCost(("classifier",), "Linear", _figure(0.44), 0.2, "accepted")
    operators = tuple(
        OperatorCost(
            f"/features/{n}/Conv",
            "Conv",
            "CPUExecutionProvider",
            90_000 - 4_000 * n,
            f"features.{n % 3}",
        )
        for n in range(23)
    )
    made = BlockProfile(
        model="net",
        variant="fp32",
        format="onnx",
        dtype="float32",
        artifact_sha256=sha_of(0),
        device="board",
        emulated=False,
        runtime="onnxruntime",
        runtime_version="1.31.1",
        condition=CONDITION,
        depth=2,
        blocks=(stem, body, head),
        call_ns=_figure(0.012),
        whole_ns=_figure(2.345),
        sum_ns=_figure(2.151),
        ratio=Figure(0.917, (0.901, 0.934), 1000, 5),
        unknown={},
        remarks=("the blocks take less alone",),
        operators=OperatorProfile(operators, 1_058_000.0, 2_400_000.0, 30),
    )
    return replace(made, **changes)


def lacking_profile() -> BlockProfile:
    """The same in INT8, of which one block could not be exported."""
    whole = profile()
    stem, body, head = (replace(block, share=None) for block in whole.blocks)
    lost = replace(body, latency_ns=None, status="failed", reason="no kernel for it", trial="")
    return replace(
        whole,
        variant="int8",
        artifact_sha256=sha_of(1),
        blocks=(stem, lost, head),
        sum_ns=None,
        ratio=None,
        unknown={"operators": "only ONNX Runtime tells them in its released build"},
        remarks=("sum and whole cannot be compared: features.1 not known",),
        operators=None,
    )


def _figure(ms: float) -> Figure:
    return Figure(ms * MS, (0.97 * ms * MS, 1.03 * ms * MS), 1000, 5)


def sha_of(place: int) -> str:
    """The digest of the artifact in that place."""
    return f"{place + 1:x}" * 64


def _complete(store: Store) -> None:
    """FP32 in ONNX: fifteen runs and one interrupted; application, heat, memory, energy."""
    sha, ns = sha_of(0), 2.345 * MS
    runs = [run_of(n, ns) for n in range(16)]
    runs[7] = interrupted(7, ns)
    stopped = "15 runs were made; the interval is ±0.6 %, not 0.5 %"
    add_trial(store, trial_of(sha, "onnx"), runs, "accepted", stopped)
    planned = "3 runs were made, as planned"
    app = [run_of(n, 1.31 * ns, calls=30, seed=1) for n in range(3)]
    add_trial(store, trial_of(sha, "onnx", APP), app, "accepted", planned)
    warm = [heating(n, ns) for n in range(3)]
    add_trial(store, trial_of(sha, "onnx", SUSTAINED), warm, "accepted", planned)
    add_trial(store, trial_of(sha, "onnx", MEMORY), [memory_run(4_200_000)], "accepted", "")
    power = [energy_run(n, ns) for n in range(5)]
    add_trial(store, trial_of(sha, "onnx", ENERGY), power, "accepted", "5 runs were made")


def _slower(store: Store) -> None:
    """INT8 in ONNX: slower than FP32, on a device that tells no power."""
    sha, ns = sha_of(1), 2.9 * MS
    runs = [run_of(n, ns, seed=2) for n in range(5)]
    within = "the interval is within 0.5 % after 5 runs"
    add_trial(store, trial_of(sha, "onnx"), runs, "accepted", within)
    app = [run_of(n, 1.1 * ns, calls=30, seed=2) for n in range(3)]
    add_trial(store, trial_of(sha, "onnx", APP), app, "accepted", "3 runs were made")
    add_trial(store, trial_of(sha, "onnx", MEMORY), [memory_run(1_050_000)], "accepted", "")
    unknown = "board tells no power: no meter"
    add_trial(store, trial_of(sha, "onnx", ENERGY), [], "unknown", unknown)


def _jumping(store: Store) -> None:
    """Sparse in ONNX: refused, for the clock falls in every run."""
    add_refused(store, trial_of(sha_of(2), "onnx"), [jumping(n, 2.1 * MS) for n in range(5)])


def _plain(store: Store) -> None:
    """FP32 in TFLite: one of six runs is left out, since others were busy."""
    ns = 1.9 * MS
    runs = [run_of(n, ns, seed=11) for n in range(6)]
    runs[2] = disturbed(2, ns)
    within = "the interval is within 0.5 % after 5 runs"
    add_trial(store, trial_of(sha_of(3), "tflite"), runs, "accepted", within)


def _disturbed(store: Store) -> None:
    """INT8 in TFLite: refused, for others were busy throughout."""
    add_refused(store, trial_of(sha_of(4), "tflite"), [disturbed(n, 0.6 * MS) for n in range(5)])
