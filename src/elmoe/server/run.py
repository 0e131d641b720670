"""The texts of one HTTP request: admitted together, told apart by their number, cancelled together.

Knows nothing about documents.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from elmoe.server.errors import ApiError
from elmoe.server.generations import Ask
from elmoe.server.loop import Delta, EngineLoop, Job


class Run:
    """Jobs that share a queue of deltas."""

    def __init__(
        self, loop: EngineLoop, asks: Sequence[Ask], client: str, timeout_seconds: float, wants_origins: bool = False
    ) -> None:
        self._loop, self._timeout_seconds = loop, timeout_seconds
        self._deadline = asyncio.get_running_loop().time() + timeout_seconds
        self._deltas: asyncio.Queue[tuple[int, Delta]] = asyncio.Queue()
        self.jobs = [
            Job(index, ask.prompt, ask.generation, client, self._deltas, wants_origins)
            for index, ask in enumerate(asks)
        ]

    async def start(self) -> None:
        """Return when the engine has taken all jobs. Raises ApiError when one is refused; then none goes on."""
        self._loop.admit(len(self.jobs))
        for job in self.jobs:
            self._loop.submit(job)
        try:
            for job in self.jobs:
                error = await job.taken
                if error is not None:
                    raise error
        except BaseException:
            self.cancel()
            raise

    async def deltas(self) -> AsyncGenerator[tuple[int, Delta]]:
        """(number of the text, what is new), until all have ended. Raises ApiError where one fails or time is up."""
        left = len(self.jobs)
        try:
            while left:
                try:
                    async with asyncio.timeout_at(self._deadline):
                        index, delta = await self._deltas.get()
                except TimeoutError:
                    text = f"the request was not done after {self._timeout_seconds:g} s and was ended"
                    raise ApiError(504, text, "timeout") from None
                for number, whole in self._together(index, delta).items():
                    if whole.error is not None:
                        raise whole.error
                    left -= whole.output is not None
                    yield number, whole
        finally:
            self.cancel()

    def _together(self, index: int, delta: Delta) -> dict[int, Delta]:
        """A delta and all that wait behind it, one for each text."""
        news = {index: delta}
        while not self._deltas.empty():
            index, later = self._deltas.get_nowait()
            news[index] = news[index].followed_by(later) if index in news else later
        return news

    def cancel(self) -> None:
        """End the jobs that still run."""
        for job in self.jobs:
            self._loop.cancel(job)
