"""The weights that elmoe multiplies, as FP32 tensors under their Hugging Face names, in two ways.

From a Hugging Face folder: quantised and dequantised tensor by tensor, apart from conversion, planes and tiles. From an
`.elmoe` folder: read back through all of these. Both must give the same bits.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from elmoe.checkpoint.folder import Checkpoint
from elmoe.models.program import GatedMlp, Linear
from elmoe.models.registry import family_of
from elmoe.quant.bitnested import Float32, UInt8, dequantize, quantize
from elmoe.quant.tiles import plane_bytes, unpack

Tensors = dict[str, Float32]


def from_source(folder: Path) -> Tensors:
    """Of a Hugging Face folder with one weight file. Routers, norms and biases stay as they are."""
    tensors = {}
    for name, stored in load_file(folder / "model.safetensors").items():
        values = stored.astype(np.float32)
        is_int8 = values.ndim == 2 and not name.endswith("mlp.gate.weight")
        tensors[name] = dequantize(*quantize(values, name)) if is_int8 else values
    return tensors


def from_checkpoint(checkpoint: Checkpoint) -> Tensors:
    """Of an `.elmoe` folder."""
    family, program = family_of(checkpoint.config), checkpoint.program
    attention = program.layers[0].attention
    query, key = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
    tensors: Tensors = {}

    def add(names: tuple[str, ...], values: Float32) -> None:
        parts = np.split(values, [query, query + key]) if len(names) == 3 else [values]
        tensors.update(zip(names, parts, strict=True))

    for linear in program.linears:
        matrix = _matrix(linear, *checkpoint.linear_planes(linear.name))
        names = family.hf_names(linear.name)
        if linear.name.endswith("gate_up"):
            tensors.update(zip(names, _split(matrix), strict=True))
        else:
            add(names, matrix)
    for name in program.vectors:
        add(family.hf_names(name), np.array(checkpoint.vector(name)))
    for block in program.moe_blocks:
        for expert in range(checkpoint.shape.experts):
            names = family.hf_expert_names(checkpoint.shape.moe_layers[block.layer], expert)
            planes = checkpoint.expert_msb(block.layer, expert), checkpoint.expert_lsb(block.layer, expert)
            tensors.update(zip(names, _expert(block.expert, *planes), strict=True))
    return tensors


def _expert(spec: GatedMlp, msb: UInt8, lsb: UInt8) -> tuple[Float32, Float32, Float32]:
    msb_split, lsb_split = plane_bytes(spec.gate_up.outputs, spec.gate_up.inputs)
    gate, up = _split(_matrix(spec.gate_up, msb[:msb_split], lsb[:lsb_split]))
    return gate, up, _matrix(spec.down, msb[msb_split:], lsb[lsb_split:])


def _matrix(linear: Linear, msb: UInt8, lsb: UInt8) -> Float32:
    return dequantize(*unpack(msb, lsb, linear.outputs, linear.inputs))


def _split(gate_up: Float32) -> tuple[Float32, Float32]:
    """Undo the interleave in blocks of 16 rows: [2F, D] -> gate [F, D], up [F, D]."""
    blocks = gate_up.reshape(-1, 2, 16, gate_up.shape[1])
    return blocks[:, 0].reshape(-1, gate_up.shape[1]), blocks[:, 1].reshape(-1, gate_up.shape[1])
