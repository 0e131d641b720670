"""What the arms ask of the backend and the engine, and that they leave nothing behind."""

import numpy as np
import pytest

from elmoe.backend.reference import ReferenceBackend
from elmoe.bench.arms import BackendArm, EngineArm
from elmoe.bench.workload import RacePlan
from elmoe.engine.controller import Mode, Speculation
from elmoe.engine.elasticity import Teacher
from elmoe.engine.engine import Engine, EngineOptions

PLAN = RacePlan(batches=(3,), prefill=20, steps=4, context=5)


class Watched(ReferenceBackend):
    """Notes the rows of every pass and the caches."""

    def __init__(self, checkpoint):
        super().__init__(checkpoint)
        self.passes, self.cells = [], {}

    def allocate(self, sequence, cells):
        super().allocate(sequence, cells)
        self.cells[sequence] = cells

    def release(self, sequence):
        super().release(sequence)
        del self.cells[sequence]

    def forward(self, rows, pool=None, draft=None, keep=None):
        self.passes.append((rows, dict(self.cells)))
        return super().forward(rows, pool, draft, keep)


@pytest.fixture
def watched(small):
    return Watched(small)


def test_the_backend_arm_decodes_one_row_per_sequence_and_step(watched):
    work = PLAN.decoding(watched.shape, 3, turn=0)
    sample = BackendArm(watched).decode(work)
    assert sample.tok_s > 0
    assert sample.counters is None
    context_passes, steps = watched.passes[:3], watched.passes[3:]
    assert [rows.tokens.tolist() for rows, _ in context_passes] == work.contexts
    assert all(len(rows.logits) == 0 for rows, _ in context_passes)
    for n, (rows, cells) in enumerate(steps):
        assert rows.tokens.tolist() == work.steps[n]
        assert rows.positions.tolist() == [5 + n] * 3
        assert rows.prefix.tolist() == [6 + n] * 3
        assert (rows.logits.tolist(), rows.best) == ([0, 1, 2], 1)
        assert cells == {0: 9, 1: 9, 2: 9}
    assert len(steps) == 4
    assert watched.cells == {}


def test_bytes_per_second_are_those_of_the_median_step(watched):
    sample = BackendArm(watched).decode(PLAN.decoding(watched.shape, 3, turn=0))
    sizes = watched.footprint
    step_bytes = sample.bytes_per_s * 3 / sample.tok_s
    assert sizes.dense < step_bytes <= sizes.total + 3 * 9 * sizes.kv_per_token


def test_prefill_goes_in_the_chunks_of_the_engine(watched, monkeypatch):
    monkeypatch.setattr(EngineOptions, "prefill_chunk", 8)
    prompt = PLAN.prompt(watched.shape, 0)
    assert BackendArm(watched).prefill(prompt) > 0
    assert [rows.tokens.tolist() for rows, _ in watched.passes] == [prompt[:8], prompt[8:16], prompt[16:]]
    assert [rows.logits.tolist() for rows, _ in watched.passes] == [[], [], [3]]
    assert watched.cells == {}


def test_logits_are_the_models(watched, small):
    prompt = PLAN.prompt(watched.shape, 0)
    assert np.array_equal(BackendArm(watched).logits(prompt), Teacher(ReferenceBackend(small), prompt).logits[-1])


def test_the_engine_arms_write_the_same_number_of_tokens(watched):
    engine = Engine(watched, options=EngineOptions(max_batch=3))
    plain = EngineArm(engine, "ar-engine", Speculation(mode=Mode.AR), "ar-engine")
    elastic = EngineArm(engine, "sd", Speculation(mode=Mode.SD, width=1, depth=2, verify=2), "ar-engine")
    work = PLAN.decoding(watched.shape, 3, turn=0)
    for arm in (plain, elastic):
        sample = arm.decode(work)
        assert engine.stats.acceptance.emitted == 12
        assert sample.tok_s > 0
        assert sample.bytes_per_s > 0
        assert (sample.counters is None) == (arm is plain)
        assert arm.prefill(PLAN.prompt(watched.shape, 0)) > 0
        assert engine.stats.passes[max(engine.stats.passes, key=lambda kind: engine.stats.passes[kind].rows)].rows == 20
    assert watched.cells == {}
