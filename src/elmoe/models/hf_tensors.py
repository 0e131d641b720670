"""Names and shapes of Hugging Face tensors that families share, as the parts of stored tensors.

A stored name is ``layers.3.attention.qkv`` or the like; its tail is what stands after the number. Knows nothing about
files; the names are those of the checkpoints on the Hub and of ``save_pretrained``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elmoe.models.shape import Config, ModelShape
from elmoe.models.source_tensors import Part

WHOLE_MODEL = {
    "embedding": "model.embed_tokens.weight",
    "head": "lm_head.weight",
    "final_norm": "model.norm.weight",
}
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def whole(tensor: str, *shape: int) -> Part:
    """A tensor as it is."""
    return Part(tensor, shape, shape[0])


def split_name(name: str) -> tuple[int, str]:
    """(layer, tail) of a stored name."""
    _, layer, tail = name.split(".", 2)
    return int(layer), tail


def usual_parts(sizes: ModelShape, name: str, router: str = "mlp.gate", shared: str = "") -> tuple[Part, ...]:
    """Parts of a stored dense tensor under the names that most families give.

    `router` is the module of the router, `shared` that of the shared experts, below ``model.layers.{i}.``.
    """
    hidden = sizes.hidden
    if name in WHOLE_MODEL:
        return (whole(WHOLE_MODEL[name], *((hidden,) if name == "final_norm" else (sizes.vocab, hidden))),)
    layer, tail = split_name(name)
    base = f"model.layers.{layer}"
    group, _, piece = tail.rpartition(".")
    if group == "attention":
        return attention_parts(sizes, f"{base}.self_attn", piece)
    if group in ("mlp", "shared"):
        module, inner = ("mlp", sizes.dense_hidden) if group == "mlp" else (shared, sizes.shared_hidden)
        gate, up, down = gated_parts(f"{base}.{module}", hidden, inner)
        return (gate, up) if piece == "gate_up" else (down,)
    single = {
        "attention_norm": whole(f"{base}.input_layernorm.weight", hidden),
        "ffn_norm": whole(f"{base}.post_attention_layernorm.weight", hidden),
        "router": whole(f"{base}.{router}.weight", sizes.experts, hidden),
        "router_bias": whole(f"{base}.{router}.bias", sizes.experts),
        "router_correction": whole(f"{base}.{router}.e_score_correction_bias", sizes.experts),
        "shared_gate": whole(f"{base}.{shared}_gate.weight", 1, hidden),
    }
    return (single[tail],)


def attention_parts(sizes: ModelShape, module: str, piece: str) -> tuple[Part, ...]:
    """Parts of grouped-query attention; norms are of each head."""
    hidden, head_dim = sizes.hidden, sizes.head_dim
    query, key = sizes.heads * head_dim, sizes.kv_heads * head_dim
    projections = {"q": query, "k": key, "v": key}
    if piece == "qkv":
        return tuple(whole(f"{module}.{name}_proj.weight", rows, hidden) for name, rows in projections.items())
    if piece == "qkv_bias":
        return tuple(whole(f"{module}.{name}_proj.bias", rows) for name, rows in projections.items())
    single = {
        "out": whole(f"{module}.o_proj.weight", hidden, query),
        "out_bias": whole(f"{module}.o_proj.bias", hidden),
        "query_norm": whole(f"{module}.q_norm.weight", head_dim),
        "key_norm": whole(f"{module}.k_norm.weight", head_dim),
        "sinks": whole(f"{module}.sinks", sizes.heads),
    }
    return (single[piece],)


def gated_parts(
    module: str, hidden: int, inner: int, names: tuple[str, str, str] = PROJECTIONS
) -> tuple[Part, Part, Part]:
    """(gate, up, down) of an MLP with three matrices."""
    gate, up, down = (f"{module}.{name}.weight" for name in names)
    return whole(gate, inner, hidden), whole(up, inner, hidden), whole(down, hidden, inner)


def expert_parts(sizes: ModelShape, layer: int, expert: int) -> tuple[Part, Part, Part]:
    """(gate, up, down) where every expert has matrices of its own under ``mlp.experts``."""
    return gated_parts(f"model.layers.{layer}.mlp.experts.{expert}", sizes.hidden, sizes.expert_hidden)


def past_the_last_layer(values: Mapping[str, Any], tensor: str) -> bool:
    """Whether a tensor is of the layers that follow the last and predict further tokens, which elmoe does not run."""
    start, _, rest = tensor.partition("model.layers.")
    number = rest.partition(".")[0]
    if start or not number.isdecimal():
        return False
    config = Config(values)
    last = config.integer("num_hidden_layers")
    return last <= int(number) < last + config.integer("num_nextn_predict_layers", 0, least=0)
