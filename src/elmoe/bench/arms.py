"""The arms that run in this process: the backend's bare passes, and the engine in a mode.

An arm is given tokens and says how fast it was. The bare backend is timed as a peer in another process is
(`peer.py`): one forward pass a step, nothing of the engine around it. Knows nothing about rounds and ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from elmoe.backend.protocol import Backend, ForwardResult, Rows
from elmoe.bench.workload import Decoding
from elmoe.engine.controller import Speculation
from elmoe.engine.engine import Engine, EngineOptions
from elmoe.engine.kv_cache import RowBuilder, SequenceCache
from elmoe.engine.request import Generation
from elmoe.trace.schema import RunStats


@dataclass(frozen=True)
class Sample:
    """One arm's decoding, once."""

    tok_s: float
    """Tokens of all sequences per second."""
    bytes_per_s: float | None = None
    """Weights and KV read; None where it is not known."""
    counters: dict[str, float] | None = None
    """Acceptance of an arm that speculates."""


class Arm(Protocol):
    """What is timed."""

    name: str
    baseline: str
    """The name of the AR arm that is timed in the same way."""

    def decode(self, work: Decoding) -> Sample:
        """Compute the contexts, then time the steps (or as many tokens)."""

    def prefill(self, prompt: Sequence[int]) -> float:
        """Prompt tokens per second, logits of the last one wanted."""


class BackendArm:
    """AR through the backend's own passes."""

    def __init__(self, backend: Backend, name: str = "ar") -> None:
        self.backend = backend
        self.name = self.baseline = name

    def decode(self, work: Decoding) -> Sample:
        """Tokens per second by the median step."""
        with self._caches(work.batch, work.cells) as caches:
            self._fill(caches, work.contexts)
            seconds, read_bytes = [], []
            for tokens in work.steps:
                rows = _rows(caches, [[token] for token in tokens], want_last=True)
                started = time.perf_counter()
                result = self.backend.forward(rows)
                seconds.append(time.perf_counter() - started)
                read_bytes.append(_bytes_read(result))
                for cache in caches:
                    cache.committed += 1
        step = statistics.median(seconds)
        return Sample(work.batch / step, statistics.median(read_bytes) / step)

    def prefill(self, prompt: Sequence[int]) -> float:
        """In passes as large as the engine's."""
        with self._caches(1, len(prompt)) as caches:
            return len(prompt) / self._fill(caches, [prompt], want_last=True)

    def logits(self, prompt: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """[V] of the prompt's last token."""
        with self._caches(1, len(prompt)) as caches:
            return self.backend.forward(_rows(caches, [prompt], want_last=True, best=0)).logits[0]

    def _fill(self, caches: list[SequenceCache], prompts: Sequence[Sequence[int]], want_last: bool = False) -> float:
        """Seconds of the passes."""
        seconds = 0.0
        for cache, prompt in zip(caches, prompts, strict=True):
            for first in range(0, len(prompt), EngineOptions.prefill_chunk):
                chunk = prompt[first : first + EngineOptions.prefill_chunk]
                rows = _rows([cache], [chunk], want_last and first + len(chunk) == len(prompt))
                started = time.perf_counter()
                self.backend.forward(rows)
                seconds += time.perf_counter() - started
                cache.committed += len(chunk)
        return seconds

    @contextmanager
    def _caches(self, count: int, cells: int) -> Iterator[list[SequenceCache]]:
        for sequence in range(count):
            self.backend.allocate(sequence, cells)
        try:
            yield [SequenceCache(sequence, cells) for sequence in range(count)]
        finally:
            for sequence in range(count):
                self.backend.release(sequence)


class EngineArm:
    """AR or Elastic-SD through the engine, from the prompts on: as many tokens as there are steps."""

    def __init__(self, engine: Engine, name: str, speculation: Speculation, baseline: str) -> None:
        self.engine, self.name, self.speculation, self.baseline = engine, name, speculation, baseline

    def decode(self, work: Decoding) -> Sample:
        """The engine's own `decode_tok_s`."""
        stats = self._run(work.contexts, len(work.steps))
        read_bytes = sum(stats[name] for name in ("fast_bytes_read", "slow_bytes_read", "kv_bytes_read"))
        counters = ("acceptance_rate", "mean_accepted_length")
        return Sample(
            stats["decode_tok_s"],
            read_bytes * stats["decode_tok_s"] / stats["emitted"],
            {name: stats[name] for name in counters} if stats["verify_steps"] else None,
        )

    def prefill(self, prompt: Sequence[int]) -> float:
        """The engine's own `prefill_tok_s`; the token added to the prompt is the first decode step's input."""
        return float(self._run([[*prompt, prompt[0]]], 1)["prefill_tok_s"])

    def _run(self, prompts: Sequence[Sequence[int]], tokens: int) -> dict[str, Any]:
        self.engine.speculation, self.engine.stats = self.speculation, RunStats()
        self.engine.generate(prompts, Generation(max_tokens=tokens, ignore_eos=True))
        return self.engine.stats.as_dict()


def _rows(caches: list[SequenceCache], runs: Sequence[Sequence[int]], want_last: bool, best: int = 1) -> Rows:
    """Tokens that follow what the caches hold. Greedy decoding needs the best logit only."""
    builder = RowBuilder()
    for cache, tokens in zip(caches, runs, strict=True):
        builder.add_run(cache, tokens, want_last)
    return builder.build(best)


def _bytes_read(result: ForwardResult) -> int:
    return result.traffic.fast_bytes + result.traffic.slow_bytes + result.traffic.kv_bytes
