"""What of the disk's rate the engine's own reader gets: a small model's passes with nothing in the fast tier.

The disk is probed beside every pass with requests as large as a record; what the pass takes beyond that, beyond the
computation (from the other probes) and beyond what the overlap rules of `sim/host` explain, is the reader's loss:
meeting in waves, waking threads, collecting what has come. The model is of no other use.
"""

from __future__ import annotations

import statistics
import time
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from elmoe.backend.cpu.backend import CpuBackend
from elmoe.bench.disk import read_rate
from elmoe.checkpoint.convert import convert
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.layout import MSB_FILE
from elmoe.sim.host.passes import PassClock, PassLoad
from elmoe.sim.host.spec import Host
from elmoe.sim.model import model_from_shape
from elmoe.trace.schema import routing_counts
from probe_passes import prompt_rows, token_rows
from random_checkpoint import DIMENSIONS, qwen3_config, write_checkpoint

SIZES = {
    "hidden_size": 2048,
    "num_hidden_layers": 2,
    "num_experts": 32,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "vocab_size": 2048,
}
"""Records of the size that they have in models of 30 B parameters: what is lost is lost per record, mostly."""
ROWS = (1, 4, 16)
CONTEXT = 16
PROBE_SECONDS = 0.1
ARENA_BYTES = 1 << 28
"""Of which what passes through takes a part; large enough for huge pages, without which disks are slow."""
IN_A_ROW = 5
STEPS = 12
"""Of a bisection."""


def read_efficiency(host: Host, folder: Path, queue: int, rounds: int) -> float:
    """Share, median over passes of several rows. host: with what else was measured; folder: on its disk."""
    with TemporaryDirectory(dir=folder, prefix="elmoe-probe-") as place:
        source, target = Path(place) / "source", Path(place) / "probe.elmoe"
        with redirect_stdout(None):  # a line per shard
            write_checkpoint(source, qwen3_config(DIMENSIONS | SIZES), seed=0)
        convert(source, target)
        backend = streaming_backend(Checkpoint.open(target))
        clock, rng = PassClock(host, model_from_shape(backend.shape, "probe")), np.random.default_rng(0)
        for sequence in range(max(ROWS)):
            backend.allocate(sequence, CONTEXT + 1)
            backend.forward(prompt_rows(backend, rng, sequence, CONTEXT))
        found = []
        for _ in range(rounds):
            for count in ROWS:
                found += [_efficiency(clock, backend, rng, count, target / MSB_FILE, queue) for _ in range(IN_A_ROW)]
        return min(1.0, statistics.median(found))


def streaming_backend(checkpoint: Checkpoint) -> CpuBackend:
    """Records pass through, and none stays."""
    backend = CpuBackend(checkpoint, ARENA_BYTES)
    assert backend.tiers is not None, "a backend with a budget has tiers"
    backend.tiers.arrange(np.zeros((2, len(checkpoint.shape.moe_layers)), dtype=np.int32))
    return backend


def _efficiency(
    clock: PassClock, backend: CpuBackend, rng: np.random.Generator, count: int, file: Path, queue: int
) -> float:
    """Of one pass: with this share of the probed rate the prediction is what was measured."""
    assert backend.tiers is not None
    record = backend.tiers.layout.strides[0]
    rate = read_rate(file, record, queue, PROBE_SECONDS)
    rows = token_rows(backend, rng, count, 1, CONTEXT)
    begin = time.perf_counter()
    result = backend.forward(rows)
    seconds = time.perf_counter() - begin
    counts = routing_counts(result.experts, backend.shape.experts)
    cells = float(count * (CONTEXT + 1))
    load = PassLoad(count, cells, cells, counts.astype(np.float64), counts > 0, counts > 0)
    in_file = record / float(clock.host.slow.read_ns(np.array(float(record))))
    low, high = 0.1, 2.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        here = clock.host.at_pace(slow=middle * rate / in_file)
        low, high = (middle, high) if PassClock(here, clock.model).time(load).seconds > seconds else (low, middle)
    return (low + high) / 2
