"""Penalties, biases and grammars: by their definition, and the same in plain decoding, drafts and verification."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mock_backend import EOS, PIECES, Letters, MockBackend, clone, engine_over
from test_engine import check_counters, prompts, speculations

from elmoe.backend.protocol import DraftQuality
from elmoe.engine.controller import Mode, Speculation
from elmoe.engine.request import Generation
from elmoe.engine.sampler import Sampling, selection_scores
from elmoe.engine.shaping import Shaper
from elmoe.errors import ConfigError

AR, SD = Speculation(mode=Mode.AR), Speculation(mode=Mode.SD)
VOCAB = len(PIECES)


class Modular:
    """A grammar over sums: a token may come where the sum of all so far and it is no multiple of `modulus`."""

    def __init__(self, modulus, length):
        self.modulus, self.length, self.tokens = modulus, length, []

    def mask(self, path):
        tokens = [*self.tokens, *path]
        if EOS in tokens or len(tokens) > self.length:
            return None
        allowed = np.array([(sum(tokens) + token) % self.modulus != 0 for token in range(VOCAB)])
        allowed[EOS] = len(tokens) > 3
        return allowed

    def append(self, token):
        self.tokens.append(token)

    @property
    def ended(self):
        return len(self.tokens) >= self.length


class ModularGrammars:
    def compile(self, grammar):
        return Modular(*map(int, grammar.split()))


def shaped_by_definition(logits, sampling, prompt, generated):
    """One token after the other, in plain Python."""
    values = [float(value) for value in logits]
    for token in range(len(values)):
        if token in prompt or token in generated:
            r = sampling.repetition_penalty
            values[token] = values[token] / r if values[token] > 0 else values[token] * r
        count = generated.count(token)
        values[token] -= sampling.frequency_penalty * count + sampling.presence_penalty * (count > 0)
    for token, bias in sampling.logit_bias:
        values[token] += bias
    return values


SHAPES = [
    Sampling(presence_penalty=1.5),
    Sampling(frequency_penalty=0.7),
    Sampling(frequency_penalty=-2),
    Sampling(repetition_penalty=1.4),
    Sampling(repetition_penalty=0.7, presence_penalty=-0.3, logit_bias=((3, 5.0), (4, -100.0), (3, 1.0))),
]


@pytest.mark.parametrize("sampling", SHAPES, ids=str)
def test_penalties_and_biases_by_their_definition(sampling):
    rng = np.random.default_rng(3)
    prompt, generated = [1, 2, 2], [4, 5, 5, 7]
    for split in range(len(generated) + 1):
        shaper = Shaper(sampling, prompt, VOCAB)
        for token in generated[:split]:
            shaper.append(token)
        logits = rng.standard_normal(VOCAB).astype(np.float32) * 4
        before = logits.copy()
        shaped = shaper.after(generated[split:])(logits)
        np.testing.assert_allclose(shaped, shaped_by_definition(logits, sampling, prompt, generated), rtol=2e-6)
        assert (logits == before).all(), "the logits of the pass are left as they are"
        assert (shaper.after([])(logits) != shaped).any() or split == len(generated)


def by_definition(backend, prompt, generation):
    """(tokens, log-probabilities) of a request, without cells, trees, batches or engines."""
    grammar = ModularGrammars().compile(generation.grammar) if generation.grammar else None
    shaper = Shaper(generation.sampling, prompt, VOCAB, grammar)
    tokens, logprobs = [], []
    while len(tokens) < min(generation.max_tokens, backend.max_context - len(prompt)):
        context = [*prompt, *tokens]
        logits = backend.logits(np.array(context))
        scores = selection_scores(shaper.after([])(logits), generation.sampling, len(context))
        token = int(np.argmax(scores))
        tokens.append(token)
        logprobs.append(float(logits[token]) - math.log(np.exp(logits.astype(np.float64)).sum()))
        if token == EOS and not generation.ignore_eos:
            break
        shaper.append(token)
        if grammar is not None and grammar.ended:
            break
    return tokens, logprobs


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.0, 0.8]),
    seed=st.integers(0, 9),
    presence_penalty=st.sampled_from([0.0, 1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    logit_bias=st.sampled_from([(), ((5, 2.5), (EOS, -100.0))]),
)
generations = st.builds(
    Generation,
    max_tokens=st.integers(1, 20),
    sampling=samplings,
    ignore_eos=st.booleans(),
    speculation=st.none() | speculations().map(lambda own: replace(own, quality=DraftQuality())),
    logprobs=st.sampled_from([None, 0, 3]),
    grammar=st.sampled_from([None, "3 30", "2 9", "5 12"]),
)


@settings(max_examples=150)
@given(
    st.builds(MockBackend, agreement=st.sampled_from([0.0, 0.5, 0.9, 1.0]), salt=st.integers(0, 1000)),
    speculations().map(lambda spec: replace(spec, quality=DraftQuality())),
    st.lists(st.tuples(prompts, generations), min_size=1, max_size=8), st.integers(1, 8), st.sampled_from([0, 40, 500]),
)  # fmt: skip
def test_shaped_requests_with_any_speculation_write_what_plain_decoding_would(
    backend, speculation, requests, batch, kept
):
    engine = engine_over(
        backend, Letters(), max_batch=batch, prefill_chunk=5, speculation=speculation, prefix_cache_tokens=kept
    )
    engine.grammars = ModularGrammars()
    outputs = engine.generate([prompt for prompt, _ in requests], [generation for _, generation in requests])
    for (prompt, generation), output in zip(requests, outputs, strict=True):
        tokens, logprobs = by_definition(backend, prompt, generation)
        assert output.token_ids == tokens
        if generation.logprobs is None:
            assert output.logprobs == ()
        else:
            assert [each.chosen for each in output.logprobs] == pytest.approx(logprobs, abs=1e-9)
            assert {len(each.best) for each in output.logprobs} == {generation.logprobs}
        if generation.grammar is None:
            check_counters(output)
    assert len(backend.sequences) == len(engine.prefixes)
    assert engine.prefixes.cells <= kept


def test_logprobs_are_the_same_bits_with_and_without_speculation_alone_and_in_a_batch():
    generation = Generation(20, Sampling(0.7, seed=4), ignore_eos=True, logprobs=4)
    seen = []
    for speculation, batch in ((AR, 1), (SD, 1), (AR, 16), (SD, 16)):
        engine = engine_over(MockBackend(agreement=0.7), speculation=speculation)
        others = [Generation(25, Sampling(index % 2, seed=index), ignore_eos=True) for index in range(batch - 1)]
        outputs = engine.generate([[1, 2, 3]] + [[4, index % 9] for index in range(batch - 1)], [generation, *others])
        seen.append(outputs[0].logprobs)
    assert seen[1:] == seen[:1] * 3
    assert len(seen[0]) == 20
    for each in seen[0]:
        assert each.best == sorted(each.best, key=lambda pair: (-pair[1], pair[0]))


def test_drafts_propose_what_the_grammar_allows():
    """A perfect draft is accepted whole though the grammar forbids most of what the model would like."""
    grammar = Generation(20, ignore_eos=True, grammar="2 1000")
    chain = Speculation(mode=Mode.SD, width=1, depth=4, verify=4)
    engine = engine_over(MockBackend(agreement=1.0), Letters(), speculation=chain)
    engine.grammars = ModularGrammars()
    (output,) = engine.generate([[1, 2]], grammar)
    assert output.acceptance.acceptance_rate == 1
    assert output.acceptance.accepted == 16


def test_a_request_may_have_trees_of_its_own_or_none():
    backend = MockBackend(agreement=1.0)
    engine = engine_over(backend, speculation=Speculation(mode=Mode.SD, width=1, depth=2, verify=2))
    own = [None, AR, Speculation(mode=Mode.SD, width=1, depth=6, verify=6)]
    outputs = engine.generate([[1, 2]] * 3, [Generation(21, ignore_eos=True, speculation=each) for each in own])
    assert outputs[0].token_ids == outputs[1].token_ids == outputs[2].token_ids
    assert [output.acceptance.mean_accepted_length for output in outputs] == [2, 0, 6]
    assert outputs[1].acceptance.verify_steps == 0
    assert engine.controller._unsettled == []


def test_a_request_cannot_choose_a_draft_quality():
    own = Speculation(quality=DraftQuality(bits=3))
    with pytest.raises(ConfigError, match="cannot choose a draft quality of its own: all drafts share their passes"):
        engine_over(MockBackend()).submit([1], Generation(speculation=own))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"presence_penalty": 2.1}, r"presence_penalty must be in \[-2, 2\], not 2.1"),
        ({"frequency_penalty": float("nan")}, r"frequency_penalty must be in \[-2, 2\], not nan"),
        ({"repetition_penalty": 0}, r"repetition_penalty must be in \(0, 10\], not 0"),
        ({"logit_bias": ((3, 101),)}, r"logit_bias of token 3 must be in \[-100, 100\], not 101"),
    ],
)
def test_parameters_out_of_range_are_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        Sampling(**settings)


def test_what_a_request_cannot_have_is_refused():
    engine = engine_over(MockBackend())
    with pytest.raises(ConfigError, match="logit_bias: token 13 is not in the vocabulary of 13"):
        engine.submit([1], Generation(sampling=Sampling(logit_bias=((13, 1.0),))))
    with pytest.raises(ConfigError, match="a grammar is about text: this model has no tokenizer"):
        engine.submit([1], Generation(grammar="start: /a/"))
    with pytest.raises(ConfigError, match="logprobs must be 0 to 20 alternatives per token, not 21"):
        Generation(logprobs=21)
    assert clone(engine.backend).passes == []
