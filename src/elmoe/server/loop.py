"""The engine in a thread of its own, and the way to it from asyncio.

Commands (submit, cancel) are taken between two steps, so a cancelled request takes part in no further step. After each
step every live request is given what is new, all in one call into the event loop. Knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from elmoe.checkpoint.reasoning import Parts
from elmoe.engine.engine import Engine
from elmoe.engine.request import Generation, Output, Request
from elmoe.engine.sampler import TokenLogprobs
from elmoe.errors import ExpertReadError
from elmoe.server.errors import ApiError, from_engine

log = logging.getLogger("elmoe.server")
MEMORY = 0.9
"""Share of the mean duration of requests that survives one more."""


@dataclass(frozen=True)
class Delta:
    """What one engine step added to a request."""

    parts: Parts
    origins: list[tuple[str, bool]]
    """The answer's new text in the pieces of its tokens, and whether each was drafted; only where asked for."""
    tokens: list[int]
    logprobs: list[TokenLogprobs]
    output: Output | None = None
    """With the last one."""
    error: ApiError | None = None
    """Instead: the request failed."""

    def followed_by(self, later: Delta) -> Delta:
        """Both as one: a reader that is behind takes several steps at once."""
        mine, theirs = self.parts, later.parts
        return Delta(
            Parts(mine.reasoning + theirs.reasoning, mine.answer + theirs.answer, mine.calls + theirs.calls),
            self.origins + later.origins,
            self.tokens + later.tokens,
            self.logprobs + later.logprobs,
            later.output,
            later.error,
        )


@dataclass(eq=False)
class Job:
    """One text being generated."""

    index: int
    """Which of its HTTP request's texts it is."""
    prompt: Sequence[int]
    generation: Generation
    client: str
    deltas: asyncio.Queue[tuple[int, Delta]]
    wants_origins: bool = False
    taken: asyncio.Future[ApiError | None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Done when the engine has taken it, or refused it."""
    request: Request | None = None
    """Once the engine has taken it; belongs to the engine's thread."""
    arrived: float = field(default_factory=time.perf_counter)
    started: float | None = None
    """When it left the queue."""
    told: int = 0
    """Tokens that were told so far."""
    done: bool = False

    @property
    def queue_seconds(self) -> float:
        """Time that it waited for a place."""
        return (self.started or time.perf_counter()) - self.arrived


class Observer(Protocol):
    """Is told what happens in the engine's thread."""

    def after_step(self, engine: Engine, jobs: Sequence[Job]) -> None:
        """A step is done."""

    def finished(self, job: Job, output: Output) -> None:
        """A request has ended."""

    def failed(self, job: Job) -> None:
        """A request was refused by the engine, or is lost."""


class EngineLoop:
    """Owns an engine."""

    def __init__(self, engine: Engine, max_queue: int, observers: Sequence[Observer] = ()) -> None:
        self.engine, self.max_queue, self._observers = engine, max_queue, observers
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._jobs: list[Job] = []
        self._live = 0
        self._mean_seconds = 1.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._stopping = False

    # --- from the event loop ---

    def start(self) -> None:
        """Begin to work for the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Cancel what runs and end the thread."""
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join)

    @property
    def alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    @property
    def live(self) -> int:
        """Requests that run or wait."""
        return self._live

    @property
    def full_seconds(self) -> int:
        """After how many seconds a place is likely to be free."""
        turns = max(1, self._live - self.engine.options.max_batch) / self.engine.options.max_batch
        return min(60, max(1, math.ceil(turns * self._mean_seconds)))

    def admit(self, count: int) -> None:
        """Make room for `count` requests, all or none. Raises ApiError 429."""
        most = self.engine.options.max_batch + self.max_queue
        if count > most:
            raise ApiError(400, f"{count} texts were asked for; this server holds {most} at most", "too_many", "n")
        if self._live + count > most:
            wait = self.full_seconds
            raise ApiError(
                429,
                f"{self._live} requests run or wait, as many as this server takes; come again in {wait} s",
                "queue_full",
                retry_after_seconds=wait,
            )
        self._live += count

    def submit(self, job: Job) -> None:
        """Hand a job to the engine, room having been made for it; its deltas say how it goes."""
        self._commands.put(lambda: self._take(job))

    def cancel(self, job: Job) -> None:
        """End a job before the engine's next step; its last delta still comes."""
        if not job.done:
            self._commands.put(lambda: self._cancel(job))

    # --- in the engine's thread ---

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._obey()
                if self._jobs and not self._stopping:
                    self._step()
        except BaseException:
            log.exception("the engine's thread has ended")
            raise
        finally:
            for job in list(self._jobs):
                self._cancel(job)
            self._tell([])

    def _obey(self) -> None:
        """Take all commands that are there; wait for one where there is nothing else to do."""
        while True:
            try:
                command = self._commands.get(block=not self._jobs)
            except queue.Empty:
                return
            if command is None:
                self._stopping = True
                return
            command()

    def _take(self, job: Job) -> None:
        try:
            job.request = self.engine.submit(job.prompt, job.generation, job.client)
        except Exception as error:
            self._fail(job, error)
        else:
            self._jobs.append(job)
            self._deliver([(job, None)])

    def _cancel(self, job: Job) -> None:
        if job.request is not None and job in self._jobs:
            self.engine.cancel(job.request)
            self._tell([job])

    def _step(self) -> None:
        try:
            self.engine.step()
        except Exception as error:  # a damaged expert, a full disk: those that run are lost, the server is not
            for job in [job for job in self._jobs if job.request is not None and job.request.cache is not None]:
                assert job.request is not None
                self.engine.cancel(job.request)
                self._jobs.remove(job)
                self._fail(job, error)
            return
        self._notify(lambda observer: observer.after_step(self.engine, self._jobs))
        self._tell(self._jobs)

    def _notify(self, tell: Callable[[Observer], None]) -> None:
        """Whoever looks on must not stop the work."""
        for observer in self._observers:
            try:
                tell(observer)
            except Exception:
                log.exception("an observer of the engine failed")

    def _tell(self, jobs: Sequence[Job]) -> None:
        """Give every job what is new for it."""
        failed = {job: job.request.error for job in jobs if job.request is not None and job.request.error is not None}
        for job, message in failed.items():  # an expert that it needs cannot be read; the others go on
            self._jobs.remove(job)
            self._fail(job, ExpertReadError(message, ()))
        news = [(job, delta) for job in jobs if job not in failed and (delta := self._delta(job)) is not None]
        for job, delta in news:
            if delta.output is not None:
                self._jobs.remove(job)
                self._mean_seconds += (1 - MEMORY) * (delta.output.seconds - self._mean_seconds)
                self._notify(partial(_tell_finished, job, delta.output))
        self._deliver(news)

    def _delta(self, job: Job) -> Delta | None:
        request = job.request
        assert request is not None, "a job that the engine has taken"
        if job.started is None and request.cache is not None:
            job.started = time.perf_counter()
        told, job.told = job.told, len(request.tokens) - request.prompt_length
        ended = request.finish_reason is not None
        if job.told == told and not ended:
            return None
        parts = request.new_parts()
        origins = request.by_origin(parts.answer) if job.wants_origins else []
        tokens = request.tokens[request.prompt_length + told :]
        return Delta(parts, origins, tokens, request.logprobs[told:], request.output() if ended else None)

    def _fail(self, job: Job, error: Exception) -> None:
        known = from_engine(error)
        if known.status >= 500:
            log.error("a request failed", exc_info=error)
        self._notify(lambda observer: observer.failed(job))
        self._deliver([(job, Delta(Parts(), [], [], [], error=known))])

    def _deliver(self, news: Sequence[tuple[Job, Delta | None]]) -> None:
        """News without a delta: the job was taken."""
        if not news or self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(self._receive, news)
        except RuntimeError:  # the event loop is closed: nobody waits any more
            log.debug("nobody waits for the last deltas")

    def _receive(self, news: Sequence[tuple[Job, Delta | None]]) -> None:
        for job, delta in news:
            if delta is not None and (delta.output is not None or delta.error is not None):
                job.done = True
                self._live -= 1
            if not job.taken.done():
                job.taken.set_result(delta.error if delta is not None else None)
            if delta is not None:
                job.deltas.put_nowait((job.index, delta))


def _tell_finished(job: Job, output: Output, observer: Observer) -> None:
    observer.finished(job, output)
