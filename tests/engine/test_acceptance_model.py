import random

import pytest

from elmoe.engine.acceptance_model import MEMORY, PRIOR, AcceptanceModel


def drawn(chances, steps, seed=1, model=None, first=0):
    """A model after `steps` verdicts on trees as deep as `chances`, whose levels hold with these chances."""
    model, random_ = model or AcceptanceModel(), random.Random(seed)
    for step in range(first, first + steps):
        accepted = 0
        while accepted < len(chances) and random_.random() < chances[accepted]:
            accepted += 1
        model.observe(step, len(chances), accepted)
    return model


def test_before_the_first_verdict_there_is_a_guess():
    model = AcceptanceModel()
    assert model.expected_tokens(2) == pytest.approx([1, 1 + PRIOR, 1 + PRIOR + PRIOR**2])
    assert model.most_tokens(2, 0) == [1, 2, 3]


def test_each_level_has_its_own_chance():
    model = drawn([0.9, 0.6, 0.3], 3000)
    assert model.chances == pytest.approx([0.9, 0.6, 0.3], abs=0.12)
    one, two, three = model.chances
    want = [1, 1 + one, 1 + one + one * two, 1 + one + one * two + one * two * three]
    assert model.expected_tokens(3) == pytest.approx(want)


def test_an_untested_level_is_like_the_deepest_tested_one():
    model = drawn([0.8], 300)
    assert model.chance(0) == model.chance(5)


def test_levels_below_a_refusal_and_beyond_the_tree_are_not_tested():
    model = AcceptanceModel()
    model.observe(0, 4, 1)
    assert len(model.chances) == 2
    model.observe(1, 1, 1)
    assert len(model.chances) == 2


def test_recent_verdicts_count_more():
    model = drawn([0.9], 1000)
    drawn([0.1], int(2 * MEMORY), model=model, first=1000)
    assert model.chances[0] < 0.25


def test_what_lay_idle_is_kept_but_believed_less():
    model = drawn([0.9], 1000)
    before = model.chances[0]
    assert model.most_tokens(1, 1000)[1] - model.expected_tokens(1)[1] < 0.1
    assert model.most_tokens(1, 3000)[1] == 2.0
    assert model.chances[0] == before
    for step in range(3000, 3008):
        model.observe(step, 1, 0)
    assert model.chances[0] < 0.4
