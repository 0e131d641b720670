"""What a CPU backend refuses, and what it says of itself."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import python

from backend.passes import int32, run_of, same_bits
from elmoe.backend.cpu import _native
from elmoe.backend.cpu.backend import CpuBackend, read_bandwidth, weight_bits
from elmoe.backend.protocol import DraftQuality
from elmoe.backend.select import open_backend
from elmoe.checkpoint.folder import Checkpoint
from elmoe.errors import CapacityError, ConfigError
from elmoe.quant.bitnested import Treatment

OddModel = Callable[[str], Checkpoint]
SCRIPTS = Path(__file__).parent
DRAFT = DraftQuality()
ROWS = run_of([5, 77, 200])


@pytest.fixture(scope="module")
def healthy(odd_model: OddModel) -> Checkpoint:
    return odd_model("middling")


@pytest.fixture
def cpu(healthy: Checkpoint) -> CpuBackend:
    backend = CpuBackend(healthy)
    backend.allocate(0, 10)
    backend.allocate(1, 10)
    return backend


# --- what it refuses ---


def no_path(count: int) -> np.ndarray[Any, Any]:
    return np.zeros((count, 0), dtype=np.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": int32([1, 600, 2])}, "unknown token 600 of row 1"),
        ({"tokens": int32([-1, 1, 2])}, "unknown token -1 of row 0"),
        ({"sequences": int32([0, 0, 5])}, "no KV cache for sequence 5 of row 2"),
        ({"cells": int32([0, 10, 2])}, "cell or prefix outside the KV cache of row 1"),
        ({"cells": int32([0, -1, 2])}, "cell or prefix outside the KV cache of row 1"),
        ({"prefix": int32([1, 2, 11])}, "cell or prefix outside the KV cache of row 2"),
        ({"prefix": int32([1, 2, -(2**31)])}, "cell or prefix outside the KV cache of row 2"),
        ({"positions": int32([0, 1, 10])}, "position outside the KV cache of row 2"),
        ({"positions": int32([0, -1, 2])}, "position outside the KV cache of row 1"),
        ({"path": int32([3, 4, 10])[:, None]}, "path cell outside the KV cache of row 2"),
        ({"path": int32([3, 2**31 - 1, 1])[:, None]}, "path cell outside the KV cache of row 1"),
        ({"path": np.int32([[1, -1, -1], [1, -1, 2], [3, 4, 5]])}, "path cell after the end of the path of row 1"),
        ({"sequences": int32([0, 1, 0])}, "rows of sequence 0 are not adjacent"),
        ({"prefix": int32([1, 0, 3])}, "nothing to attend to of row 1"),
        ({"prefix": int32([1, 0, 3]), "path": int32([1, -1, 1])[:, None]}, "nothing to attend to of row 1"),
        ({"logits": int32([0, 3])}, "wanted logits of a row that is not there"),
        ({"logits": int32([-1])}, "wanted logits of a row that is not there"),
        ({"best": -1}, "best logits beyond the vocabulary"),
        *(
            ({name: int32([1, 1])}, "one entry per row")
            for name in ("tokens", "sequences", "positions", "cells", "prefix")
        ),
        ({"path": no_path(2)}, "one entry per row"),
        ({"path": no_path(4)}, "one entry per row"),
    ],
    ids=str,
)
def test_rows_out_of_range_are_refused(cpu: CpuBackend, change: dict[str, Any], message: str) -> None:
    want = cpu.forward(ROWS)
    with pytest.raises(ValueError, match=message):
        cpu.forward(replace(ROWS, **change))
    assert same_bits(cpu.forward(ROWS).logits, want.logits), "usable afterwards"


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": [5, 77, 200]},
        {"tokens": np.array([5, 77, 2**32 + 200])},
        {"tokens": np.array([5.0, 77.0, 200.5])},
        {"path": int32([1, 1, 1])},
        {"prefix": None},
    ],
    ids=str,
)
def test_what_is_no_int32_array_is_refused(cpu: CpuBackend, change: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="incompatible function arguments"):
        cpu.forward(replace(ROWS, **change))


def test_a_pass_without_rows_is_refused(cpu: CpuBackend) -> None:
    with pytest.raises(ValueError, match="a pass needs at least one row"):
        cpu.forward(run_of([]))


def test_pools_that_do_not_do_are_refused(cpu: CpuBackend) -> None:
    pool = np.ones((2, 12), dtype=np.bool_)
    pool[1, 2:] = False
    with pytest.raises(ValueError, match="the pool of layer 1 has fewer experts than a token uses"):
        cpu.forward(ROWS, pool, DRAFT)
    cpu.forward(ROWS, pool, DraftQuality(experts_per_tok=2))
    cpu.forward(ROWS, pool)  # a target is not restricted
    for shape in ((2, 11), (3, 12)):
        with pytest.raises(ValueError, match="the pool does not have the model's layers and experts"):
            cpu._model.forward(*[getattr(ROWS, n) for n in FIELDS], np.ones(shape, np.bool_), (0, 255, 0), 3, 0)


FIELDS = ("tokens", "sequences", "positions", "cells", "prefix", "path", "logits")


def test_moves_out_of_range_are_refused(cpu: CpuBackend) -> None:
    want = cpu.forward(ROWS)
    for sequence, source, destination, message in (
        (9, [0], [1], "no such sequence"),
        (0, [0, 1], [1], "unequal numbers of cells"),
        (0, [0, 10], [1, 2], "cell 10 is outside the KV cache"),
        (0, [0], [-1], "cell -1 is outside the KV cache"),
    ):
        with pytest.raises(ValueError, match=message):
            cpu.move(sequence, int32(source), int32(destination))
    again = cpu.forward(run_of([200], 0, 2))
    assert same_bits(again.logits[0], want.logits[2]), "nothing was moved"


def test_a_released_sequence_is_unknown(cpu: CpuBackend) -> None:
    cpu.release(0)
    cpu.release(0)
    cpu.release(12345)
    with pytest.raises(ValueError, match="no KV cache for sequence 0 of row 0"):
        cpu.forward(ROWS)


@pytest.mark.parametrize("width", [*range(2, 8), 8])
def test_how_kernels_see_a_draft(width: int) -> None:
    kind, keep, put = weight_bits(DraftQuality(width))
    assert kind == {4: 0, 8: 1}.get(width, 2)
    if kind == 2:
        assert bin(keep).count("1") == width
        assert (keep & put, put) == (0, 1 << (7 - width))


@pytest.mark.parametrize("treatment", [t for t in Treatment if t is not Treatment.AUGMENT])
def test_treatments_that_only_the_reference_has(cpu: CpuBackend, treatment: Treatment) -> None:
    with pytest.raises(ConfigError, match=f"not {treatment.value}; use --backend reference to compare treatments"):
        cpu.forward(ROWS, None, DraftQuality(5, treatment))
    assert same_bits(cpu.forward(ROWS, None, DraftQuality(8, treatment)).logits, cpu.forward(ROWS).logits)


def test_a_path_of_instructions_that_is_not_there(healthy: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELMOE_ISA", "nonsense")
    paths = ", ".join(_native.isas())
    with pytest.raises(ConfigError, match=f"ELMOE_ISA=nonsense is not possible on this machine; it has {paths}"):
        open_backend("cpu", healthy)
    monkeypatch.setenv("ELMOE_ISA", "")
    assert CpuBackend(healthy).isa == _native.isas()[0]


def test_numbers_of_threads_that_are_none(healthy: Checkpoint) -> None:
    """In a process whose threads have not been started yet."""
    script = """
import os, sys
from pathlib import Path
from elmoe.backend.cpu.backend import CpuBackend
from elmoe.checkpoint.folder import Checkpoint
from elmoe.errors import ConfigError
checkpoint = Checkpoint.open(Path(sys.argv[1]))
for number in sys.argv[2:]:
    os.environ["ELMOE_NUM_THREADS"] = number
    try:
        print(CpuBackend(checkpoint).threads)
    except ConfigError as error:
        print(error)
"""
    wrong = ["0", "-1", "x", "2x", "1.5", "513", "99999", "9" * 30]
    printed = python(script, healthy.path, *wrong, "3").splitlines()
    assert printed == [*(f"ELMOE_NUM_THREADS must be 1 to 512, not {n}" for n in wrong), "3"]


def test_a_kv_cache_that_no_memory_holds(healthy: Checkpoint) -> None:
    """In a process that may take half a gigabyte more than it has."""
    script = """
import resource, sys, time
from pathlib import Path
from backend.passes import run_of
from elmoe.backend.cpu.backend import CpuBackend
from elmoe.checkpoint.folder import Checkpoint
from elmoe.errors import CapacityError
backend = CpuBackend(Checkpoint.open(Path(sys.argv[1])))
backend.allocate(0, 10)
want = backend.forward(run_of([1, 2])).logits.tobytes()
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (1 << 29)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
started = time.monotonic()
for cells in map(int, sys.argv[2:]):
    try:
        backend.allocate(1, cells)
    except CapacityError as error:
        print(error)
assert time.monotonic() - started < 5, "it takes its time to refuse"
assert backend.forward(run_of([1, 2])).logits.tobytes() == want
"""
    sizes = (2 * 10**6, 10**8, 2**31 - 1)
    printed = python(script, healthy.path, *sizes, ELMOE_NUM_THREADS="1").splitlines()
    assert printed == [f"no memory for a KV cache of {cells} tokens" for cells in sizes]


@pytest.mark.parametrize("cells", [0, -1])
def test_a_kv_cache_of_no_cells(cpu: CpuBackend, cells: int) -> None:
    with pytest.raises((ValueError, CapacityError)):
        cpu.allocate(1, cells)


# --- what it says ---


def test_what_it_says_of_itself(cpu: CpuBackend, healthy: Checkpoint) -> None:
    assert (cpu.shape, cpu.threads >= 1, cpu.isa) == (
        healthy.shape,
        True,
        os.environ.get("ELMOE_ISA") or _native.isas()[0],
    )
    before = cpu.phase_seconds()
    cpu.forward(ROWS)
    after = cpu.phase_seconds()
    assert list(after) == ["embed", "norm", "qkv", "rope", "attend", "out", "route", "gate_up", "down", "fetch", "head"]
    assert all(after[phase] > before[phase] for phase in after if phase != "fetch")
    assert after["fetch"] == 0, "all weights are in memory"
    assert 0.01 < read_bandwidth(1 << 24, 3) < 1e5
    assert math.isfinite(sum(after.values()))
