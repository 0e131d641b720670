"""A backend whose model is a hash of the context that a row sees *through the KV cells*.

It keeps the token written to each cell and rebuilds every row's context from the cells that the row may attend to, so
a mistake in a cell, a path, a commit or a position changes the output. It also refuses what no backend should be asked:
see `MockBackend.forward`. A draft gives the target's logits with a settable chance (by hash), else other ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from elmoe.backend.protocol import BestLogits, DraftQuality, ForwardResult, Rows
from elmoe.backend.tiers import Keep
from elmoe.backend.traffic import count_traffic
from elmoe.engine.engine import Engine, EngineOptions
from elmoe.engine.sampler import Sampling, selection_scores
from elmoe.models.footprint import Footprint
from elmoe.models.shape import ModelShape

Array = npt.NDArray[Any]
EMPTY, DRAFT, TARGET = 0, 1, 2
EOS = 0
PIECES = ("", "a", "b", "c", "ab", "bc", "ca", "aab", " ", "b c", "d", "dd", "é")
"""Text of each token; the first is the stop token."""


@dataclass
class Cells:
    """The KV cells of one sequence."""

    tokens: Array
    positions: Array
    quality: Array
    written: Array
    """Number of the pass that wrote the cell."""
    last_target: int = -1
    """Number of the sequence's last target pass: an older draft cell belongs to an older tree."""
    used: int = 0
    """Cells that the last pass could reach."""

    @classmethod
    def empty(cls, count: int) -> Cells:
        none, empty = np.full(count, -1, dtype=np.int64), np.full(count, EMPTY, dtype=np.int64)
        return cls(none, none.copy(), empty, none.copy())


@dataclass(frozen=True)
class Pass:
    """One recorded call of `forward`."""

    rows: Rows
    pool: Array
    draft: DraftQuality | None
    result: ForwardResult


@dataclass
class MockBackend:
    """See `elmoe.backend.protocol.Backend`."""

    vocab: int = len(PIECES)
    experts: int = 8
    experts_per_tok: int = 2
    layers: int = 2
    max_context: int = 256
    agreement: float = 0.8
    """Chance that the draft's logits after a context are the target's."""
    sharpness: float = 1.0
    salt: int = 0
    """Another model."""
    fast_bytes: int | None = None
    """Budget that dense weights, KV cells in use and pool must never exceed."""
    passes: list[Pass] = field(default_factory=list)
    sequences: dict[int, Cells] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shape = ModelShape(
            family="mock", layers=self.layers, moe_layers=tuple(range(self.layers)), hidden=32, heads=1, kv_heads=1,
            head_dim=32, experts=self.experts, experts_per_tok=self.experts_per_tok, expert_hidden=32, dense_hidden=32,
            vocab=self.vocab, max_context=self.max_context, tied_head=True,
        )  # fmt: skip
        count = self.layers * self.experts
        self.tiers = None
        self.footprint = Footprint(
            dense=1000, dense_msb=600, experts_msb=60 * count, experts_lsb=40 * count, scales=0, kv_per_token=10,
            windows=(),
            expert_msb=60, expert_lsb=40, moe_layers=self.layers, experts=self.experts,
            experts_per_tok=self.experts_per_tok,
        )  # fmt: skip

    # --- the model ---

    def logits(self, context: Array, draft: bool = False) -> Array:
        """[V] after a context of token ids."""
        seed = self._hash(context, "logits")
        logits = 6 * self.sharpness * uniform(seed, self.vocab)
        if draft and uniform(self._hash(context, "draft"), 1)[0] >= self.agreement:
            logits = np.roll(logits, 1)  # the best token is another one
        return logits.astype(np.float32)

    def continuation(self, prompt: Sequence[int], count: int, sampling: Sampling | None = None) -> list[int]:
        """What the target writes after a prompt, computed without cells, trees or batches."""
        tokens = list(prompt)
        for _ in range(count):
            scores = selection_scores(self.logits(np.array(tokens)), sampling or Sampling(), len(tokens))
            tokens.append(int(np.argmax(scores)))
        return tokens[len(prompt) :]

    def ranking(self, context: Array) -> Array:
        """[L, E] experts, best first; popular experts are likelier to be first."""
        chance = uniform(self._hash(context, "router"), self.layers * self.experts).reshape(self.layers, -1)
        return np.argsort(chance * np.arange(1, self.experts + 1), axis=1)

    def _hash(self, context: Array, what: str) -> int:
        data = np.asarray(context, dtype=np.int64).tobytes() + f"{what} {self.salt}".encode()
        return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())

    # --- the protocol ---

    def allocate(self, sequence: int, cells: int) -> None:
        self.sequences[sequence] = Cells.empty(cells)

    def release(self, sequence: int) -> None:
        self.sequences.pop(sequence, None)

    def move(self, sequence: int, source: Array, destination: Array) -> None:
        cells = self.sequences[sequence]
        for values in (cells.tokens, cells.positions, cells.quality, cells.written):
            values[destination] = values[source]

    def copy(self, source: int, destination: int, cells: int) -> None:
        old, new = self.sequences[source], self.sequences[destination]
        assert (old.quality[:cells] == TARGET).all(), "only committed cells are shared"
        for name in ("tokens", "positions", "quality", "written"):
            getattr(new, name)[:cells] = getattr(old, name)[:cells]
        new.used = max(new.used, cells)

    def forward(
        self, rows: Rows, pool: Array | None = None, draft: DraftQuality | None = None, keep: Keep | None = None
    ) -> ForwardResult:
        """Refuses: sequences whose rows are apart, a cell written twice or outside the cache, a row that does not see
        itself last, a context with a hole or in another order than its positions, a target row that sees anything but
        target quality, a path through cells of another pass or tree, and a pool too small or over the budget.
        """
        assert pool is not None
        assert (pool.sum(axis=1) >= self.experts_per_tok).all(), "pool below one token's experts"
        numbers = [int(number) for number, _ in groupby(rows.sequences)]
        assert len(numbers) == len(set(numbers)), "rows of a sequence are apart"
        assert rows.path.shape[0] == rows.count
        number = len(self.passes)
        for sequence in numbers:
            self._write(sequence, rows, number, draft is not None)
        self._check_budget(pool)
        contexts = [self._context(rows, row, number, draft is not None) for row in range(rows.count)]
        result = self._result(rows, contexts, pool, draft)
        self.passes.append(Pass(rows, pool.copy(), draft, result))
        return result

    def _write(self, sequence: int, rows: Rows, number: int, draft: bool) -> None:
        cells, mine = self.sequences[sequence], rows.sequences == sequence
        written = rows.cells[mine]
        assert written.min() >= 0, "a cell below the cache"
        assert written.max() < len(cells.tokens), "a cell beyond the cache"
        assert len(set(written.tolist())) == len(written), "two rows write one cell"
        if (rows.path[mine] >= 0).any():
            assert len(set(rows.prefix[mine].tolist())) == 1, "rows of one tree share their prefix"
        cells.tokens[written], cells.positions[written] = rows.tokens[mine], rows.positions[mine]
        cells.quality[written], cells.written[written] = DRAFT if draft else TARGET, number
        cells.used = int(max(rows.prefix[mine].max(), written.max() + 1))
        if not draft:
            cells.last_target = number

    def _context(self, rows: Rows, row: int, number: int, draft: bool) -> Array:
        cells = self.sequences[int(rows.sequences[row])]
        prefix, path = int(rows.prefix[row]), rows.path[row]
        length = int((path >= 0).sum())
        assert (path[:length] >= 0).all(), "padding inside a path"
        path = path[:length]
        assert rows.cells[row] == (path[-1] if length else prefix - 1), "a row sees itself last"
        seen = np.concatenate([np.arange(prefix), path]).astype(np.int64)
        assert (cells.quality[seen] != EMPTY).all(), "a row sees an empty cell"
        assert (cells.positions[seen] == np.arange(len(seen))).all(), "positions of a context are 0, 1, 2, ..."
        assert (cells.quality[:prefix] == TARGET).all(), "committed cells have target quality"
        if draft:
            assert (cells.quality[path] == DRAFT).all()
            assert (cells.written[path] > cells.last_target).all(), "a path through another tree"
        else:
            assert (cells.written[path] == number).all(), "a target path through another pass"
        return cells.tokens[seen]

    def _result(self, rows: Rows, contexts: list[Array], pool: Array, draft: DraftQuality | None) -> ForwardResult:
        read = np.zeros((self.layers, self.experts), dtype=np.bool_)
        own = np.empty((rows.count, self.layers, self.experts_per_tok), dtype=np.int16)
        count = min((draft and draft.experts_per_tok) or self.experts_per_tok, self.experts_per_tok)
        for row, context in enumerate(contexts):
            ranking = self.ranking(context)
            own[row] = ranking[:, : self.experts_per_tok]
            for layer in range(self.layers):
                allowed = ranking[layer] if draft is None else ranking[layer][pool[layer, ranking[layer]]]
                read[layer, allowed[:count]] = True
        logits = np.empty((len(rows.logits), self.vocab), dtype=np.float32)
        for index, row in enumerate(rows.logits):
            logits[index] = self.logits(contexts[row], draft is not None)
        traffic = count_traffic(self.footprint, rows, read, pool, draft)
        if rows.best:
            return ForwardResult(logits[:0], own, read, traffic, best_logits(logits, rows.best))
        return ForwardResult(logits, own, read, traffic)

    def _check_budget(self, pool: Array) -> None:
        if self.fast_bytes is None:
            return
        sizes = self.footprint
        kv = sum(cells.used for cells in self.sequences.values()) * sizes.kv_per_token
        used = sizes.dense + kv + int(pool.sum()) * sizes.expert_msb
        assert used <= self.fast_bytes, f"{used} bytes of fast memory in use, {self.fast_bytes} given"


def best_logits(logits: Array, count: int) -> BestLogits:
    """By definition, one row after the other."""
    tokens = np.empty((len(logits), min(count, logits.shape[1])), dtype=np.int32)
    for row, values in zip(tokens, logits, strict=True):
        row[:] = sorted(range(len(values)), key=lambda token: (-values[token], token))[: len(row)]
    kept = np.take_along_axis(logits, tokens, axis=1)
    return BestLogits(tokens, kept, np.log(np.exp(logits.astype(np.float64)).sum(axis=1)).astype(np.float32))


def uniform(seed: int, count: int) -> Array:
    """[count] in [0, 1) (splitmix64)."""
    x = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))).astype(np.float64) * 2.0**-64


class Letters:
    """A tokenizer for the mock: every token is a few letters, byte sequences never split."""

    vocab_size = len(PIECES)

    def encode(self, text: str) -> list[int]:
        return [PIECES.index(letter) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(PIECES[token] for token in ids)


def engine_over(backend: MockBackend, tokenizer: Any = None, **options: Any) -> Engine:
    """An engine over a mock; its stop token is EOS."""
    return Engine(backend, tokenizer, frozenset({EOS}), EngineOptions(**options))


def expected(backend: MockBackend, prompt: Sequence[int], generation: Any) -> list[int]:
    """Token ids that a request must return, by the definition of decoding; stop strings are not looked at."""
    room = min(generation.max_tokens, backend.max_context - len(prompt))
    tokens = backend.continuation(prompt, room, generation.sampling)
    if not generation.ignore_eos and EOS in tokens:
        tokens = tokens[: tokens.index(EOS) + 1]
    return tokens


def clone(backend: MockBackend, **changes: Any) -> MockBackend:
    """The same model with empty memory."""
    return replace(backend, passes=[], sequences={}, **changes)
