"""What a model asks of a machine: parameters by part, bytes at each precision, KV cache, multiply-accumulates.

Everything follows from a Hugging Face ``config.json`` (the four models of the paper are built in). Reads more
families than the engine runs: no weights are needed here. Knows nothing about machines or schemes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from elmoe.errors import ConfigError, UnsupportedModelError
from elmoe.models.blocks import mxfp4_experts
from elmoe.models.registry import FAMILIES, family_of
from elmoe.models.shape import KV_BYTES_PER_ELEMENT, Config, ModelShape
from elmoe.quant.bitnested import GROUP
from elmoe.sim.quantity import nearest

Floats = npt.NDArray[np.float64]

MODELS = ("qwen3-30b-a3b", "glm-4.7-flash", "deepseek-v2-lite", "gpt-oss-20b")

SCALE_BYTES = 2 / GROUP
"""One FP16 scale per group of 32 weights."""
BYTES_FULL = 1 + SCALE_BYTES
"""Bytes per weight of INT8 G32."""
BYTES_MSB = 0.5 + SCALE_BYTES
"""Bytes per weight of the MSB plane with its scales; also of a dedicated 4-bit copy."""
BYTES_LSB = 0.5
BYTES_MXFP4 = 0.5 + 1 / 32
"""Four bits and one shared exponent byte per block of 32 (OCP MX specification)."""
FP32_BYTES = 4
SLIDING = "sliding_attention"
LAYER_TYPES = ("full_attention", SLIDING)


@dataclass(frozen=True)
class SimModel:
    """Parameter counts are of all layers together unless the name says otherwise."""

    name: str
    layers: int
    moe_layers: int
    hidden: int
    experts: int
    experts_per_tok: int
    expert_hidden: int
    attention_params: int
    mlp_params: int
    """Dense MLPs and shared experts."""
    router_params: int
    """Kept in FP32."""
    embedding_params: int
    head_params: int
    tied_head: bool
    kv_elements: int
    """Elements per token that layers with full attention cache."""
    windowed_kv_elements: int
    window: int
    """Tokens that the layers with sliding-window attention keep; 0 without such layers."""
    attention_macs: int
    """Multiply-accumulates per query token and cached token, layers with full attention."""
    windowed_attention_macs: int
    mxfp4_experts: bool
    max_context: int

    @property
    def expert_params(self) -> int:
        """Of one expert in one layer: gate, up and down projections."""
        return 3 * self.hidden * self.expert_hidden

    @property
    def dense_params(self) -> int:
        """Weights that every step reads and the bit axis applies to: attention, dense MLPs, shared experts, head."""
        return self.attention_params + self.mlp_params + self.head_params

    @property
    def router_bytes(self) -> float:
        """Routers stay in FP32."""
        return self.router_params * FP32_BYTES

    @property
    def dense_bytes(self) -> float:
        """What a full step reads of the dense part."""
        return self.dense_params * BYTES_FULL + self.router_bytes

    @property
    def dense_draft_bytes(self) -> float:
        """What a draft step reads of the dense part: MSB planes, routers."""
        return self.dense_params * BYTES_MSB + self.router_bytes

    @property
    def embedding_bytes(self) -> float:
        """The embedding table where it is not the head."""
        return 0.0 if self.tied_head else self.embedding_params * BYTES_FULL

    @property
    def expert_bytes(self) -> float:
        """One expert of one layer at full precision."""
        return self.expert_params * (BYTES_MXFP4 if self.mxfp4_experts else BYTES_FULL)

    @property
    def expert_draft_bytes(self) -> float:
        """What the draft reads of one expert: its MSB plane, or all of it where it has 4 bits anyway."""
        return self.expert_params * (BYTES_MXFP4 if self.mxfp4_experts else BYTES_MSB)

    @property
    def expert_bits(self) -> int:
        """Weight bits of the experts' multiplications at full precision."""
        return 4 if self.mxfp4_experts else 8

    @property
    def total_bytes(self) -> float:
        """All weights."""
        return self.dense_bytes + self.embedding_bytes + self.moe_layers * self.experts * self.expert_bytes

    def kv_bytes(self, context: Floats) -> Floats:
        """KV cache of one sequence, FP16: tokens [N] -> bytes [N]."""
        elements = self.kv_elements * context + self.windowed_kv_elements * np.minimum(context, self.window)
        return KV_BYTES_PER_ELEMENT * elements

    def attention_macs_per_token(self, context: Floats) -> Floats:
        """Score and value products of one query token: tokens in the cache [N] -> multiply-accumulates [N]."""
        return self.attention_macs * context + self.windowed_attention_macs * np.minimum(context, self.window)


def load_model(name: str) -> SimModel:
    """A built-in model by name, or a ``config.json`` (or the folder it lies in)."""
    if name in MODELS:
        text = (files("elmoe.sim") / "specs" / "models" / f"{name}.json").read_text(encoding="utf-8")
        return model_from_config(json.loads(text), name)
    path = Path(name)
    if path.is_dir():
        path /= "config.json"
    if path.suffix != ".json":
        raise ConfigError(f"unknown model {name!r}{nearest(name, MODELS)}; or give a config.json")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} is not a config.json: it holds no object")
    return model_from_config(values, name)


def model_from_shape(shape: ModelShape, name: str) -> SimModel:
    """The model of a trace."""
    attention = _attention_of(shape)
    windowed = len(shape.windowed_layers)
    full, dense_layers = shape.layers - windowed, shape.layers - len(shape.moe_layers)
    dense_mlp, shared = 3 * shape.hidden * shape.dense_hidden, 3 * shape.hidden * shape.shared_hidden
    return SimModel(
        name=name,
        layers=shape.layers,
        moe_layers=len(shape.moe_layers),
        hidden=shape.hidden,
        experts=shape.experts,
        experts_per_tok=shape.experts_per_tok,
        expert_hidden=shape.expert_hidden,
        attention_params=shape.layers * attention.params,
        mlp_params=dense_layers * dense_mlp + len(shape.moe_layers) * shared,
        router_params=len(shape.moe_layers) * shape.hidden * shape.experts,
        embedding_params=shape.vocab * shape.hidden,
        head_params=shape.vocab * shape.hidden,
        tied_head=shape.tied_head,
        kv_elements=full * attention.kv_elements,
        windowed_kv_elements=windowed * attention.kv_elements,
        window=shape.window,
        attention_macs=full * attention.macs,
        windowed_attention_macs=windowed * attention.macs,
        mxfp4_experts=shape.mxfp4_experts,
        max_context=shape.max_context,
    )


@dataclass(frozen=True)
class _Attention:
    """One layer's attention: parameters, cached elements per token, multiply-accumulates per query and cached token."""

    params: int
    kv_elements: int
    macs: int


def model_from_config(values: Mapping[str, Any], name: str) -> SimModel:
    """Sizes from the fields of a Hugging Face ``config.json``; UnsupportedModelError names what is missing.

    A family that the engine runs is read by its own rules; of other families what the fields are usually called.
    """
    if values.get("model_type") in FAMILIES:
        return model_from_shape(family_of(values).shape(values), name)
    config = Config(values, name)
    if "text_config" in values and "num_hidden_layers" not in values:
        raise UnsupportedModelError(f"{name}: the language model is nested in text_config; give that part as a file")
    config.require("interleave_moe_layer_step", (None, 1))
    config.require("moe_layer_freq", (None, 1))
    layers, hidden = config.integer("num_hidden_layers"), config.integer("hidden_size")
    experts = _first(config, ("num_experts", "n_routed_experts", "num_local_experts"))
    expert_hidden = _first(config, ("moe_intermediate_size", "intermediate_size"))
    attention = _latent(config, hidden) if values.get("kv_lora_rank") else _grouped(config, hidden)
    dense = _dense_layers(config, layers)
    windowed = _windowed_layers(config, layers)
    full = layers - windowed
    moe_layers = layers - dense
    if moe_layers < 1:
        raise UnsupportedModelError(f"{name}: no layer has experts; the simulator is about Mixture-of-Experts models")
    top = config.integer("num_experts_per_tok")
    if top > experts:
        raise UnsupportedModelError(f"{name}: {top} experts per token out of {experts} experts")
    shared = _shared_params(config, hidden, expert_hidden)
    dense_mlp = 3 * hidden * config.integer("intermediate_size") if dense else 0
    vocab = config.integer("vocab_size")
    return SimModel(
        name=name,
        layers=layers,
        moe_layers=moe_layers,
        hidden=hidden,
        experts=experts,
        experts_per_tok=top,
        expert_hidden=expert_hidden,
        attention_params=layers * attention.params,
        mlp_params=dense * dense_mlp + moe_layers * shared,
        router_params=moe_layers * hidden * experts,
        embedding_params=vocab * hidden,
        head_params=vocab * hidden,
        tied_head=config.flag("tie_word_embeddings"),
        kv_elements=full * attention.kv_elements,
        windowed_kv_elements=windowed * attention.kv_elements,
        window=config.integer("sliding_window") if windowed else 0,
        attention_macs=full * attention.macs,
        windowed_attention_macs=windowed * attention.macs,
        mxfp4_experts=mxfp4_experts(values),
        max_context=config.integer("max_position_embeddings"),
    )


def _first(config: Config, names: tuple[str, ...]) -> int:
    """The field that this family uses."""
    for name in names:
        if config.values.get(name) is not None:
            return config.integer(name)
    raise UnsupportedModelError(f"{config.source}: none of {', '.join(names)} is given; is this a Mixture of Experts?")


def _grouped(config: Config, hidden: int) -> _Attention:
    heads = config.integer("num_attention_heads")
    kv_heads = config.integer("num_key_value_heads", heads)
    return _grouped_query(hidden, heads, kv_heads, config.integer("head_dim", hidden // heads))


def _latent(config: Config, hidden: int) -> _Attention:
    return _multi_head_latent(
        hidden,
        config.integer("num_attention_heads"),
        config.integer("kv_lora_rank"),
        config.integer("q_lora_rank") if config.values.get("q_lora_rank") else 0,
        config.integer("qk_nope_head_dim"),
        config.integer("qk_rope_head_dim"),
        config.integer("v_head_dim"),
    )


def _attention_of(shape: ModelShape) -> _Attention:
    if not shape.latent_dim:
        return _grouped_query(shape.hidden, shape.heads, shape.kv_heads, shape.head_dim)
    latent, query_in = shape.latent_dim, shape.query_latent_dim
    return _multi_head_latent(
        shape.hidden, shape.heads, latent, query_in, shape.nope_dim, shape.rope_dim, shape.value_dim
    )


def _grouped_query(hidden: int, heads: int, kv_heads: int, width: int) -> _Attention:
    params = hidden * (heads + 2 * kv_heads) * width + heads * width * hidden
    return _Attention(params, 2 * kv_heads * width, 2 * heads * width)


def _multi_head_latent(
    hidden: int, heads: int, latent: int, query_in: int, nope: int, rope: int, value: int
) -> _Attention:
    """In absorbed form: one latent and one rotary key per token, shared by all heads. `query_in` 0: uncompressed."""
    query = heads * (nope + rope)
    query_params = hidden * query_in + query_in * query if query_in else hidden * query
    key_value = hidden * (latent + rope) + latent * heads * (nope + value)
    params = query_params + key_value + heads * value * hidden
    return _Attention(params, latent + rope, heads * (latent + rope) + heads * latent)


def _dense_layers(config: Config, layers: int) -> int:
    """Layers with a dense MLP instead of experts."""
    if config.values.get("first_k_dense_replace") is not None:
        first = config.values["first_k_dense_replace"]
        if not isinstance(first, int) or not 0 <= first <= layers:
            raise UnsupportedModelError(f"{config.source}: first_k_dense_replace = {first!r} of {layers} layers")
        return first
    step, only = config.integer("decoder_sparse_step", 1), set(config.integers("mlp_only_layers"))
    return sum(1 for i in range(layers) if i in only or (i + 1) % step)


def _windowed_layers(config: Config, layers: int) -> int:
    """Layers with sliding-window attention."""
    kinds = config.values.get("layer_types")
    if kinds:
        if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in LAYER_TYPES for kind in kinds):
            raise UnsupportedModelError(
                f"{config.source}: layer_types = {str(kinds)[:80]} is not supported; elmoe knows lists of "
                f"{layers} times {' or '.join(LAYER_TYPES)}"
            )
        return kinds.count(SLIDING)
    everywhere = config.values.get("sliding_window") and config.values.get("use_sliding_window", True)
    return layers if everywhere else 0


def _shared_params(config: Config, hidden: int, expert_hidden: int) -> int:
    """Shared experts of one layer, under the names of the families."""
    if config.values.get("n_shared_experts"):
        return 3 * hidden * expert_hidden * config.integer("n_shared_experts")
    for name in ("shared_expert_intermediate_size", "shared_intermediate_size"):
        if config.values.get(name):
            return 3 * hidden * config.integer(name)
    return 0
