"""Shared beginnings of prompts: what is copied is not computed again, and the text does not change."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mock_backend import MockBackend, engine_over, expected
from test_engine import DENSE, KV, SLOT, speculations

from elmoe.engine.controller import Mode, Speculation
from elmoe.engine.prefill import shares
from elmoe.engine.prefix_cache import MOST_SEQUENCES, PrefixCache, common_length
from elmoe.engine.request import Generation
from elmoe.errors import ConfigError
from elmoe.trace.schema import PassKind

AR = Speculation(mode=Mode.AR)
GO_ON = Generation(8, ignore_eos=True)
SYSTEM = [1, 2, 3, 4, 5, 6, 7, 8] * 4


def prefilled(engine):
    return engine.stats.passes[PassKind.PREFILL].rows


def test_the_next_turn_of_a_chat_computes_only_what_is_new():
    backend = MockBackend()
    engine = engine_over(backend, speculation=AR, prefix_cache_tokens=1000)
    (first,) = engine.generate([SYSTEM], GO_ON)
    turn = [*SYSTEM, *first.token_ids, 3, 3]
    (second,) = engine.generate([turn], GO_ON)
    assert second.token_ids == expected(backend, turn, GO_ON)
    assert (first.cached_tokens, second.cached_tokens) == (0, len(SYSTEM) + 7)  # the last token was never an input
    assert prefilled(engine) == len(SYSTEM) - 1 + 2
    assert len(engine.prefixes) == 1, "what the longer one begins with is not kept twice"


def test_requests_that_begin_alike_and_come_together_compute_the_beginning_once():
    backend = MockBackend()
    engine = engine_over(backend, speculation=AR, prefix_cache_tokens=1000, prefill_chunk=8)
    prompts = [[*SYSTEM, tail] for tail in (1, 2, 3)] + [SYSTEM[:20]] * 2
    outputs = engine.generate(prompts, GO_ON)
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.token_ids == expected(backend, prompt, GO_ON)
    assert [output.cached_tokens for output in outputs] == [0, 32, 32, 19, 19]
    assert prefilled(engine) == len(SYSTEM)


def test_a_request_whose_source_is_cancelled_goes_on_by_itself():
    backend = MockBackend()
    engine = engine_over(backend, speculation=AR, prefix_cache_tokens=1000, prefill_chunk=8)
    first, second = engine.submit([*SYSTEM, 1], GO_ON), engine.submit([*SYSTEM, 2], GO_ON)
    engine.step()
    engine.step()
    engine.cancel(first)
    while second.finish_reason is None:
        engine.step()
    assert second.output().token_ids == expected(backend, [*SYSTEM, 2], GO_ON)
    assert second.cached_tokens == 16, "what the cancelled one had computed was kept"


def test_without_a_prefix_cache_every_prompt_is_computed():
    backend = MockBackend()
    engine = engine_over(backend, speculation=AR)
    engine.generate([SYSTEM, SYSTEM], GO_ON)
    assert prefilled(engine) == 2 * (len(SYSTEM) - 1)
    assert not backend.sequences


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(1, 12)),
        min_size=2, max_size=10,
    ),
    st.integers(60, 200), speculations(), st.integers(0, 120), st.sampled_from([3, 16, 256]), st.integers(1, 6),
)  # fmt: skip
def test_within_any_budget_the_text_stays_as_it_is(requests, cells, speculation, kept, chunk, batch):
    budget = DENSE + 2 * SLOT + cells * KV
    backend = MockBackend(fast_bytes=budget)
    engine = engine_over(
        backend, fast_bytes=budget, speculation=speculation, prefix_cache_tokens=kept, prefill_chunk=chunk,
        prefill_chunk_between=2, max_batch=batch,
    )  # fmt: skip
    stream = (SYSTEM * 2)[:40]
    todo = [(stream[:shared] + tail, Generation(count, ignore_eos=True)) for shared, tail, count in requests]
    scratch = 1 + max(speculation.width * speculation.depth, speculation.verify)
    todo = [(prompt, generation) for prompt, generation in todo if len(prompt) + 12 + scratch <= cells]
    outputs = engine.generate([prompt for prompt, _ in todo], [generation for _, generation in todo])
    for (prompt, generation), output in zip(todo, outputs, strict=True):
        assert output.token_ids == expected(backend, prompt, generation)
        assert output.cached_tokens < len(prompt)
    assert len(backend.sequences) == len(engine.prefixes)
    assert engine.prefixes.cells <= kept


def test_the_least_recently_used_goes_first_and_what_is_too_large_is_not_kept():
    cache = PrefixCache(60)
    one, two, three = ([number] * 20 for number in (1, 2, 3))
    assert cache.keep(0, one, 25) == []
    assert cache.keep(1, two, 25) == []
    assert cache.longest([*one, 9]) == (0, 20)
    assert cache.keep(2, three, 25) == [1]
    assert cache.keep(3, [4] * 70, 70) == [3]
    assert cache.keep(4, [5] * 15, 15) == [4], "shorter than is worth a copy"
    assert cache.keep(5, one[:18], 18) == [5], "another one begins with all of it"
    assert (cache.longest(one[:15]), cache.longest(two)) == ((-1, 0), (-1, 0))
    assert (cache.cells, len(cache)) == (50, 2)
    assert cache.shrink(49) == [2], "0 was asked for since"
    assert cache.keep(6, [*one, 7], 22) == [0]


def test_so_many_sequences_are_kept_at_most():
    cache = PrefixCache(1 << 30)
    dropped = [cache.keep(number, [number] * 20, 20) for number in range(MOST_SEQUENCES + 2)]
    assert dropped[-3:] == [[], [0], [1]]
    assert len(cache) == MOST_SEQUENCES


def test_common_length():
    one = np.array([1, 2, 3])
    assert [common_length(one, np.array(other)) for other in ([1, 2, 3, 4], [1, 9, 3], [], [2])] == [3, 1, 0, 0]


@pytest.mark.parametrize(
    ("left", "chunk", "wanted"),
    [
        ([], 8, []),
        ([100], 8, [8]),
        ([100, 3, 50], 8, [4, 3, 1]),
        ([100, 50, 3], 8, [4, 1, 3]),
        ([2, 50, 30], 8, [2, 0, 6]),
        ([100, 1, 1], 8, [6, 1, 1]),
        ([1, 1, 1], 2, [1, 1, 0]),
        ([5, 5], 1, [1, 0]),
    ],
)
def test_a_chunk_goes_to_the_first_and_to_the_shortest(left, chunk, wanted):
    assert shares(left, chunk) == wanted


@given(st.lists(st.integers(1, 300), max_size=8), st.integers(1, 256))
def test_shares_use_the_chunk_up(left, chunk):
    counts = shares(left, chunk)
    assert sum(counts) == min(chunk, sum(left))
    assert all(0 <= count <= most for count, most in zip(counts, left, strict=True))


def test_while_others_decode_a_prompt_takes_smaller_chunks():
    engine = engine_over(MockBackend(), prefill_chunk=16, prefill_chunk_between=4, speculation=AR)
    short = engine.submit([1, 2], Generation(4, ignore_eos=True))
    engine.step()
    long = engine.submit([3] * 40, Generation(2, ignore_eos=True))
    committed = []
    while not committed or committed[-1] < 39:
        engine.step()
        committed.append(long.kv.committed)
    assert committed == [4, 8, 12, 28, 40]
    assert short.finish_reason == "length"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"prefill_chunk_between": 0}, "prefill_chunk_between must be at least 1, not 0"),
        ({"prefix_cache_tokens": -1}, r"prefix_cache_tokens must be 0 \(off\) or more, not -1"),
    ],
)
def test_impossible_options_are_refused(options, text):
    with pytest.raises(ConfigError, match=text):
        engine_over(MockBackend(), **options)
