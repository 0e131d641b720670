"""Prometheus metrics of a server: what came in, how long it took, what was drafted and accepted, what was read.

Counters and gauges are read off the engine when somebody asks; histograms are fed after each step and request. Knows
nothing about HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest

from elmoe.backend.tiers import TierCounters
from elmoe.engine.engine import Engine
from elmoe.engine.request import Output
from elmoe.server.loop import EngineLoop, Job
from elmoe.trace.schema import PassKind, PassRecord

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TOKEN_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
RATES = tuple(round(0.1 * n, 1) for n in range(1, 11))
LENGTHS = (0, 1, 2, 3, 4, 5, 6, 8, 12, 16)
EXPERTS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


class PassMeter:
    """Distinct experts of all passes, and how many routing decisions of target passes fell on the expert pool. An
    engine's recorder.
    """

    def __init__(self, experts: Histogram) -> None:
        self.hits = self.decisions = 0
        self._experts = {kind: experts.labels(kind.value) for kind in PassKind}

    def record(self, record: PassRecord) -> None:
        """Count one pass."""
        if len(record.distinct_experts):
            self._experts[record.kind].observe(float(record.distinct_experts.mean()))
        if record.kind in (PassKind.AR, PassKind.VERIFY) and record.experts.size:
            layers = np.arange(record.experts.shape[1])[:, None]
            self.hits += int(record.pool[layers, record.experts].sum())
            self.decisions += record.experts.size


class Metrics:
    """An observer of the engine loop, and what Prometheus reads."""

    def __init__(self, engine: Engine) -> None:
        self.registry, self._engine = CollectorRegistry(), engine
        self._seen: dict[int, tuple[int, int]] = {}

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"elmoe_{name}", text, buckets=buckets, registry=self.registry)

        experts = Histogram(
            "elmoe_experts_read",
            "Distinct experts per pass and layer.",
            ("kind",),
            buckets=EXPERTS,
            registry=self.registry,
        )
        engine.recorder = self.pool = PassMeter(experts)
        self.ttft = histogram("time_to_first_token_seconds", "From arrival at the engine to the first token.", SECONDS)
        self.tpot = histogram(
            "time_per_output_token_seconds", "Mean of a request, after the first token.", TOKEN_SECONDS
        )
        self.queue = histogram("queue_seconds", "Waiting for a place in the batch.", SECONDS)
        self.duration = histogram("request_seconds", "From arrival at the engine to the end.", SECONDS)
        self.rate = histogram("acceptance_rate", "Accepted / tested draft positions of a request.", RATES)
        self.length = histogram("accepted_length", "Draft tokens accepted, per sequence and verify step.", LENGTHS)
        self.batch = histogram("batch_size", "Sequences decoded together, per decode step.", BATCHES)
        self.steps = Counter("elmoe_decode_steps", "Decode steps by mode.", ("mode",), registry=self.registry)
        self.requests = Counter("elmoe_requests", "Requests by outcome.", ("outcome",), registry=self.registry)
        self.tokens = Counter("elmoe_generated_tokens", "By who wrote them.", ("origin",), registry=self.registry)
        self.prompt = Counter("elmoe_prompt_tokens", "Computed, or cached.", ("source",), registry=self.registry)

    def serve(self, loop: EngineLoop) -> None:
        """Read gauges off this loop's engine from now on."""
        self.registry.register(_EngineState(loop, self.pool))

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)

    def after_step(self, engine: Engine, jobs: Sequence[Job]) -> None:
        """See `loop.Observer`."""
        decoding = 0
        for job in jobs:
            request = job.request
            if request is None or request.cache is None:
                continue
            counters = request.acceptance
            steps, accepted = self._seen.get(request.number, (0, 0))
            now = counters.ar_steps + counters.verify_steps
            if now > steps:
                decoding += 1
                self._seen[request.number] = now, counters.accepted
                if engine.decoder.depth:
                    self.length.observe(counters.accepted - accepted)
        if decoding:
            self.batch.observe(decoding)
            self.steps.labels("sd" if engine.decoder.depth else "ar").inc()

    def finished(self, job: Job, output: Output) -> None:
        """See `loop.Observer`."""
        if job.request is not None:
            self._seen.pop(job.request.number, None)
        self.requests.labels(output.finish_reason).inc()
        drafted = sum(output.drafted)
        self.tokens.labels("draft").inc(drafted)
        self.tokens.labels("target").inc(len(output.token_ids) - drafted)
        self.prompt.labels("cached").inc(output.cached_tokens)
        self.prompt.labels("computed").inc(output.prompt_tokens - output.cached_tokens)
        self.queue.observe(job.queue_seconds)
        self.duration.observe(output.seconds)
        if output.token_ids:
            self.ttft.observe(output.ttft_seconds)
        if len(output.token_ids) > 1:
            self.tpot.observe((output.seconds - output.ttft_seconds) / (len(output.token_ids) - 1))
        if output.acceptance.tested:
            self.rate.observe(output.acceptance.acceptance_rate)

    def failed(self, job: Job) -> None:
        """See `loop.Observer`."""
        if job.request is not None:
            self._seen.pop(job.request.number, None)
        self.requests.labels("failed").inc()


class _EngineState:
    """What the engine counts itself."""

    def __init__(self, loop: EngineLoop, pool: PassMeter) -> None:
        self._loop, self._pool = loop, pool

    def collect(self) -> Iterable[Metric]:
        """Called by Prometheus from another thread: only whole numbers are read."""
        engine = self._loop.engine
        options, pool = engine.options, engine.pool
        gauges = {
            "running_sequences": ("Sequences in the batch.", len(engine.running)),
            "waiting_requests": ("Requests in the queue.", engine.waiting),
            "max_batch": ("Sequences that run at most.", options.max_batch),
            "kv_cells": ("KV cells with tokens of running sequences.", _kv_cells(engine)),
            "kept_kv_cells": ("KV cells kept for prompts to come.", engine.prefixes.cells),
            "kept_kv_cells_limit": ("Most of them.", engine.prefixes.max_cells),
            "pool_slots_per_layer": ("Experts that the pool holds per layer.", pool.slots),
            "pool_resident_experts": ("Experts in the pool, all layers.", int(pool.resident.sum())),
            "experts_per_layer": ("Experts of the model per layer.", engine.backend.shape.experts),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"elmoe_{name}", text, value=value)
        passes = CounterMetricFamily("elmoe_passes", "Forward passes.", labels=["kind"])
        rows = CounterMetricFamily("elmoe_pass_rows", "Rows of forward passes.", labels=["kind"])
        experts = CounterMetricFamily("elmoe_distinct_experts", "Experts read, each once per pass.", labels=["kind"])
        seconds = CounterMetricFamily("elmoe_pass_seconds", "Time in forward passes.", labels=["kind"])
        read = CounterMetricFamily("elmoe_read_bytes", "Bytes read by tier.", labels=["kind", "tier"])
        for kind, totals in engine.stats.passes.items():
            passes.add_metric([kind.value], totals.passes)
            rows.add_metric([kind.value], totals.rows)
            experts.add_metric([kind.value], totals.distinct_experts)
            seconds.add_metric([kind.value], totals.seconds)
            read.add_metric([kind.value, "fast"], totals.fast_bytes_read)
            read.add_metric([kind.value, "slow"], totals.slow_bytes_read)
            read.add_metric([kind.value, "kv"], totals.kv_bytes_read)
        yield from (passes, rows, experts, seconds, read)
        if engine.backend.tiers is not None:
            yield from _tier_metrics(engine.backend.tiers.counters())
        yield CounterMetricFamily("elmoe_pool_hits", "Routing decisions that fell on the pool.", value=self._pool.hits)
        text = "Routing decisions of target passes."
        yield CounterMetricFamily("elmoe_pool_decisions", text, value=self._pool.decisions)


def _tier_metrics(counted: TierCounters) -> Iterable[Metric]:
    """Of a model whose experts are partly on disk."""
    records = CounterMetricFamily("elmoe_tier_records", "Expert records that passes needed.", labels=["plane", "found"])
    records.add_metric(["msb", "memory"], counted.msb_hits)
    records.add_metric(["msb", "disk"], counted.msb_misses)
    records.add_metric(["lsb", "memory"], counted.lsb_hits)
    records.add_metric(["lsb", "disk"], counted.lsb_misses)
    yield records
    for name, text, value in (
        ("read_bytes", "Bytes read from the slow tier.", counted.bytes_read),
        ("reads", "Requests to the slow tier.", counted.reads),
        ("read_ahead", "Records read ahead of their layer.", counted.prefetched),
        ("read_ahead_used", "Those of them that the layer needed.", counted.prefetch_used),
        ("admitted", "Records that stayed in memory.", counted.admitted),
        ("wait_seconds", "Time with nothing to compute until a read was done.", counted.wait_seconds),
    ):
        yield CounterMetricFamily(f"elmoe_tier_{name}", text, value=value)


def _kv_cells(engine: Engine) -> int:
    return sum(request.cache.committed for request in list(engine.running) if request.cache is not None)
