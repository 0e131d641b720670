"""Every family on every instruction-set path against the reference backend: equal bits in random histories."""

from __future__ import annotations

import numpy as np
import pytest
from story import Story
from twins import Checked, Oracle, open_on

from backend.family_models import FAMILY_MODELS
from elmoe.backend.protocol import Backend
from elmoe.checkpoint.folder import Checkpoint

PASSES = 16


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle()


@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_random_passes(family_checkpoints: dict[str, Checkpoint], oracle: Oracle, isa: str, name: str) -> None:
    """Prefill, decode, trees, moves, drafts of all widths and pools; over windows, spans and blocks."""
    seed = list(FAMILY_MODELS).index(name)

    def tell(backend: Backend) -> None:
        Story(backend, np.random.default_rng(seed), sequences=3).tell(PASSES)

    answers = oracle.answers(name, family_checkpoints[name], tell)
    checked = Checked(open_on(isa, family_checkpoints[name]), answers)
    tell(checked)
    assert checked.passes == len(answers) >= PASSES // 2
    assert max(np.abs(answer.logits).max(initial=0) for answer in answers) > 1, "the comparison is of something"
