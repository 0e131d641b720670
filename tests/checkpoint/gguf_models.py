"""Random models of every family, as Hugging Face folders and as GGUF files laid out the way llama.cpp's converter does.

Weights are small multiples of 1/64: exact in every float type, so that all files of a model mean the same.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from backend.family_models import mxfp4_pair
from elmoe.checkpoint.sources import model_sources
from elmoe.checkpoint.supported import supported_model
from elmoe.models.program import Storage
from elmoe.models.registry import family_of
from elmoe.quant import mxfp4

Values = dict[str, Any]
Array = npt.NDArray[Any]
Kind = gguf.GGMLQuantizationType

SIZES: Values = {
    "vocab_size": 70,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "num_experts_per_tok": 2,
}
LATENT: Values = SIZES | {
    "num_key_value_heads": 4,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,  # no multiple of 32
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
YARN: Values = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 64,
}
MXFP4: Values = {"quantization_config": {"quant_method": "mxfp4"}}
MODELS: dict[str, Values] = {
    "deepseek_v2": LATENT
    | {
        "model_type": "deepseek_v2",
        "q_lora_rank": None,
        "routed_scaling_factor": 1.0,
        "rope_parameters": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
    },
    "deepseek_v2 in groups": LATENT
    | {
        "model_type": "deepseek_v2",
        "q_lora_rank": 32,
        "topk_method": "group_limited_greedy",
        "n_group": 2,
        "topk_group": 1,
        "routed_scaling_factor": 16.0,
        "tie_word_embeddings": True,
    },
    "glm4_moe_lite": LATENT
    | {
        "model_type": "glm4_moe_lite",
        "q_lora_rank": 32,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.8,
        "n_group": 2,
        "topk_group": 1,
        "attention_bias": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    },
    "gpt_oss": SIZES
    | {
        "model_type": "gpt_oss",
        "head_dim": 32,
        "num_local_experts": 3,
        "intermediate_size": 32,
        "sliding_window": 8,
        "rope_parameters": YARN | {"rope_theta": 150000.0, "truncate": False},
    },
    "granitemoe": SIZES
    | {
        "model_type": "granitemoe",
        "num_local_experts": 3,
        "intermediate_size": 32,
        "attention_bias": True,
        "tie_word_embeddings": True,
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.015625,
        "residual_multiplier": 0.22,
        "logits_scaling": 6.0,
    },
    "mixtral": SIZES | {"model_type": "mixtral", "num_local_experts": 3, "intermediate_size": 32, "rope_theta": 1e6},
    "olmoe": SIZES | {"model_type": "olmoe", "num_experts": 3, "intermediate_size": 32, "norm_topk_prob": False},
    "qwen2_moe": SIZES
    | {
        "model_type": "qwen2_moe",
        "num_experts": 3,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
        "norm_topk_prob": False,
        "rope_theta": 1000000.0,
    },
    "qwen3_moe": SIZES
    | {
        "model_type": "qwen3_moe",
        "num_experts": 3,
        "head_dim": 32,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
        "rope_theta": 1000000.0,
    },
}
MODELS |= {f"{name} in MXFP4": MODELS[name] | MXFP4 for name in ("gpt_oss", "qwen3_moe")}

ARCHS = {
    "deepseek_v2": "deepseek2",
    "glm4_moe_lite": "deepseek2",
    "gpt_oss": "gpt-oss",
    "granitemoe": "granitemoe",
    "mixtral": "llama",
    "olmoe": "olmoe",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
    "mlp.gate": "ffn_gate_inp",
    "mlp.router": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "block_sparse_moe.router.layer": "ffn_gate_inp",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
"""What is renamed and no more than that: modules of the checkpoint, without layer and ``.weight`` or ``.bias``."""
EXPERTS = {"gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down", "w2": "down"}


def random_tensors(values: Values) -> dict[str, Array]:
    """FP32 tensors by the names of the checkpoint; experts that are to be MXFP4 have values that it can hold."""
    rng = np.random.default_rng(0)
    sources = model_sources(family_of(values), values, *supported_model(values))
    tensors: dict[str, Array] = {}
    for part in sources.parts():
        tensors[part.tensor] = rng.integers(-127, 128, part.shape).astype(np.float32) / 64
    for name in _packed(values):
        codes, scales = mxfp4.quantize(tensors[name].reshape(-1, tensors[name].shape[-1]))
        tensors[name] = mxfp4.dequantize(codes, scales).reshape(tensors[name].shape)
    return tensors


def _packed(values: Values) -> set[str]:
    """Names of the tensors that are MXFP4 in a Hugging Face folder."""
    sources = model_sources(family_of(values), values, *supported_model(values))
    matrices = (matrix for matrix in sources.matrices() if matrix.linear.storage is Storage.MXFP4)
    return {part.tensor for matrix in matrices for part in matrix.parts}


def write_folder(folder: Path, values: Values, tensors: dict[str, Array]) -> Path:
    """A Hugging Face folder in FP32."""
    saved = dict(tensors)
    for name in _packed(values):
        saved |= mxfp4_pair(name, saved.pop(name))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    save_file(saved, folder / "model.safetensors")
    return folder


def write_gguf(
    path: Path,
    values: Values,
    tensors: dict[str, Array],
    kind: Kind = Kind.F32,
    metadata: Values | None = None,
    split: int = 0,
    encoded: dict[str, tuple[Array, Kind]] | None = None,
    **layouts: bool,
) -> Path:
    """A GGUF file with matrices of type `kind`, and `metadata` (None: leave out) beside what `values` say.

    `layouts` are those of `laid_out`; `split`: tensors per file; `encoded`: tensors to write as they are. Returns the
    path of the (first) file.
    """
    arch = ARCHS[values["model_type"]]
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split)
    described = describe(values) | {"tokenizer.ggml.model": "none"} | (metadata or {})
    for key, value in described.items():
        if value is not None:
            _add(writer, key if key.startswith(("general.", "tokenizer.")) else f"{arch}.{key}", value)
    for name, weights in laid_out(values, tensors, **layouts).items():
        of_expert = "_exps.weight" in name and _packed(values)
        data, raw = (encoded or {}).get(name) or _encoded(name, weights, Kind.MXFP4 if of_expert else kind)
        writer.add_tensor(name, data, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if not split else min(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _encoded(name: str, weights: Array, kind: Kind) -> tuple[Array, Kind | None]:
    """What the converter makes of a tensor: vectors and routers stay FP32, short rows FP16."""
    if weights.ndim == 1 or "ffn_gate_inp" in name or name.endswith(".bias") or kind is Kind.F32:
        return weights, None
    if kind is Kind.F16 or weights.shape[-1] % 32:
        return weights.astype(np.float16), None
    return gguf.quants.quantize(weights, kind), kind


def laid_out(
    values: Values,
    tensors: dict[str, Array],
    *,
    whole_latent: bool = False,
    single_experts: bool = False,
    fused_experts: bool = False,
) -> dict[str, Array]:
    """Tensors under their GGUF names: as today, or as older or otherwise configured converters lay some out."""
    found: dict[str, Array] = {}
    experts: dict[str, dict[int, Array]] = {}
    for name, weights in tensors.items():
        block, module, ending = _taken_apart(name)
        if one := re.fullmatch(r".*\.experts\.(\d+)\.(\w+)", module):
            experts.setdefault(f"{block}ffn_{EXPERTS[one[2]]}", {})[int(one[1])] = weights
        elif re.search(r"input_linear|output_linear|gate_up_proj|\.experts\.down_proj", module):
            found |= {block + key: value for key, value in _fused(values, module, weights).items()}
        elif module.endswith("kv_b_proj") and not whole_latent:
            found |= {block + key: value for key, value in _latent_up(values, weights).items()}
        else:
            new, weights_there = _renamed(values, module, ending, weights)
            found[block + new] = weights_there
    for name, each in experts.items():
        if single_experts:
            found |= {f"{name}.{number}.weight": weights for number, weights in each.items()}
        else:
            found[f"{name}_exps.weight"] = np.stack([each[number] for number in sorted(each)])
    if fused_experts:
        for gate in [name for name in found if name.endswith("ffn_gate_exps.weight")]:
            up = found.pop(gate.replace("gate", "up"))
            found[gate.replace("gate", "gate_up")] = np.concatenate([found.pop(gate), up], axis=1)
    return found


def _renamed(values: Values, module: str, ending: str, weights: Array) -> tuple[str, Array]:
    """A tensor that is itself under another name, but for the order of rows and dimensions of 1."""
    if module.endswith("e_score_correction_bias"):
        return "exp_probs_b.bias", weights
    if module.endswith("sinks"):
        return "attn_sinks.weight", weights
    new = NAMES[module]
    if values["model_type"] == "gpt_oss" and new == "ffn_norm":
        new = "post_attention_norm"
    if values["model_type"] in ("mixtral", "granitemoe") and new in ("attn_q", "attn_k"):
        return new + ending, _permuted(values, weights)
    return new + ending, weights.reshape(-1) if new == "ffn_gate_inp_shexp" else weights


def _latent_up(values: Values, weights: Array) -> dict[str, Array]:
    per_head = weights.reshape(values["num_attention_heads"], -1, weights.shape[-1])
    nope = values["qk_nope_head_dim"]
    return {
        "attn_k_b.weight": np.ascontiguousarray(per_head[:, :nope].transpose(0, 2, 1)),
        "attn_v_b.weight": np.ascontiguousarray(per_head[:, nope:]),
    }


def _taken_apart(name: str) -> tuple[str, str, str]:
    """(``blk.N.``, module, ``.weight`` or ``.bias``), the first and last perhaps empty."""
    parts = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(.*?)(\.weight|\.bias)?", name)
    assert parts is not None
    return f"blk.{parts[1]}." if parts[1] else "", parts[2], parts[3] or ""


def _fused(values: Values, module: str, weights: Array) -> dict[str, Array]:
    """Granite's and GPT-OSS's experts, which are fused in the checkpoint, as separate tensors."""
    ending = ".bias" if module.endswith("_bias") else ".weight"
    if values["model_type"] == "gpt_oss" and ending == ".weight" and "quantization_config" not in values:
        weights = weights.transpose(0, 2, 1)
    if "down_proj" in module or "output_linear" in module:
        pieces = {"down": weights}
    elif "input_linear" in module:
        pieces = dict(zip(("gate", "up"), np.split(weights, 2, axis=1), strict=True))
    else:
        pieces = {"gate": weights[:, ::2], "up": weights[:, 1::2]}
    return {f"ffn_{name}_exps{ending}": np.ascontiguousarray(piece) for name, piece in pieces.items()}


def _permuted(values: Values, weights: Array) -> Array:
    """``LlamaModel.permute`` of llama.cpp's converter."""
    head_dim = values["hidden_size"] // values["num_attention_heads"]
    heads = len(weights) // head_dim
    split = weights.reshape(heads, 2, head_dim // 2, *weights.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(weights.shape)


def describe(values: Values) -> Values:
    """Metadata as the converter writes it, without the arch."""
    fields = {
        "context_length": values["max_position_embeddings"],
        "embedding_length": values["hidden_size"],
        "block_count": values["num_hidden_layers"],
        "feed_forward_length": values["intermediate_size"],
        "attention.head_count": values["num_attention_heads"],
        "attention.head_count_kv": values["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": values["rms_norm_eps"],
        "expert_count": next(values[name] for name in EXPERT_COUNTS if name in values),
        "expert_used_count": values["num_experts_per_tok"],
        "expert_feed_forward_length": values.get("moe_intermediate_size"),
        "expert_shared_feed_forward_length": values.get("shared_expert_intermediate_size"),
        "expert_group_count": values.get("n_group"),
        "expert_group_used_count": values.get("topk_group"),
        "attention.key_length": values.get("head_dim"),
        "attention.value_length": values.get("head_dim"),
        "attention.sliding_window": values.get("sliding_window"),
        "attention.clamp_kqv": values.get("clip_qkv"),
        "attention.scale": values.get("attention_multiplier"),
        "embedding_scale": values.get("embedding_multiplier"),
        "residual_scale": values.get("residual_multiplier"),
        "logit_scale": values.get("logits_scaling"),
    }
    if "kv_lora_rank" in values:
        fields |= _latent(values)
    if values["model_type"] == "gpt_oss":
        fields["expert_feed_forward_length"] = values["intermediate_size"]
    return fields | _rope(values)


EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")


def _latent(values: Values) -> Values:
    rank, rotated = values["kv_lora_rank"], values["qk_rope_head_dim"]
    return {
        "attention.head_count_kv": 1,
        "attention.kv_lora_rank": rank,
        "attention.q_lora_rank": values["q_lora_rank"],
        "attention.key_length": rank + rotated,
        "attention.value_length": rank,
        "attention.key_length_mla": values["qk_nope_head_dim"] + rotated,
        "attention.value_length_mla": values["v_head_dim"],
        "leading_dense_block_count": values["first_k_dense_replace"],
        "expert_shared_count": values["n_shared_experts"],
        "expert_weights_scale": values["routed_scaling_factor"],
        "expert_weights_norm": values.get("norm_topk_prob"),
        "expert_gating_func": 2 if values["model_type"] == "glm4_moe_lite" else 1,
        "rope.dimension_count": rotated,
    }


def _rope(values: Values) -> Values:
    rope = values.get("rope_parameters", {})
    fields = {"rope.freq_base": rope.get("rope_theta", values.get("rope_theta"))}
    if rope.get("rope_type") == "yarn":
        fields |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": rope["factor"],
            "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
            "rope.scaling.yarn_beta_fast": rope["beta_fast"],
            "rope.scaling.yarn_beta_slow": rope["beta_slow"],
        }
    if "mscale_all_dim" in rope:
        fields["rope.scaling.yarn_log_multiplier"] = 0.1 * rope["mscale_all_dim"]
    return fields
