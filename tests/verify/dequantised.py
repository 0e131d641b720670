"""The weights that elmoe multiplies, as FP32 tensors under their Hugging Face names, in two ways.

From a Hugging Face folder: quantised and dequantised tensor by tensor, apart from conversion, planes and tiles. From an
`.elmoe` folder: read back through all of these. Both must give the same bits. MXFP4 tensors come transposed, as
transformers has them once they are dequantised.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.sources import ModelSources, model_sources
from elmoe.checkpoint.supported import supported_model
from elmoe.models.program import GatedMlp, Linear, Storage
from elmoe.models.registry import family_of
from elmoe.models.source_tensors import Part
from elmoe.quant import mxfp4
from elmoe.quant.bitnested import Float32, UInt8, dequantize, quantize
from elmoe.quant.tiles import unpack, unpack_mxfp4

Tensors = dict[str, Float32]


def from_source(folder: Path) -> Tensors:
    """Of a Hugging Face folder with one weight file. Routers, norms and biases stay as they are."""
    sources = _sources(json.loads((folder / "config.json").read_text()))
    stored = load_file(folder / "model.safetensors")
    tensors = {part.tensor: _as_fp32(stored, part).reshape(-1) for part in sources.parts()}
    for matrix in sources.matrices():
        for part in matrix.parts:
            if matrix.linear.storage is Storage.INT8:
                elements = _elements(part)
                padded = np.pad(tensors[part.tensor][elements], ((0, 0), (0, matrix.linear.inputs - part.width)))
                tensors[part.tensor][elements] = dequantize(*quantize(padded, part.tensor))[:, : part.width]
    return _shaped(tensors, sources)


def from_checkpoint(checkpoint: Checkpoint) -> Tensors:
    """Of an `.elmoe` folder."""
    sources = _sources(checkpoint.config)
    tensors: Tensors = {part.tensor: np.full(np.prod(part.shape), np.nan, np.float32) for part in sources.parts()}

    def place(rows: Float32, parts: tuple[Part, ...], interleaved: bool) -> None:
        ends = np.cumsum([part.rows for part in parts])
        for part, values in zip(parts, _split(rows) if interleaved else np.split(rows, ends[:-1]), strict=True):
            tensors[part.tensor][_elements(part)] = values[:, : part.width]

    for matrix in sources.linears:
        rows = _matrix(matrix.linear, *checkpoint.linear_planes(matrix.linear.name))
        place(rows, matrix.parts, matrix.interleaved)
    for vector in sources.vectors:
        values, start = np.array(checkpoint.vector(vector.name)).reshape(-1), 0
        step = 2 if vector.interleaved else 1
        for index in range(0, len(vector.parts), step):
            parts = vector.parts[index : index + step]
            size = sum(part.rows * part.width for part in parts)
            place(values[start : start + size].reshape(-1, parts[0].width), parts, vector.interleaved)
            start += size
    for block in checkpoint.program.moe_blocks:
        for expert, matrices in enumerate(sources.experts[block.layer]):
            planes = checkpoint.expert_msb(block.layer, expert), checkpoint.expert_lsb(block.layer, expert)
            for matrix, rows in zip(matrices, _expert(block.expert, *planes), strict=True):
                place(rows, matrix.parts, matrix.interleaved)
    missed = [name for name, values in tensors.items() if np.isnan(values).any()]
    assert not missed, f"nothing in the program stands for all of {missed}"
    return _shaped(tensors, sources)


def _sources(config: Mapping[str, Any]) -> ModelSources:
    return model_sources(family_of(config), config, *supported_model(config))


def _as_fp32(stored: Mapping[str, npt.NDArray[Any]], part: Part) -> Float32:
    if part.tensor in stored:
        return stored[part.tensor].astype(np.float32)
    blocks, scales = stored[f"{part.tensor}_blocks"], stored[f"{part.tensor}_scales"]
    codes = mxfp4.unpack(blocks.reshape(-1, *blocks.shape[-2:]))
    return mxfp4.dequantize(codes, scales.reshape(-1, scales.shape[-1]), part.tensor)


def _elements(part: Part) -> npt.NDArray[np.int64]:
    """Where in the flat tensor the elements of a part are, [rows, width]."""
    slab = np.arange(np.prod(part.shape)).reshape(part.view)[part.slab]
    if part.transposed:
        slab = slab.T
    rows = np.arange(part.rows)
    if part.order is not None:
        rows = rows.reshape(-1, len(part.order))[:, part.order].reshape(-1)
    return slab[part.first + part.step * rows, : part.width]


def _shaped(tensors: Tensors, sources: ModelSources) -> Tensors:
    shaped = {part.tensor: tensors[part.tensor].reshape(part.shape) for part in sources.parts()}
    packed = {part for matrix in sources.matrices() if matrix.linear.storage is Storage.MXFP4 for part in matrix.parts}
    for name in {part.tensor for part in packed}:
        shaped[name] = np.ascontiguousarray(shaped[name].swapaxes(-1, -2))
    return shaped


def _expert(spec: GatedMlp, msb: UInt8, lsb: UInt8) -> tuple[Float32, Float32]:
    """Rows of gate_up and of down."""
    msb_split, lsb_split = spec.gate_up.plane_bytes
    gate_up = _matrix(spec.gate_up, msb[:msb_split], lsb[:lsb_split])
    return gate_up, _matrix(spec.down, msb[msb_split:], lsb[lsb_split:])


def _matrix(linear: Linear, msb: UInt8, lsb: UInt8) -> Float32:
    if linear.storage is Storage.MXFP4:
        return mxfp4.dequantize(*unpack_mxfp4(msb, linear.outputs, linear.inputs), linear.name)
    return dequantize(*unpack(msb, lsb, linear.outputs, linear.inputs))


def _split(gate_up: Float32) -> tuple[Float32, Float32]:
    """Undo the interleave in blocks of 16 rows: [2F, D] -> gate [F, D], up [F, D]."""
    blocks = gate_up.reshape(-1, 2, 16, gate_up.shape[1])
    return blocks[:, 0].reshape(-1, gate_up.shape[1]), blocks[:, 1].reshape(-1, gate_up.shape[1])
