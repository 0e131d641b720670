"""What passes and the engine cost beside streaming weights: phases of small random models, taken apart.

Two models of a few MB whose sizes differ, passes of several rows, contexts and experts per token; every phase of the
backend's own clock is laid out as a sum of a few sizes with costs that are not negative (least squares, relative).
The time of matrix products in a phase is taken from the kernels' own rates (`bench/kernels.py`) beforehand.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from elmoe import Engine, EngineOptions, Generation, Mode, Speculation
from elmoe.backend.cpu.backend import CpuBackend
from elmoe.backend.protocol import DraftQuality, Int32, Rows
from elmoe.checkpoint.convert import convert
from elmoe.checkpoint.folder import Checkpoint
from elmoe.trace.schema import RunStats
from random_checkpoint import DIMENSIONS, qwen3_config, write_checkpoint

Floats = npt.NDArray[np.float64]
WeightNs = Callable[[Floats], Floats]
"""Rows -> ns per weight of a product out of the cache."""

MODELS: tuple[dict[str, int], ...] = (
    {"hidden_size": 256, "num_experts": 128, "moe_intermediate_size": 64},
    {"hidden_size": 1024, "num_experts": 16, "moe_intermediate_size": 32},
)
SHARED = {
    "num_hidden_layers": 4,
    "num_experts_per_tok": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "vocab_size": 2048,
}
LEAST_NS = 1e-6
"""Of a byte or a multiply-accumulate: what was too little to be seen."""
IN_A_ROW = 10
SEQUENCES, SHORT, LONG = 32, 32, 1024
AR_ROWS, CHAINS = (1, 2, 4, 8, 16, 32), (3, 9, 17)
ENGINE_ARMS = ((1, 0, 0), (4, 0, 0), (16, 0, 0), (1, 1, 4), (4, 1, 4), (1, 4, 4), (4, 4, 4))
"""(batch, width, depth); depth 0: plain decoding."""


@dataclass(frozen=True)
class Sample:
    """Usual phases of passes of one size, ns per layer (head and the rest: per pass)."""

    rows: int
    experts_per_tok: int
    distinct: float
    """Experts per layer."""
    cells: float
    """Seen by all rows together."""
    own_cells: float
    """Read from RAM: nothing where one sequence's fit the cache."""
    ns: dict[str, float]


@contextmanager
def probe_backends() -> Iterator[list[CpuBackend]]:
    """The models, converted."""
    with TemporaryDirectory() as folder:
        found = []
        for number, sizes in enumerate(MODELS):
            source, target = Path(folder) / f"source{number}", Path(folder) / f"probe{number}.elmoe"
            with redirect_stdout(None):  # a line per shard
                write_checkpoint(source, qwen3_config(DIMENSIONS | SHARED | sizes), seed=number)
            convert(source, target)
            found.append(CpuBackend(Checkpoint.open(target)))
        yield found


def row_work(backends: Sequence[CpuBackend], weight_ns: WeightNs, rounds: int) -> dict[str, float]:
    """Costs by the names of `RowWork`."""
    samples = [(backend, sample) for backend in backends for sample in _samples(backend, rounds)]
    threads = backends[0].threads

    def fit(of: Callable[[CpuBackend, Sample], tuple[Sequence[float], float]]) -> Floats:
        found = [of(backend, sample) for backend, sample in samples]
        return nonnegative_fit(np.array([sizes for sizes, _ in found]), np.array([ns for _, ns in found]))

    def together(sample: Sample) -> float:
        return threads * np.ceil(sample.rows / threads)

    def slot_sizes(backend: CpuBackend, sample: Sample) -> float:
        return sample.rows * sample.experts_per_tok * (backend.shape.hidden + backend.shape.expert_hidden)

    def before(backend: CpuBackend, sample: Sample) -> tuple[Sequence[float], float]:
        shape = backend.shape
        params = shape.hidden * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
        products = params * float(weight_ns(np.array(float(sample.rows))))
        ns = sample.ns["qkv"] + sample.ns["out"] + sample.ns["rope"] + sample.ns["attend"] - products
        macs = sample.cells * 2 * shape.heads * shape.head_dim
        kv_bytes = sample.own_cells * 4 * shape.kv_heads * shape.head_dim
        return (1.0, together(sample), macs, kv_bytes), ns

    def norms(backend: CpuBackend, sample: Sample) -> tuple[Sequence[float], float]:
        return (1.0, together(sample) * backend.shape.hidden, slot_sizes(backend, sample)), sample.ns["norm"]

    def route(backend: CpuBackend, sample: Sample) -> tuple[Sequence[float], float]:
        experts = backend.shape.experts
        rows = together(sample)
        return (1.0, rows * experts * backend.shape.hidden, rows * experts), sample.ns["route"]

    def products(backend: CpuBackend, sample: Sample) -> tuple[Sequence[float], float]:
        shape = backend.shape
        params = 3 * shape.hidden * shape.expert_hidden
        mean_rows = sample.rows * sample.experts_per_tok / sample.distinct
        known = sample.distinct * params * float(weight_ns(np.array(mean_rows)))
        ns = sample.ns["gate_up"] + sample.ns["down"] - known
        return (1.0, sample.distinct, slot_sizes(backend, sample)), ns

    def head(backend: CpuBackend, sample: Sample) -> tuple[Sequence[float], float]:
        shape = backend.shape
        known = shape.vocab * shape.hidden * float(weight_ns(np.array(float(sample.rows))))
        return (1.0, sample.rows * shape.vocab), sample.ns["head"] - known

    layer, row, attention, kv = fit(before)
    norm_layer, hidden, slot = fit(norms)
    route_layer, router, choice = fit(route)
    expert_layer, expert, expert_slot = fit(products)
    head_pass, logit = fit(head)
    rest = statistics.median(sample.ns["rest"] for _, sample in samples if sample.rows <= 4)
    return {
        "pass_us": 1e-3 * (rest + head_pass),
        "layer_us": 1e-3 * (layer + norm_layer + route_layer + expert_layer),
        "row_us": 1e-3 * row,
        "hidden_ns": hidden,
        "attention_gmac_per_s": 1 / max(attention, LEAST_NS),
        "kv_gb_per_s": 1 / max(kv, LEAST_NS),
        "router_gmac_per_s": 1 / max(router, LEAST_NS),
        "choice_ns": choice,
        "expert_us": 1e-3 * expert,
        "slot_ns": slot + expert_slot,
        "logit_ns": logit,
    }


def engine_work(backends: Sequence[CpuBackend], rounds: int) -> dict[str, float]:
    """Costs by the names of `EngineWork`: decode time less that of the passes."""
    sizes, us = [], []
    for backend in backends:
        experts = len(backend.shape.moe_layers) * backend.shape.experts
        for batch, width, depth in ENGINE_ARMS:
            found = [_engine_run(backend, batch, width, depth) for _ in range(rounds)]
            steps, passes, rows, _ = found[0]
            sizes.append((1.0, passes / steps, rows / steps, experts))
            us.append(1e6 * min(seconds / steps for *_, seconds in found))
    step, one_pass, row, pool = nonnegative_fit(np.array(sizes), np.array(us))
    return {"step_us": step, "pass_us": one_pass, "row_us": row, "pool_ns": 1e3 * pool}


def usual(times: Iterable[float]) -> float:
    """The lowest tenth ends here: interruptions only add to a time."""
    return float(np.quantile(list(times), 0.1))


def nonnegative_fit(sizes: Floats, wanted: Floats) -> Floats:
    """Costs >= 0 [C] of sizes [S, C] with the least squared relative deviation from `wanted` [S]; few columns."""
    weight = 1.0 / np.maximum(wanted, np.median(wanted) * 0.1)
    best, least = np.zeros(sizes.shape[1]), np.inf
    for count in range(1, sizes.shape[1] + 1):
        for chosen in itertools.combinations(range(sizes.shape[1]), count):
            scale = sizes[:, chosen].max(axis=0)
            found, *_ = np.linalg.lstsq(sizes[:, chosen] / scale * weight[:, None], wanted * weight, rcond=None)
            if (found < 0).any():
                continue
            deviation = float(
                (((sizes[:, chosen] / scale) @ found - wanted) * weight)
                @ (((sizes[:, chosen] / scale) @ found - wanted) * weight)
            )
            if deviation < least:
                least = deviation
                best = np.zeros(sizes.shape[1])
                best[list(chosen)] = found / scale
    return best


def _samples(backend: CpuBackend, rounds: int) -> Iterator[Sample]:
    rng = np.random.default_rng(0)
    for sequence in range(SEQUENCES):
        backend.allocate(sequence, LONG + max(CHAINS))
        backend.forward(prompt_rows(backend, rng, sequence, LONG))
    few = DraftQuality(bits=8, experts_per_tok=2)
    cases = [(rows, 1, context, None) for rows in AR_ROWS for context in (SHORT, LONG)]
    cases += [(rows, 1, SHORT, few) for rows in AR_ROWS]
    cases += [(1, each, context, None) for each in CHAINS for context in (SHORT, LONG)]
    found: dict[int, list[tuple[dict[str, float], float]]] = {}
    for _ in range(rounds):
        for index, (sequences, each, context, quality) in enumerate(cases):
            for _ in range(IN_A_ROW):
                rows = token_rows(backend, rng, sequences, each, context)
                found.setdefault(index, []).append(_timed(backend, rows, quality))
    for index, (sequences, each, context, quality) in enumerate(cases):
        count = sequences * each
        names = found[index][0][0]
        yield Sample(
            rows=count,
            experts_per_tok=(quality and quality.experts_per_tok) or backend.shape.experts_per_tok,
            distinct=statistics.mean(distinct for _, distinct in found[index]),
            cells=count * (context + (each + 1) / 2),
            own_cells=sequences * context if sequences == SEQUENCES else 0.0,
            ns={name: usual(ns[name] for ns, _ in found[index]) for name in names},
        )
    for sequence in range(SEQUENCES):
        backend.release(sequence)


def _timed(backend: CpuBackend, rows: Rows, quality: DraftQuality | None) -> tuple[dict[str, float], float]:
    """Phases of one pass, ns per layer (head, rest: per pass), and its distinct experts per layer."""
    before, begin = backend.phase_seconds(), time.perf_counter()
    result = backend.forward(rows, None, quality)
    seconds, after = time.perf_counter() - begin, backend.phase_seconds()
    phases = {name: after[name] - before[name] for name in after}
    layers = backend.shape.layers
    ns = {name: 1e9 * spent / (1 if name in ("head", "embed") else layers) for name, spent in phases.items()}
    return ns | {"rest": 1e9 * (seconds - sum(phases.values()))}, result.read.sum() / layers


def prompt_rows(backend: CpuBackend, rng: np.random.Generator, sequence: int, tokens: int) -> Rows:
    """A prompt of random tokens."""
    positions = np.arange(tokens, dtype=np.int32)
    return _as_rows(backend, rng, np.full(tokens, sequence, np.int32), positions, positions + 1, None)


def token_rows(backend: CpuBackend, rng: np.random.Generator, sequences: int, each: int, context: int) -> Rows:
    """One token of each of `sequences`, or a chain of `each` drafted ones."""
    level = np.tile(np.arange(each, dtype=np.int32), sequences)
    owner = np.repeat(np.arange(sequences, dtype=np.int32), each)
    if each == 1:
        return _as_rows(backend, rng, owner, context + level, np.full(sequences, context + 1, np.int32), None)
    path = np.where(np.arange(each) <= level[:, None], context + np.arange(each), -1).astype(np.int32)
    return _as_rows(backend, rng, owner, context + level, np.full(len(level), context, np.int32), path)


def _as_rows(
    backend: CpuBackend,
    rng: np.random.Generator,
    owner: Int32,
    positions: Int32,
    prefix: Int32,
    path: Int32 | None,
) -> Rows:
    count = len(owner)
    return Rows(
        tokens=rng.integers(backend.shape.vocab, size=count).astype(np.int32),
        sequences=owner,
        positions=positions.astype(np.int32),
        cells=positions.astype(np.int32),
        prefix=prefix.astype(np.int32),
        path=np.zeros((count, 0), dtype=np.int32) if path is None else path,
        logits=np.arange(count, dtype=np.int32),
        best=1,
    )


def _engine_run(backend: CpuBackend, batch: int, width: int, depth: int) -> tuple[int, int, int, float]:
    """Decode steps, passes and rows of a short run, and its seconds outside the passes."""
    mode = Speculation(mode=Mode.AR) if depth == 0 else Speculation(Mode.SD, width, depth, max(width * depth, 1))
    engine = Engine(backend, options=EngineOptions(max_batch=batch, speculation=mode))
    engine.stats = RunStats()
    prompts = np.random.default_rng(1).integers(backend.shape.vocab, size=(batch, SHORT)).tolist()
    engine.generate(prompts, Generation(max_tokens=32, ignore_eos=True))
    decoding = [totals for kind, totals in engine.stats.passes.items() if kind.value != "prefill"]
    seconds = engine.stats.decode_seconds - sum(totals.seconds for totals in decoding)
    steps = sum(engine.stats.steps_by_depth.values())
    return steps, sum(t.passes for t in decoding), sum(t.rows for t in decoding), seconds
