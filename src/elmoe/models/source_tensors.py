"""Where the rows of a stored tensor come from in a checkpoint: names, shapes and orders, no bytes.

A family module says for each stored tensor which `Part`s, stacked, make it, under the names of its Hugging Face
checkpoint; GGUF names follow from those. Knows nothing about files.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Part:
    """Some rows of a stored matrix [rows, inputs] or of a stored vector.

    The tensor is seen as [slabs, height, width] (`view`), of which one slab is taken. Its rows (or its columns, where
    `transposed`) ``first, first + step, ...`` are the part's rows; of what lies along the other axis the part takes
    ``0 .. inputs-1``. Rows then go through `order`, run by run. A stored matrix that is wider than `inputs` is padded
    with zeros.
    """

    tensor: str
    """Name in the Hugging Face checkpoint."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    rows: int
    """Stored rows that the part gives."""
    slab: int = 0
    slabs: int = 1
    """How many equal slabs the tensor has along its first axis: experts of a fused tensor, heads of a matrix."""
    first: int = 0
    step: int = 1
    order: tuple[int, ...] | None = None
    """Of every run of ``len(order)`` rows, stored row j is source row ``order[j]``."""
    transposed: bool = False
    inputs: int | None = None
    """None: all."""

    @property
    def view(self) -> tuple[int, int, int]:
        """The tensor as [slabs, height, width]. Of a slab that is a vector every element is a row."""
        elements = prod(self.shape) // self.slabs
        width = 1 if len(self.shape) == 1 else self.shape[-1]
        if width == elements and self.rows > 1 and not self.transposed:
            width = 1
        return self.slabs, elements // width, width

    @property
    def width(self) -> int:
        """Elements of each of the part's rows."""
        _, height, width = self.view
        return self.inputs or (height if self.transposed else width)


def halves_order(head_dim: int, rotated: int | None = None) -> tuple[int, ...]:
    """Order that turns interleaved rotary pairs (2i, 2i + 1) into halves (i, i + n/2).

    Of a head of `head_dim` rows the last `rotated` (None: all) are reordered.
    """
    n = head_dim if rotated is None else rotated
    kept = head_dim - n
    return (*range(kept), *range(kept, head_dim, 2), *range(kept + 1, head_dim, 2))
