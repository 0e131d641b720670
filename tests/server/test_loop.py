"""The engine's thread over the mock backend: what is told, in which order, and what a failing request does."""

import asyncio
import time

import pytest

from elmoe.engine.controller import Mode, Speculation
from elmoe.engine.request import Generation
from elmoe.errors import ExpertReadError
from elmoe.server.errors import ApiError
from elmoe.server.generations import Ask
from elmoe.server.loop import EngineLoop
from elmoe.server.run import Run
from engine.mock_backend import Letters, MockBackend, engine_over, expected


class Watcher:
    """An observer."""

    def __init__(self):
        self.steps, self.ended, self.lost = 0, [], []

    def after_step(self, engine, jobs):
        self.steps += 1

    def finished(self, job, output):
        self.ended.append(output.finish_reason)

    def failed(self, job):
        self.lost.append(job)


def asks(*prompts, **settings):
    return [Ask(prompt, Generation(**{"max_tokens": 12, "ignore_eos": True, **settings})) for prompt in prompts]


def running(work, watcher=None, max_queue=4, **options):
    """What `work(loop)` returns, over an engine of its own."""

    async def whole():
        backend = MockBackend(agreement=0.8)
        engine = engine_over(backend, Letters(), speculation=Speculation(Mode.SD), **options)
        loop = EngineLoop(engine, max_queue, [watcher] if watcher else [])
        loop.start()
        try:
            return await work(loop)
        finally:
            await loop.stop()
            assert not backend.sequences
            assert not loop.alive

    return asyncio.run(whole())


async def texts(run):
    made = {}
    async for index, delta in run.deltas():
        made.setdefault(index, []).append(delta)
    return made


def test_deltas_add_up_and_the_last_one_has_the_output():
    watcher = Watcher()

    async def work(loop):
        run = Run(loop, asks([1, 2], [3]), "me", 10, wants_origins=True)
        await run.start()
        return await texts(run), loop.live

    made, live = running(work, watcher)
    for index, prompt in enumerate(([1, 2], [3])):
        tokens = expected(MockBackend(agreement=0.8), prompt, Generation(12, ignore_eos=True))
        deltas = made[index]
        assert [token for delta in deltas for token in delta.tokens] == tokens
        assert "".join(delta.parts.answer for delta in deltas) == Letters().decode(tokens)
        pieces = [piece for delta in deltas for piece in delta.origins]
        assert "".join(text for text, _ in pieces) == Letters().decode(tokens)
        assert [delta.output is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    assert live == 0
    assert watcher.ended == ["length"] * 2
    assert watcher.steps > 2


def test_a_cancelled_request_takes_part_in_no_further_step():
    async def work(loop):
        engine, step = loop.engine, loop.engine.step

        def slowly():
            time.sleep(0.005)
            return step()

        engine.step = slowly
        gone, stays = (Run(loop, asks([number], max_tokens=200), "me", 10) for number in (1, 2))
        await gone.start()
        await stays.start()
        for _ in range(3):
            await gone._deltas.get()
        steps = engine.steps
        gone.cancel()
        while not gone.jobs[0].done:
            await asyncio.sleep(0)
        request = gone.jobs[0].request
        assert engine.steps <= steps + 2, "the step that ran, and the next one may have begun before we looked"
        length = len(request.tokens)
        made = await texts(stays)
        assert made[0][-1].output.finish_reason == "length"
        assert len(request.tokens) == length
        passes = engine.backend.passes
        last = max(number for number, each in enumerate(passes) if request.number in each.rows.sequences)
        assert last < len(passes) - 20

    running(work)


def test_the_queue_is_bounded_for_all_texts_of_a_request_at_once():
    async def work(loop):
        first = Run(loop, asks([1], [2], max_tokens=200), "me", 10)
        await first.start()
        second = Run(loop, asks([3], [4]), "me", 10)
        with pytest.raises(ApiError, match="as many as this server takes; come again in 1 s") as refused:
            await second.start()
        assert refused.value.status == 429
        assert loop.live == 2
        with pytest.raises(ApiError, match="4 texts were asked for; this server holds 3 at most"):
            await Run(loop, asks(*[[1]] * 4), "me", 10).start()
        first.cancel()
        await texts(first)
        await second.start()
        return await texts(second)

    assert len(running(work, max_queue=1, max_batch=2)) == 2


def test_a_request_that_the_engine_refuses_says_so_before_anything_is_sent():
    watcher = Watcher()

    async def work(loop):
        run = Run(loop, asks([1], [99], max_tokens=240), "me", 10)
        with pytest.raises(ApiError, match="token 99 is not in the vocabulary of 13"):
            await run.start()
        await texts(Run(loop, [], "me", 10))
        while loop.live:
            await asyncio.sleep(0.01)

    running(work, watcher)
    assert len(watcher.lost) == 1
    assert watcher.ended == ["cancelled"], "the other text is not wanted alone"


def test_an_expert_that_cannot_be_read_ends_the_request_that_needs_it_and_no_other():
    watcher = Watcher()

    async def work(loop):
        compute = loop.engine.backend.forward

        def forward(rows, pool=None, draft=None, keep=None):
            needs = [row for row in range(rows.count) if rows.sequences[row] == 1 and rows.positions[row] > 4]
            if needs and draft is None:
                raise ExpertReadError("experts_lsb.bin: LSB record of expert 3 in MoE block 0 is damaged", needs)
            return compute(rows, pool, draft, keep)

        loop.engine.backend.forward = forward
        run = [Run(loop, asks([number]), "me", 10) for number in (1, 2, 3)]
        for each in run:
            await each.start()
        found = await asyncio.gather(*map(texts, run), return_exceptions=True)
        return found, loop.live

    (first, second, third), live = running(work, watcher)
    assert isinstance(second, ApiError)
    assert (second.status, second.code) == (503, "storage_error")
    assert "LSB record of expert 3 in MoE block 0 is damaged" in second.message
    for number, made in ((1, first), (3, third)):
        tokens = expected(MockBackend(agreement=0.8), [number], Generation(12, ignore_eos=True))
        assert made[0][-1].output.token_ids == tokens
    assert len(watcher.lost) == 1
    assert live == 0


def test_an_observer_that_fails_stops_nothing(caplog):
    class Broken(Watcher):
        def after_step(self, engine, jobs):
            raise ValueError("no")

        def finished(self, job, output):
            raise ValueError("no")

    async def work(loop):
        run = Run(loop, asks([1]), "me", 10)
        await run.start()
        return await texts(run)

    assert running(work, Broken())[0][-1].output.finish_reason == "length"
    assert "an observer of the engine failed" in caplog.text


def test_time_is_up():
    async def work(loop):
        run = Run(loop, asks([1], max_tokens=250), "me", 0.0)
        await run.start()
        with pytest.raises(ApiError, match="not done after 0 s"):
            await texts(run)
        while loop.live:
            await asyncio.sleep(0.01)

    running(work)


def test_stopping_ends_what_runs():
    async def work(loop):
        run = Run(loop, asks([1], [2], max_tokens=250), "me", 10)
        await run.start()
        await loop.stop()
        made = await texts(run)
        assert {deltas[-1].output.finish_reason for deltas in made.values()} <= {"cancelled", "length"}

    running(work)
