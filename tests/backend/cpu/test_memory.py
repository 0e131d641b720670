"""Passes take no memory that they do not give back."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from processes import python

from backend.passes import int32, run_of, tree_of
from elmoe.backend.cpu.backend import CpuBackend
from elmoe.backend.protocol import DraftQuality
from elmoe.checkpoint.folder import Checkpoint

OddModel = Callable[[str], Checkpoint]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


STEPS = """
import gc, sys
from pathlib import Path
from test_memory import resident_bytes, steps
from elmoe.backend.cpu.backend import CpuBackend
from elmoe.checkpoint.folder import Checkpoint
backend = CpuBackend(Checkpoint.open(Path(sys.argv[1])))
steps(backend, 1000)
gc.collect()
before = resident_bytes()
steps(backend, int(sys.argv[2]))
gc.collect()
print(resident_bytes() - before)
"""


def steps(backend: CpuBackend, count: int) -> None:
    """Decode, draft, verify, accept; requests come and go."""
    pool = np.ones((1, 2), dtype=np.bool_)
    for i in range(count):
        sequence = i // 20 % 3
        if i % 20 == 0:
            backend.allocate(sequence, 40 + i % 7)
        if i % 3:
            backend.forward(run_of([1], sequence, i % 20))
        else:
            backend.forward(tree_of([1, 2, 3], [-1, 0, 0], 5, [5, 9, 7], sequence), pool, DraftQuality())
        if i % 5 == 0:
            backend.forward(replace(run_of([4, 2, 1], sequence), best=3))
            backend.move(sequence, int32([3, 4]), int32([4, 3]))
        if i % 20 == 19:
            backend.release(sequence)


@pytest.mark.parametrize(("threads", "count"), [(1, 10_000), (2, 1_000)])
def test_ten_thousand_steps_keep_no_memory(odd_model: OddModel, threads: int, count: int) -> None:
    """In a process of its own, where nothing else comes and goes; few with two threads, which may lack a CPU each."""
    grown = int(python(STEPS, odd_model("least").path, count, ELMOE_NUM_THREADS=str(threads)))
    assert grown < 1 << 20


def test_backends_come_and_go(odd_model: OddModel) -> None:
    checkpoint = odd_model("middling")

    def open_and_use() -> None:
        backend = CpuBackend(checkpoint)
        backend.allocate(0, 300)
        backend.forward(run_of(list(range(100))))

    for _ in range(5):
        open_and_use()
    gc.collect()
    before = resident_bytes()
    for _ in range(60):
        open_and_use()
    gc.collect()
    assert resident_bytes() - before < 4 << 20


def test_kv_memory_is_taken_as_cells_are_written(odd_model: OddModel) -> None:
    backend = CpuBackend(odd_model("wide_heads"))
    backend.allocate(0, 4096)  # rotary angles
    before = resident_bytes()
    for sequence in range(1000):
        backend.allocate(sequence, 4096)  # 2 layers x 2 x 128 x 2 bytes x 4096 = 4 MiB each
    backend.forward(run_of([1, 2, 3], 500))
    assert resident_bytes() - before < 16 << 20
    for sequence in range(1000):
        backend.release(sequence)
