"""Measures this computer as a host of the simulator: RAM as fast tier, a disk as slow tier, the CPU's kernels.

    python bench/this_machine.py [-o FILE.toml] [--disk PLACE] [--rounds 5] [--prefetch-share 1]

Writes a machine file for `elmoe simulate --system FILE.toml`: every number measured here with its unit, none of them
from a model's tokens/s. Takes a minute or two of a quiet machine. PLACE is a folder on the disk where the models lie;
3 GB are written there and removed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import kernels
from elmoe.backend.cpu import _native
from elmoe.backend.tiers import IN_FLIGHT_BYTES
from elmoe.bench.disk import rate_table, read_rate
from elmoe.errors import ElmoeError
from elmoe.sim.host.spec import KERNEL_ROWS, KIND, READ_BYTES, SECTIONS, Kernel, host_from_table
from elmoe.sim.quantity import UNIT
from harness import ROOT
from probe_passes import engine_work, probe_backends, row_work, usual
from probe_store import read_efficiency

EXAMPLE = ROOT / "src" / "elmoe" / "sim" / "specs" / "measured" / "this-machine.toml"
KERNELS = {"target": "merged", "draft": "msb"}
STREAMED = 4
"""As many times what `bench/kernels.py` streams from RAM: some caches keep a part of what is read in turn."""
PRODUCT_SECONDS = 0.1
POWERS = np.linspace(1.0, 10.0, 91)
QUEUE = 8
READ_NAMES = dict(zip(READ_BYTES, ("16k", "64k", "256k", "1m", "4m"), strict=True))
PROBE_BYTES, WRITTEN_BYTES = 2 << 30, 1 << 26
READ_SECONDS = 0.4
CHECKED_BYTES = 4 << 20

GIVEN = {("engine", "prefetch_share"), ("engine", "in_flight_mb")}
"""Not measured: how the engine works."""

Numbers = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Product:
    """One matrix product, timed: ns per weight, and per byte of reading beside it; bytes per weight."""

    weight_ns: float
    byte_ns: float
    weight_bytes: float


def kernel_rates(rounds: int) -> Numbers:
    """GMAC/s by rows out of the cache, plain reading, and how both go together in products from RAM; all in turn."""
    cache_bytes = kernels.last_level_cache_bytes()
    sizes = {"dram": STREAMED * cache_bytes, "cache": cache_bytes}
    found: dict[kernels.Case, list[Product]] = {
        kernels.Case(place, kind, rows): [] for place in sizes for kind in KERNELS.values() for rows in KERNEL_ROWS
    }
    with tempfile.TemporaryDirectory() as folder:
        weights = {
            (place, kind): kernels.Weights(Path(folder), kernels.Case(place, kind, 1), size)
            for place, size in sizes.items()
            for kind in KERNELS.values()
        }
        for _ in range(rounds):
            for case, each in found.items():
                each.append(timed_product(case, weights[case.place, case.kind], sizes["dram"]))
    tables: Numbers = {
        name: {
            f"rows_{rows}": rows / usual(one.weight_ns for one in found[kernels.Case("cache", kind, rows)])
            for rows in KERNEL_ROWS
        }
        for name, kind in KERNELS.items()
    }
    streamed = {case: each for case, each in found.items() if case.place == "dram"}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    tables["fast"] = {
        "capacity_gb": memory / 1e9,
        "gb_per_s": 1 / statistics.median(one.byte_ns for each in streamed.values() for one in each),
        "overlap_power": overlap_power(tables, streamed),
        "cache_mb": cache_bytes / 1e6,
    }
    return tables


def timed_product(case: kernels.Case, weights: kernels.Weights, read_bytes: int) -> Product:
    """Products over all of the weights for a while; from RAM, with plain reading before and after."""
    x = np.random.default_rng(1).standard_normal((case.rows, kernels.SHAPES[case.place][1])).astype(np.float32)
    streams = case.place == "dram"
    reads = _native.time_reads(read_bytes, 2) if streams else []
    first = min(_native.time_linear(weights.matrices, x, kernels.KINDS[case.kind], 3))
    repeats = int(np.clip(PRODUCT_SECONDS / first, 5, 1000))  # threads that have just woken up share a core at first
    seconds = usual(_native.time_linear(weights.matrices, x, kernels.KINDS[case.kind], repeats))
    reads += _native.time_reads(read_bytes, 2) if streams else [0.0]
    return Product(
        weight_ns=1e9 * seconds / weights.weights,
        byte_ns=1e9 * statistics.median(reads) / read_bytes,
        weight_bytes=weights.bytes / weights.weights,
    )


def overlap_power(tables: Numbers, streamed: dict[kernels.Case, list[Product]]) -> float:
    """The power with which reading, at the rate probed beside each product, and computing give the time measured."""
    read, compute, measured = [], [], []
    for name, kind in KERNELS.items():
        for case, each in streamed.items():
            for one in each if case.kind == kind else ():
                read.append(one.weight_bytes * one.byte_ns)
                compute.append(case.rows / tables[name][f"rows_{case.rows}"])
                measured.append(one.weight_ns)
    together = (np.array(read)[:, None] ** POWERS + np.array(compute)[:, None] ** POWERS) ** (1.0 / POWERS)
    off = np.abs(np.log(together / np.array(measured)[:, None]))  # [samples, powers]
    return float(POWERS[np.median(off, axis=0).argmin()])


def disk_rates(file: Path, rounds: int) -> dict[str, float]:
    """The slow tier; what an idle disk adds to a single read is its latency."""
    table = rate_table(file, READ_BYTES, (1, QUEUE), rounds, READ_SECONDS)
    alone, together = (1 << 20) / table[1 << 20][1], (1 << 20) / table[1 << 20][QUEUE]  # ns per request
    return {
        "capacity_gb": shutil.disk_usage(file).total / 1e9,
        "queue": QUEUE,
        "latency_us": max(0.0, 1e-3 * (alone - together)),
    } | {f"read_{READ_NAMES[size]}_gb_per_s": table[size][QUEUE] for size in READ_BYTES}


def sharing(file: Path, rounds: int) -> dict[str, float]:
    """What computation and reading keep of their speed while both go on: products from RAM, requests of 1 MiB."""
    cache_bytes = kernels.last_level_cache_bytes()
    kept, read = [], []
    with tempfile.TemporaryDirectory() as folder:
        weights = kernels.Weights(Path(folder), kernels.Case("dram", "merged", 1), cache_bytes)
        x = np.random.default_rng(1).standard_normal((4, kernels.SHAPES["dram"][1])).astype(np.float32)

        def products() -> float:
            return statistics.median(_native.time_linear(weights.matrices, x, kernels.TARGET_BITS, 8))

        def reading() -> float:
            return read_rate(file, 1 << 20, QUEUE, READ_SECONDS)

        for _ in range(rounds):
            alone = products()
            with in_background(reading):
                kept.append(alone / products())
            idle = reading()
            with in_background(products):
                read.append(reading() / idle)
    return {
        "compute_while_reading": min(1.0, statistics.median(kept)),
        "read_while_computing": min(1.0, statistics.median(read)),
    }


@contextmanager
def probe_file(place: Path) -> Iterator[Path]:
    """A file of random bytes in a folder, removed afterwards."""
    with tempfile.NamedTemporaryFile(dir=place, prefix="elmoe-probe-") as file:
        block = np.random.default_rng(1).integers(0, 256, WRITTEN_BYTES, dtype=np.uint8).tobytes()
        for _ in range(-(-PROBE_BYTES // WRITTEN_BYTES)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        yield Path(file.name)


@contextmanager
def in_background(work: Callable[[], object]) -> Iterator[None]:
    """Does something over and over meanwhile."""
    over = threading.Event()

    def go_on() -> None:
        while not over.is_set():
            work()

    thread = threading.Thread(target=go_on)
    thread.start()
    time.sleep(0.05)
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def a_core_each() -> Iterator[None]:
    """The backend's threads on cores of their own: where others are at work, they may end up on one, and stay there."""
    tasks = Path("/proc/self/task")
    cpus = sorted(os.sched_getaffinity(0))
    before = {task.name for task in tasks.iterdir()}
    _native.time_reads(1 << 20, 1)
    mine = [os.getpid(), *(int(task.name) for task in tasks.iterdir() if task.name not in before)]
    try:
        for number, task in enumerate(mine):
            os.sched_setaffinity(task, {cpus[number % len(cpus)]})
        yield
    finally:
        for task in mine:
            os.sched_setaffinity(task, cpus)


def check_rate(rounds: int) -> float:
    """GB/s of a record's checksum."""
    data = np.random.default_rng(0).integers(0, 256, CHECKED_BYTES, dtype=np.uint8)

    def once() -> float:
        begin = time.perf_counter()
        _native.crc32(data)
        return CHECKED_BYTES / (time.perf_counter() - begin) / 1e9

    return 1 / usual(1 / once() for _ in range(4 * rounds))


def measure(place: Path, rounds: int, prefetch_share: float) -> Numbers:
    """All sections of the file."""
    with probe_backends() as backends, a_core_each():
        say("kernels and memory")
        tables = kernel_rates(rounds)
        cached = Kernel(**tables["target"])
        say("passes of small models")
        tables["work"] = {"threads": _native.threads(), "check_gb_per_s": check_rate(rounds)}
        tables["work"] |= row_work(backends, cached.weight_ns, 2 * rounds)
        say("the engine around them")
        tables["engine"] = engine_work(backends, max(2, rounds // 2)) | {
            "prefetch_share": prefetch_share,
            "in_flight_mb": IN_FLIGHT_BYTES / 1e6,
            "read_efficiency": 1.0,
        }
    with probe_file(place) as file:
        say("disk")
        tables["slow"] = disk_rates(file, rounds)
        say("disk and computation together")
        tables["engine"] |= sharing(file, rounds)
    say("the engine's reader")
    host = host_from_table(tomllib.loads(to_toml(tables, "a probe")), "this machine")
    tables["engine"]["read_efficiency"] = read_efficiency(host, place, QUEUE, rounds)
    return tables


def say(text: str) -> None:
    print(f"measuring: {text}", flush=True)


def to_toml(tables: Numbers, source: str) -> str:
    """The file's text, sections in the order of the specification."""
    lines = [
        "# A host of the simulator: elmoe simulate --system FILE.toml --trace T.parquet --fast-bytes 1GiB",
        f"kind = {json.dumps(KIND)}",
        f"name = {json.dumps('this-machine')}",
        f"description = {json.dumps(_description())}",
    ]
    for section, kind in SECTIONS.items():
        lines += ["", f"[{section}]"]
        for name, item in kind.__dataclass_fields__.items():
            if name in tables[section]:
                value: Any = tables[section][name]
                value = int(value) if item.type == "int" else float(f"{value:.4g}")
                assumed = (section, name) in GIVEN
                where = "given to bench/this_machine.py" if assumed else source
                status = "assumed" if assumed else "measured"
                entry = f'value = {value}, unit = "{item.metadata[UNIT]}", source = "{where}", status = "{status}"'
                lines.append(f"{name} = {{ {entry} }}")
    return "\n".join(lines) + "\n"


def _description() -> str:
    return f"{platform.machine()}, {_native.threads()} threads, {_native.isas()[0]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=EXAMPLE)
    parser.add_argument("--disk", type=Path, default=Path(), help="a folder on the disk to be measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--prefetch-share",
        type=float,
        default=1.0,
        help="share of the time before a layer's experts are known in which the disk reads what they will need",
    )
    arguments = parser.parse_args()
    if not arguments.disk.is_dir():
        raise SystemExit(f"error: {arguments.disk} is no folder; give one on the disk to be measured")
    begin = time.perf_counter()
    try:
        tables = measure(arguments.disk, arguments.rounds, arguments.prefetch_share)
    except ElmoeError as error:
        raise SystemExit(f"error: {error}") from None
    text = to_toml(tables, f"measured on {time.strftime('%Y-%m-%d')} by bench/this_machine.py")
    host_from_table(tomllib.loads(text), str(arguments.output))  # what it would refuse is not written
    temporary = arguments.output.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(arguments.output)
    print(f"{arguments.output}: measured in {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
