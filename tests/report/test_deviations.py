"""Every number that differs from the quoted one by more than 15 % says why."""

from __future__ import annotations

import pytest

from elmoe.report.deviations import LIMIT, headline_deviations, table3_deviations
from elmoe.sim.headline import QUOTED, headline
from elmoe.sim.table3 import compare, quoted_cells


@pytest.fixture(scope="module")
def of_table():
    return table3_deviations()


def test_all_cells_beyond_the_limit_are_there_and_no_others(of_table) -> None:
    shares = [
        getattr(item, f"{mode}_speedup") / getattr(item.quoted, f"{mode}_speedup") - 1
        for item in compare(quoted_cells())
        for mode in ("ar", "sd")
    ]
    assert len(of_table) == sum(abs(share) > LIMIT for share in shares) > 20
    assert all(abs(one.share) > LIMIT for one in of_table)


def test_each_has_a_reason(of_table) -> None:
    unexplained = [one.what for one in (*of_table, *headline_deviations(headline(8.0))) if not one.why]
    assert not unexplained


def test_the_reuse_that_a_cell_would_need_is_named_where_there_is_one(of_table) -> None:
    by_name = {one.what: one.why for one in of_table}
    assert "this cell would need 0." in by_name["deepseek-v2-lite, elastic, SD, batch 1"]
    assert "no other explains this cell" in by_name["qwen3-30b-a3b, elastic, SD, batch 16"]
    assert "without any cached expert" in by_name["gpt-oss-20b, eagle, AR, batch 16"]


def test_averages_are_compared_with_the_quoted_ones() -> None:
    found = headline_deviations(headline(8.0, batches=(1, 16)))
    assert {one.what.split(",")[0].replace(" ", "_") for one in found} <= set(QUOTED)
    assert {one.quoted for one in found} <= {value for gain in QUOTED.values() for value in (gain.mean, gain.largest)}
