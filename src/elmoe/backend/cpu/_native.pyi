"""The C++ core of the CPU backend (native/src/bindings.cpp)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from elmoe.backend.protocol import Bool, Int32
from elmoe.checkpoint.layout import Plane
from elmoe.quant.bitnested import Float32, Int8, UInt8

WeightBits = tuple[int, int, int]

BAD_CHECKSUM: int
END_OF_FILE: int
Fault = tuple[Plane, int, int, int, list[int]]
"""Plane, MoE block and expert of a record, error number, rows that need it."""

class Matrix:
    def __init__(
        self, msb: UInt8, lsb: UInt8, outputs: int, inputs: int, bias: Float32 | None = None, mxfp4: bool = False
    ) -> None: ...

class Model:
    def __init__(self, vocab: int, hidden: int, moe_layers: int, experts: int, experts_per_tok: int) -> None: ...
    def set_embedding(self, matrix: Matrix) -> None: ...
    def set_head(self, matrix: Matrix, norm: Float32, eps: float) -> None: ...
    def add_rope(self) -> int: ...
    def extend_rope(self, rope: int, angles: Float32) -> None: ...
    def set_scales(self, embedding: float, residual: float, logit_divisor: float) -> None: ...
    def add_layer(self, attention_norm: Float32, attention_eps: float, ffn_norm: Float32, ffn_eps: float) -> None: ...
    def set_grouped_attention(
        self,
        qkv: Matrix,
        out: Matrix,
        heads: int,
        kv_heads: int,
        head_dim: int,
        rope: int,
        score_scale: float,
        query_norm: Float32 | None,
        key_norm: Float32 | None,
        head_eps: float,
        clip: float,
        window: int,
        sinks: Float32 | None,
    ) -> None: ...
    def set_latent_attention(
        self,
        down: Matrix,
        query_norm: Float32 | None,
        query_eps: float,
        query_up: Matrix | None,
        latent_norm: Float32,
        latent_eps: float,
        key_up: Matrix,
        value_up: Matrix,
        out: Matrix,
        heads: int,
        nope_dim: int,
        rope_dim: int,
        latent_dim: int,
        value_dim: int,
        rope: int,
        score_scale: float,
    ) -> None: ...
    def set_mlp(self, gate_up: Matrix, down: Matrix) -> None: ...
    def set_router(
        self,
        moe_layer: int,
        weight: Float32,
        bias: Float32 | None,
        correction: Float32 | None,
        experts_per_tok: int,
        sigmoid: bool,
        renormalize: bool,
        scale: float,
        groups: int,
        groups_kept: int,
        best_two: bool,
    ) -> None: ...
    def set_experts(
        self,
        inner: int,
        mxfp4: bool,
        msb_file: UInt8 | None,
        lsb_file: UInt8 | None,
        msb_offsets: npt.NDArray[np.int64],
        lsb_offsets: npt.NDArray[np.int64],
        msb_crc: npt.NDArray[np.uint32],
        lsb_crc: npt.NDArray[np.uint32],
        gate_up_bias: Float32 | None,
        down_bias: Float32 | None,
        alpha: float,
        limit: float,
    ) -> None: ...
    def set_shared_experts(self, gate_up: Matrix, down: Matrix, gate: Float32 | None) -> None: ...
    def set_store(
        self,
        msb_file: int,
        lsb_file: int,
        direct: bool,
        segment_bytes: int,
        segments: int,
        staging: int,
        reader: str,
    ) -> None: ...
    def store_reader(self) -> str: ...
    def store_counters(self) -> dict[str, Any]: ...
    def arrange_store(self, quotas: Int32) -> None: ...
    def kept(self) -> Bool: ...
    def allocate(self, sequence: int, cells: int) -> None: ...
    def release(self, sequence: int) -> None: ...
    def move(self, sequence: int, source: Int32, destination: Int32) -> None: ...
    def copy(self, source: int, destination: int, cells: int) -> None: ...
    def forward(
        self,
        tokens: Int32,
        sequences: Int32,
        positions: Int32,
        cells: Int32,
        prefix: Int32,
        path: Int32,
        wanted: Int32,
        pool: Bool | None,
        bits: WeightBits,
        experts_per_tok: int,
        best: int,
        values: Float32 | None = None,
        expected: UInt8 | None = None,
    ) -> tuple[Float32, Int32, Float32, Float32, npt.NDArray[np.int16], Bool, bool, Fault | None]: ...
    def phase_seconds(self) -> dict[str, float]: ...
    @property
    def isa(self) -> str: ...

def quantize(x: Float32, isa: str = "") -> tuple[Int8, Float32]: ...
def linear(matrix: Matrix, x: Float32, bits: WeightBits, isa: str = "") -> Float32: ...
def time_linear(
    matrices: Sequence[Matrix], x: Float32, bits: WeightBits, repeats: int, isa: str = ""
) -> list[float]: ...
def time_reads(size_bytes: int, repeats: int) -> list[float]: ...
def crc32(data: UInt8) -> int: ...
def threads() -> int: ...
def isas() -> list[str]: ...
