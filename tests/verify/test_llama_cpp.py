"""GGUF files mean to us what they mean to llama.cpp: the same file, the logits of both, for every arch.

Needs an interpreter with llama-cpp-python, named by ELMOE_PEER_PYTHON; skipped without. llama.cpp quantises activations
as we do but keeps other things in FP16, so logits agree closely and not exactly, and near ties of routers flip: one of
a few texts may be off.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.family_models import random_tensors
from backend.passes import run_of
from checkpoint.gguf_models import MODELS, Kind, write_gguf
from elmoe.backend.reference import ReferenceBackend
from elmoe.bench.peer import PYTHON_VARIABLE, Peer
from elmoe.checkpoint.convert import convert
from elmoe.checkpoint.folder import Checkpoint
from elmoe.quant import mxfp4

pytestmark = pytest.mark.skipif(PYTHON_VARIABLE not in os.environ, reason=f"{PYTHON_VARIABLE} names no llama.cpp")

VOCAB = 128
WIDE: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 256, "num_key_value_heads": 4}
LATENT: dict[str, Any] = {
    "q_lora_rank": 256, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "n_routed_experts": 8, "attention_bias": False,
}  # fmt: skip
LENGTHS = (1, 2, 5, 12, 40)
TRUNCATED = {"gpt_oss", "gpt_oss in MXFP4"}
"""llama.cpp always truncates YaRN's range of dimensions; GPT-OSS says that it is not to be, and transformers and we
do as it says. With plain rotary angles the rest can be compared."""


def values_of(name: str) -> dict[str, Any]:
    """Sizes that llama.cpp takes; queries compressed, since without it asks for the layers of DeepSeek-V2-Lite."""
    values = MODELS[name] | WIDE | (LATENT if "kv_lora_rank" in MODELS[name] else {})
    values |= {field: 8 for field in ("num_experts", "num_local_experts") if field in values}
    if name in TRUNCATED:
        values["rope_parameters"] = {"rope_type": "default", "rope_theta": 150000.0}
    return values


def tensors_of(values: dict[str, Any]) -> dict[str, Any]:
    """As FP32; MXFP4 experts have values that it can hold."""
    tensors = random_tensors(values, 3)
    for name in [name.removesuffix("_blocks") for name in tensors if name.endswith("_blocks")]:
        blocks, scales = tensors.pop(f"{name}_blocks"), tensors.pop(f"{name}_scales")
        codes = mxfp4.unpack(blocks.reshape(-1, *blocks.shape[-2:]))
        weights = mxfp4.dequantize(codes, scales.reshape(-1, scales.shape[-1]))
        tensors[name] = weights.reshape(*blocks.shape[:-2], -1)
    return tensors


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as started:
        yield started


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_llama_cpp(name: str, tmp_path: Path, peer: Peer) -> None:
    values = values_of(name)
    metadata = {"vocab_size": VOCAB, "tokenizer.ggml.model": "none"}
    path = write_gguf(tmp_path / "m.gguf", values, tensors_of(values), Kind.Q8_0, metadata)
    convert(path, tmp_path / "m.elmoe")
    ours = ReferenceBackend(Checkpoint.open(tmp_path / "m.elmoe"))
    peer.load(path, threads=2, sequences=1, cells=64)
    rng = np.random.default_rng(7)
    found = []
    for length in LENGTHS:
        text = rng.integers(0, VOCAB, length).tolist()
        ours.allocate(0, 64)
        found.append(float(np.corrcoef(ours.forward(run_of(text)).logits[-1], peer.logits(text))[0, 1]))
    assert np.median(found) > 0.9995
    assert min(found) > 0.9
