"""What a conversion reads: the tensors of a checkpoint by name, in whatever file format they are.

`WeightSource` is the seam between formats (`safetensors_folder.py`, `gguf_file.py`) and what is made of their tensors
(`sources.py`). `select` is the part that formats share: which rows of a tensor a `Part` means. Knows nothing about
files or quantisation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from elmoe.errors import InternalError
from elmoe.models.source_tensors import Part
from elmoe.quant import bitnested, mxfp4
from elmoe.quant.bitnested import GROUP, Float16, Int8, UInt8


@dataclass(frozen=True, eq=False)
class FloatRows:
    """Rows as they are in the file."""

    values: npt.NDArray[Any]
    """[n, K], any float type."""


@dataclass(frozen=True, eq=False)
class Int8Rows:
    """Rows that are INT8 in groups of 32 already (GGUF ``Q8_0``)."""

    codes: Int8
    """[n, K]."""
    scales: Float16
    """[n, K/32]."""


@dataclass(frozen=True, eq=False)
class Mxfp4Rows:
    """Rows of MXFP4."""

    codes: UInt8
    """[n, K] in [0, 15]: E2M1."""
    scales: UInt8
    """[n, K/32]: E8M0."""


FLOATS = {"BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
"""The float types that are read, by the names that safetensors and GGUF share."""

Rows = FloatRows | Int8Rows | Mxfp4Rows
RowIndex = slice | npt.NDArray[np.intp]


class WeightSource(Protocol):
    """An open checkpoint. Opening has read headers only; `read` may be called by several threads."""

    @property
    def path(self) -> Path:
        """What was opened."""

    @property
    def config(self) -> dict[str, Any]:
        """``config.json``."""

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that a conversion reads."""

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of all tensors, as the file has them, sorted."""

    def unused(self, parts: Iterable[Part]) -> tuple[str, ...]:
        """Those of `tensors` that none of the parts is of, sorted."""

    def check(self, part: Part) -> int:
        """Bytes of a part, from the header alone, once its tensor is known to be usable.

        Raises CheckpointError when it is missing or has another shape, UnsupportedModelError for a data type that is
        not read.
        """

    def read(self, part: Part, first: int, last: int) -> Rows:
        """Rows `first` to `last` (exclusive) of a part that `check` has passed, [last - first, inputs of the part]."""

    def small_files(self) -> dict[str, bytes]:
        """Content of ``config.json`` and, where there are any, of the other `COPIED_FILES` of `manifest.py`."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of those files, one line each."""


def select(part: Part, first: int, last: int, read: Callable[[RowIndex], Rows]) -> Rows:
    """Rows `first` to `last` (exclusive) of a part, from `read`, which indexes the rows of the part's slab.

    The slab is that of `Part.view`. Where rows are columns of the tensor (`Part.transposed`), all of the slab's rows
    are read: `read` had better be a view of mapped memory there. Quantised rows come back as floats where the part
    cuts through groups.
    """
    index = row_index(part, first, last)
    if part.transposed:
        found: Rows = FloatRows(floats(read(slice(0, part.width)), part.tensor)[:, index].T)
    else:
        found = _cut(read(index), part)
    shape = (found.values if isinstance(found, FloatRows) else found.codes).shape
    if shape != (last - first, part.width):
        raise InternalError(f"rows {first} to {last} of {part} came as {list(shape)}")
    return found


def floats(rows: Rows, name: str) -> npt.NDArray[Any]:
    """The values of rows, exactly; TensorError naming `name` for NaN scales of MXFP4."""
    if isinstance(rows, FloatRows):
        return rows.values
    if isinstance(rows, Int8Rows):
        return bitnested.dequantize(rows.codes, rows.scales)
    return mxfp4.dequantize(rows.codes, rows.scales, name)


def _cut(rows: Rows, part: Part) -> Rows:
    """The inputs that a part takes of every row; as floats where that splits a group."""
    width = part.width
    if isinstance(rows, FloatRows) or width % GROUP:
        return FloatRows(floats(rows, part.tensor)[:, :width])
    if isinstance(rows, Int8Rows):
        return Int8Rows(rows.codes[:, :width], rows.scales[:, : width // GROUP])
    return Mxfp4Rows(rows.codes[:, :width], rows.scales[:, : width // GROUP])


def row_index(part: Part, first: int, last: int) -> RowIndex:
    """Where rows `first` to `last` (exclusive, not none) of a part lie along their axis of the slab."""
    if part.order is None:
        return slice(part.first + first * part.step, part.first + (last - 1) * part.step + 1, part.step)
    run, place = np.divmod(np.arange(first, last), len(part.order))
    return part.first + part.step * (run * len(part.order) + np.array(part.order)[place])


def share_bytes(part: Part, tensor_bytes: int) -> int:
    """Bytes of a part, an even share of those of its tensor."""
    return tensor_bytes * part.rows * part.width // prod(part.shape)
