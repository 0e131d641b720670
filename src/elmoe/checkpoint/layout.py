"""Where every piece of a model lies in the three `.bin` files of an `.elmoe` folder: arithmetic, no bytes.

The layout follows from the layer program alone, so a manifest that disagrees with it is foreign or damaged.
``dense.bin`` holds the planes of the dense matrices and the FP32 vectors, each on a 64-byte boundary (a cache
line, and an AVX-512 vector). ``experts_msb.bin`` and ``experts_lsb.bin`` hold one record per expert, layer by
layer, each on a 4096-byte boundary and padded to it, so that one slice of one expert is one direct-I/O read. MXFP4
has one plane: its LSB planes and records are of 0 bytes, and so is ``experts_lsb.bin`` where all experts are MXFP4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple

from elmoe.errors import InternalError
from elmoe.models.program import Program, expert_plane_bytes

DENSE_FILE, MSB_FILE, LSB_FILE = "dense.bin", "experts_msb.bin", "experts_lsb.bin"
PIECE_ALIGNMENT_BYTES = 64
RECORD_ALIGNMENT_BYTES = 4096

Plane = Literal["msb", "lsb"]


class Extent(NamedTuple):
    """A contiguous piece of a file."""

    file: str
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class ExpertGrid:
    """The records of all experts: [layers, experts] in each of two files. `layers` counts MoE blocks."""

    layers: int
    experts: int
    msb_record_bytes: int
    lsb_record_bytes: int

    @property
    def msb_stride(self) -> int:
        """Bytes from one MSB record to the next."""
        return _aligned(self.msb_record_bytes, RECORD_ALIGNMENT_BYTES)

    @property
    def lsb_stride(self) -> int:
        """Bytes from one LSB record to the next."""
        return _aligned(self.lsb_record_bytes, RECORD_ALIGNMENT_BYTES)

    def extent(self, plane: Plane, layer: int, expert: int) -> Extent:
        """The record of one expert; InternalError when there is no such expert."""
        if not (0 <= layer < self.layers and 0 <= expert < self.experts):
            raise InternalError(
                f"expert {expert} of MoE block {layer} was asked of a model with {self.layers} x {self.experts}"
            )
        index = layer * self.experts + expert
        if plane == "msb":
            return Extent(MSB_FILE, index * self.msb_stride, self.msb_record_bytes)
        return Extent(LSB_FILE, index * self.lsb_stride, self.lsb_record_bytes)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """All (layer, expert) in the order of the files."""
        return ((layer, expert) for layer in range(self.layers) for expert in range(self.experts))


@dataclass(frozen=True)
class Layout:
    """Extents of all pieces of a model."""

    linears: dict[str, tuple[Extent, Extent]]
    """(MSB plane, LSB plane) of every dense matrix."""
    vectors: dict[str, Extent]
    experts: ExpertGrid
    file_bytes: dict[str, int]

    def extents(self) -> Iterator[tuple[str, Extent]]:
        """Every piece once, with a name for messages."""
        for name, (msb, lsb) in self.linears.items():
            yield f"MSB plane of {name}", msb
            yield f"LSB plane of {name}", lsb
        for name, extent in self.vectors.items():
            yield name, extent
        for plane in ("msb", "lsb"):
            for layer, expert in self.experts:
                yield expert_title(plane, layer, expert), self.experts.extent(plane, layer, expert)


def expert_title(plane: Plane, layer: int, expert: int) -> str:
    """Name of an expert's record for messages."""
    return f"{plane.upper()} record of expert {expert} in MoE block {layer}"


def layout_of(program: Program) -> Layout:
    """Lay out all pieces of a program that has at least one MoE block, in the order in which it lists them."""
    end = 0
    linears: dict[str, tuple[Extent, Extent]] = {}
    vectors: dict[str, Extent] = {}

    def place(size_bytes: int) -> Extent:
        nonlocal end
        start = _aligned(end, PIECE_ALIGNMENT_BYTES)
        end = start + size_bytes
        return Extent(DENSE_FILE, start, size_bytes)

    for linear in program.linears:
        msb_bytes, lsb_bytes = linear.plane_bytes
        linears[linear.name] = place(msb_bytes), place(lsb_bytes)
    for name, dims in program.vectors.items():
        vectors[name] = place(4 * prod(dims))

    blocks = program.moe_blocks
    grid = ExpertGrid(len(blocks), blocks[0].router.experts, *expert_plane_bytes(blocks[0].expert))
    records = grid.layers * grid.experts
    file_bytes = {
        DENSE_FILE: _aligned(end, PIECE_ALIGNMENT_BYTES),
        MSB_FILE: records * grid.msb_stride,
        LSB_FILE: records * grid.lsb_stride,
    }
    return Layout(linears, vectors, grid, file_bytes)


def _aligned(size_bytes: int, alignment: int) -> int:
    return -(-size_bytes // alignment) * alignment
