"""The engine: requests in, tokens out, by Elastic-SD over one backend.

One `step` is: admit requests, prefill one chunk, then decode all ready sequences once, plainly or by *draft, verify,
accept, update the pool* (the paper's Algorithm 1). The engine decides with small arrays and knows no kernel; the
backend computes and knows no policy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from elmoe.backend.protocol import Backend, Bool, DraftQuality, ForwardResult, Rows
from elmoe.backend.select import open_backend
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.resolve import resolve
from elmoe.checkpoint.text import TOKENIZER_FILE, Tokenizer, check_vocabulary, stop_ids
from elmoe.engine.controller import Controller, Mode, Speculation
from elmoe.engine.cost_model import Pass, StepLog
from elmoe.engine.draft import DraftTree
from elmoe.engine.expert_pool import ExpertPool
from elmoe.engine.kv_cache import RowBuilder, SequenceCache, deepest_tree, scratch_cells
from elmoe.engine.prompt import NO_TOKENIZER, Prompt, check_tokens, tokens_of
from elmoe.engine.request import Generation, Output, Request
from elmoe.engine.sampler import Choices, best_needed
from elmoe.engine.scheduler import Scheduler
from elmoe.engine.verify import Verdict, accept
from elmoe.errors import CapacityError, ConfigError, PromptError
from elmoe.trace.schema import PassKind, PassRecord, Recorder, RunStats


@dataclass(frozen=True)
class EngineOptions:
    """What an engine is opened with."""

    backend: str = "cpu"
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
        self.controller = Controller()
        self.steps = 0
        self._requests = 0

    @classmethod
    def open(
        cls,
        model: str | Path,
        options: EngineOptions | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Engine:
        """Open a model: a built-in name, an `.elmoe` folder, a Hugging Face folder or a GGUF file (converted once).

        A model without ``tokenizer.json`` takes and gives token ids only. progress: called with (done, total) bytes
        while converting. Raises CheckpointError, ConfigError, CapacityError.
        """
        options = options or EngineOptions()
        checkpoint = Checkpoint.open(resolve(str(model), progress))
        tokenizer = Tokenizer.open(checkpoint.path) if (checkpoint.path / TOKENIZER_FILE).is_file() else None
        if tokenizer is not None:
            check_vocabulary(tokenizer.vocab_size, checkpoint.shape.vocab, checkpoint.path.name)
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
        values["speculation"]["quality"] = self.speculation.quality.as_dict()
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
        """Complete one prompt, piece by piece; the pieces add up to `Output.text`.

        Raises ConfigError for a model without a tokenizer: its output is token ids, see `generate`.
        """
        if self.tokenizer is None:
            raise ConfigError(f"text cannot be streamed: {NO_TOKENIZER}")
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
        tokens = tokens_of(prompt, self.tokenizer)
        check_tokens(tokens, self.backend.shape)
        return tokens

    def submit(self, prompt: Sequence[int], generation: Generation | None = None) -> Request:
        """Queue encoded prompt tokens; `step` works on it.

        Raises PromptError as `encode` does, ConfigError for stop strings without a tokenizer, CapacityError if the
        request can never fit the budget.
        """
        check_tokens(prompt, self.backend.shape)
        if self.tokenizer is None and generation is not None and generation.stop:
            raise ConfigError(f"stop strings are found in text: {NO_TOKENIZER}")
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
        plan = self.controller.plan(self.speculation, len(ready))
        log = StepLog(len(ready))
        trees = [self._new_tree(request, plan.depth) for request in ready]
        self.stats.count_step(max(tree.depth for tree in trees))
        self._draft(ready, trees, log)
        self._verify(ready, trees, plan.verify, log)
        self.controller.learn(self.speculation, log)

    def _new_tree(self, request: Request, depth: int) -> DraftTree:
        """A tree no deeper than the request can use and its scratch cells can hold (the settings may have changed)."""
        spare = _cache(request).spare_cells
        width = self.speculation.width
        return DraftTree(request.tokens[-1], width, min(depth, request.remaining - 1, deepest_tree(width, spare)))

    def _draft(self, ready: list[Request], trees: list[DraftTree], log: StepLog) -> None:
        """Grow all trees level by level: pool experts only, MSB planes only."""
        best = best_needed((request.generation.sampling for request in ready), self.speculation.width)
        for level in range(max(tree.depth for tree in trees)):
            builder = RowBuilder()
            frontiers = [tree.begin_level() for tree in trees]
            for request, tree, frontier in zip(ready, trees, frontiers, strict=True):
                builder.add_nodes(_cache(request), tree, frontier, tree.forwarded)
            rows = builder.build(best)
            result, seconds = self._forward(rows, self.speculation.quality)
            self.pool.observe(result.experts)
            choices, first = Choices(result), 0
            for request, tree, frontier in zip(ready, trees, frontiers, strict=True):
                if not frontier:
                    continue
                position, sampling = len(request.tokens) + level, request.generation.sampling
                last = first + len(frontier)
                tree.grow([choices.propose(row, sampling, position, tree.width) for row in range(first, last)])
                first = last
            self._record(PassKind.DRAFT, level, rows, result, seconds, np.zeros(rows.count, dtype=np.bool_))
            log.end_pass(Pass(PassKind.DRAFT, rows.count, self.speculation.quality))

    def _verify(self, ready: list[Request], trees: list[DraftTree], most: int, log: StepLog) -> None:
        """One target pass over the last tokens and up to `most` drafted ones; accept, commit, emit, update the pool."""
        verified = [
            tree.best_nodes(min(most, _cache(request).spare_cells)) for request, tree in zip(ready, trees, strict=True)
        ]
        builder = RowBuilder()
        for request, tree, nodes in zip(ready, trees, verified, strict=True):
            if len(nodes) == 1:
                builder.add_run(_cache(request), request.tokens[-1:], want_last=True)
            else:
                builder.add_nodes(_cache(request), tree, nodes, nodes)
        rows = builder.build(best_needed((request.generation.sampling for request in ready), 1))
        wanted = self.pool.choose()
        result, seconds = self._forward(rows, None)
        plain = np.array([len(nodes) == 1 for nodes in verified for _ in nodes])
        self.pool.observe(result.experts[plain])  # the routing of drafted tokens was observed while drafting
        choices, kept, first = Choices(result), list[bool](), 0
        for request, tree, nodes in zip(ready, trees, verified, strict=True):
            verdict = self._accept(request, tree, nodes, choices, first)
            kept += [node in verdict.path for node in nodes]
            first += len(nodes)
            if len(nodes) > 1:
                log.trees.append((tree.depth, len(verdict.path) - 1))
        kind = PassKind.VERIFY if rows.count > len(ready) else PassKind.AR
        self._record(kind, 0, rows, result, seconds, np.array(kept))
        self.pool.fill(wanted, result.read)
        log.end_pass(Pass(kind, rows.count))

    def _accept(self, request: Request, tree: DraftTree, nodes: list[int], choices: Choices, first: int) -> Verdict:
        """Take what the target agrees with into the request and its cache; `nodes` have the rows from `first` on."""
        row_of = {node: first + index for index, node in enumerate(nodes)}
        sampling = request.generation.sampling

        def target_choice(node: int) -> int:
            return choices.choose(row_of[node], sampling, len(request.tokens) + tree.depths[node])

        verdict = accept(tree, nodes, target_choice)
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
            pool=self.pool.resident,
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
        if self.options.fast_bytes is None:
            return  # a pool of a fixed fraction
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
