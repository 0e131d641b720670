from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_files import MODEL, host, record, write

from elmoe.errors import CapacityError, ConfigError, TraceError
from elmoe.sim.host.cache import Budget
from elmoe.sim.host.trace_run import run_trace, trace_mode
from elmoe.trace.parquet import Trace
from elmoe.trace.replay import Policy
from elmoe.trace.schema import PassKind, PassRecord

AR, DRAFT, VERIFY, PREFILL = PassKind.AR, PassKind.DRAFT, PassKind.VERIFY, PassKind.PREFILL
SPECULATION = {"speculation": {"width": 1, "depth": 2, "verify": 2, "quality": {"bits": 4, "experts_per_tok": None}}}


def plain(steps: int = 6) -> list[PassRecord]:
    """Two sequences; each step reads experts 0, 1 and 2."""
    prompt = record(PREFILL, 0, [[3, 4]] * 4, sequences=[0, 0, 1, 1], positions=[0, 1, 0, 1])
    return [prompt, *(record(AR, step, [[0, 1], [1, 2]], positions=[step + 1] * 2) for step in range(1, steps + 1))]


def drafted() -> list[PassRecord]:
    """One sequence, two steps: a draft of two levels, of which two and one tokens are accepted."""
    found = []
    for step, kept in enumerate(([True, True, True], [True, True, False])):
        at = 10 * (step + 1)
        found += [record(DRAFT, step, [[0, 1]], positions=[at], sequences=[0], depth=0)]
        found += [record(DRAFT, step, [[0, 1]], positions=[at + 1], sequences=[0], depth=1)]
        found += [
            record(VERIFY, step, [[0, 1], [0, 1], [2, 3]], positions=[at, at + 1, at + 2], sequences=[0] * 3, kept=kept)
        ]
    return found


@pytest.fixture
def ar_trace(tmp_path: Path) -> Trace:
    return write(tmp_path / "ar.parquet", plain())


@pytest.fixture
def sd_trace(tmp_path: Path) -> Trace:
    return write(tmp_path / "sd.parquet", drafted(), SPECULATION)


def test_modes(ar_trace: Trace, sd_trace: Trace) -> None:
    assert (trace_mode(ar_trace), trace_mode(sd_trace)) == ("ar", "sd")


def test_plain_decoding_counts_decode_passes_only(ar_trace: Trace) -> None:
    found = run_trace(host(work={"pass_us": 100.0}), MODEL, ar_trace, Budget())
    assert (found.mode, found.batch, found.context) == ("ar", 2, 4)
    assert (found.decoded.steps, found.decoded.tokens) == (6, 12)
    assert found.decoded.tokens_per_s == pytest.approx(2 / 100e-6, rel=1e-3)
    assert set(found.decoded.phases) == {"decode"}
    assert found.msb_miss_rate == found.lsb_miss_rate == 0


def test_a_drafted_step_is_its_passes_and_gives_what_was_kept(sd_trace: Trace) -> None:
    engine = {"step_us": 10.0, "pass_us": 5.0, "row_us": 1.0, "pool_ns": 1000.0}
    found = run_trace(host(work={"pass_us": 100.0}, engine=engine), MODEL, sd_trace, Budget())
    assert (found.mode, found.decoded.steps, found.decoded.tokens) == ("sd", 2, 5)
    around = 10 + 3 * 5 + (1 + 1 + 3) + MODEL.moe_layers * MODEL.experts
    assert found.decoded.seconds == pytest.approx(2 * (3 * 100e-6 + around * 1e-6), rel=1e-3)
    assert found.decoded.counts == {"draft": 4, "verify": 2}


def test_drafts_read_msb_planes_of_the_experts_that_they_used(sd_trace: Trace) -> None:
    """Two distinct experts with half of the one row's two choices each."""
    found = run_trace(
        host(draft={f"rows_{rows}": 1e-3 for rows in (1, 2, 4, 8, 16, 32, 64)}), MODEL, sd_trace, Budget()
    )
    weights = MODEL.dense_params + 2 * MODEL.expert_params * MODEL.moe_layers
    assert found.decoded.phases["draft"].seconds == pytest.approx(4 * weights / 1e-3 * 1e-9, rel=1e-3)
    assert found.decoded.phases["draft"].slow_bytes == 0


def test_the_same_tokens_decoded_plainly(sd_trace: Trace) -> None:
    found = run_trace(host(work={"pass_us": 100.0}), MODEL, sd_trace, Budget(), "ar")
    assert (found.mode, found.batch) == ("ar", 1)
    assert (found.decoded.steps, found.decoded.tokens) == (5, 5)
    assert found.decoded.tokens_per_s == pytest.approx(1 / 100e-6, rel=1e-3)


def test_a_prompt_warms_the_cache_up(tmp_path: Path) -> None:
    """Decoding reads what the prompt read: nothing is missing, while an empty cache misses once."""
    same = [record(AR, step, [[3, 4]], positions=[step]) for step in (1, 2)]
    prompt = record(PREFILL, 0, [[3, 4]])
    budget = Budget(200_000, Policy.LRU)
    warm = run_trace(host(), MODEL, write(tmp_path / "warm.parquet", [prompt, *same]), budget)
    cold = run_trace(host(), MODEL, write(tmp_path / "cold.parquet", same), budget)
    assert (warm.msb_miss_rate, cold.msb_miss_rate) == (0, 0.5)
    assert warm.decoded.slow_bytes == 0
    assert cold.decoded.slow_bytes > 0


def test_caches_may_have_seen_the_run_before(tmp_path: Path) -> None:
    """Eight experts in turn, of which all but those of the last passes are gone, or all are there."""
    passes = [record(AR, step, [[2 * step, 2 * step + 1]], positions=[step]) for step in range(4)]
    trace = write(tmp_path / "t.parquet", passes)
    cold, warm = (run_trace(host(), MODEL, trace, Budget(10**7, Policy.LRU), rounds_before=n) for n in (0, 2))
    assert (cold.msb_miss_rate, warm.msb_miss_rate) == (1, 0)
    assert (cold.decoded.steps, warm.decoded.steps) == (4, 4)
    small = run_trace(host(), MODEL, trace, Budget(150_000, Policy.LRU), rounds_before=2)
    assert small.msb_miss_rate == 1, "LRU of a cycle that does not fit"
    assert run_trace(host(), MODEL, trace, Budget(150_000, Policy.BELADY), rounds_before=2).msb_miss_rate < 1
    plain = run_trace(host(), MODEL, write(tmp_path / "sd.parquet", drafted()), Budget(10**7), "ar", rounds_before=1)
    assert (plain.msb_miss_rate, plain.decoded.steps) == (0, 5)


def test_memory_is_set_aside_for_the_largest_pass_of_the_engine(tmp_path: Path) -> None:
    """As its settings say; a trace without any counts its own rows."""
    passes = [record(AR, step, [[0, 1]], positions=[step]) for step in range(3)]
    engine = {"max_batch": 4, "prefill_chunk": 64, "speculation": {"verify": 3, "quality": {}}}
    told, untold = (write(tmp_path / f"{len(each)}.parquet", passes, each) for each in (engine, {}))
    budget = Budget(450_000)
    assert run_trace(host(), MODEL, told, budget).held.msb[0] < run_trace(host(), MODEL, untold, budget).held.msb[0]


def test_a_stream_reads_everything_every_time(ar_trace: Trace) -> None:
    found = run_trace(host(), MODEL, ar_trace, Budget(200_000, policy=None))
    assert found.msb_miss_rate == found.lsb_miss_rate == 1
    expert = MODEL.expert_params * (0.5625 + 0.5)
    assert found.decoded.slow_bytes == pytest.approx(6 * 3 * MODEL.moe_layers * expert)


def test_a_larger_budget_is_no_slower(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    passes = [record(AR, step, [rng.choice(8, 2, replace=False).tolist()], positions=[step]) for step in range(40)]
    trace = write(tmp_path / "t.parquet", passes)
    slow = host(slow={f"read_{size}_gb_per_s": 0.1 for size in ("16k", "64k", "256k", "1m", "4m")})
    sizes = range(140_000, 400_000, 40_000)
    rates = [run_trace(slow, MODEL, trace, Budget(size)).decoded.tokens_per_s for size in sizes]
    assert rates == sorted(rates)
    assert rates[-1] > rates[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speculation": {"quality": {"bits": 8}}}, "recorded with drafts of 8 bits; .* --draft-bits 4"),
        ({"speculation": {"quality": {"bits": 3}}}, "recorded with drafts of 3 bits"),
    ],
)
def test_drafts_that_are_not_modelled(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_trace(host(), MODEL, write(tmp_path / "t.parquet", drafted(), settings), Budget())


def test_what_a_trace_cannot_say(tmp_path: Path, ar_trace: Trace) -> None:
    with pytest.raises(ConfigError, match=r"ar.parquet was recorded without drafts; record one with .* --mode sd"):
        run_trace(host(), MODEL, ar_trace, Budget(), "sd")
    nothing = write(tmp_path / "prompt.parquet", [record(PREFILL, 0, [[0, 1]])])
    with pytest.raises(TraceError, match=r"prompt.parquet has no decode passes; record a longer trace"):
        run_trace(host(), MODEL, nothing, Budget())
    with pytest.raises(CapacityError, match="too few"):
        run_trace(host(), MODEL, ar_trace, Budget(1000))
