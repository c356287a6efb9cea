"""From trials to a measurement: what counts, what is kept apart, and what stays unknown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from profiles.findings import Measurement, Memory
from profiles.measurements import conclude, siblings, summary_of
from profiles.records import Condition, Run, Trial
from profiles.schema import ArtifactRow
from profiles.statistics import summarise
from tests import builders
from tests.profiles.test_quality import metered, series, watched
from tools.report import figures

PLAN = builders.plan(runs=3, max_runs=9)


def good(number: int, level: float = 1.0, **options: Any) -> Run:
    return watched(number, series(level=level, seed=number), **options)


def loaded(number: int) -> Run:
    return watched(number, series(level=9.0, seed=number), foreign_cores=3.0)


def trial(kind: str = "latency", *runs: Run, **changes: Any) -> Trial:
    return builders.trial(
        plan_=replace(PLAN, kind=kind),
        runs=runs or tuple(good(number) for number in range(4)),
        **{"device_serial": "S1", "status": "accepted", "reason": "enough", **changes},
    )


def measured(*trials: Trial) -> list[Measurement]:
    """What these trials of one artifact amount to."""
    made = builders.artifact()
    names = ("sha256", "model", "variant", "role", "format", "size_bytes")
    row = ArtifactRow(**{name: getattr(made, name) for name in names})
    return [conclude(group, builders.parity(), row) for group in siblings(trials)]


def test_statistics_are_of_the_runs_that_count_alone():
    runs = [good(0), loaded(1), good(2), good(3, level=1.02), replace(good(4), complete=False)]
    (found,) = measured(trial("latency", *runs))
    expected = summarise([runs[place].samples_ns for place in (0, 2, 3)], pilot=3)
    assert (found.status, found.reason, found.stopped) == ("accepted", "", "enough")
    assert (found.n, found.runs) == (600, 3)
    assert (found.median_ns, found.ci95_ns) == (expected.median_ns, expected.ci95_ns)
    assert (found.mean_ns, found.p90_ns, found.p99_ns) == (expected.mean_ns, expected.p90_ns, None)
    assert (found.min_ns, found.mad_ns) == (expected.min_ns, expected.mad_ns)
    (remark,) = found.remarks
    assert remark.text.startswith("1 of 4 runs refused: others kept 3 cores busy")
    assert found.reasons == ()


def test_the_interval_rests_on_the_pilot():
    """Later runs that happen to agree do not make it narrower than their number does."""
    levels = (1.0, 1.03, 1.01, *[1.013] * 5)
    runs = [good(number, level) for number, level in enumerate(levels)]
    (found,) = measured(trial("latency", *runs))
    samples = [run.samples_ns for run in runs]
    assert found.ci95_ns == summarise(samples, pilot=3).ci95_ns
    assert found.ci95_ns != summarise(samples).ci95_ns
    assert summary_of(trial("latency", *runs)).ci95_ns == found.ci95_ns


def test_what_goes_into_a_table_has_nothing_refused_in_it():
    runs = [good(0), loaded(1), good(2), good(3)]
    summary = summary_of(trial("latency", *runs))
    assert summary.runs == 3
    assert summary.median_ns < 110_000


def test_a_refused_measurement_says_why_and_claims_no_figure():
    runs = [good(0), *(loaded(number) for number in (1, 2, 3))]
    refused = trial("latency", *runs, status="refused", reason="others kept 3 cores busy")
    (found,) = measured(refused)
    assert (found.status, found.reason) == ("refused", "others kept 3 cores busy")
    assert [reason.code for reason in found.reasons] == ["too-few-runs", "foreign-load"]
    assert all(reason.advice for reason in found.reasons)
    assert found.median_ns is found.ci95_ns is found.mean_ns is found.load_ns is None
    assert (found.n, found.runs, found.stopped) == (0, 0, "")


def test_what_was_accepted_before_a_rule_was_made_is_remarked_upon():
    runs = [good(number, level=1 + 0.03 * number) for number in range(8)]
    (found,) = measured(trial("latency", *runs))
    assert found.status == "accepted"
    assert [remark.code for remark in found.remarks] == ["not-stationary"]


# Other kinds, beside the latency


def test_other_kinds_stand_beside_the_latency():
    sizes = {"base_bytes": 10, "loaded_bytes": 20, "peak_bytes": 40, "file_bytes": 5}
    memory = [
        replace(good(number), details={"memory": {**sizes, "peak_bytes": peak}})
        for number, peak in enumerate((30, 40, 90))
    ]
    (found,) = measured(
        trial("latency"),
        trial("memory", *memory),
        trial("app", *(good(number, level=2.0) for number in range(3))),
        trial("energy", *(metered(number) for number in range(3))),
    )
    assert found.memory == Memory(10, 20, 40, 5, runs=3)
    assert found.app_ns.value == pytest.approx(200_000, rel=0.01)
    assert (found.app_ns.n, found.app_ns.runs) == (600, 3)
    assert found.app_ratio.value == pytest.approx(2.0, rel=0.01)
    low, high = found.app_ratio.ci95
    assert 1.9 < low < found.app_ratio.value < high < 2.1
    assert found.energy.net_uj.value == pytest.approx(2e6 * 10 / 1000)
    assert found.energy.net_uj.runs == 3
    assert found.sustained_ns is None
    assert dict(found.unknown) == {}
    assert found.trial == trial("latency").key


def test_a_sustained_latency_is_that_of_the_second_half_of_the_time():
    def throttling(number: int) -> Run:
        calls = np.concatenate([np.full(300, 1000), np.full(100, 4000)])
        slices = [[second * 10**9, 100, None] for second in range(4)]
        return replace(good(number), samples_ns=calls, details={"slices": slices})

    runs = [throttling(number) for number in range(3)]
    for run in runs:  # three slices in the first half, one in the second
        run.details["slices"][3][0] = 10 * 10**9
    (found,) = measured(trial("latency"), trial("sustained", *runs))
    assert found.sustained_ns.value == pytest.approx(4000)
    assert found.sustained_ns.n == 300
    assert [remark.text[:9] for remark in found.remarks] == ["sustained"]


@pytest.mark.parametrize(
    ("kind", "field"),
    [("memory", "memory"), ("app", "app_ns"), ("sustained", "sustained_ns"), ("energy", "energy")],
)
@pytest.mark.parametrize("status", ["unknown", "refused", "failed", "open"])
def test_a_figure_that_is_missing_says_why(kind, field, status):
    other = replace(trial(kind, status=status, reason="it shows no meter"), runs=())
    (found,) = measured(trial("latency"), other)
    assert found.status == "accepted"
    assert found.median_ns is not None
    assert getattr(found, field) is found.app_ratio is None
    assert dict(found.unknown) == {kind: "it shows no meter"}


def test_remarks_of_other_kinds_name_them():
    runs = [*(good(number, level=2.0) for number in range(3)), loaded(3)]
    (found,) = measured(trial("latency"), trial("app", *runs))
    (remark,) = found.remarks
    assert remark.text.startswith("app: 1 of 4 runs refused")
    assert found.app_ns.runs == 3


def test_an_application_stays_beside_a_latency_that_was_refused():
    refused = trial("latency", good(0), status="refused", reason="no")
    (found,) = measured(refused, trial("app"))
    assert found.app_ns is not None
    assert found.app_ratio is None


# Which trials belong together


@pytest.mark.parametrize(
    "changes",
    [
        {"sha256": "b" * 64},
        {"device_serial": "S2"},
        {"transport": "adb"},
        {"runtime": "litert"},
        {"agent": "native"},
        {"condition": Condition(threads=2)},
        {"condition": Condition(mode="pinned")},
        {"condition": Condition(delegate="xnnpack")},
    ],
)
def test_trials_of_another_setting_are_no_siblings(changes):
    (group,) = siblings([trial("latency"), trial("app", **changes)])
    assert set(group) == {"latency"}
    (group,) = siblings([trial("latency", **changes), trial("app", **changes)])
    assert set(group) == {"latency", "app"}


def test_a_board_under_another_id_keeps_its_siblings():
    (group,) = siblings([trial("latency", device_id="pi"), trial("app", device_id="pi5")])
    assert set(group) == {"latency", "app"}
    apart = siblings(
        [
            trial("latency", device_id="one", device_serial="unknown"),
            trial("app", device_id="two", device_serial="unknown"),
        ]
    )
    assert [set(group) for group in apart] == [{"latency"}]


def test_of_several_plans_each_latency_has_the_last_accepted_of_the_others():
    two = replace(trial("latency"), key="two")
    apps = [
        replace(trial("app"), key=f"app {place}", status=status)
        for place, status in enumerate(("accepted", "accepted", "failed"))
    ]
    groups = siblings([trial("latency"), two, *apps])
    assert [group["latency"].key for group in groups] == [trial("latency").key, "two"]
    assert {group["app"].key for group in groups} == {"app 1"}


ON_BATTERY = Condition(governor="schedutil", power_source="battery")
ON_MAINS = Condition(governor="schedutil", power_source="mains")


def test_what_was_measured_in_another_state_stands_beside_the_latency_and_says_so():
    """A phone's energy is measured on its battery, its latency on the mains."""
    sizes = {"base_bytes": 10, "loaded_bytes": 20, "peak_bytes": 40, "file_bytes": 5}
    memory = [replace(good(number), details={"memory": sizes}) for number in range(3)]
    powersave = replace(ON_MAINS, governor="powersave")
    (found,) = measured(
        trial("latency", condition=ON_MAINS),
        trial("energy", *(metered(number) for number in range(3)), condition=ON_BATTERY),
        trial("memory", *memory, condition=powersave),
        trial("app", condition=ON_BATTERY),
        trial("sustained", condition=ON_MAINS),
    )
    assert found.energy is not None
    assert found.memory is not None
    assert found.sustained_ns is not None
    assert found.app_ns is not None
    assert found.app_ratio is None
    battery = "its power source was battery, mains for the latency"
    assert dict(found.unknown) == {"app": f"there is no ratio to the latency: {battery}"}
    assert [(remark.code, remark.text) for remark in found.remarks] == [
        ("another-state", "memory: its governor was powersave, schedutil for the latency"),
        ("another-state", f"app: {battery}"),
        ("another-state", f"energy: {battery}"),
    ]


def test_of_energy_only_the_last_calibration_counts():
    def energy(meter: str, status: str) -> Trial:
        made = trial("energy", *(metered(number) for number in range(3)), status=status)
        return replace(made, key=f"{meter} {status}", plan=replace(made.plan, meter=meter))

    old, new = energy("old", "accepted"), energy("new", "refused")
    (group,) = siblings([trial("latency"), old, new])
    assert group["energy"].key == "new refused"
    (group,) = siblings([trial("latency"), new, old])
    assert group["energy"].key == "old accepted"
    (group,) = siblings([trial("latency"), energy("new", "accepted"), new])
    assert group["energy"].key == "new accepted"


def test_memory_that_a_device_tells_in_part():
    told = {"base_bytes": 10, "loaded_bytes": 20, "peak_bytes": None}
    runs = [replace(good(number), details={"memory": told}) for number in range(3)]
    (found,) = measured(trial("latency"), trial("memory", *runs))
    assert found.memory == Memory(10, 20, None, None, runs=3)
    rows = {name: value for name, value, _ in figures.memory(found)}
    assert (rows["peak"], rows["file-mapped"]) == ("unknown", "unknown")


def test_what_has_no_latency_is_no_measurement():
    assert siblings([trial("operators"), trial("app")]) == []
