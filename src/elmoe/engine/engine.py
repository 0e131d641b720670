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

from elmoe.backend.protocol import Backend
from elmoe.backend.select import TIERED, open_backend
from elmoe.backend.tiers import TierLayout
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.resolve import resolve
from elmoe.checkpoint.text import TOKENIZER_FILE, Tokenizer, check_vocabulary, stop_ids
from elmoe.engine.controller import Controller, Mode, Speculation
from elmoe.engine.decoder import Decoder
from elmoe.engine.expert_pool import ExpertPool
from elmoe.engine.fast_tier import FastTier, free_bytes
from elmoe.engine.grammar import Grammars
from elmoe.engine.kv_cache import SequenceCache, scratch_cells
from elmoe.engine.passes import Passes
from elmoe.engine.prefill import Prefill
from elmoe.engine.prefix_cache import PrefixCache
from elmoe.engine.prompt import NO_TOKENIZER, Prompt, check_tokens, tokens_of
from elmoe.engine.request import Generation, Output, Request
from elmoe.engine.scheduler import Scheduler
from elmoe.engine.shaping import Shaper
from elmoe.engine.tiered_pool import CachePolicy, TieredPool
from elmoe.errors import CapacityError, ConfigError, ExpertReadError, PromptError
from elmoe.models.footprint import activation_bytes, footprint
from elmoe.trace.schema import Recorder, RunStats


@dataclass(frozen=True)
class EngineOptions:
    """What an engine is opened with."""

    backend: str = "cpu"
    """`cpu` (C++) or `reference` (NumPy, slow). Both give the same tokens."""
    max_batch: int = 16
    """Sequences decoded together at most, 1 to 256; more wait."""
    pool_fraction: float | None = None
    """Share of each layer's experts that the pool holds; at least one token's experts. Default 0.5: about what the
    paper's 8 GB of fast memory hold of a 30B-class model."""
    fast_bytes: int | None = None
    """Budget of the fast tier instead: dense weights and KV come first, the pool gets the rest. Where the backend has
    tiers and the model does not fit, the other experts are read from disk as passes need them (docs/tiers.md). Default:
    what is free, where that is less than the model."""
    cache_policy: CachePolicy = CachePolicy.BENEFIT
    """Which experts stay in the fast tier then."""
    hotness_decay: float = 0.8
    """Share of the expert hotness that survives a step; `bench/pool.py` measures what it is worth."""
    prefill_chunk: int = 256
    """Prompt tokens per prefill pass."""
    prefill_chunk_between: int | None = None
    """Likewise while other sequences decode, which wait for it. Default: the same."""
    prefix_cache_tokens: int = 0
    """Tokens of ended sequences whose keys and values are kept for prompts that begin alike; 0 computes all prompts."""
    speculation: Speculation = field(default_factory=Speculation)
    """How to speculate, to begin with; see `Engine.speculation`."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch <= 256:
            raise ConfigError(f"max_batch must be 1 to 256, not {self.max_batch}")
        if self.prefill_chunk < 1:
            raise ConfigError(f"prefill_chunk must be at least 1, not {self.prefill_chunk}")
        if self.prefill_chunk_between is not None and self.prefill_chunk_between < 1:
            raise ConfigError(f"prefill_chunk_between must be at least 1, not {self.prefill_chunk_between}")
        if self.prefix_cache_tokens < 0:
            raise ConfigError(f"prefix_cache_tokens must be 0 (off) or more, not {self.prefix_cache_tokens}")
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
        """Makes the passes; `backend.shape` has the model's sizes."""
        self.tokenizer = tokenizer
        """None for a model that takes and gives token ids."""
        self.options = options or EngineOptions()
        """What it was opened with."""
        self.speculation = self.options.speculation
        self.grammars: Grammars | None = None
        """Compiles grammars of requests; None without a tokenizer."""
        if tokenizer is not None:
            self.grammars = Grammars(tokenizer, backend.shape.vocab, sorted(stop_tokens))
        self.stop_tokens = stop_tokens
        """Tokens that end a text."""
        self._tier = fast_tier(backend, self.options)
        self._tier.check()
        self._scheduler = Scheduler(self.options.max_batch, self._tier.fits)
        self.pool = self._new_pool()
        """Which experts are in the fast tier."""
        self.controller = Controller()
        """What it learned about costs and acceptance: `controller.as_dict()`."""
        self.prefixes = PrefixCache(self.options.prefix_cache_tokens)
        """Keys and values kept of ended sequences."""
        self._passes = Passes(backend, self.pool)
        self.decoder = Decoder(self._passes, self.controller)
        """Makes the decode steps."""
        chunk = self.options.prefill_chunk
        self._prefill = Prefill(self._passes, chunk, self.options.prefill_chunk_between or chunk, self.prefixes)
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
        options, expert_bytes = within_memory(options, checkpoint)
        tokenizer = Tokenizer.open(checkpoint.path) if (checkpoint.path / TOKENIZER_FILE).is_file() else None
        if tokenizer is not None:
            check_vocabulary(tokenizer.vocab_size, checkpoint.shape.vocab, checkpoint.path.name)
        stops = frozenset(stop_ids(checkpoint.generation_config, checkpoint.config))
        return cls(open_backend(options.backend, checkpoint, expert_bytes), tokenizer, stops, options)

    @property
    def stats(self) -> RunStats:
        """What was counted since it was opened, or since another one was set."""
        return self._passes.stats

    @stats.setter
    def stats(self, stats: RunStats) -> None:
        self._passes.stats = stats

    @property
    def recorder(self) -> Recorder | None:
        """Takes a record of every pass."""
        return self._passes.recorder

    @recorder.setter
    def recorder(self, recorder: Recorder | None) -> None:
        self._passes.recorder = recorder

    @property
    def steps(self) -> int:
        """Engine steps so far."""
        return self._passes.step

    @property
    def running(self) -> Sequence[Request]:
        """Requests that have a cache."""
        return self._scheduler.running

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return self._scheduler.waiting_count

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
        values["cache_policy"] = self.options.cache_policy.value
        values["speculation"]["mode"] = self.speculation.mode.value
        values["speculation"]["quality"] = self.speculation.quality.as_dict()
        return values | {"pool_slots_per_layer": self.pool.slots}

    # --- requests ---

    def generate(
        self, prompts: Sequence[Prompt], generation: Generation | Sequence[Generation] | None = None
    ) -> list[Output]:
        """Complete all prompts, batched; outputs in the order of the prompts.

        generation: one for all, or one per prompt. Raises PromptError for a prompt that is empty or too long; then
        nothing has been generated. A request that needed an expert that cannot be read ends with `Output.error`, the
        others go on.
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

    def submit(self, prompt: Sequence[int], generation: Generation | None = None, client: str = "") -> Request:
        """Queue encoded prompt tokens; `step` works on it.

        client: requests of different clients take turns. Raises PromptError as `encode` does, ConfigError for what
        needs a tokenizer without one, for a grammar that cannot be used and for settings beyond the model's,
        CapacityError if the request can never fit the budget.
        """
        check_tokens(prompt, self.backend.shape)
        generation = generation or Generation()
        if self.tokenizer is None and generation.stop:
            raise ConfigError(f"stop strings are found in text: {NO_TOKENIZER}")
        shaper = self._shaper(prompt, generation)
        request = Request(self._requests, prompt, generation, self.tokenizer, self.stop_tokens, shaper)
        request.limit_tokens(self.backend.shape.max_context - len(prompt))
        cells = len(prompt) + request.remaining + self._scratch(request)
        if not self._tier.fits(cells):
            needed = self._tier.bytes_needed(cells)
            raise CapacityError(
                f"{len(prompt)} prompt and {request.remaining} new tokens need {needed:,} bytes of fast memory "
                f"(dense weights, KV of these tokens and of a draft tree, the smallest pool); "
                f"the budget is {self._tier.fast_bytes:,}"
            )
        self._requests += 1
        self._scheduler.submit(request, cells, client)
        return request

    def _shaper(self, prompt: Sequence[int], generation: Generation) -> Shaper | None:
        """What changes the logits of a request, if anything does."""
        sampling, vocab = generation.sampling, self.backend.shape.vocab
        for token, _ in sampling.logit_bias:
            if not 0 <= token < vocab:
                raise ConfigError(f"logit_bias: token {token} is not in the vocabulary of {vocab}")
        own = generation.speculation
        if own is not None and own.quality != self.speculation.quality:
            raise ConfigError("a request cannot choose a draft quality of its own: all drafts share their passes")
        constraint = None
        if generation.grammar is not None:
            if self.grammars is None:
                raise ConfigError(f"a grammar is about text: {NO_TOKENIZER}")
            constraint = self.grammars.compile(generation.grammar)
        if constraint is None and not sampling.penalises and not sampling.logit_bias:
            return None
        return Shaper(sampling, prompt, vocab, constraint)

    def room(self, prompt_length: int, speculation: Speculation | None = None) -> int:
        """Tokens that context and budget leave for an answer to a prompt; speculation: the request's own, if any."""
        left = self.backend.shape.max_context - prompt_length
        if self.options.fast_bytes is not None:
            spec = speculation or self.speculation
            left = min(
                left, self._tier.cells_left() - prompt_length - scratch_cells(spec.width, spec.depth, spec.verify)
            )
        return max(left, 0)

    def _scratch(self, request: Request) -> int:
        """KV cells above the committed ones for what a request may still draft."""
        spec = request.generation.speculation or self.speculation
        depth = 0 if spec.mode is Mode.AR else max(0, min(spec.depth, request.remaining - 1))
        return scratch_cells(spec.width, depth, spec.verify)

    def cancel(self, request: Request) -> None:
        """End a request now, with finish reason `cancelled`; nothing happens if it has ended already."""
        if self._scheduler.cancel(request.number) is not None:
            request.finish("cancelled")
            self._part_with(request)

    # --- stepping ---

    def step(self) -> list[Request]:
        """Work once on everything that runs; returns the requests that finished."""
        for request, cells in self._scheduler.admit():
            request.cache = SequenceCache(request.number, cells)
            self.backend.allocate(request.number, cells)
            self.stats.prompt_tokens += request.prompt_length
            self._prefill.start(request, self._scheduler.running)
        self._resize_pool()
        started = prefilled = time.perf_counter()
        try:
            self._prefill.step(self._scheduler.running)
            prefilled = time.perf_counter()
            ready = [request for request in self._scheduler.running if request.prefill_left == 0 and not request.source]
            if ready:
                self.decoder.step(ready, self.speculation)
        except ExpertReadError as error:  # what the others had of this step is computed again in the next one
            self._fail(error)
        self.stats.prefill_seconds += prefilled - started
        self.stats.decode_seconds += time.perf_counter() - prefilled
        self.pool.fade()
        self._passes.step += 1
        finished = self._scheduler.retire()
        for request in finished:
            self._part_with(request)
        return finished

    def _fail(self, error: ExpertReadError) -> None:
        """End the requests that needed an expert that cannot be had."""
        for request in self._scheduler.running:
            if request.number in error.sequences:
                request.fail(str(error))

    def _part_with(self, request: Request) -> None:
        """Keep or give back the cache of a request that has ended."""
        cache = request.cache
        dropped = [request.number]
        if cache is not None and self.prefixes.max_cells:
            tokens = request.tokens[: cache.committed]  # a stop may have cut off some that are in the cache
            spec = request.generation.speculation or self.speculation
            written = min(cache.capacity, cache.committed + scratch_cells(spec.width, spec.depth, spec.verify))
            dropped = self.prefixes.keep(request.number, tokens, written)
        for sequence in dropped:
            self.backend.release(sequence)
        self.stats.acceptance.add(request.acceptance)

    # --- the fast tier ---

    def _new_pool(self) -> ExpertPool | TieredPool:
        sizes, size = self.backend.footprint, self._tier.pool_size(0)
        if self.backend.tiers is not None:
            return TieredPool(self.backend.tiers, sizes, size, self.options.cache_policy, self.options.hotness_decay)
        return ExpertPool(
            layers=sizes.moe_layers,
            experts=sizes.experts,
            experts_per_tok=sizes.experts_per_tok,
            slots=size,
            decay=self.options.hotness_decay,
        )

    def _resize_pool(self) -> None:
        """The KV cache comes first: the pool shrinks as contexts grow and grows back when requests end."""
        if self._tier.fast_bytes is None:
            return  # a pool of a fixed fraction
        cells = sum(
            max(request.kv.committed + min(request.prefill_left, self.options.prefill_chunk), _to_copy(request))
            + self._scratch(request)
            for request in self._scheduler.running
        )
        while self.prefixes.cells and not self._tier.fits(cells + self.prefixes.cells):
            for sequence in self.prefixes.shrink(self.prefixes.cells - 1):
                self.backend.release(sequence)
        size = max(self._tier.least_size, self._tier.pool_size(cells + self.prefixes.cells))
        if size != self.pool.size:
            self.pool.resize(size)


def fast_tier(backend: Backend, options: EngineOptions) -> FastTier:
    """The budget of a backend."""
    tiers = backend.tiers
    if tiers is None:
        return FastTier(backend.footprint, options.fast_bytes, options.pool_fraction)
    activations = tiers.activation_bytes(*largest_pass(options))
    return FastTier(backend.footprint, options.fast_bytes, None, tiers.layout, activations)


def within_memory(options: EngineOptions, checkpoint: Checkpoint) -> tuple[EngineOptions, int | None]:
    """The options with the budget that applies, and what it leaves for experts; None where all weights fit.

    Raises CapacityError, before anything is loaded, for a budget that cannot hold the model's fixed parts.
    """
    sizes = footprint(checkpoint.shape, checkpoint.program)
    if options.backend not in TIERED or options.pool_fraction is not None:
        return options, None
    if options.fast_bytes is None:
        free = free_bytes()
        if sizes.total <= free:
            return options, None
        options = replace(options, fast_bytes=free)
    elif sizes.total <= options.fast_bytes:
        return options, None
    layout = TierLayout.of(sizes)
    activations = activation_bytes(checkpoint.shape, checkpoint.program, *largest_pass(options))
    tier = FastTier(sizes, options.fast_bytes, None, layout, activations)
    tier.check()
    return options, tier.expert_bytes(0)


def largest_pass(options: EngineOptions) -> tuple[int, int]:
    """Rows, and rows of logits, that a pass has at most."""
    decoded = options.max_batch * (1 + options.speculation.verify)
    return max(options.prefill_chunk, options.prefill_chunk_between or 0, decoded), decoded


def _to_copy(request: Request) -> int:
    """Cells that it may take over from another request in this step."""
    return request.source[1] if request.source else 0
