"""The engine over the mock: what it returns is compared with `expected`, which knows no cells, trees or batches."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mock_backend import EOS, PIECES, Letters, MockBackend, clone, engine_over, expected

from elmoe.backend.protocol import DraftQuality
from elmoe.engine.controller import Mode, Speculation
from elmoe.engine.engine import Engine, EngineOptions
from elmoe.engine.request import Generation
from elmoe.engine.sampler import Sampling
from elmoe.errors import CapacityError, ConfigError, PromptError
from elmoe.trace.schema import PassKind, RunStats

SD = Speculation(mode=Mode.SD)
AR = Speculation(mode=Mode.AR)


class Records(list):
    """A recorder."""

    record = list.append


def check_counters(output, speculation=None):
    """The identities of `trace/schema.py`."""
    counters = output.acceptance
    assert counters.emitted == len(output.token_ids) == len(output.drafted)
    cut = counters.ar_steps + counters.verify_steps + counters.accepted - counters.emitted
    assert cut == 0 or (cut > 0 and output.finish_reason == "stop")
    assert sum(output.drafted) == counters.accepted - max(0, cut - 1)  # a step's last token is its bonus token
    assert counters.accepted <= counters.tested <= counters.accepted + counters.verify_steps
    assert counters.tested <= counters.levels <= counters.drafted
    assert counters.levels >= counters.verify_steps
    if speculation is not None:
        assert counters.levels <= speculation.depth * counters.verify_steps
        assert counters.drafted <= speculation.verify * counters.verify_steps


def check_records(engine, records, requests, outputs):
    """Kept rows of the target passes are the prompt and all tokens but the last; totals are sums of records."""
    for number, (prompt, output) in enumerate(zip(requests, outputs, strict=True)):
        kept = {}
        for record in records:
            mine = (record.sequences == number) & record.kept
            assert record.kind is not PassKind.DRAFT or not mine.any()
            for position, token in zip(record.positions[mine], record.tokens[mine], strict=True):
                assert position not in kept
                kept[int(position)] = int(token)
        tokens = [*prompt, *output.token_ids]
        assert [kept[position] for position in range(len(tokens) - 1)] == tokens[:-1]
    steps = [record.step for record in records]
    assert steps == sorted(steps)
    totals = engine.stats.passes
    assert sum(total.passes for total in totals.values()) == len(records)
    for name, part in (("fast_bytes_read", "fast_bytes"), ("slow_bytes_read", "slow_bytes")):
        assert sum(getattr(total, name) for total in totals.values()) == sum(getattr(r, part) for r in records)
    for record in records:
        assert (record.pool.sum(axis=1) >= engine.backend.experts_per_tok).all()
        if record.kind is PassKind.DRAFT:
            assert record.slow_bytes == 0, "a draft stays inside its pool"


@st.composite
def speculations(draw, modes=(Mode.SD, Mode.SD, Mode.AUTO, Mode.AR)):
    depth = draw(st.integers(0, 6))
    return Speculation(
        mode=draw(st.sampled_from(modes)),
        width=draw(st.integers(1, 4)),
        depth=depth,
        verify=draw(st.integers(1, depth + 8)),
        quality=DraftQuality(experts_per_tok=draw(st.sampled_from([None, 1, 2]))),
        tau=draw(st.sampled_from([None, 1, 3, 5])),
    )


@st.composite
def generations(draw):
    temperature = draw(st.sampled_from([0.0, 0.0, 0.7, 1.5]))
    top_k, seed = draw(st.sampled_from([0, 4])), draw(st.integers(0, 99))
    sampling = Sampling(temperature, top_k=top_k, top_p=draw(st.sampled_from([1.0, 0.8])), seed=seed)
    return Generation(draw(st.sampled_from([1, 2, 3, 9, 20])), sampling, ignore_eos=draw(st.booleans()))


prompts = st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=12)
backends = st.builds(
    MockBackend,
    agreement=st.sampled_from([0.0, 0.3, 0.7, 0.9, 1.0]),
    sharpness=st.sampled_from([0.3, 1.0]),
    salt=st.integers(0, 1000),
    max_context=st.sampled_from([16, 256]),
)


@settings(max_examples=120)
@given(
    backends, speculations(), st.lists(st.tuples(prompts, generations()), min_size=1, max_size=16),
    st.integers(1, 16), st.sampled_from([1, 3, 7, 256]), st.sampled_from([0.0, 0.5, 1.0]),
)  # fmt: skip
def test_any_speculation_in_any_batch_writes_what_the_target_would(
    backend, speculation, requests, max_batch, chunk, fraction
):
    engine = engine_over(
        backend, max_batch=max_batch, prefill_chunk=chunk, pool_fraction=fraction, speculation=speculation
    )
    engine.recorder = records = Records()
    outputs = engine.generate([prompt for prompt, _ in requests], [generation for _, generation in requests])
    for (prompt, generation), output in zip(requests, outputs, strict=True):
        assert output.token_ids == expected(backend, prompt, generation)
        stopped = output.token_ids[-1] == EOS and not generation.ignore_eos
        assert output.finish_reason == ("stop" if stopped else "length")
        assert output.prompt_tokens == len(prompt)
        check_counters(output, speculation)
    check_records(engine, records, [prompt for prompt, _ in requests], outputs)
    assert not backend.sequences, "all caches were given back"
    assert engine.stats.acceptance.emitted == sum(len(output.token_ids) for output in outputs)
    assert engine.stats.prompt_tokens == sum(len(prompt) for prompt, _ in requests)


actions = st.one_of(
    st.tuples(st.just("submit"), prompts, generations()),
    st.tuples(st.just("step"), st.integers(1, 3)),
    st.tuples(st.just("cancel"), st.integers(0, 20)),
    st.tuples(st.just("speculate"), speculations(modes=(Mode.SD, Mode.AR))),
)


@settings(max_examples=200)
@given(backends, speculations(modes=(Mode.SD, Mode.AR)), st.lists(actions, min_size=3, max_size=25), st.integers(1, 5))
def test_requests_join_leave_and_are_cancelled_while_the_speculation_changes(backend, first, todo, max_batch):
    engine = engine_over(backend, Letters(), max_batch=max_batch, prefill_chunk=4, speculation=first)
    submitted, cancelled = [], set()
    for action, *details in [*todo, ("step", 1000)]:
        if action == "submit":
            prompt, generation = details
            if len(prompt) < backend.max_context:
                submitted.append((prompt, generation, engine.submit(prompt, generation)))
        elif action == "cancel" and submitted:
            request = submitted[details[0] % len(submitted)][2]
            if request.finish_reason is None:
                cancelled.add(request)
            engine.cancel(request)
        elif action == "speculate":
            engine.speculation = details[0]
        elif action == "step":
            for _ in range(details[0]):
                engine.step()
    for prompt, generation, request in submitted:
        want = expected(backend, prompt, generation)
        if request in cancelled:
            written = request.output().token_ids
            assert written == want[: len(written)]
        else:
            assert request.output().token_ids == want
            check_counters(request.output())
    assert not backend.sequences


def test_off_on_off_in_one_generation_and_deeper_than_the_request_was_submitted_with():
    backend = MockBackend(agreement=0.6)
    generation = Generation(40, ignore_eos=True)
    engine = engine_over(backend, speculation=Speculation(mode=Mode.AR, width=1, depth=0, verify=1))
    request = engine.submit([1, 2, 3], generation)
    deep = Speculation(mode=Mode.SD, width=4, depth=6, verify=12)
    for speculation in [AR, deep, AR, SD, deep] + [deep] * 40:
        engine.speculation = speculation
        if request.finish_reason is None:
            engine.step()
    assert request.output().token_ids == expected(backend, [1, 2, 3], generation)
    assert request.output().acceptance.verify_steps > 3
    check_counters(request.output())


def test_a_perfect_draft_is_accepted_whole_and_a_wrong_one_not_at_all():
    generation = Generation(20, ignore_eos=True)
    chain = Speculation(mode=Mode.SD, width=1, depth=4, verify=4)
    perfect = engine_over(MockBackend(agreement=1.0), speculation=chain).generate([[1, 2]], generation)[0].acceptance
    assert (perfect.verify_steps, perfect.accepted, perfect.tested, perfect.levels) == (4, 16, 16, 16)
    assert perfect.mean_accepted_length == 4
    assert perfect.acceptance_rate == perfect.level_acceptance == perfect.coverage == 1
    wrong = engine_over(MockBackend(agreement=0.0), speculation=chain).generate([[1, 2]], generation)[0].acceptance
    assert (wrong.accepted, wrong.verify_steps, wrong.ar_steps, wrong.tested) == (0, 19, 1, 19)


def test_sampled_drafts_share_the_targets_noise():
    sampling = Sampling(1.0, seed=3)
    engine = engine_over(MockBackend(agreement=1.0), speculation=Speculation(Mode.SD, width=1, depth=4, verify=4))
    output = engine.generate([[1, 2]], Generation(20, sampling, ignore_eos=True))[0]
    assert output.acceptance.acceptance_rate == 1


@pytest.mark.parametrize(("temperatures", "draft", "target"), [((0, 0), 3, 1), ((0, 0.7), 0, 0), ((0.7, 0.7), 0, 0)])
def test_all_logits_are_asked_for_only_where_a_request_samples(temperatures, draft, target):
    backend = MockBackend(agreement=0.8)
    engine = engine_over(backend, speculation=Speculation(Mode.SD, width=3, depth=2, verify=5))
    each = [Generation(12, Sampling(temperature, seed=1), ignore_eos=True) for temperature in temperatures]
    outputs = engine.generate([[1, 2], [3, 4]], each)
    decoding = [each for each in backend.passes if len(each.rows.logits)]
    assert {each.rows.best for each in decoding if each.draft is not None} == {draft}
    assert {each.rows.best for each in decoding if each.draft is None} == {target}
    for prompt, generation, output in zip([[1, 2], [3, 4]], each, outputs, strict=True):
        assert output.token_ids == expected(backend, prompt, generation)


def test_seeds_give_different_texts_and_one_seed_one_text():
    backend = MockBackend(sharpness=0.3)
    each = [Generation(16, Sampling(1.0, seed=seed), ignore_eos=True) for seed in (1, 2, 3, 1)]
    first, second, third, again = (
        output.token_ids for output in engine_over(backend, speculation=SD).generate([[5, 6]] * 4, each)
    )
    assert first == again
    assert len({tuple(first), tuple(second), tuple(third)}) == 3


@pytest.mark.parametrize("mode", [Mode.AR, Mode.SD])
def test_the_pool_is_fixed_in_a_draft_and_filled_only_by_what_a_target_pass_read(mode):
    backend = MockBackend(agreement=0.7)
    engine = engine_over(backend, pool_fraction=0.4, hotness_decay=0.3, speculation=replace(SD, mode=mode))
    engine.generate([[1, 2, 3], [4, 5]] * 3, Generation(25, ignore_eos=True))
    changes = 0
    for before, after in zip(backend.passes, backend.passes[1:], strict=False):
        entered = after.pool & ~before.pool
        changes += int(entered.sum())
        if before.draft is not None:
            assert (after.pool == before.pool).all()
        assert not (entered & ~before.result.read).any()
    assert changes > 5


def test_hotness_counts_the_models_own_routing_of_drafts():
    backend = MockBackend()
    engine = engine_over(backend, pool_fraction=0, speculation=Speculation(Mode.SD, width=1, depth=2, verify=2))
    request = engine.submit([3], Generation(20, ignore_eos=True))
    engine.step()
    drafts = [each.result.experts for each in backend.passes if each.draft is not None]
    counts = np.zeros((backend.layers, backend.experts))
    for experts in drafts:
        for layer in range(backend.layers):
            np.add.at(counts[layer], experts[:, layer].ravel(), 1)
    np.testing.assert_allclose(engine.pool.hotness / engine.pool.hotness.sum(), counts / counts.sum())
    engine.cancel(request)


def test_measured_costs_decide_and_leave_the_text_as_it_is(monkeypatch):
    """On a simulated clock: speculation pays alone and not in a batch, where each row costs as much as the first."""
    backend, now = MockBackend(agreement=0.95), [0.0]
    monkeypatch.setattr("elmoe.engine.cost_model.time.perf_counter", lambda: now[0])
    compute = backend.forward

    def timed(rows, pool, draft, keep):
        now[0] += (0.2 if draft else 1.0) * max(1, rows.count / 9)
        return compute(rows, pool, draft, keep)

    monkeypatch.setattr(backend, "forward", timed)
    engine = engine_over(backend, speculation=Speculation(Mode.AUTO, width=2, depth=4, verify=8))
    generation = Generation(60, ignore_eos=True)
    shares = []
    for batch in (1, 9, 1):
        prompts_ = [[1, 2, number] for number in range(batch)]
        engine.stats = RunStats()
        outputs = engine.generate(prompts_, generation)
        for prompt, output in zip(prompts_, outputs, strict=True):
            assert output.token_ids == expected(backend, prompt, generation)
        depths = engine.stats.steps_by_depth
        shares.append(1 - depths.get(0, 0) / sum(depths.values()))
    assert shares[0] > 0.6
    assert shares[1] < 0.2
    assert shares[2] > 0.6
    table = {(row["kind"], row["rows"]): row["seconds"] for row in engine.controller.costs.table()}
    assert [table["ar", 1], table["ar", 9], table["draft", 2]] == pytest.approx([1.0, 1.0, 0.2])
    counted = json.loads(json.dumps(engine.stats.as_dict()))["steps_by_depth"]
    assert counted == {str(depth): count for depth, count in sorted(depths.items())}


# --- prefill ---


@pytest.mark.parametrize("chunk", [1, 2, 5, 16, 1000])
def test_any_prefill_chunk_gives_the_same_outputs(chunk):
    backend = MockBackend()
    requests = [list(range(1, 12)), [3], [4, 5] * 10]
    engine = engine_over(backend, prefill_chunk=chunk, speculation=SD)
    outputs = engine.generate(requests, Generation(12, ignore_eos=True))
    for prompt, output in zip(requests, outputs, strict=True):
        assert output.token_ids == expected(backend, prompt, Generation(12, ignore_eos=True))
    prefills = engine.stats.passes[PassKind.PREFILL]
    assert prefills.rows == sum(len(prompt) - 1 for prompt in requests)
    assert prefills.passes == -(-prefills.rows // chunk)


def test_a_long_prompt_does_not_stop_others_from_decoding():
    engine = engine_over(MockBackend(), prefill_chunk=4, speculation=AR)
    short = engine.submit([1, 2], Generation(10, ignore_eos=True))
    engine.step()
    long = engine.submit([3] * 33, Generation(2, ignore_eos=True))
    for step in range(8):
        engine.step()
        assert len(short.output().token_ids) == step + 2
        assert (len(long.output().token_ids) > 0) == (step == 7)


# --- the fast tier ---

DENSE, KV, SLOT = 1000, 10, 120  # bytes of the mock: dense weights, one cell, one expert slot in every layer


def test_the_pool_shrinks_while_contexts_grow_and_grows_back():
    budget = DENSE + 8 * SLOT + 100
    backend = MockBackend(fast_bytes=budget)
    engine = engine_over(backend, fast_bytes=budget, speculation=AR)
    assert engine.pool.slots == 8
    engine.submit([1, 2], Generation(70, ignore_eos=True))
    slots = []
    while engine._scheduler.running or engine._scheduler.waiting:
        engine.step()
        slots.append(engine.pool.slots)
    assert slots == sorted(slots, reverse=True)
    assert slots[0] > slots[-1] >= 2
    engine.step()
    assert engine.pool.slots == 8


@settings(max_examples=80)
@given(
    st.integers(40, 200), st.lists(st.tuples(prompts, st.integers(1, 20)), min_size=1, max_size=8),
    speculations(), st.sampled_from([1, 5, 256]),
)  # fmt: skip
def test_dense_weights_kv_and_pool_never_exceed_the_budget(cells, requests, speculation, chunk):
    budget = DENSE + 2 * SLOT + cells * KV
    backend = MockBackend(fast_bytes=budget)
    engine = engine_over(backend, fast_bytes=budget, speculation=speculation, prefill_chunk=chunk)
    generations = [Generation(count, ignore_eos=True) for _, count in requests]
    outputs = engine.generate([prompt for prompt, _ in requests], generations)
    for (prompt, _), generation, output in zip(requests, generations, outputs, strict=True):
        assert output.token_ids == expected(backend, prompt, generation)


def test_a_request_waits_for_kv_cells_and_none_overtakes_it():
    budget = DENSE + 2 * SLOT + 50 * KV
    engine = engine_over(MockBackend(), fast_bytes=budget, speculation=Speculation(Mode.AR, depth=0))
    first = engine.submit([1, 2], Generation(27, ignore_eos=True))  # 30 cells
    second = engine.submit([1, 2], Generation(27, ignore_eos=True))
    third = engine.submit([1, 2], Generation(2, ignore_eos=True))
    while first.finish_reason is None:
        assert second.cache is None
        assert third.cache is None
        engine.step()
    engine.step()
    assert second.cache is not None
    assert third.cache is not None


def test_a_budget_below_the_smallest_pool_is_refused():
    text = (
        "1,200 bytes of fast memory are too few: dense weights take 1,000 and the smallest pool 240; "
        "give 1,240 and 10 per token of context"
    )
    with pytest.raises(CapacityError, match=re.escape(text)):
        engine_over(MockBackend(), fast_bytes=1200)


def test_the_room_for_an_answer_is_what_a_request_may_ask_for():
    engine = engine_over(MockBackend(), fast_bytes=DENSE + 2 * SLOT + 50 * KV, speculation=AR)
    scratch = 1 + max(AR.width * (AR.depth - 1), AR.verify)
    assert engine.room(3) == 50 - 3 - scratch
    assert engine.room(50) == 0
    engine.submit([1, 2, 3], Generation(engine.room(3)))
    assert engine_over(MockBackend(max_context=30)).room(3) == 27


def test_a_request_that_can_never_fit_is_refused_and_leaves_nothing_behind():
    backend = MockBackend()
    engine = engine_over(backend, fast_bytes=DENSE + 2 * SLOT + 50 * KV, speculation=Speculation(Mode.AR, depth=0))
    text = (
        "3 prompt and 100 new tokens need 2,280 bytes of fast memory "
        "(dense weights, KV of these tokens and of a draft tree, the smallest pool); the budget is 1,740"
    )
    with pytest.raises(CapacityError, match=re.escape(text)):
        engine.submit([1, 2, 3], Generation(100))
    with pytest.raises(CapacityError):
        engine.generate([[1], [1, 2, 3]], [Generation(5), Generation(100)])
    engine.step()
    assert not backend.passes, "the request before the refused one is not left in the queue"


# --- context, stops, streams ---


def test_the_end_of_the_context_ends_the_text():
    backend = MockBackend(max_context=20)
    engine = engine_over(backend, speculation=SD)
    outputs = engine.generate([[1] * 15, [2] * 19], Generation(100, ignore_eos=True))
    assert [len(output.token_ids) for output in outputs] == [5, 1]
    assert {output.finish_reason for output in outputs} == {"length"}


@settings(max_examples=60)
@given(st.integers(0, 500), st.lists(st.text("abc d", min_size=1, max_size=3), min_size=1, max_size=2), speculations())
def test_streams_join_to_the_text_of_plain_decoding_with_stops(salt, stops, speculation):
    backend = MockBackend(salt=salt, agreement=0.8)
    generation = Generation(25, stop=tuple(stops))
    plain = engine_over(clone(backend), Letters(), speculation=AR).generate(["ab"], generation)[0]
    engine = engine_over(backend, Letters(), speculation=speculation)
    pieces = list(engine.stream("ab", generation))
    assert "".join(pieces) == plain.text
    assert all(pieces)
    assert not any(stop in plain.text for stop in stops)
    assert engine.generate(["ab"], generation)[0].token_ids == plain.token_ids
    whole = "".join(PIECES[token] for token in expected(backend, [1, 2], generation))
    assert whole.startswith(plain.text)
    assert any(stop in whole for stop in stops) == (len(plain.text) < len(whole))


def test_interleaved_streams_lose_no_text():
    backend = MockBackend(agreement=1.0)
    engine = engine_over(backend, Letters(), speculation=SD)
    short, long = Generation(12, ignore_eos=True), Generation(40, ignore_eos=True)
    first, second = engine.stream("ab", short), engine.stream("ba", long)
    one, two = [next(first)], list(second)  # the second one's steps finish the first one
    one += list(first)
    for pieces, prompt, generation in ((one, "ab", short), (two, "ba", long)):
        tokens = expected(backend, Letters().encode(prompt), generation)
        assert "".join(pieces) == Letters().decode(tokens)


def test_closing_a_stream_cancels_its_request():
    backend = MockBackend()
    engine = engine_over(backend, Letters(), speculation=SD)
    stream = engine.stream("ab", Generation(200, ignore_eos=True))
    next(stream)
    assert len(backend.sequences) == 1
    stream.close()
    assert not backend.sequences
    assert engine.step() == []
    with pytest.raises(StopIteration):
        next(stream)


def test_a_backend_error_leaves_the_engine_usable(monkeypatch):
    backend = MockBackend()
    engine = engine_over(backend, speculation=SD)

    def broken(*_):
        raise OSError("disk")

    with monkeypatch.context() as patch:
        patch.setattr(backend, "forward", broken)
        with pytest.raises(OSError, match="disk"):
            engine.generate([[1, 2], [3]], Generation(4))
    assert not backend.sequences
    assert engine.generate([[1, 2]], Generation(4))[0].token_ids == expected(backend, [1, 2], Generation(4))


def test_a_single_prompt_must_be_put_into_a_list():
    with pytest.raises(PromptError, match="put a single one into a list"):
        engine_over(MockBackend()).generate("Hello")


def test_numpy_integers_are_token_ids():
    backend = MockBackend()
    (output,) = engine_over(backend).generate([np.array([1, 2])], Generation(4))
    assert output.token_ids == expected(backend, [1, 2], Generation(4))


@pytest.mark.parametrize("tokens", [[], [99]])
def test_submitted_tokens_are_checked_like_encoded_ones(tokens):
    with pytest.raises(PromptError):
        engine_over(MockBackend()).submit(tokens)


def test_cancelling_twice_or_after_the_end_does_nothing():
    backend = MockBackend()
    engine = engine_over(backend)
    request = engine.submit([1], Generation(1))
    assert engine.step() == [request]
    engine.cancel(request)
    engine.cancel(request)
    assert request.output().finish_reason == "length"


def test_a_cancelled_request_says_so_and_its_tokens_are_counted():
    backend = MockBackend()
    engine = engine_over(backend)
    running, waiting = engine.submit([1], Generation(9, ignore_eos=True)), engine.submit([2], Generation(9))
    engine.step()
    for request in (running, waiting):
        engine.cancel(request)
        assert request.output().finish_reason == "cancelled"
    emitted = len(running.output().token_ids) + len(waiting.output().token_ids)
    assert engine.stats.acceptance.emitted == emitted > 0
    assert engine.step() == []


# --- errors ---


@pytest.mark.parametrize(
    ("prompt", "error", "text"),
    [
        ([], PromptError, "the prompt is empty; give at least one token"),
        ("", PromptError, "the prompt is empty; give at least one token"),
        ([1] * 32, PromptError, "the prompt has 32 tokens; this model takes 31 and one to answer"),
        ([1, 13], PromptError, "token 13 is not in the vocabulary of 13"),
        ([-1], PromptError, "token -1 is not in the vocabulary of 13"),
        ([1, {"role": "user", "content": "ab"}], PromptError, "not a mixture"),
        ([5, "a", 7.0], PromptError, "not a mixture"),
    ],
)
def test_a_prompt_that_cannot_be_run_is_refused_before_anything_runs(prompt, error, text):
    backend = MockBackend(max_context=32)
    engine = engine_over(backend, Letters())
    with pytest.raises(error, match=re.escape(text)):
        engine.generate([[1], prompt])
    with pytest.raises(error, match=re.escape(text)):
        next(engine.stream(prompt))
    engine.step()
    assert not backend.passes


@pytest.mark.parametrize("prompt", ["ab", [{"role": "user", "content": "ab"}]])
def test_text_without_a_tokenizer_is_refused(prompt):
    with pytest.raises(ConfigError, match=r"a text needs a tokenizer: .* no tokenizer\.json; put .* or give and take"):
        engine_over(MockBackend()).generate([prompt])


def test_without_a_tokenizer_neither_streams_nor_stop_strings():
    backend = MockBackend()
    engine = engine_over(backend)
    with pytest.raises(ConfigError, match=r"text cannot be streamed: this model has no tokenizer\.json"):
        next(engine.stream([1, 2]))
    with pytest.raises(ConfigError, match=r"stop strings are found in text: this model has no tokenizer\.json"):
        engine.generate([[1, 2]], Generation(stop=("x",)))
    assert not backend.passes
    output = engine.generate([[1, 2]], Generation(max_tokens=3))[0]
    assert (output.text, len(output.token_ids)) == ("", 3)


def test_as_many_settings_as_prompts():
    engine = engine_over(MockBackend())
    with pytest.raises(ConfigError, match="2 prompts but 1 generation settings"):
        engine.generate([[1], [2]], [Generation()])
    assert engine.generate([]) == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_batch": 0}, "max_batch must be 1 to 256, not 0"),
        ({"max_batch": 257}, "max_batch must be 1 to 256, not 257"),
        ({"hotness_decay": 1.1}, r"hotness_decay must be in \[0, 1\], not 1.1"),
        ({"prefill_chunk": 0}, "prefill_chunk must be at least 1, not 0"),
        ({"pool_fraction": 1.5}, r"pool fraction must be in \[0, 1\], not 1.5"),
        ({"pool_fraction": float("nan")}, r"pool fraction must be in \[0, 1\], not nan"),
        (
            {"pool_fraction": 0.5, "fast_bytes": 5},
            "give either a pool fraction or fast bytes: both decide the size of the expert pool",
        ),
    ],
)
def test_impossible_options_are_refused(options, text):
    with pytest.raises(ConfigError, match=text):
        EngineOptions(**options)


def test_more_draft_experts_than_the_model_has_are_refused():
    speculation = Speculation(quality=DraftQuality(experts_per_tok=3))
    text = "draft experts per token must be at most the model's 2, not 3"
    with pytest.raises(ConfigError, match=text):
        engine_over(MockBackend(), speculation=speculation)
    engine = engine_over(MockBackend())
    with pytest.raises(ConfigError, match=text):
        engine.speculation = speculation
    assert engine.speculation == Speculation()


def test_settings_are_the_resolved_configuration_as_plain_values():
    engine = engine_over(MockBackend(), pool_fraction=0.25)
    engine.speculation = SD
    settings_ = json.loads(json.dumps(engine.settings()))
    assert settings_["speculation"]["mode"] == "sd"
    assert settings_["speculation"]["quality"]["treatment"] == "augment"
    assert (settings_["max_batch"], settings_["pool_slots_per_layer"]) == (16, 2)


def test_an_unknown_backend_is_named_with_those_there_are():
    with pytest.raises(ConfigError, match=r"backend 'cuda' is not in this version of elmoe; choose one of: .*refer"):
        Engine.open("tiny", EngineOptions(backend="cuda"))
