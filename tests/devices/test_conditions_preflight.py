"""A device that is not as it should be is refused, with every reason; what passes is waited for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.conditions import Gates, Readings, applied, preflight, settle
from devices.conditions.linux import Policy
from devices.conditions.preflight import judge
from devices.endpoints.phone import install_phone
from devices.transport.local import LocalTransport
from profiles.catalog import load_profile, profile_names
from profiles.errors import NotReady
from profiles.records import Condition
from tests.devices.conditions_tree import heat, make_board, snapshot, write

AS_SHIPPED = Condition()
PINNED = Condition(mode="pinned")
CLOCK = Policy(
    "/policy0",
    frozenset({0, 1}),
    "schedutil",
    ("schedutil", "performance"),
    True,
    300_000,
    1_800_000,
    300_000,
    1_800_000,
)
FINE = Readings(
    temperatures_mdegc={"cpu": 40_000, "modem": 70_000},
    thermal_status=0,
    busy_cores=0.1,
    online=frozenset({0, 1}),
    policies=(CLOCK,),
    battery_percent=60,
    plugged=False,
    screen_on=False,
    airplane=True,
)
STRICT = Gates(
    max_temperature_mdegc=50_000,
    temperature_zones=("cpu*",),
    max_thermal_status=0,
    max_foreign_load_cores=0.5,
    battery_percent=(30, 90),
    governors=("schedutil",),
    screen="off",
    airplane=True,
    unplugged=True,
)


def test_a_device_that_is_as_it_should_be_is_not_refused() -> None:
    assert not list(judge(FINE, "linux", STRICT, Condition(core_mask="3")))


@pytest.mark.parametrize(
    ("change", "said", "passing"),
    [
        ({"temperatures_mdegc": {"cpu0": 50_001, "cpu1": 51_000}}, "of cpu1 is 51.0 °C", True),
        ({"thermal_status": 2}, "the thermal status is 2, not at most 0", True),
        ({"busy_cores": 1.25}, "the load of others is 1.25 cores, not at most 0.5", True),
        ({"battery_percent": 29}, "the battery is 29 %, not within 30 and 90 %", False),
        ({"battery_percent": 91}, "the battery is 91 %", False),
        ({"plugged": True}, "the device is plugged in, not on battery", False),
        ({"online": frozenset({0})}, "core mask 3 is of cores that are not online (1)", False),
        (
            {"policies": (replace(CLOCK, governor="powersave"),)},
            "governor is powersave, not schedutil",
            False,
        ),
        ({"screen_on": True}, "the screen is on, not off", False),
        ({"airplane": False}, "airplane mode is off, not on", False),
    ],
)
def test_each_gate_refuses(change: dict[str, object], said: str, passing: bool) -> None:
    seen = replace(FINE, **change)
    (refusal,) = judge(seen, "linux", STRICT, Condition(core_mask="3"))
    assert said in str(refusal)
    assert refusal.passing is passing
    assert refusal.advice


def test_what_is_unknown_never_refuses() -> None:
    assert not list(judge(Readings(), "linux", STRICT, Condition(core_mask="ff")))


readings = st.builds(
    Readings,
    temperatures_mdegc=st.dictionaries(st.text(max_size=3), st.integers(-40_000, 150_000)),
    thermal_status=st.none() | st.integers(0, 6),
    busy_cores=st.none() | st.floats(0, 64),
    online=st.none() | st.frozensets(st.integers(0, 7), min_size=1),
    battery_percent=st.none() | st.integers(0, 100),
    plugged=st.none() | st.booleans(),
    screen_on=st.none() | st.booleans(),
    airplane=st.none() | st.booleans(),
)


@given(readings, st.sampled_from(["linux", "android"]), st.sampled_from(["pinned", "as-shipped"]))
def test_no_gates_refuse_nothing_that_can_be_measured_as_shipped(
    seen: Readings, system: str, mode: str
) -> None:
    refusals = list(judge(seen, system, Gates(), Condition(mode=mode)))
    # No clocks were found, so there is nothing to pin on Linux.
    assert bool(refusals) is (mode == "pinned" and system == "linux")


@pytest.mark.parametrize(
    ("clock", "gates", "said"),
    [
        (None, Gates(), "not the system's to set"),
        (replace(CLOCK, writable=False), Gates(), "not this login's to set"),
        (replace(CLOCK, governors=("schedutil",)), Gates(), "not performance"),
        (CLOCK, Gates(governors=("userspace",)), "not userspace"),
        (CLOCK, Gates(pinned_khz=200_000), "at least 300000 kHz, not 200000 kHz"),
    ],
)
def test_what_cannot_be_pinned_is_refused(clock: Policy | None, gates: Gates, said: str) -> None:
    seen = replace(FINE, policies=(clock,) if clock else ())
    (refusal,) = judge(seen, "linux", gates, PINNED)
    assert said in str(refusal)
    assert not list(judge(seen, "linux", Gates(), AS_SHIPPED))


def test_only_the_clocks_of_the_named_cores_matter() -> None:
    other = replace(CLOCK, path="/policy2", cores=frozenset({2, 3}), writable=False)
    seen = replace(FINE, policies=(CLOCK, other), online=frozenset(range(4)))
    assert not list(judge(seen, "linux", Gates(), Condition(mode="pinned", core_mask="3")))
    assert list(judge(seen, "linux", Gates(), Condition(mode="pinned", core_mask="4")))


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_s_gates_can_be_used(name: str) -> None:
    profile = load_profile(name).gates
    gates = Gates.of(profile, screen="off")
    assert gates.screen == "off"
    assert gates.max_temperature_mdegc == profile.max_temperature_mdegc


def cooled_at(board: Path, look: int, mdegc: int) -> Callable[[str, str], None]:
    looks: list[str] = []

    def on_state(state: str, why: str) -> None:
        assert state == "cooling"
        assert "cpu-thermal" in why
        looks.append(why)
        if len(looks) == look:
            heat(board, mdegc)

    return on_state


def test_a_warm_device_is_waited_for_until_it_is_cool(tmp_path: Path) -> None:
    board = make_board(tmp_path)
    heat(board, 70_000)
    gates = Gates(max_temperature_mdegc=60_000, settle_s=600)
    seen = settle(
        LocalTransport(tmp_path),
        "linux",
        gates,
        AS_SHIPPED,
        on_state=cooled_at(board, 3, 59_000),
        poll_s=0.01,
        tree=str(board),
    )
    assert not seen.refusals
    assert seen.readings.temperatures_mdegc == {"cpu-thermal": 59_000}


def test_a_device_that_stays_warm_is_refused_when_the_wait_is_over(tmp_path: Path) -> None:
    board = make_board(tmp_path)
    heat(board, 70_000)
    gates = Gates(max_temperature_mdegc=60_000, settle_s=0.05)
    transport = LocalTransport(tmp_path)
    seen = settle(transport, "linux", gates, AS_SHIPPED, poll_s=0.01, tree=str(board))
    assert [refusal.what for refusal in seen.refusals] == ["the temperature of cpu-thermal"]


def test_what_waiting_does_not_change_is_not_waited_for(tmp_path: Path) -> None:
    board = make_board(tmp_path)
    heat(board, 70_000)
    write(board, {"sys/devices/system/cpu/online": "0-3"})
    waits: list[str] = []
    seen = settle(
        LocalTransport(tmp_path),
        "linux",
        Gates(max_temperature_mdegc=60_000, settle_s=600),
        Condition(core_mask="f0"),
        on_state=lambda state, why: waits.append(state),
        poll_s=0.01,
        tree=str(board),
    )
    assert len(seen.refusals) == 2
    assert not waits


def test_a_refused_visit_says_every_reason_and_changes_nothing(tmp_path: Path) -> None:
    board = make_board(tmp_path / "board")
    heat(board, 70_000)
    gates = Gates(max_temperature_mdegc=60_000, battery_percent=(30, 90))
    write(
        board,
        {"sys/class/power_supply/b/type": "Battery", "sys/class/power_supply/b/capacity": 5},
    )
    before = snapshot(board)
    with (
        pytest.raises(NotReady) as refused,
        applied(
            LocalTransport(tmp_path),
            "root",
            {"system": "linux"},
            gates,
            PINNED,
            tree=str(board),
        ),
    ):
        pytest.fail("a device that is not ready was measured")
    assert "70.0 °C" in str(refused.value)
    assert "the battery is 5 %" in str(refused.value)
    assert "charge it first" in refused.value.hint
    assert snapshot(board) == before


def test_a_hot_phone_is_refused_by_its_own_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = install_phone(tmp_path / "phone")
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    transport = LocalTransport(tmp_path)
    gates = Gates(max_thermal_status=0, max_temperature_mdegc=40_000)
    assert not preflight(transport, "android", gates, AS_SHIPPED).refusals
    transport.run(["cmd", "thermalservice", "override-status", "3"], deadline_s=10)
    (tmp_path / "phone/state/temperature.VIRTUAL-SKIN").write_text("41.5\n")
    seen = preflight(transport, "android", gates, AS_SHIPPED)
    assert [str(refusal) for refusal in seen.refusals] == [
        "the temperature of VIRTUAL-SKIN is 41.5 °C, not at most 40.0 °C",
        "the thermal status is 3, not at most 0",
    ]
