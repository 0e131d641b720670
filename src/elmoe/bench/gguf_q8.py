"""A Qwen3-MoE `.elmoe` checkpoint as a GGUF file of Q8_0 tensors: the very same codes and scales, for a peer.

Our weights are INT8 in groups of 32 with an FP16 scale, which is Q8_0's block: 2 bytes of scale, then 32 codes. So the
peer multiplies bit-equal weights. Norms and routers stay FP32. The vocabulary is filler: token ids are all that the
benchmark sends. Sources: llama.cpp, ``ggml-common.h`` (block_q8_0) and ``llama-arch.cpp`` (tensor names of qwen3moe).

Knows nothing about the peer that reads it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.manifest import MANIFEST_FILE
from elmoe.checkpoint.resolve import cache_folder
from elmoe.errors import ConfigError
from elmoe.models import qwen3_moe
from elmoe.models.program import GroupedQueryAttention, Linear, MixtureOfExperts, Storage
from elmoe.quant.bitnested import GROUP, Float16, Int8, UInt8
from elmoe.quant.tiles import TILE_ROWS, plane_bytes, unpack
from elmoe.trace.atomic import atomic_file, storage_errors

Progress = Callable[[int, int], None]

BLOCK_BYTES = 2 + GROUP
BLOCK_WEIGHTS = 1 << 20
"""Weights unpacked at a time."""


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file; `pieces` are its bytes in order."""

    name: str
    dims: tuple[int, ...]
    quantized: bool
    pieces: Callable[[], Iterator[npt.NDArray[Any]]]

    @property
    def size_bytes(self) -> int:
        """In the file, padding not counted."""
        elements = int(np.prod(self.dims))
        return elements // GROUP * BLOCK_BYTES if self.quantized else elements * 4


def cached_gguf(checkpoint: Checkpoint, progress: Progress | None = None) -> Path:
    """The GGUF file of a checkpoint in elmoe's cache folder, written if it is not there.

    Raises what `write_gguf` raises.
    """
    digest = hashlib.sha256((checkpoint.path / MANIFEST_FILE).read_bytes()).hexdigest()[:16]
    path = cache_folder() / f"{checkpoint.path.resolve().stem}-{digest}.q8_0.gguf"
    if not path.exists():
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_gguf(checkpoint, path, progress)
    return path


def write_gguf(checkpoint: Checkpoint, path: Path, progress: Progress | None = None) -> None:
    """Write the file, whole or not at all; memory holds a few megabytes of it. `progress` gets (bytes done, in all).

    Raises ConfigError for a model that llama.cpp's qwen3moe does not compute as we do, StorageError when the operating
    system refuses, CheckpointError for damaged weights.
    """
    import gguf  # heavy

    check_expressible(checkpoint)
    tensors = list(gguf_tensors(checkpoint))
    done, total = 0, sum(tensor.size_bytes for tensor in tensors)
    with atomic_file(path) as partial, storage_errors(path):
        writer = gguf.GGUFWriter(partial.name, "qwen3moe")
        _add_metadata(writer, gguf, checkpoint)
        for tensor in tensors:
            kind = gguf.GGMLQuantizationType.Q8_0 if tensor.quantized else gguf.GGMLQuantizationType.F32
            writer.add_tensor_info(tensor.name, tensor.dims, np.dtype(np.float32), tensor.size_bytes, raw_dtype=kind)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            assert writer.fout is not None, "the header has been written"
            file = writer.fout[0]
            writer.write_padding(file, file.tell())
            for tensor in tensors:
                for piece in tensor.pieces():
                    file.write(np.ascontiguousarray(piece).data)
                    done += piece.nbytes
                    if progress is not None:
                        progress(done, total)
                writer.write_padding(file, tensor.size_bytes)
        finally:
            writer.close()


def check_expressible(checkpoint: Checkpoint) -> None:
    """ConfigError for a model that llama.cpp's qwen3moe would not compute as we do."""
    odd = "" if checkpoint.shape.family == qwen3_moe.MODEL_TYPE else f"it is a {checkpoint.shape.family}"
    if not odd:
        for index, layer in enumerate(checkpoint.program.layers):
            if not isinstance(layer.ffn, MixtureOfExperts):
                odd = f"layer {index} has a dense MLP"
            elif not layer.ffn.router.renormalize:
                odd = "expert weights are not renormalised (norm_topk_prob)"
            elif layer.ffn.expert.gate_up.storage is not Storage.INT8:
                odd = "its experts are not INT8"
            elif any(linear.bias for linear in layer.attention.linears):
                odd = "attention has biases"
    if odd:
        raise ConfigError(f"llama.cpp's qwen3moe cannot run this model: {odd}; leave --against out")


def gguf_tensors(checkpoint: Checkpoint) -> Iterator[GgufTensor]:
    """All tensors under llama.cpp's names, in file order; a tied head has none of its own."""
    program = checkpoint.program
    yield _linear(checkpoint, "token_embd", program.embedding)
    for index, layer in enumerate(program.layers):
        attention, ffn, block = layer.attention, layer.ffn, f"blk.{index}"
        assert isinstance(ffn, MixtureOfExperts), "check_expressible has seen to it"
        assert isinstance(attention, GroupedQueryAttention), "likewise"
        assert attention.query_norm is not None, "likewise"
        assert attention.key_norm is not None, "likewise"
        query, key = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
        yield _vector(checkpoint, f"{block}.attn_norm", layer.attention_norm.name)
        yield _linear(checkpoint, f"{block}.attn_q", attention.qkv, 0, query)
        yield _linear(checkpoint, f"{block}.attn_k", attention.qkv, query, query + key)
        yield _linear(checkpoint, f"{block}.attn_v", attention.qkv, query + key, query + 2 * key)
        yield _linear(checkpoint, f"{block}.attn_output", attention.out)
        yield _vector(checkpoint, f"{block}.attn_q_norm", attention.query_norm.name)
        yield _vector(checkpoint, f"{block}.attn_k_norm", attention.key_norm.name)
        yield _vector(checkpoint, f"{block}.ffn_norm", layer.ffn_norm.name)
        yield _vector(checkpoint, f"{block}.ffn_gate_inp", ffn.router.weight)
        for part in ("gate", "up", "down"):
            yield _experts(checkpoint, f"{block}.ffn_{part}_exps", ffn, part)
    yield _vector(checkpoint, "output_norm", program.final_norm.name)
    if program.head != program.embedding:
        yield _linear(checkpoint, "output", program.head)


def q8_0_blocks(codes: Int8, scales: Float16) -> UInt8:
    """Codes [N, K] and scales [N, K/32] -> Q8_0 rows, uint8 [N, K/32 * 34]."""
    blocks = np.empty((*scales.shape, BLOCK_BYTES), dtype=np.uint8)
    blocks[..., :2] = np.ascontiguousarray(scales, dtype="<f2").view(np.uint8).reshape(*scales.shape, 2)
    blocks[..., 2:] = codes.view(np.uint8).reshape(*scales.shape, GROUP)
    return blocks.reshape(len(codes), -1)


def _vector(checkpoint: Checkpoint, name: str, stored: str) -> GgufTensor:
    return GgufTensor(
        f"{name}.weight", checkpoint.program.vectors[stored], False, lambda: iter([checkpoint.vector(stored)])
    )


def _linear(checkpoint: Checkpoint, name: str, linear: Linear, first: int = 0, last: int | None = None) -> GgufTensor:
    """Rows first..last-1 of a dense matrix."""
    end = linear.outputs if last is None else last
    step = max(1, BLOCK_WEIGHTS // linear.inputs // TILE_ROWS) * TILE_ROWS

    def pieces() -> Iterator[UInt8]:
        planes = checkpoint.linear_planes(linear.name)
        for row in range(first, end, step):
            yield q8_0_blocks(*_rows(linear, planes, row, min(row + step, end)))

    return GgufTensor(f"{name}.weight", (end - first, linear.inputs), True, pieces)


def _experts(checkpoint: Checkpoint, name: str, block: MixtureOfExperts, part: str) -> GgufTensor:
    """All experts' gate, up or down matrices, [E, N, K]."""
    gate_up, down = block.expert.gate_up, block.expert.down
    msb_split, lsb_split = plane_bytes(gate_up.outputs, gate_up.inputs)
    rows, inputs = (down.outputs, down.inputs) if part == "down" else (gate_up.outputs // 2, gate_up.inputs)

    def pieces() -> Iterator[UInt8]:
        for expert in range(block.router.experts):
            msb, lsb = checkpoint.expert_msb(block.layer, expert), checkpoint.expert_lsb(block.layer, expert)
            if part == "down":
                yield q8_0_blocks(*unpack(msb[msb_split:], lsb[lsb_split:], rows, inputs))
                continue
            codes, scales = unpack(msb[:msb_split], lsb[:lsb_split], gate_up.outputs, inputs)
            half = 0 if part == "gate" else 1  # of every pair of blocks of 16 rows, see `GatedMlp`
            mine = codes.reshape(-1, 2, TILE_ROWS, inputs)[:, half].reshape(rows, inputs)
            yield q8_0_blocks(mine, scales.reshape(-1, 2, TILE_ROWS, inputs // GROUP)[:, half].reshape(rows, -1))

    return GgufTensor(f"{name}.weight", (block.router.experts, rows, inputs), True, pieces)


def _rows(linear: Linear, planes: tuple[UInt8, UInt8], first: int, last: int) -> tuple[Int8, Float16]:
    """Codes and scales of some rows; only the tiles that hold them are unpacked."""
    start = first // TILE_ROWS * TILE_ROWS
    begins, ends = plane_bytes(start, linear.inputs), plane_bytes(last, linear.inputs)
    msb, lsb = (plane[begin:end] for plane, begin, end in zip(planes, begins, ends, strict=True))
    codes, scales = unpack(msb, lsb, last - start, linear.inputs)
    return codes[first - start :], scales[first - start :]


def _add_metadata(writer: Any, gguf: Any, checkpoint: Checkpoint) -> None:
    shape, first = checkpoint.shape, checkpoint.program.layers[0]
    writer.add_name(checkpoint.path.stem)
    writer.add_context_length(shape.max_context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.dense_hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(first.attention_norm.eps)
    writer.add_rope_freq_base(first.attention.rope.theta)
    writer.add_expert_count(shape.experts)
    writer.add_expert_used_count(shape.experts_per_tok)
    writer.add_expert_feed_forward_length(shape.expert_hidden)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{i}" for i in range(shape.vocab)])
    writer.add_token_types([gguf.TokenType.NORMAL] * shape.vocab)
    writer.add_token_merges(["t 1"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)
