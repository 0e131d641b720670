"""A matrix product as the PE sees it: its shape, jobs, the words of WMEM and IOMEM, and the order of results.

A *tile* is `columns` outputs x 32 inputs of weights. A *job* multiplies up to `row_blocks` blocks of `rows` activation
rows with a matrix: column tiles in order, inside one all groups of 32 inputs in ascending order (the engine's order of
sums), inside a group all blocks. Weights are streamed once per job; activations once per column tile.

WMEM words of a tile: the MSB plane, 32 nibbles per column, columns ascending; in W8 the LSB plane likewise; then the
FP16 scales of the columns. Knows nothing about Amaranth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from elmoe.errors import ConfigError
from elmoe.quant.bitnested import Float16, Float32, Int8
from elmoe.rtl import golden
from elmoe.rtl.designs import GROUP, NIBBLE_BITS, Design, Precision

PLANE_BITS = GROUP * NIBBLE_BITS
HALF_BITS, SINGLE_BITS, CODE_BITS = 16, 32, 8
ACCUMULATE_CYCLES = 5
"""From reading a running sum to reading it again: the register behind its slot, and four stages of addition."""
PIPELINE_CYCLES = 11
"""From the last pass of a tile to its sums in the accumulators."""
DEFAULT_BLOCKS = 2
LARGEST_SIDE = 255
LARGEST_COUNT = (1 << 16) - 1


@dataclass(frozen=True)
class PeShape:
    """An array of rows x columns x 32."""

    rows: int = 16
    columns: int = 32
    port_bits: int = 1024
    """What WMEM delivers per cycle."""
    row_blocks: int = DEFAULT_BLOCKS
    """Blocks of rows that a weight tile can serve before it is dropped; sets the number of accumulators."""

    def __post_init__(self) -> None:
        sizes = (self.rows, self.columns, self.row_blocks)
        if min(sizes) < 1 or max(sizes) > LARGEST_SIDE:
            raise ConfigError(f"a PE has 1 to {LARGEST_SIDE} rows, columns and row blocks, not {sizes}")
        if self.port_bits < PLANE_BITS or self.columns * PLANE_BITS % self.port_bits or self.port_bits % PLANE_BITS:
            raise ConfigError(
                f"port_bits = {self.port_bits}: the port must carry whole columns of {PLANE_BITS} bits and fill a "
                f"plane of {self.columns * PLANE_BITS} in whole words"
            )
        if self.tile_words(Precision.W4) < ACCUMULATE_CYCLES:
            raise ConfigError(
                f"port_bits = {self.port_bits}: a 4-bit tile comes in {self.tile_words(Precision.W4)} words, but a sum "
                f"needs {ACCUMULATE_CYCLES} cycles between two groups; make the port narrower"
            )

    @property
    def plane_words(self) -> int:
        """Words of one nibble plane of a tile."""
        return self.columns * PLANE_BITS // self.port_bits

    @property
    def scale_words(self) -> int:
        """Words of a tile's scales."""
        return -(-self.columns * HALF_BITS // self.port_bits)

    def tile_words(self, precision: Precision) -> int:
        """Words, and so the fewest cycles between two tiles: how often weights can change."""
        return self.plane_words * (2 if precision is Precision.W8 else 1) + self.scale_words

    @property
    def slots(self) -> int:
        """Accumulators per lane: two banks, so that one column tile drains while the next is summed."""
        return 2 * self.row_blocks


@dataclass(frozen=True)
class Job:
    """One matrix product."""

    groups: int
    column_tiles: int
    blocks: int
    precision: Precision

    def check(self, shape: PeShape) -> None:
        """ConfigError where a PE of this shape cannot take it."""
        if not 1 <= self.blocks <= shape.row_blocks:
            raise ConfigError(f"a job has 1 to {shape.row_blocks} blocks of {shape.rows} rows, not {self.blocks}")
        if not (1 <= self.groups <= LARGEST_COUNT and 1 <= self.column_tiles <= LARGEST_COUNT):
            raise ConfigError(f"groups and column tiles of a job must lie in 1..{LARGEST_COUNT}")

    @property
    def tiles(self) -> int:
        """Weight tiles."""
        return self.groups * self.column_tiles


@dataclass(frozen=True)
class Operands:
    """Of one job, padded to the PE's shape; what the memories stream in and what comes out."""

    job: Job
    weight_words: list[int]
    activation_words: list[int]
    """One per pass of a block by a tile: int8 codes of its rows, then their FP32 scales."""
    results: list[int]
    """One word per row: the FP32 values of a column tile; by column tile, block, row."""


def operands(
    shape: PeShape,
    design: Design,
    precision: Precision,
    activations: tuple[Int8, Float32],
    weights: tuple[Int8, Float16],
) -> Operands:
    """A matrix product y [M, N] = x [M, K] w [N, K] as a job.

    `activations` are codes [M, K] and scales [M, K/32], `weights` codes [N, K] and scales [N, K/32]. Results are
    `golden.output`'s. Raises ConfigError for more rows than a job can have.
    """
    (x, x_scales), (w, w_scales) = activations, weights
    blocks, column_tiles = -(-len(x) // shape.rows), -(-len(w) // shape.columns)
    job = Job(x.shape[1] // GROUP, column_tiles, blocks, precision)
    job.check(shape)
    x, x_scales = _padded(x, blocks * shape.rows), _padded(x_scales, blocks * shape.rows)
    w, w_scales = _padded(w, column_tiles * shape.columns), _padded(w_scales, column_tiles * shape.columns)
    return Operands(
        job,
        [
            word
            for tile in range(column_tiles)
            for g in range(job.groups)
            for word in _tile(shape, job, (w, w_scales), tile, g)
        ],
        [word for _ in range(column_tiles) for word in _activation_words(shape, job, x, x_scales)],
        _results(shape, design, job, (x, x_scales), (w, w_scales)),
    )


def result_matrix(shape: PeShape, job: Job, results: list[int], rows: int, outputs: int) -> Float32:
    """The words that came out as y [rows, outputs] float32."""
    words = iter(results)
    y = np.empty((job.blocks * shape.rows, job.column_tiles * shape.columns), dtype=np.uint32)
    for tile in range(job.column_tiles):
        columns = slice(tile * shape.columns, (tile + 1) * shape.columns)
        for row in range(len(y)):
            word = next(words)
            y[row, columns] = [word >> SINGLE_BITS * k & 0xFFFFFFFF for k in range(shape.columns)]
    return y.view(np.float32)[:rows, :outputs]


def joined(values: Any, bits: int) -> int:
    """Values side by side, the first lowest."""
    mask = (1 << bits) - 1
    return sum((int(value) & mask) << (bits * k) for k, value in enumerate(values))


def _padded(matrix: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    return np.pad(matrix, ((0, rows - len(matrix)), (0, 0)))


def _tile(shape: PeShape, job: Job, weights: tuple[Int8, Float16], tile: int, g: int) -> Iterator[int]:
    columns = slice(tile * shape.columns, (tile + 1) * shape.columns)
    codes = weights[0][columns, g * GROUP : (g + 1) * GROUP].astype(np.int16)
    planes = [codes >> NIBBLE_BITS] + ([codes & 15] if job.precision is Precision.W8 else [])
    for plane in planes:
        yield from _words(joined(plane.reshape(-1), NIBBLE_BITS), shape.plane_words, shape.port_bits)
    scales = np.ascontiguousarray(weights[1][columns, g]).view(np.uint16)
    yield from _words(joined(scales, HALF_BITS), shape.scale_words, shape.port_bits)


def _words(value: int, count: int, bits: int) -> Iterator[int]:
    for k in range(count):
        yield value >> (bits * k) & ((1 << bits) - 1)


def _activation_words(shape: PeShape, job: Job, x: Int8, scales: Float32) -> Iterator[int]:
    for g in range(job.groups):
        for block in range(job.blocks):
            rows = slice(block * shape.rows, (block + 1) * shape.rows)
            codes = joined(x[rows, g * GROUP : (g + 1) * GROUP].reshape(-1), CODE_BITS)
            raw = np.ascontiguousarray(scales[rows, g], dtype=np.float32).view(np.uint32)
            yield codes | joined(raw, SINGLE_BITS) << (CODE_BITS * GROUP * shape.rows)


def _results(
    shape: PeShape, design: Design, job: Job, activations: tuple[Int8, Float32], weights: tuple[Int8, Float16]
) -> list[int]:
    x, x_scales = (
        activations[0].tolist(),
        np.ascontiguousarray(activations[1], dtype=np.float32).view(np.uint32).tolist(),
    )
    w, w_scales = weights[0].tolist(), np.ascontiguousarray(weights[1]).view(np.uint16).tolist()
    found = []
    for tile in range(job.column_tiles):
        columns = range(tile * shape.columns, (tile + 1) * shape.columns)
        for row in range(len(x)):
            left = (x[row], x_scales[row])
            values = (golden.output(design, job.precision, left, (w[n], w_scales[n])) for n in columns)
            found.append(joined(values, SINGLE_BITS))
    return found
