"""The ``config.json`` of the Hugging Face family that a GGUF file's metadata describes.

So families, footprints and programs are the same for both formats. What llama.cpp's code fixes for an arch and a
file does not say (Qwen3 renormalises expert weights, GPT-OSS has windows in even layers, ...) is said here, as the
model's authors have it. Source: llama.cpp, ``src/models/*.cpp`` and ``conversion/*.py``. Knows nothing about weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, isclose
from pathlib import Path
from typing import Any

from elmoe.checkpoint.gguf_header import BLOCKS, FETCH, TensorInfo
from elmoe.errors import CheckpointError, UnsupportedModelError
from elmoe.models.shape import LARGEST

SIGMOID = 2
"""``expert_gating_func``: 1 is softmax, 2 is sigmoid, 3 is softmax over the chosen experts alone."""
BLOCK_NAME = re.compile(r"blk\.(\d{1,6})\.")
SCALE, WINDOW = "attention.scale", "attention.sliding_window"
NEUTRAL: dict[str, tuple[float, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.indexer.top_k": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.output_scale": (0, 1),
    SCALE: (0,),
    "attention.shared_kv_layers": (0,),
    WINDOW: (0,),
    "attention.temperature_scale": (0,),
    "attn_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "expert_group_count": (0, 1),
    "expert_group_scale": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_shared_count": (0,),
    "expert_shared_feed_forward_length": (0,),
    "expert_weights_norm": (True,),
    "expert_weights_scale": (0, 1),
    "final_logit_softcapping": (0,),
    "full_attention_interval": (0, 1),
    "interleave_moe_layer_step": (0, 1),
    "leading_dense_block_count": (0,),
    "logit_scale": (0, 1),
    "moe_every_n_layers": (0, 1),
    "moe_latent_size": (0,),
    "residual_scale": (0, 1),
    "rope.scale_linear": (0, 1),
    "rope.scaling.alpha": (0, 1),
    "rope.scaling.attn_factor": (0, 1),
    "router_logit_softcapping": (0,),
    "swiglu_clamp_exp": (0,),
    "swiglu_clamp_shexp": (0,),
    "use_parallel_residual": (False,),
}
"""Values of fields that change nothing; any other is refused for an arch that does not read the field (`READ`)."""
READ = {
    "deepseek2": (
        "expert_group_count",
        "expert_group_used_count",
        "expert_shared_count",
        "expert_weights_norm",
        "expert_weights_scale",
        "leading_dense_block_count",
    ),
    "gpt-oss": (WINDOW, "expert_weights_norm"),  # weights of the chosen experts add up to 1 as they are
    "granitemoe": (SCALE, "embedding_scale", "logit_scale", "residual_scale"),
    "llama": (WINDOW,),
    "olmoe": ("attention.clamp_kqv", "expert_weights_norm"),
    "qwen2moe": ("expert_shared_count", "expert_shared_feed_forward_length", "expert_weights_norm"),
    "qwen3moe": ("expert_weights_norm",),
}
"""Fields of `NEUTRAL` whose value an arch takes into account, or that it has no need of."""


@dataclass(frozen=True)
class Described:
    """What the headers of a model's files say."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @property
    def arch(self) -> str:
        """``general.architecture``."""
        value = self.metadata.get("general.architecture")
        if not isinstance(value, str):
            raise CheckpointError(f"{self.path}: general.architecture is missing; {FETCH}")
        return value

    def value(self, key: str) -> Any:
        """A field of the arch, None when it is missing."""
        return self.metadata.get(f"{self.arch}.{key}")

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number; CheckpointError when it is missing, UnsupportedModelError when it is something else."""
        value = self.value(key)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"{self.path}: {self.arch}.{key} is missing; {FETCH}")
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]  # one number per layer, all the same
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.odd(key, f"a whole number from {least}")
        return value

    def number(self, key: str, default: float) -> float:
        """A positive number."""
        value = self.value(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < inf:
            raise self.odd(key, "a positive number")
        return float(value)

    def odd(self, key: str, wanted: str = "") -> UnsupportedModelError:
        """The error for a value that no model that elmoe runs has."""
        remedy = f"; elmoe runs {wanted}" if wanted else ""
        return UnsupportedModelError(
            f"{self.path}: {self.arch}.{key} = {self.value(key)!r:.60} is not supported{remedy}"
        )

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Of a tensor; CheckpointError when it is missing."""
        if tensor not in self.tensors:
            raise CheckpointError(f"{self.path}: tensor {tensor} is missing; {FETCH}")
        return self.tensors[tensor].shape

    @property
    def layers(self) -> int:
        """Without those that predict several tokens at once, which come last and which elmoe does not run."""
        layers = self.integer("block_count") - self.integer("nextn_predict_layers", 0, least=0)
        if not 1 <= layers <= LARGEST["num_hidden_layers"]:
            raise CheckpointError(f"{self.path}: it says that it has {layers} layers; it is damaged, {FETCH}")
        return layers

    @property
    def head_dim(self) -> int:
        """Elements of a query head of grouped-query attention."""
        return self.integer("attention.key_length", self.integer("embedding_length") // self.integer(HEADS))


HEADS = "attention.head_count"
Fields = dict[str, Any]


def config_of(model: Described) -> Fields:
    """The ``config.json``.

    Raises UnsupportedModelError for an arch that elmoe does not run, a model without experts or with a feature that
    elmoe lacks, CheckpointError for a missing field.
    """
    if model.arch not in ARCHS:
        raise UnsupportedModelError(
            f"{model.path}: general.architecture = {model.arch!r} is not supported; "
            f"elmoe runs Mixture-of-Experts models of {', '.join(sorted(ARCHS))}"
        )
    if not model.value("expert_count"):
        raise UnsupportedModelError(
            f"{model.path}: this {model.arch} model has no experts (no {model.arch}.expert_count); "
            "elmoe runs Mixture-of-Experts models"
        )
    _refuse_what_is_not_read(model)
    fields = _shared_fields(model) | ARCHS[model.arch](model)
    if _has_mxfp4_experts(model):
        fields["quantization_config"] = {"quant_method": "mxfp4"}
    return fields


def _refuse_what_is_not_read(model: Described) -> None:
    """UnsupportedModelError for a field that would change the computation and that the arch does not read."""
    for key in NEUTRAL.keys() - set(READ[model.arch]):
        value = model.value(key)
        values = value if isinstance(value, list) else [value]  # one for all layers, or one per layer
        if not all(one is None or _changes_nothing(model, key, one) for one in values):
            raise model.odd(key)


def _changes_nothing(model: Described, key: str, value: Any) -> bool:
    if value in NEUTRAL[key]:
        return True
    if key == WINDOW:
        return isinstance(value, int) and value >= model.integer("context_length")
    is_default = key == SCALE and isinstance(value, float) and model.arch != "deepseek2"
    return is_default and isclose(value, model.head_dim**-0.5, rel_tol=1e-5)


def _shared_fields(model: Described) -> Fields:
    """What all families spell alike."""
    heads = model.integer(HEADS)
    return {
        "vocab_size": model.shape("token_embd.weight")[0],
        "hidden_size": model.integer("embedding_length"),
        "num_hidden_layers": model.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": model.integer("attention.head_count_kv", heads),
        "num_experts_per_tok": model.integer("expert_used_count"),
        "max_position_embeddings": model.integer("context_length"),
        "rms_norm_eps": model.number("attention.layer_norm_rms_epsilon", 1e-6),
        "rope_parameters": _rope(model),
        "tie_word_embeddings": "output.weight" not in model.tensors,
    }


def _rope(model: Described) -> Fields:
    fields: Fields = {"rope_type": "default", "rope_theta": model.number("rope.freq_base", 10000.0)}
    kind = model.value("rope.scaling.type") or "none"
    if model.value("rope.scaling.type") is None and model.value("rope.scaling.factor") not in (None, 0, 1):
        raise model.odd("rope.scaling.factor", "no factor without rope.scaling.type, which means linear scaling")
    if kind == "none":
        return fields
    if kind != "yarn":
        raise model.odd("rope.scaling.type", "none or yarn")
    original = model.integer("rope.scaling.original_context_length", model.integer("context_length"))
    fields |= {
        "rope_type": "yarn",
        "factor": model.number("rope.scaling.factor", 1.0),
        "original_max_position_embeddings": original,
        "beta_fast": model.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": model.number("rope.scaling.yarn_beta_slow", 1.0),
    }
    if model.number("rope.scaling.yarn_ext_factor", 1.0) != 1:
        raise model.odd("rope.scaling.yarn_ext_factor", "1")
    if model.value("rope.scaling.yarn_attn_factor"):
        fields["attention_factor"] = model.number("rope.scaling.yarn_attn_factor", 1.0)
    return fields


def _grouped_query(model: Described) -> Fields:
    """Attention that rotates whole heads."""
    rotated, head_dim = model.integer("rope.dimension_count", model.head_dim), model.head_dim
    if rotated != head_dim or model.integer("attention.value_length", head_dim) != head_dim:
        raise model.odd("rope.dimension_count", f"{head_dim}, all of a head")
    if model.value("expert_gating_func") not in (None, 0, 1):
        raise model.odd("expert_gating_func", "1 (softmax)")
    return {"head_dim": head_dim}


def _expert_hidden(model: Described) -> int:
    """Inner size of an expert: some archs give it as that of the feed-forward block."""
    if model.value("expert_feed_forward_length"):
        return model.integer("expert_feed_forward_length")
    return model.integer("feed_forward_length")


def _norm(model: Described, default: bool) -> bool:
    """Whether the weights of the chosen experts are made to add up to 1: `default` where the file does not say."""
    value = model.value("expert_weights_norm")
    if value not in (None, 0, 1):
        raise model.odd("expert_weights_norm", "true or false")
    return default if value is None else bool(value)


def _has(model: Described, tensor: str) -> bool:
    return f"blk.0.{tensor}" in model.tensors


def _qwen3_moe(model: Described) -> Fields:
    return _grouped_query(model) | {
        "model_type": "qwen3_moe",
        "num_experts": model.integer("expert_count"),
        "moe_intermediate_size": _expert_hidden(model),
        "intermediate_size": model.integer("feed_forward_length", _expert_hidden(model)),
        "norm_topk_prob": _norm(model, default=True),
        "attention_bias": _has(model, "attn_q.bias"),
    }


def _qwen2_moe(model: Described) -> Fields:
    shared = model.shape("blk.0.ffn_gate_shexp.weight")[0]  # early files do not say it
    return _grouped_query(model) | {
        "model_type": "qwen2_moe",
        "num_experts": model.integer("expert_count"),
        "moe_intermediate_size": model.shape("blk.0.ffn_down_exps.weight")[-1],  # likewise
        "intermediate_size": model.integer("feed_forward_length", shared),
        "shared_expert_intermediate_size": shared,
        "norm_topk_prob": _norm(model, default=False),
        "qkv_bias": _has(model, "attn_q.bias"),
    }


def _olmoe(model: Described) -> Fields:
    clip = model.value("attention.clamp_kqv")
    return _grouped_query(model) | {
        "model_type": "olmoe",
        "num_experts": model.integer("expert_count"),
        "intermediate_size": _expert_hidden(model),
        "norm_topk_prob": _norm(model, default=False),
        "attention_bias": _has(model, "attn_q.bias"),
        "clip_qkv": model.number("attention.clamp_kqv", 1.0) if clip else None,
    }


def _mixtral(model: Described) -> Fields:
    return _grouped_query(model) | {
        "model_type": "mixtral",
        "num_local_experts": model.integer("expert_count"),
        "intermediate_size": _expert_hidden(model),
        "sliding_window": model.integer("attention.sliding_window", 0, least=0) or None,
    }


def _granitemoe(model: Described) -> Fields:
    if model.value("rope.scaling.finetuned") is False:  # how Granite says that it has no rotary embedding
        raise model.odd("rope.scaling.finetuned")
    return _grouped_query(model) | {
        "model_type": "granitemoe",
        "num_local_experts": model.integer("expert_count"),
        "intermediate_size": _expert_hidden(model),
        "attention_bias": _has(model, "attn_q.bias"),
        "embedding_multiplier": model.number("embedding_scale", 1.0),
        "attention_multiplier": model.number("attention.scale", model.head_dim**-0.5),
        "residual_multiplier": model.number("residual_scale", 1.0),
        "logits_scaling": model.number("logit_scale", 1.0),
    }


def _gpt_oss(model: Described) -> Fields:
    layers = model.layers
    pattern = model.value("attention.sliding_window_pattern")
    if not isinstance(pattern, list):
        pattern = [i % 2 == 0 for i in range(layers)]
    if model.value("expert_gating_func") not in (None, 0, 3):
        raise model.odd("expert_gating_func", "3 (softmax over the chosen experts)")
    if model.value("rope.freq_base_swa") not in (None, model.value("rope.freq_base")):
        raise model.odd("rope.freq_base_swa", "the same as rope.freq_base")
    rope = _rope(model)
    if rope["rope_type"] == "yarn":
        rope["truncate"] = False  # llama.cpp has no field for it, and truncates
    return {
        "model_type": "gpt_oss",
        "head_dim": model.head_dim,
        "num_local_experts": model.integer("expert_count"),
        "intermediate_size": _expert_hidden(model),
        "sliding_window": model.integer("attention.sliding_window"),
        "layer_types": ["sliding_attention" if windowed else "full_attention" for windowed in pattern[:layers]],
        "attention_bias": True,
        "rope_parameters": rope,
    }


def _deepseek2(model: Described) -> Fields:
    """DeepSeek-V2, or by the scores of its router what came after it: GLM-4.7-Flash."""
    rotated = model.integer("rope.dimension_count")
    key, value = model.value("attention.key_length_mla"), model.value("attention.value_length_mla")
    groups = model.integer("expert_group_count", 1)
    key_length = model.integer("attention.key_length_mla" if key else "attention.key_length")
    fields = {
        "num_key_value_heads": model.integer(HEADS),  # the file counts the latent as one head
        "n_routed_experts": model.integer("expert_count"),
        "n_shared_experts": model.integer("expert_shared_count"),
        "moe_intermediate_size": model.integer("expert_feed_forward_length"),
        "intermediate_size": model.integer("feed_forward_length"),
        "first_k_dense_replace": _dense_layers(model),
        "kv_lora_rank": model.integer("attention.kv_lora_rank"),
        "q_lora_rank": model.integer("attention.q_lora_rank") if _has(model, "attn_q_a.weight") else None,
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": key_length - rotated,
        "v_head_dim": model.integer("attention.value_length_mla" if value else "attention.value_length"),
        "attention_bias": _has(model, "attn_output.bias"),
        "n_group": groups,
        "topk_group": model.integer("expert_group_used_count", 1),
        "routed_scaling_factor": model.number("expert_weights_scale", 1.0),
        "norm_topk_prob": _norm(model, default=False),
        "rope_parameters": _rope(model) | _mscale(model),
    }
    if not any(name.endswith(".exp_probs_b.bias") for name in model.tensors):
        if model.value("expert_gating_func") not in (None, 0, 1):
            raise model.odd("expert_gating_func", "softmax, and sigmoid with a correction bias")
        grouped = "group_limited_greedy" if groups > 1 else "greedy"
        return fields | {"model_type": "deepseek_v2", "topk_method": grouped, "scoring_func": "softmax"}
    if model.value("expert_gating_func") not in (None, 0, SIGMOID):
        raise model.odd("expert_gating_func", "sigmoid where there is a correction bias")
    return fields | {
        "model_type": "glm4_moe_lite",
        "scoring_func": "sigmoid",
        "rope_interleave": True,
        "num_nextn_predict_layers": model.integer("nextn_predict_layers", 0, least=0),
    }


def _dense_layers(model: Described) -> int:
    """How many of the first layers have no router: ``leading_dense_block_count`` is not always written for GLM."""
    routed = (layer for layer in range(model.layers) if f"blk.{layer}.ffn_gate_inp.weight" in model.tensors)
    return next(routed, model.layers)


def _mscale(model: Described) -> Fields:
    """YaRN's ``mscale_all_dim``, which is kept times 0.1; all published models have the same as ``mscale``."""
    tenth = model.value("rope.scaling.yarn_log_multiplier")
    if not tenth or model.value("rope.scaling.type") != "yarn":
        return {}
    value = round(model.number("rope.scaling.yarn_log_multiplier", 0.1) * 10, 6)
    return {"mscale": value, "mscale_all_dim": value}


def block_of(name: str) -> int:
    """Which layer a tensor is of, -1 for none."""
    found = BLOCK_NAME.match(name)
    return int(found[1]) if found else -1


def _has_mxfp4_experts(model: Described) -> bool:
    """Whether all experts are MXFP4; UnsupportedModelError when only some are."""
    kinds = {
        info.kind: name
        for name, info in model.tensors.items()
        if name.endswith("_exps.weight") and block_of(name) < model.layers
    }
    of_mxfp4 = next(kind for kind, (name, _, _) in BLOCKS.items() if name == "MXFP4")
    if of_mxfp4 in kinds and len(kinds) > 1:
        other = next(name for kind, name in kinds.items() if kind != of_mxfp4)
        raise UnsupportedModelError(
            f"{model.path}: {kinds[of_mxfp4]} is MXFP4 and {other} is not; elmoe runs models whose experts are all "
            "MXFP4 or none: convert the original again with one type for all experts"
        )
    return of_mxfp4 in kinds


ARCHS: dict[str, Callable[[Described], Fields]] = {
    "deepseek2": _deepseek2,
    "gpt-oss": _gpt_oss,
    "granitemoe": _granitemoe,
    "llama": _mixtral,
    "olmoe": _olmoe,
    "qwen2moe": _qwen2_moe,
    "qwen3moe": _qwen3_moe,
}
"""The archs that elmoe runs."""
