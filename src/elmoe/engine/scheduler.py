"""Which requests run: clients take turns, first come first served within one, up to a batch and a budget of KV cells.

Requests join and leave between steps. Knows nothing about models.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

from elmoe.engine.request import Request


class Scheduler:
    """Waiting and running requests."""

    def __init__(self, max_batch: int, fits: Callable[[int], bool]) -> None:
        """`fits(cells)`: whether that many KV cells in use, over all sequences, leave the pool its minimum."""
        self.max_batch = max_batch
        self._fits = fits
        self.waiting: OrderedDict[str, deque[tuple[Request, int]]] = OrderedDict()
        """By client, the one whose turn it is first; none is empty."""
        self.running: list[Request] = []
        self._reserved: dict[int, int] = {}

    @property
    def reserved_cells(self) -> int:
        """KV cells of the running requests."""
        return sum(self._reserved.values())

    @property
    def waiting_count(self) -> int:
        """Requests that wait."""
        return sum(map(len, self.waiting.values()))

    def submit(self, request: Request, cells: int, client: str = "") -> None:
        """Queue a request that needs `cells` KV cells at most."""
        self.waiting.setdefault(client, deque()).append((request, cells))

    def admit(self) -> list[tuple[Request, int]]:
        """Requests that start now, with their cells: in turn, none overtakes one that does not fit yet."""
        started = []
        while self.waiting and len(self.running) < self.max_batch:
            client, queue = next(iter(self.waiting.items()))
            request, cells = queue[0]
            if not self._fits(self.reserved_cells + cells):
                break
            queue.popleft()
            self.waiting.move_to_end(client)
            self._forget_if_empty(client)
            self.running.append(request)
            self._reserved[request.number] = cells
            started.append((request, cells))
        return started

    def retire(self) -> list[Request]:
        """Remove and return the running requests that have finished."""
        done = [request for request in self.running if request.finish_reason is not None]
        self.running = [request for request in self.running if request.finish_reason is None]
        for request in done:
            del self._reserved[request.number]
        return done

    def cancel(self, number: int) -> Request | None:
        """Take a request out, running or waiting; returns it if it was there."""
        for client, queue in self.waiting.items():
            for request, cells in queue:
                if request.number == number:
                    queue.remove((request, cells))
                    self._forget_if_empty(client)
                    return request
        for request in self.running:
            if request.number == number:
                self.running.remove(request)
                del self._reserved[number]
                return request
        return None

    def _forget_if_empty(self, client: str) -> None:
        if not self.waiting[client]:
            del self.waiting[client]
