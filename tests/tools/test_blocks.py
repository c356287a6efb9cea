"""Where the time goes: every block with its figure, the sum beside the whole, the gap named."""

from __future__ import annotations

import re

import pytest

from pipeline.profile.record import write_profile
from profiles import units
from profiles.store import Store
from tests import showcase
from tests.page import Page
from tools.report import write_report
from tools.report.blocks import MOST_OPERATORS


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    root = tmp_path_factory.mktemp("blocks")
    Store(root / "store.db").close()
    for profile in (showcase.profile(), showcase.lacking_profile()):
        write_profile(root, profile)
    return Page(write_report(root).read_text(encoding="utf-8"))


def test_blocks_are_told_with_their_sum_the_whole_and_the_gap(page: Page):
    rows = [row for row in page.cells() if len(row) == 7]
    profile = showcase.profile()
    for block in profile.blocks:
        assert block.latency_ns
        row = next(row for row in rows if row[0].startswith(block.names[0]))
        assert row[1] == block.kind
        assert row[2] == units.format_ms(block.latency_ns.value)
        assert row[3] == units.format_interval_ms(block.latency_ns.ci95)
        assert row[4] == units.format_ms((block.latency_ns.value - 12_000) * block.count)
        assert row[5] == f"{100 * (block.share or 0):.1f} %"
    assert "features.1 and 1 like it" in page.words
    assert "Sum over whole: 0.92x (0.90x to 0.93x), a gap of -0.195 ms." in page.words
    assert "The blocks take less alone." in page.words


def test_a_block_that_is_not_known_has_no_bar_and_no_sum_is_made(page: Page):
    rows = [row for row in page.cells() if len(row) == 7 and row[0].startswith("features.1")]
    (lost,) = [row for row in rows if row[2] == "unknown"]
    assert lost[4:6] == ["unknown", "unknown"]
    assert lost[6] == "failed: no kernel for it"
    assert "Operators unknown: only ONNX Runtime tells them" in page.words
    sums = [row[2] for row in page.cells() if row[0].startswith("sum of the blocks")]
    assert sorted(sums) == [units.format_ms(2_151_000), "unknown"]


def test_bars_are_as_long_as_blocks_take(page: Page):
    widths = [float(w) for w in re.findall(r'class="bar" style="width: ([\d.]+)%"', page.source)]
    stem, body, head = widths[:3]
    assert body == pytest.approx(100 * 0.708 / (0.7416 - 0.012), rel=1e-3)
    assert stem / body == pytest.approx(0.298 / (2 * 0.708), rel=1e-3)
    assert head / body == pytest.approx(0.428 / (2 * 0.708), rel=1e-3)


def test_operators_are_listed_slowest_first_and_the_rest_is_summed(page: Page):
    rows = [row for row in page.cells() if len(row) == 6 and "Conv" in row[:2]]
    assert len(rows) == MOST_OPERATORS
    times = [float(row[4]) for row in rows]
    assert times == sorted(times, reverse=True)
    (rest,) = [row for row in page.cells() if row[0] == "3 others"]
    assert rest[4] == units.format_ms(sum(90_000 - 4_000 * n for n in (20, 21, 22)))
    assert "1.34 ms are in none of them" in page.words
