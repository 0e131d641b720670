from __future__ import annotations

import json
from typing import Any

import pytest

from elmoe.trace.schema import Acceptance, PassKind, RunStats


def test_acceptance_ratios() -> None:
    """Ten verify steps of depth 4: 30 of 40 levels accepted, nine of them ended by a refusal."""
    counts = Acceptance(ar_steps=10, verify_steps=10, drafted=80, levels=40, tested=39, accepted=30, emitted=50)
    assert counts.acceptance_rate == pytest.approx(30 / 39)
    assert counts.level_acceptance == pytest.approx(0.75)
    assert counts.mean_accepted_length == pytest.approx(3)
    assert counts.coverage == pytest.approx(0.5)
    assert counts.as_dict()["mean_accepted_length"] == counts.mean_accepted_length


def test_nothing_happened() -> None:
    assert set(Acceptance().as_dict().values()) == {0}
    assert json.dumps(RunStats().as_dict())


def test_acceptance_adds_up() -> None:
    total = Acceptance(1, 2, 3, 4, 5, 6, 7)
    total.add(Acceptance(10, 20, 30, 40, 50, 60, 70))
    assert total == Acceptance(11, 22, 33, 44, 55, 66, 77)


def test_run_stats_sum_passes_by_kind(make_record: Any) -> None:
    stats = RunStats(decode_seconds=2.0, prefill_seconds=4.0, acceptance=Acceptance(emitted=10))
    records = {kind: make_record(0, kind, rows) for rows, kind in enumerate(PassKind, start=1)}
    for record in records.values():
        stats.count(record)
    values = stats.as_dict()
    decode = [records[kind] for kind in (PassKind.AR, PassKind.DRAFT, PassKind.VERIFY)]
    target = [records[kind] for kind in (PassKind.AR, PassKind.VERIFY)]
    assert values["decode_tok_s"] == 5.0
    assert values["prefill_tok_s"] == 0.25
    assert values["target_passes"] == 2
    assert values["distinct_experts"] == sum(int(record.distinct_experts.sum()) for record in target)
    assert values["fast_bytes_read"] == sum(record.fast_bytes for record in decode)
    assert values["slow_bytes_read"] == sum(record.slow_bytes for record in decode)
    assert values["kv_bytes_read"] == sum(record.kv_bytes for record in decode)
    for kind, record in records.items():
        totals = values["passes"][kind.value]
        assert (totals["passes"], totals["rows"]) == (1, len(record.tokens))
        assert totals["seconds"] == record.seconds
