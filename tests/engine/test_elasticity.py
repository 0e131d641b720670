import numpy as np
import pytest

from elmoe.backend.protocol import DraftQuality
from elmoe.backend.reference import ReferenceBackend
from elmoe.engine.elasticity import POOL_FRACTIONS, PoolChoice, Setting, Teacher, full_grid, measure
from elmoe.quant.bitnested import Treatment

TOKENS = [1, 360, 220, 54, 700, 81, 12, 900, 33, 45, 2000, 301, 17, 220, 54, 66, 71, 505, 42, 9]


@pytest.fixture(scope="module")
def backend(tiny):
    return ReferenceBackend(tiny)


def test_undegraded_drafts_over_all_experts_are_the_target_to_the_bit(backend):
    teacher = Teacher(backend, TOKENS)
    draft = teacher.draft_logits(3, 12, DraftQuality(bits=8), None)
    assert draft.tobytes() == teacher.logits[3:12].tobytes()


def test_a_draft_row_is_what_the_first_step_of_a_draft_computes(backend):
    teacher = Teacher(backend, TOKENS)
    quality = DraftQuality(bits=4)
    together = teacher.draft_logits(2, 14, quality, None)
    alone = np.concatenate([teacher.draft_logits(i, i + 1, quality, None) for i in range(2, 14)])
    assert together.tobytes() == alone.tobytes()


def test_agreement_falls_along_both_axes_and_repeats(backend):
    grid = [
        Setting(8),
        Setting(4),
        Setting(4, Treatment.TRUNCATE),
        Setting(2, Treatment.TRUNCATE),
        Setting(8, pool_fraction=0.25, pool=PoolChoice.RANDOM),
    ]
    sequences = [(TOKENS, 2), (TOKENS[::-1], 1)]
    full, augmented, truncated, useless, thinned = results = measure(backend, sequences, grid)
    assert (full.agreement, round(full.overlap, 6)) == (1.0, 1.0)
    assert all(result.positions == 18 + 19 for result in results)
    assert augmented.overlap > truncated.overlap > useless.overlap
    assert thinned.overlap < 1
    assert measure(backend, sequences, grid) == results


def test_the_grid_covers_what_is_asked_for():
    grid = full_grid()
    assert len(set(grid)) == len(grid)
    for bits in range(2, 8):
        assert {s.treatment for s in grid if s.bits == bits and s.pool_fraction == 1.0} == set(Treatment)
        assert {s.pool_fraction for s in grid if s.bits == bits} == set(POOL_FRACTIONS)
    assert {s.bits for s in grid if s.pool is PoolChoice.RANDOM} == {4, 8}
