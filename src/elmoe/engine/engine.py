"""The engine: requests in, tokens out, by Elastic-SD over one backend.

One `step` is: admit requests, prefill one chunk, then decode all ready sequences once, plainly or by *draft, verify,
accept, update the pool* (the paper's Algorithm 1). The engine decides with small arrays and knows no kernel; the
backend computes and knows no policy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from elmoe.backend.protocol import Backend, Bool, DraftQuality, ForwardResult, Rows
from elmoe.backend.select import open_backend
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.resolve import resolve
from elmoe.checkpoint.text import Tokenizer, stop_ids
from elmoe.engine.controller import Mode, Speculation
from elmoe.engine.draft import DraftTree
from elmoe.engine.expert_pool import ExpertPool
from elmoe.engine.kv_cache import RowBuilder, SequenceCache, deepest_tree, scratch_cells
from elmoe.engine.request import Generation, Output, Request
from elmoe.engine.sampler import candidates, selection_scores
from elmoe.engine.scheduler import Scheduler
from elmoe.engine.verify import Verdict, accept
from elmoe.errors import CapacityError, CheckpointError, ConfigError, PromptError
from elmoe.trace.schema import PassKind, PassRecord, Recorder, RunStats

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]
"""Text, token ids, or chat messages with `role` and `content`."""


@dataclass(frozen=True)
class EngineOptions:
    """What an engine is opened with."""

    backend: str = "reference"
    max_batch: int = 16
    pool_fraction: float | None = None
    """Share of each layer's experts that the pool holds; at least one token's experts. Default 0.5: about what the
    paper's 8 GB of fast memory hold of a 30B-class model."""
    fast_bytes: int | None = None
    """Budget of the fast tier instead: dense weights and KV come first, the pool gets the rest."""
    hotness_decay: float = 0.8
    """Share of the expert hotness that survives a step; `bench/pool.py` measures what it is worth."""
    prefill_chunk: int = 256
    """Prompt tokens per prefill pass."""
    speculation: Speculation = field(default_factory=Speculation)

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch <= 256:
            raise ConfigError(f"max_batch must be 1 to 256, not {self.max_batch}")
        if self.prefill_chunk < 1:
            raise ConfigError(f"prefill_chunk must be at least 1, not {self.prefill_chunk}")
        if self.pool_fraction is not None and self.fast_bytes is not None:
            raise ConfigError("give either a pool fraction or fast bytes: both decide the size of the expert pool")
        if not 0 <= self.hotness_decay <= 1:
            raise ConfigError(f"hotness_decay must be in [0, 1], not {self.hotness_decay}")
        if self.pool_fraction is not None and not 0 <= self.pool_fraction <= 1:
            raise ConfigError(f"pool fraction must be in [0, 1], not {self.pool_fraction}")


class Engine:
    """A model being served. Not thread-safe: one thread steps it."""

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer | None = None,
        stop_tokens: frozenset[int] = frozenset(),
        options: EngineOptions | None = None,
    ) -> None:
        self.backend = backend
        self.tokenizer = tokenizer
        self.options = options or EngineOptions()
        self.speculation = self.options.speculation
        self.stats = RunStats()
        self.recorder: Recorder | None = None
        self._stop_tokens = stop_tokens
        self._check_budget()
        self._scheduler = Scheduler(self.options.max_batch, lambda cells: self._slots(cells) >= self._least_slots)
        shape = backend.shape
        self.pool = ExpertPool(
            layers=len(shape.moe_layers),
            experts=shape.experts,
            experts_per_tok=shape.experts_per_tok,
            slots=self._slots(0),
            decay=self.options.hotness_decay,
        )
        self.steps = 0
        self._requests = 0

    @classmethod
    def open(
        cls,
        model: str | Path,
        options: EngineOptions | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Engine:
        """Open a model: a built-in name, an `.elmoe` folder, or a Hugging Face folder (converted into a cache).

        progress: called with (done, total) bytes while converting. Raises CheckpointError, ConfigError,
        CapacityError.
        """
        options = options or EngineOptions()
        checkpoint = Checkpoint.open(resolve(str(model), progress))
        tokenizer = Tokenizer.open(checkpoint.path)
        if tokenizer.vocab_size > checkpoint.shape.vocab:
            raise CheckpointError(
                f"{checkpoint.path.name}: the tokenizer has {tokenizer.vocab_size} tokens, the model "
                f"{checkpoint.shape.vocab}; tokenizer.json belongs to another model"
            )
        stops = frozenset(stop_ids(checkpoint.generation_config, checkpoint.config))
        return cls(open_backend(options.backend, checkpoint), tokenizer, stops, options)

    @property
    def speculation(self) -> Speculation:
        """How to speculate; may be replaced between steps, the text does not change by it."""
        return self._speculation

    @speculation.setter
    def speculation(self, wanted: Speculation) -> None:
        most, asked = self.backend.shape.experts_per_tok, wanted.quality.experts_per_tok
        if asked is not None and asked > most:
            raise ConfigError(f"draft experts per token must be at most the model's {most}, not {asked}")
        self._speculation = wanted

    def settings(self) -> dict[str, Any]:
        """The resolved configuration, for results and traces: plain values."""
        values = asdict(replace(self.options, speculation=self.speculation))
        values["speculation"]["mode"] = self.speculation.mode.value
        values["speculation"]["quality"]["treatment"] = self.speculation.quality.treatment.value
        return values | {"pool_slots_per_layer": self.pool.slots}

    # --- requests ---

    def generate(
        self, prompts: Sequence[Prompt], generation: Generation | Sequence[Generation] | None = None
    ) -> list[Output]:
        """Complete all prompts, batched; outputs in the order of the prompts.

        generation: one for all, or one per prompt. Raises PromptError for a prompt that is empty or too long; then
        nothing has been generated.
        """
        if isinstance(prompts, (str, bytes, Mapping)):
            raise PromptError("generate takes a list of prompts; put a single one into a list")
        each = [generation or Generation()] * len(prompts) if not isinstance(generation, Sequence) else generation
        if len(each) != len(prompts):
            raise ConfigError(f"{len(prompts)} prompts but {len(each)} generation settings")
        encoded = [self.encode(prompt) for prompt in prompts]
        requests: list[Request] = []
        try:
            for tokens, settings in zip(encoded, each, strict=True):
                requests.append(self.submit(tokens, settings))
            while any(request.finish_reason is None for request in requests):
                self.step()
        finally:
            for request in requests:
                self.cancel(request)
        return [request.output() for request in requests]

    def stream(self, prompt: Prompt, generation: Generation | None = None) -> Iterator[str]:
        """Complete one prompt, piece by piece; the pieces add up to `Output.text`."""
        request = self.submit(self.encode(prompt), generation)
        try:
            while request.finish_reason is None:
                self.step()
                if piece := request.new_text():
                    yield piece
            if piece := request.new_text():  # it may have ended in a step that another stream made
                yield piece
        finally:
            self.cancel(request)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt. Raises PromptError if it is empty, too long, or holds unknown ids."""
        tokens = self._tokens_of(prompt)
        self._check_tokens(tokens)
        return tokens

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        if not len(tokens):
            raise PromptError("the prompt is empty; give at least one token")
        longest = self.backend.shape.max_context - 1
        if len(tokens) > longest:
            raise PromptError(f"the prompt has {len(tokens)} tokens; this model takes {longest} and one to answer")
        vocab = self.backend.shape.vocab
        wrong = next((token for token in tokens if not 0 <= token < vocab), None)
        if wrong is not None:
            raise PromptError(f"token {wrong} is not in the vocabulary of {vocab}")

    def submit(self, prompt: Sequence[int], generation: Generation | None = None) -> Request:
        """Queue encoded prompt tokens; `step` works on it.

        Raises PromptError as `encode` does, CapacityError if the request can never fit the budget.
        """
        self._check_tokens(prompt)
        request = Request(self._requests, prompt, generation or Generation(), self.tokenizer, self._stop_tokens)
        request.limit_tokens(self.backend.shape.max_context - len(prompt))
        cells = len(prompt) + request.remaining + self._scratch(request.remaining)
        if self._slots(cells) < self._least_slots:
            needed = self.backend.footprint.fast_bytes_needed(cells)
            raise CapacityError(
                f"{len(prompt)} prompt and {request.remaining} new tokens need {needed:,} bytes of fast memory "
                f"(dense weights, KV of these tokens and of a draft tree, the smallest pool); "
                f"the budget is {self.options.fast_bytes:,}"
            )
        self._requests += 1
        self._scheduler.submit(request, cells)
        return request

    def _scratch(self, remaining: int) -> int:
        """KV cells above the committed ones for a request that may still write `remaining` tokens."""
        spec = self.speculation
        depth = 0 if spec.mode is Mode.AR else min(spec.depth, remaining - 1)
        return scratch_cells(spec.width, depth, spec.verify)

    def cancel(self, request: Request) -> None:
        """End a request now, with finish reason `cancelled`; nothing happens if it has ended already."""
        if self._scheduler.cancel(request.number) is not None:
            request.finish("cancelled")
            self.backend.release(request.number)
            self.stats.acceptance.add(request.acceptance)

    def _tokens_of(self, prompt: Prompt) -> list[int]:
        messages: list[Mapping[str, str]] = []
        if not isinstance(prompt, str):
            messages = [item for item in prompt if isinstance(item, Mapping)]
            tokens = [int(item) for item in prompt if isinstance(item, Integral)]
            if len(tokens) == len(prompt):
                return tokens
            if len(messages) < len(prompt):
                raise PromptError("a prompt is a text, a list of token ids or a list of chat messages, not a mixture")
        if self.tokenizer is None:
            raise ConfigError("this engine has no tokenizer; give token ids")
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else self.tokenizer.encode_chat(messages)

    # --- stepping ---

    def step(self) -> list[Request]:
        """Work once on everything that runs; returns the requests that finished."""
        for request, cells in self._scheduler.admit():
            request.cache = SequenceCache(request.number, cells)
            self.backend.allocate(request.number, cells)
            self.stats.prompt_tokens += request.prompt_length
        self._resize_pool()
        started = time.perf_counter()
        self._prefill()
        prefilled = time.perf_counter()
        self._decode([request for request in self._scheduler.running if request.prefill_left == 0])
        self.stats.prefill_seconds += prefilled - started
        self.stats.decode_seconds += time.perf_counter() - prefilled
        self.pool.fade()
        self.steps += 1
        finished = self._scheduler.retire()
        for request in finished:
            self.backend.release(request.number)
            self.stats.acceptance.add(request.acceptance)
        return finished

    def _prefill(self) -> None:
        """One chunk of prompt tokens, over the sequences that wait for theirs, in order."""
        builder, runs = RowBuilder(), []
        for request in self._scheduler.running:
            count = min(request.prefill_left, self.options.prefill_chunk - len(builder))
            if count > 0:
                cache = _cache(request)
                builder.add_run(cache, request.tokens[cache.committed : cache.committed + count], want_last=False)
                runs.append((cache, count))
        if not runs:
            return
        rows = builder.build()
        result, seconds = self._forward(rows, None)
        for cache, count in runs:
            cache.committed += count
        self._record(PassKind.PREFILL, 0, rows, result, seconds, np.ones(rows.count, dtype=np.bool_))
        # The routing of a layer is known before its experts are streamed, so a prefill can choose and fill at once.
        self.pool.observe(result.experts)
        self.pool.fill(self.pool.choose(), result.read)

    def _decode(self, ready: list[Request]) -> None:
        """One AR or SD step over `ready`."""
        if not ready:
            return
        depth = self.speculation.depth_for(len(ready))
        trees = [self._new_tree(request, depth) for request in ready]
        self._draft(ready, trees)
        self._verify(ready, trees)

    def _new_tree(self, request: Request, depth: int) -> DraftTree:
        """A tree no deeper than the request can use and its scratch cells can hold (the settings may have changed)."""
        spare = _cache(request).spare_cells
        width = self.speculation.width
        return DraftTree(request.tokens[-1], width, min(depth, request.remaining - 1, deepest_tree(width, spare)))

    def _draft(self, ready: list[Request], trees: list[DraftTree]) -> None:
        """Grow all trees level by level: pool experts only, MSB planes only."""
        for level in range(max(tree.depth for tree in trees)):
            builder = RowBuilder()
            frontiers = [tree.begin_level() for tree in trees]
            for request, tree, frontier in zip(ready, trees, frontiers, strict=True):
                builder.add_nodes(_cache(request), tree, frontier, tree.forwarded)
            rows = builder.build()
            result, seconds = self._forward(rows, self.speculation.quality)
            self.pool.observe(result.experts)
            row = 0
            for request, tree, frontier in zip(ready, trees, frontiers, strict=True):
                if not frontier:
                    continue
                position = len(request.tokens) + level
                logits = result.logits[row : row + len(frontier)]
                sampling = request.generation.sampling
                tree.grow([candidates(selection_scores(each, sampling, position), tree.width) for each in logits])
                row += len(frontier)
            self._record(PassKind.DRAFT, level, rows, result, seconds, np.zeros(rows.count, dtype=np.bool_))

    def _verify(self, ready: list[Request], trees: list[DraftTree]) -> None:
        """One target pass over the last tokens and the drafted ones; accept, commit, emit, update the pool."""
        verified = [
            tree.best_nodes(min(self.speculation.verify, _cache(request).spare_cells))
            for request, tree in zip(ready, trees, strict=True)
        ]
        builder = RowBuilder()
        for request, tree, nodes in zip(ready, trees, verified, strict=True):
            if len(nodes) == 1:
                builder.add_run(_cache(request), request.tokens[-1:], want_last=True)
            else:
                builder.add_nodes(_cache(request), tree, nodes, nodes)
        rows = builder.build()
        speculative = rows.count > len(ready)
        wanted = self.pool.choose()
        result, seconds = self._forward(rows, None)
        plain = [request.number for request, nodes in zip(ready, verified, strict=True) if len(nodes) == 1]
        self.pool.observe(result.experts[np.isin(rows.sequences, plain)])  # drafted ones were observed while drafting
        kept = np.zeros(rows.count, dtype=np.bool_)
        first = 0
        for request, tree, nodes in zip(ready, trees, verified, strict=True):
            verdict = self._accept(request, tree, nodes, result.logits[first : first + len(nodes)])
            kept[first : first + len(nodes)] = np.isin(nodes, verdict.path)
            first += len(nodes)
        self._record(PassKind.VERIFY if speculative else PassKind.AR, 0, rows, result, seconds, kept)
        self.pool.fill(wanted, result.read)

    def _accept(
        self,
        request: Request,
        tree: DraftTree,
        nodes: list[int],
        logits: np.ndarray[tuple[int, int], np.dtype[np.float32]],
    ) -> Verdict:
        """Take what the target agrees with into the request and its cache."""
        row_of = {node: row for row, node in enumerate(nodes)}
        sampling = request.generation.sampling

        def choose(node: int) -> int:
            position = len(request.tokens) + tree.depths[node]
            return int(np.argmax(selection_scores(logits[row_of[node]], sampling, position)))

        verdict = accept(tree, nodes, choose)
        _cache(request).commit_tree(self.backend, nodes, verdict.path)
        counters, accepted = request.acceptance, len(verdict.path) - 1
        if len(nodes) == 1:
            counters.ar_steps += 1
        else:
            counters.verify_steps += 1
            counters.drafted += len(nodes) - 1
            counters.levels += max(tree.depths[node] for node in nodes)
            counters.tested += verdict.tested
            counters.accepted += accepted
        request.emit([*(tree.tokens[node] for node in verdict.path[1:]), verdict.bonus], drafted=accepted)
        return verdict

    def _forward(self, rows: Rows, draft: DraftQuality | None) -> tuple[ForwardResult, float]:
        started = time.perf_counter()
        result = self.backend.forward(rows, self.pool.resident, draft)
        return result, time.perf_counter() - started

    def _record(
        self, kind: PassKind, depth: int, rows: Rows, result: ForwardResult, seconds: float, kept: Bool
    ) -> None:
        record = PassRecord(
            step=self.steps,
            kind=kind,
            depth=depth,
            sequences=rows.sequences,
            positions=rows.positions,
            tokens=rows.tokens,
            kept=kept,
            experts=result.experts,
            pool=self.pool.resident.copy(),
            distinct_experts=result.read.sum(axis=1, dtype=np.int32),
            fast_bytes=result.traffic.fast_bytes,
            slow_bytes=result.traffic.slow_bytes,
            kv_bytes=result.traffic.kv_bytes,
            seconds=seconds,
        )
        self.stats.count(record)
        if self.recorder is not None:
            self.recorder.record(record)

    # --- the fast tier ---

    @property
    def _least_slots(self) -> int:
        return self.backend.shape.experts_per_tok

    def _slots(self, kv_cells: int) -> int:
        """Pool slots per layer while `kv_cells` cells of KV are in use."""
        experts = self.backend.shape.experts
        if self.options.fast_bytes is not None:
            return self.backend.footprint.pool_slots(self.options.fast_bytes, kv_cells)
        fraction = 0.5 if self.options.pool_fraction is None else self.options.pool_fraction
        return min(experts, max(self._least_slots, round(fraction * experts)))

    def _check_budget(self) -> None:
        if self._slots(0) < self._least_slots:
            sizes = self.backend.footprint
            raise CapacityError(
                f"{self.options.fast_bytes:,} bytes of fast memory are too few: dense weights take {sizes.dense:,} and "
                f"the smallest pool {sizes.fast_bytes_needed(0) - sizes.dense:,}; give {sizes.fast_bytes_needed(0):,} "
                f"and {sizes.kv_per_token:,} per token of context"
            )

    def _resize_pool(self) -> None:
        """The KV cache comes first: the pool shrinks as contexts grow and grows back when requests end."""
        cells = sum(
            _cache(request).committed + min(request.prefill_left, self.options.prefill_chunk)
            for request in self._scheduler.running
        )
        scratch = scratch_cells(self.speculation.width, self.speculation.depth, self.speculation.verify)
        slots = max(self._least_slots, self._slots(cells + scratch * len(self._scheduler.running)))
        if slots != self.pool.slots:
            self.pool.resize(slots)


def _cache(request: Request) -> SequenceCache:
    assert request.cache is not None, "a running request has a cache"
    return request.cache
