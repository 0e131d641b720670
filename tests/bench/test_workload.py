"""Plans: the same tokens for all arms, other tokens each round, and what cannot be planned."""

import re
from dataclasses import replace

import pytest

from elmoe.bench.workload import RacePlan
from elmoe.errors import ConfigError


def test_tokens_depend_on_seed_round_and_batch_alone(small):
    plan = RacePlan(batches=(1, 3), prefill=9, steps=4, context=5)
    work = plan.decoding(small.shape, 3, turn=0)
    assert (work.batch, work.cells) == (3, 9)
    assert ([len(each) for each in work.contexts], [len(each) for each in work.steps]) == ([5] * 3, [3] * 4)
    assert all(0 <= token < small.shape.vocab for tokens in work.contexts + work.steps for token in tokens)
    assert work == replace(plan, batches=(3,), rounds=1).decoding(small.shape, 3, turn=0)
    assert work.steps != plan.decoding(small.shape, 3, turn=1).steps
    assert work.steps != replace(plan, seed=1).decoding(small.shape, 3, turn=0).steps
    assert len(plan.prompt(small.shape, 0)) == 9
    assert plan.prompt(small.shape, 0) != plan.prompt(small.shape, 1)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"batches": (0,)}, "batch must be 1 to 256, not 0"),
        ({"batches": (1, 257)}, "batch must be 1 to 256, not 257"),
        ({"batches": (4, 4)}, "give each batch once, for example --batch 1,4,8,16"),
        ({"batches": ()}, "give each batch once"),
        ({"prefill": 0}, "prefill must be at least 1, not 0"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"rounds": -1}, "rounds must be at least 1, not -1"),
        ({"context": 0}, "context must be at least 1, not 0"),
        ({"seed": -1}, "seed must be 0 or more, not -1"),
    ],
)
def test_what_cannot_be_planned(settings, text):
    with pytest.raises(ConfigError, match=re.escape(text)):
        RacePlan(**settings)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"prefill": 8, "context": 100, "steps": 29},
            "29 steps after 100 tokens exceed the model's context; at most 28",
        ),
        ({"prefill": 127}, "a prefill of 127 exceeds the model's context; at most 126"),
    ],
)
def test_the_context_is_a_limit(small, settings, text):
    with pytest.raises(ConfigError, match=text):
        RacePlan(**settings).check_fit(small.shape)
    RacePlan(prefill=126, context=100, steps=28).check_fit(small.shape)
