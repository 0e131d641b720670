import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mock_backend import MockBackend, best_logits, engine_over

from elmoe.backend.protocol import ForwardResult
from elmoe.engine.controller import Mode, Speculation
from elmoe.engine.request import Generation
from elmoe.engine.sampler import (
    MAX_SEED,
    Choices,
    Sampling,
    best_needed,
    candidates,
    gumbel,
    selection_scores,
)
from elmoe.errors import ConfigError

LOGITS = np.array([2.0, 1.5, 1.5, 1.0, 0.3, 0.0, -0.4, -1.0, -1.0, -2.5, -4.0, 1.2], dtype=np.float32)
SAMPLINGS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.5),
    Sampling(temperature=1.7, top_k=5),
    Sampling(temperature=1.0, top_p=0.8),
    Sampling(temperature=1.3, min_p=0.2),
    Sampling(temperature=2.0, top_k=9, top_p=0.9, min_p=0.1),
]


def filtered(logits, sampling):
    """The distribution that a request samples from, by its definition, in plain Python."""
    scaled = [float(logit) / sampling.temperature for logit in logits]
    weights = [math.exp(score - max(scaled)) for score in scaled]
    order = sorted(range(len(weights)), key=lambda token: (-weights[token], token))
    if sampling.top_k:
        order = order[: sampling.top_k]
    total, reached, kept = sum(weights[token] for token in order), 0.0, []
    for token in order:
        if reached >= sampling.top_p * total:
            break
        kept.append(token)
        reached += weights[token]
    kept = [token for token in kept if weights[token] >= sampling.min_p * weights[order[0]]]
    total = sum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(weights))]


def chi_square_is_small(counts, probabilities):
    """Whether counts fit the probabilities: below mean + 5 standard deviations of the chi-square distribution."""
    counts, probabilities = np.asarray(counts, dtype=float), np.asarray(probabilities)
    assert counts[probabilities == 0].sum() == 0, "a token that the filters dropped was drawn"
    live = probabilities > 0
    want = counts.sum() * probabilities[live]
    rare = want < 5  # pooled into one cell
    groups = [*zip(counts[live][~rare], want[~rare], strict=True)]
    if rare.any() and want[rare].sum() > 1:
        groups.append((counts[live][rare].sum(), want[rare].sum()))
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in groups)
    freedom = len(groups) - 1
    return statistic < freedom + 5 * math.sqrt(2 * freedom) + 5


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_the_argmax_follows_the_filtered_distribution(sampling):
    counts = np.zeros(len(LOGITS))
    for seed, position in product(range(100), range(250)):
        seeded = Sampling(sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, seed)
        counts[np.argmax(selection_scores(LOGITS, seeded, position))] += 1
    assert chi_square_is_small(counts, filtered(LOGITS, sampling))


def test_a_wrong_distribution_would_be_noticed():
    counts = 25_000 * np.array(filtered(LOGITS, Sampling(temperature=1.0)))
    assert not chi_square_is_small(counts, filtered(LOGITS, Sampling(temperature=1.15)))


@pytest.mark.parametrize("mode", [Mode.AR, Mode.SD])
def test_the_engine_samples_texts_from_the_targets_distribution(mode):
    """Three tokens out of a vocabulary of 4, so all 64 texts and their chances are known; other seeds per mode."""
    backend = MockBackend(vocab=4, agreement=0.5, sharpness=0.4, salt=3)
    engine = engine_over(backend, max_batch=64, speculation=Speculation(mode=mode, width=2, depth=2, verify=3))
    sampling = Sampling(temperature=0.8, top_k=3, min_p=0.05)
    prompt, draws = [1, 2, 3], 3_400
    chances = np.zeros((4, 4, 4))
    for text in product(range(4), repeat=3):
        context, chance = list(prompt), 1.0
        for token in text:
            chance *= filtered(backend.logits(np.array(context)), sampling)[token]
            context.append(token)
        chances[text] = chance
    counts = np.zeros((4, 4, 4))
    first = 0 if mode is Mode.AR else draws
    each = [
        Generation(3, Sampling(0.8, top_k=3, min_p=0.05, seed=seed), ignore_eos=True)
        for seed in range(first, first + draws)
    ]
    for output in engine.generate([prompt] * draws, each):
        counts[tuple(output.token_ids)] += 1
    assert engine.stats.acceptance.accepted > 0 or mode is Mode.AR
    assert chi_square_is_small(counts.ravel(), chances.ravel())


@given(
    st.lists(st.integers(-12, 12), min_size=1, max_size=14),
    st.sampled_from([0.3, 0.7, 1.0, 2.5]),
    st.sampled_from([0.05, 0.31, 0.77, 0.93, 1.0]),
    st.integers(0, 16),
    st.sampled_from([0.0, 0.03, 0.37, 1.0]),
)
def test_filters_keep_what_their_definition_keeps(halves, temperature, top_p, top_k, min_p):
    logits = np.array(halves, dtype=np.float32) * np.float32(0.37)
    sampling = Sampling(temperature, top_p, top_k, min_p, seed=5)
    scores = selection_scores(logits, sampling, 7)
    kept = np.isfinite(scores)
    assert kept.tolist() == [probability > 0 for probability in filtered(logits, sampling)]
    clean = scores - gumbel(5, 7, len(logits))
    best = clean[kept] - clean[kept].max()
    scaled = logits[kept].astype(np.float64) / temperature
    np.testing.assert_allclose(best, scaled - scaled.max(), atol=1e-9)


def test_equal_logits_are_kept_in_the_order_of_their_numbers():
    logits = np.zeros(6, dtype=np.float32)
    for sampling in (Sampling(1.0, top_k=2), Sampling(1.0, top_p=0.3)):
        kept = np.isfinite(selection_scores(logits, sampling, 0))
        assert np.flatnonzero(kept).tolist() == [0, 1]


def test_greedy_scores_are_the_logits():
    assert selection_scores(LOGITS, Sampling(), 3) is LOGITS


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-30, 1e-6])
def test_a_tiny_temperature_is_greedy(temperature):
    assert np.argmax(selection_scores(LOGITS, Sampling(temperature), 3)) == 0


def test_a_huge_temperature_is_uniform():
    counts = np.zeros(4)
    for position in range(2000):
        counts[np.argmax(selection_scores(LOGITS[:4], Sampling(1e300), position))] += 1
    assert chi_square_is_small(counts, [0.25] * 4)


def test_noise_depends_on_seed_and_position_alone_and_is_pinned():
    assert (gumbel(1, 2, 8) == gumbel(1, 2, 100)[:8]).all()
    assert not (gumbel(1, 2, 8) == gumbel(1, 3, 8)).any()
    assert not (gumbel(1, 2, 8) == gumbel(2, 2, 8)).any()
    assert np.isfinite(gumbel(MAX_SEED, 10**6, 1000)).all()
    raw = np.random.Philox(key=1, counter=[0, 0, 0, 2]).random_raw(1)[0]
    assert gumbel(1, 2, 1)[0] == -np.log(-np.log((np.float64(int(raw) >> 11) + 0.5) * 2.0**-53))


@given(
    st.lists(st.sampled_from([-np.inf, -2.0, 0.0, 0.5, 1.25, 3.0]), min_size=1, max_size=40).filter(
        lambda scores: max(scores) > -np.inf
    ),
    st.integers(1, 45),
)
def test_candidates_are_the_best_tokens_with_their_log_probabilities(values, count):
    scores = np.array(values)
    tokens, log_probabilities = candidates(scores, count)
    order = sorted(range(len(values)), key=lambda token: (-values[token], token))
    want = [token for token in order if np.isfinite(values[token])][:count]
    assert tokens.tolist() == want
    assert (log_probabilities <= 0).all()
    assert (np.diff(log_probabilities) <= 0).all()
    total = sum(math.exp(value) for value in values)
    np.testing.assert_allclose(np.exp(log_probabilities), [math.exp(values[token]) / total for token in want])


def test_the_best_candidate_is_the_argmax():
    for position in range(200):
        scores = selection_scores(LOGITS, Sampling(1.0, top_k=6), position)
        assert candidates(scores, 3)[0][0] == np.argmax(scores)


def choices(logits, count):
    """From a pass's result in full, and from one with the `count` best."""
    experts, read = np.zeros((len(logits), 0, 0), dtype=np.int16), np.zeros((0, 0), dtype=np.bool_)
    best = best_logits(logits, count)
    full, short = ForwardResult(logits, experts, read), ForwardResult(logits[:0], experts, read, best=best)
    return Choices(full), Choices(short)


@given(st.lists(st.lists(st.integers(-6, 6), min_size=9, max_size=9), min_size=1, max_size=4), st.integers(1, 12))
def test_greedy_choices_from_the_best_logits_are_those_from_all(values, count):
    logits = np.array(values, dtype=np.float32) / 2  # many ties
    full, short = choices(logits, count)
    for row in range(len(logits)):
        assert short.choose(row, Sampling(), 5) == full.choose(row, Sampling(), 5) == np.argmax(logits[row])
        (tokens, scores), (want, want_scores) = (each.propose(row, Sampling(), 5, count) for each in (short, full))
        assert tokens == want
        np.testing.assert_allclose(scores, want_scores, rtol=0, atol=2e-6)


def test_only_passes_without_a_sampling_request_need_no_more_than_the_best():
    greedy, sampled = Sampling(seed=3), Sampling(temperature=0.1)
    assert best_needed([greedy, greedy], 3) == 3
    assert best_needed([greedy, sampled, greedy], 3) == 0


def test_sampling_reads_all_logits():
    full, _ = choices(LOGITS[None], 1)
    sampling = Sampling(1.0, seed=9)
    chosen = [full.choose(0, sampling, position) for position in range(50)]
    assert chosen == [int(np.argmax(selection_scores(LOGITS, sampling, position))) for position in range(50)]
    assert chosen == [full.propose(0, sampling, position, 4)[0][0] for position in range(50)]
    assert len(set(chosen)) > 3


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"temperature": -0.1}, "temperature must be 0 or more, not -0.1"),
        ({"temperature": float("nan")}, "temperature must be 0 or more, not nan"),
        ({"temperature": float("inf")}, "temperature must be 0 or more, not inf"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], not 0.0"),
        ({"top_p": 1.1}, r"top_p must be in \(0, 1\], not 1.1"),
        ({"top_k": -1}, r"top_k must be 0 \(off\) or more, not -1"),
        ({"min_p": -0.5}, r"min_p must be in \[0, 1\], not -0.5"),
        ({"min_p": 2}, r"min_p must be in \[0, 1\], not 2"),
        ({"seed": -1}, r"seed must be in \[0, 2\*\*64\), not -1"),
        ({"seed": 2**64}, r"seed must be in \[0, 2\*\*64\), not 18446744073709551616"),
    ],
)
def test_parameters_out_of_range_are_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        Sampling(**settings)
