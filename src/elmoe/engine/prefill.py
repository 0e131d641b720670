"""Prompts into the cache: in chunks between decode steps, and never twice what another sequence has computed.

A token's keys and values depend on the tokens before it alone, bit for bit, so the cells of a common beginning can be
copied from a sequence that has ended (`prefix_cache.py`) or from one that runs. Where the one that runs is still at it,
a request waits for it. Knows nothing about decoding.
"""

from __future__ import annotations

import numpy as np

from elmoe.engine.kv_cache import RowBuilder
from elmoe.engine.passes import Passes
from elmoe.engine.prefix_cache import LEAST_SHARED, PrefixCache, common_length
from elmoe.engine.request import Request
from elmoe.trace.schema import PassKind


class Prefill:
    """Prefills the requests of an engine."""

    def __init__(self, passes: Passes, chunk: int, chunk_between: int, prefixes: PrefixCache) -> None:
        """chunk: prompt tokens per pass; chunk_between: while other sequences decode."""
        self._passes, self.prefixes = passes, prefixes
        self._chunk, self._chunk_between = chunk, chunk_between

    def start(self, request: Request, running: list[Request]) -> None:
        """Take over what is there of a request's prompt; its cache has been allocated and is empty."""
        if not self.prefixes.max_cells:
            return
        prompt = np.asarray(request.tokens, dtype=np.int32)
        sequence, best = self.prefixes.longest(request.tokens)
        for other in running[: running.index(request)]:  # those after it may wait for it
            if other.source is not None:
                continue
            length = common_length(prompt, np.asarray(other.tokens, dtype=np.int32))
            if length >= best + LEAST_SHARED:
                request.source, best = (other, length), length
        if request.source is None and best:
            self._copy(sequence, request, best)

    def step(self, running: list[Request]) -> None:
        """One chunk of prompt tokens."""
        for request in running:
            if request.source is not None:
                self._follow(request, *request.source, running)
        waiting = [request for request in running if request.prefill_left and request.source is None]
        decodes = any(not request.prefill_left for request in running)
        counts = shares([request.prefill_left for request in waiting], self._chunk_between if decodes else self._chunk)
        builder = RowBuilder()
        for request, count in zip(waiting, counts, strict=True):
            if count:
                first = request.kv.committed
                builder.add_run(request.kv, request.tokens[first : first + count], want_last=False)
        if not len(builder):
            return
        rows = builder.build()
        result, seconds = self._passes.forward(rows)
        for request, count in zip(waiting, counts, strict=True):
            request.kv.committed += count
        self._passes.record(PassKind.PREFILL, 0, rows, result, seconds, np.ones(rows.count, dtype=np.bool_))
        # The routing of a layer is known before its experts are streamed, so a prefill can choose and fill at once.
        pool = self._passes.pool
        pool.observe(result.experts)
        pool.fill(pool.choose(), result.read)

    def _follow(self, request: Request, source: Request, shared: int, running: list[Request]) -> None:
        """Copy what a running request has computed of the `shared` tokens once it is there, or look for another."""
        if source not in running:
            request.source = None
            self.start(request, running)
        elif source.kv.committed >= min(shared, request.prompt_length - 1, source.prompt_length - 1):
            request.source = None
            self._copy(source.number, request, min(shared, source.kv.committed))

    def _copy(self, sequence: int, request: Request, length: int) -> None:
        """The last token of the prompt is the first decode step's input: it is not taken over."""
        count = min(length, request.prompt_length - 1)
        if count > 0:
            self._passes.backend.copy(sequence, request.number, count)
            request.kv.committed = request.cached_tokens = count


def shares(left: list[int], chunk: int) -> list[int]:
    """How many of its `left` tokens each request gets of a chunk: the first at least half, then the shortest go first.

    So a short prompt need not wait for a long one, and a long one is never starved.
    """
    counts = [0] * len(left)
    order = sorted(range(1, len(left)), key=lambda index: left[index])
    first_share = -(-chunk // 2)
    for index, most in [*([(0, first_share)] if left else []), *((index, chunk) for index in order), (0, chunk)]:
        if index < len(left):
            more = min(left[index] - counts[index], most, chunk - sum(counts))
            counts[index] += max(more, 0)
    return counts
