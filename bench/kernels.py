"""How close are the kernels to the memory? Matrix products of a few rows, against plain reading of the same memory.

    python bench/kernels.py [--rounds 9] [--markdown]

For 1 to 16 rows, both planes (what plain decoding and verification stream), the MSB plane alone (what a draft streams)
and MXFP4 matrices, from DRAM (matrices of four times the last-level cache) and from that cache (a quarter of it).
Weights are files mapped into memory, as the product has them. The reading probe runs beside every product, on the same
threads; medians over the rounds. Writes bench/results/kernels.json; with --markdown also the table in docs/cpu.md.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from elmoe.backend.cpu import _native
from elmoe.backend.cpu.backend import TARGET_BITS, weight_bits
from elmoe.backend.protocol import DraftQuality
from elmoe.quant.bitnested import UInt8
from elmoe.quant.tiles import (
    MSB_TILE_BYTES,
    NIBBLE_BYTES,
    mxfp4_block_bytes,
    mxfp4_plane_bytes,
    plane_bytes,
    tile_grid,
)
from harness import ROOT, markdown_table, provenance, replace_block, write_result

ROWS = (1, 2, 4, 8, 16)
KINDS = {"merged": TARGET_BITS, "msb": weight_bits(DraftQuality(4)), "mxfp4": TARGET_BITS}
PLACES = {"dram": 4.0, "cache": 0.25}
"""Bytes that a product streams, in last-level caches."""
SHAPES = {"dram": (4096, 2048), "cache": (768, 1024)}
"""Outputs and inputs of one matrix."""
REPEATS = {"dram": 3, "cache": 15}


@dataclass(frozen=True)
class Case:
    """One bar of the figure."""

    place: str
    kind: str
    rows: int


class Weights:
    """Random matrices in a mapped file."""

    def __init__(self, folder: Path, case: Case, cache_bytes: int) -> None:
        shape = SHAPES[case.place]
        is_mxfp4 = case.kind == "mxfp4"
        msb_bytes, lsb_bytes = (mxfp4_plane_bytes(*shape), 0) if is_mxfp4 else plane_bytes(*shape)
        self.matrix_bytes = msb_bytes + (lsb_bytes if case.kind == "merged" else 0)
        self.count = math.ceil(PLACES[case.place] * cache_bytes / self.matrix_bytes)
        self.weights = self.count * shape[0] * shape[1]
        random_planes = mxfp4_planes if is_mxfp4 else int8_planes
        planes = write_planes(folder / f"{case.place}_{case.kind}.bin", random_planes, shape, self.count)
        self.matrices = [_native.Matrix(one[:msb_bytes], one[msb_bytes:], *shape, mxfp4=is_mxfp4) for one in planes]

    @property
    def bytes(self) -> int:
        """That one product over all matrices reads."""
        return self.count * self.matrix_bytes


def int8_planes(rng: np.random.Generator, shape: tuple[int, int]) -> UInt8:
    """Both planes of a matrix: random codes, scales near those of real weights."""
    tiles = math.prod(tile_grid(*shape))
    msb = rng.integers(0, 256, (tiles, MSB_TILE_BYTES), dtype=np.uint8)
    msb[:, NIBBLE_BYTES:] = rng.uniform(1e-4, 1e-3, (tiles, 32)).astype(np.float16).view(np.uint8)
    lsb = rng.integers(0, 256, plane_bytes(*shape)[1], dtype=np.uint8)
    return np.concatenate([msb.reshape(-1), lsb])


def mxfp4_planes(rng: np.random.Generator, shape: tuple[int, int]) -> UInt8:
    """The one plane of an MXFP4 matrix, likewise."""
    blocks, along = tile_grid(*shape)
    plane = rng.integers(0, 256, (blocks, mxfp4_block_bytes(shape[1])), dtype=np.uint8)
    scales = plane[:, along * NIBBLE_BYTES :]
    scales[:] = rng.integers(116, 123, scales.shape)
    return plane.reshape(-1)


def write_planes(
    path: Path, random_planes: Callable[..., UInt8], shape: tuple[int, int], count: int
) -> npt.NDArray[np.uint8]:
    """Planes of `count` matrices [count, bytes], in a mapped file."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for _ in range(count):
            file.write(random_planes(rng, shape).tobytes())
    return np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray).reshape(count, -1)


def last_level_cache_bytes() -> int:
    """Of one CPU; 32 MiB where Linux does not say."""
    caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    sizes = [int(size.read_text().strip().removesuffix("K")) << 10 for size in caches]
    return max(sizes, default=32 << 20)


def measure(case: Case, weights: Weights, cache_bytes: int) -> dict[str, float]:
    """One round: the products, and reading right before and after."""
    repeats = REPEATS[case.place]
    x = np.random.default_rng(1).standard_normal((case.rows, SHAPES[case.place][1])).astype(np.float32)
    probe_bytes = int(PLACES[case.place] * cache_bytes)
    reads = _native.time_reads(probe_bytes, repeats)
    seconds = statistics.median(_native.time_linear(weights.matrices, x, KINDS[case.kind], repeats + 1)[1:])
    reads += _native.time_reads(probe_bytes, repeats)
    gb_per_s, read_gb_per_s = weights.bytes / seconds / 1e9, probe_bytes / statistics.median(reads) / 1e9
    return {
        "gb_per_s": gb_per_s,
        "read_gb_per_s": read_gb_per_s,
        "fraction": gb_per_s / read_gb_per_s,
        "gmac_per_s": case.rows * weights.weights / seconds / 1e9,
    }


def cases() -> Iterator[Case]:
    for place in PLACES:
        for kind in KINDS:
            for rows in ROWS:
                yield Case(place, kind, rows)


def run(rounds: int) -> dict[str, Any]:
    """All cases in turn, `rounds` times."""
    cache_bytes = last_level_cache_bytes()
    found: dict[Case, list[dict[str, float]]] = {case: [] for case in cases()}
    with tempfile.TemporaryDirectory() as folder:
        weights = {
            (place, kind): Weights(Path(folder), Case(place, kind, 1), cache_bytes)
            for place in PLACES
            for kind in KINDS
        }
        for number in range(rounds):
            for case, rates in found.items():
                rates.append(measure(case, weights[case.place, case.kind], cache_bytes))
            print(f"round {number + 1} of {rounds}", flush=True)
    rows = [
        asdict(case) | {name: round(statistics.median(rate[name] for rate in rates), 4) for name in rates[0]}
        for case, rates in found.items()
    ]
    settings = {
        "rounds": rounds,
        "isa": _native.isas()[0],
        "threads": _native.threads(),
        "cache_bytes": cache_bytes,
        "streamed_caches": PLACES,
        "shapes": SHAPES,
    }
    return provenance(settings) | {"rows": rows}


def table(document: dict[str, Any]) -> str:
    """For docs/cpu.md."""
    columns = ["from", "planes", "rows", "GB/s", "of reading", "GMAC/s"]
    names = {"dram": "DRAM", "cache": "cache", "merged": "both", "msb": "MSB", "mxfp4": "MXFP4"}
    cells = [
        [
            names[row["place"]],
            names[row["kind"]],
            row["rows"],
            f"{row['gb_per_s']:.1f}",
            f"{row['fraction']:.0%}",
            f"{row['gmac_per_s']:.0f}",
        ]
        for row in document["rows"]
    ]
    settings, host = document["settings"], document["host"]
    caption = (
        f"{settings['isa']}, {settings['threads']} threads, {host['cpus']} CPUs, cache of "
        f"{settings['cache_bytes'] >> 20} MiB; {document['date']}, {document['commit']}."
    )
    return f"{markdown_table(columns, cells)}\n\n{caption}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--markdown", action="store_true", help="also write the table into docs/cpu.md")
    arguments = parser.parse_args()
    document = run(arguments.rounds)
    write_result("kernels", document)
    if arguments.markdown:
        replace_block(ROOT / "docs" / "cpu.md", "kernels", table(document))
    print(table(document))


if __name__ == "__main__":
    main()
