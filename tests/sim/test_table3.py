"""The simulator beside the quoted table 3, 4 GB half: what issue and paper ask of it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from elmoe.sim.model import MODELS
from elmoe.sim.table3 import Compared, Quoted, compare, mean_abs, quoted_cells, rank_agreement


@pytest.fixture(scope="module")
def found() -> list[Compared]:
    """Every cell, at its quoted acceptance."""
    return compare(quoted_cells())


def test_the_quoted_half() -> None:
    cells = quoted_cells()
    assert len(cells) == 4 * 4 * 4
    assert {cell.model for cell in cells} == set(MODELS)
    assert {(cell.hb_gb, cell.batch) for cell in cells} == {(4.0, batch) for batch in (1, 4, 8, 16)}
    by_name = {(cell.model, cell.scheme, cell.batch): cell for cell in cells}
    assert by_name["qwen3-30b-a3b", "elastic", 4] == Quoted(4.0, "qwen3-30b-a3b", "elastic", 4, 0.57, 2.48, 2.52)
    assert by_name["gpt-oss-20b", "eagle", 16] == Quoted(4.0, "gpt-oss-20b", "eagle", 16, 0.23, 1.22, 2.13)


def test_plain_decoding_within_eight_percent(found: list[Compared]) -> None:
    assert mean_abs([cell.ar_log_ratio for cell in found]) <= 0.08


def test_elastic_within_fifteen_percent(found: list[Compared]) -> None:
    assert mean_abs([cell.sd_log_ratio for cell in found if cell.quoted.scheme == "elastic"]) <= 0.15


@pytest.mark.parametrize("scheme", ["eagle", "slm", "quant", "elastic"])
def test_every_scheme_within_a_quarter(found: list[Compared], scheme: str) -> None:
    of_scheme = [cell for cell in found if cell.quoted.scheme == scheme]
    assert mean_abs([cell.ar_log_ratio for cell in of_scheme]) <= 0.25
    assert mean_abs([cell.sd_log_ratio for cell in of_scheme]) <= 0.25


def test_ranks_of_schemes_are_kept(found: list[Compared]) -> None:
    kept, pairs = rank_agreement(found)
    assert pairs > 150
    assert kept >= 0.95 * pairs


def test_arithmetic_by_hand() -> None:
    cells = quoted_cells()
    one = Compared(cells[0], ar_speedup=2 * cells[0].ar_speedup, sd_speedup=cells[0].sd_speedup / 2)
    assert [one.ar_log_ratio, one.sd_log_ratio] == pytest.approx([math.log(2), -math.log(2)])
    assert mean_abs([one.ar_log_ratio, one.sd_log_ratio, 0.0]) == pytest.approx(2 * math.log(2) / 3)


def test_rank_agreement_by_hand() -> None:
    """One pair in the quoted order, one in the other, one tie; other batches and models are not compared."""
    quoted = Quoted(4.0, "m", "eagle", 1, 0.3, ar_speedup=2.0, sd_speedup=3.0)
    better = replace(quoted, scheme="elastic", ar_speedup=2.5, sd_speedup=3.5)
    tie = replace(quoted, scheme="slm", ar_speedup=2.5, sd_speedup=3.0)
    base, upside_down = Compared(quoted, 1.0, 1.0), Compared(better, 1.1, 0.9)
    assert rank_agreement([base, upside_down]) == (1, 2)
    assert rank_agreement([base, upside_down, Compared(replace(better, batch=4), 9, 9)]) == (1, 2)
    assert rank_agreement([base, Compared(replace(better, model="n"), 9, 9)]) == (0, 0)
    assert rank_agreement([Compared(better, 1.0, 1.0), Compared(tie, 5.0, 0.5)]) == (1, 1)
