"""The config.json that metadata give has the shape and program of the Hugging Face model's own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from gguf_models import ARCHS, MODELS, Values, describe

from elmoe.checkpoint.gguf_config import ARCHS as SUPPORTED
from elmoe.checkpoint.gguf_config import NEUTRAL, READ, Described, config_of
from elmoe.checkpoint.gguf_header import TensorInfo
from elmoe.checkpoint.supported import supported_model
from elmoe.errors import CheckpointError, ElmoeError, UnsupportedModelError
from elmoe.models.program import Storage

F32, Q8_0, Q4_K, MXFP4 = 0, 8, 12, 39
PUBLISHED = ("deepseek-v2-lite", "glm-4.7-flash", "gpt-oss-20b", "qwen3-30b-a3b")


def described(values: Values, *, without: Iterable[str] = (), expert_kind: int = Q8_0, **fields: Any) -> Described:
    """The headers of a model; `fields` are changes of the metadata, dots written as ``__``."""
    arch = ARCHS[values["model_type"]]
    metadata = describe(values) | {name.replace("__", "."): value for name, value in fields.items()}
    hidden, inner = values["hidden_size"], values.get("moe_intermediate_size", values["intermediate_size"])
    experts = metadata["expert_count"]
    shapes = {"token_embd.weight": (values["vocab_size"], hidden), "output.weight": (values["vocab_size"], hidden)}
    for layer in range(values["num_hidden_layers"]):
        block = f"blk.{layer}"
        if layer >= values.get("first_k_dense_replace", 0):
            shapes[f"{block}.ffn_gate_inp.weight"] = (experts, hidden)
            shapes[f"{block}.ffn_down_exps.weight"] = (experts, hidden, inner)
            if values["model_type"] == "glm4_moe_lite":
                shapes[f"{block}.exp_probs_b.bias"] = (experts,)
        if values["model_type"] in ("qwen2_moe", "gpt_oss") or values.get("attention_bias"):
            shapes[f"{block}.attn_q.bias"] = shapes[f"{block}.attn_output.bias"] = (hidden,)
        if values.get("q_lora_rank"):
            shapes[f"{block}.attn_q_a.weight"] = (values["q_lora_rank"], hidden)
        if "shared_expert_intermediate_size" in values:
            shapes[f"{block}.ffn_gate_shexp.weight"] = (values["shared_expert_intermediate_size"], hidden)
    gone = {*without, *(("output.weight",) if values["tie_word_embeddings"] else ())}
    tensors = {
        name: TensorInfo(shape, expert_kind if "_exps" in name else F32, 0)
        for name, shape in shapes.items()
        if name not in gone
    }
    keys = {f"{arch}.{key}": value for key, value in metadata.items() if value is not None}
    return Described(Path("x.gguf"), {"general.architecture": arch, **keys}, tensors)


def published(name: str) -> Values:
    values: Values = json.loads(files("elmoe").joinpath("sim", "specs", "models", f"{name}.json").read_text())
    values |= {
        "rms_norm_eps": 1e-6,
        "routed_scaling_factor": 1.0,
        "norm_topk_prob": values["model_type"] != "deepseek_v2",
    }
    if len(values.get("layer_types", ())) == 2:
        values["layer_types"] = values["layer_types"] * (values["num_hidden_layers"] // 2)
    return values


@pytest.mark.parametrize("name", MODELS)
def test_shape_and_program_are_those_of_the_folder(name: str) -> None:
    values = MODELS[name]
    kind = MXFP4 if "MXFP4" in name else Q8_0
    assert supported_model(config_of(described(values, expert_kind=kind))) == supported_model(values)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes(name: str) -> None:
    values = published(name)
    kind = MXFP4 if "quantization_config" in values else Q8_0
    shape, program = supported_model(config_of(described(values, expert_kind=kind)))
    assert shape == supported_model(values)[0]
    assert program.moe_blocks[0].expert.down.storage is (Storage.MXFP4 if kind == MXFP4 else Storage.INT8)


def test_every_arch_is_tried_here() -> None:
    assert sorted(set(ARCHS.values())) == sorted(SUPPORTED)


def test_the_table_of_weights_may_be_of_a_type_that_is_not_read() -> None:
    assert config_of(described(MODELS["qwen3_moe"], expert_kind=Q4_K))["num_experts"] == 3


def test_yarn_of_deepseek() -> None:
    rope = config_of(described(MODELS["deepseek_v2"]))["rope_parameters"]
    assert rope == MODELS["deepseek_v2"]["rope_parameters"]
    plain = config_of(described(MODELS["deepseek_v2"], rope__scaling__yarn_log_multiplier=None))["rope_parameters"]
    assert "mscale_all_dim" not in plain


def test_yarn_of_gpt_oss_is_not_truncated() -> None:
    rope = config_of(described(MODELS["gpt_oss"]))["rope_parameters"]
    assert rope == MODELS["gpt_oss"]["rope_parameters"]
    factor = described(MODELS["gpt_oss"], rope__scaling__yarn_attn_factor=1.25)
    assert config_of(factor)["rope_parameters"]["attention_factor"] == 1.25


def test_windows_as_the_file_says() -> None:
    given = described(MODELS["gpt_oss"], attention__sliding_window_pattern=[False, True, True])
    assert config_of(given)["layer_types"] == ["full_attention", "sliding_attention"]
    assert config_of(described(MODELS["mixtral"]))["sliding_window"] is None
    assert config_of(described(MODELS["mixtral"], attention__sliding_window=64))["sliding_window"] == 64


def test_clipping_and_scores_of_attention() -> None:
    assert config_of(described(MODELS["olmoe"]))["clip_qkv"] is None
    assert config_of(described(MODELS["olmoe"], attention__clamp_kqv=8.0))["clip_qkv"] == 8.0
    assert config_of(described(MODELS["granitemoe"], attention__scale=None))["attention_multiplier"] == 0.25


def test_one_number_for_every_layer() -> None:
    assert config_of(described(MODELS["olmoe"], feed_forward_length=[32, 32]))["intermediate_size"] == 32
    with pytest.raises(UnsupportedModelError, match=r"olmoe\.feed_forward_length = \[32, 64\] is not supported"):
        config_of(described(MODELS["olmoe"], feed_forward_length=[32, 64]))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("qwen3_moe", {"expert_count": None}, "this qwen3moe model has no experts"),
        ("mixtral", {"expert_count": 0}, r"this llama model has no experts \(no llama.expert_count\)"),
        ("qwen3_moe", {"rope__scaling__type": "longrope"}, "scaling.type = 'longrope' .*; elmoe runs none or yarn"),
        ("gpt_oss", {"rope__scaling__yarn_ext_factor": 0.5}, "yarn_ext_factor = 0.5"),
        ("gpt_oss", {"rope__scaling__factor": -1.0}, "scaling.factor = -1.0 .*; elmoe runs a positive number"),
        ("qwen3_moe", {"rope__dimension_count": 16}, "rope.dimension_count = 16 .*; elmoe runs 32, all of a head"),
        ("qwen3_moe", {"expert_weights_scale": 2.5}, "expert_weights_scale = 2.5 is not supported$"),
        ("olmoe", {"expert_gating_func": 2}, "expert_gating_func = 2 .*; elmoe runs 1 .softmax"),
        (
            "mixtral",
            {"expert_shared_feed_forward_length": 32},
            "expert_shared_feed_forward_length = 32 is not supported",
        ),
        ("granitemoe", {"expert_shared_feed_forward_length": 32}, "expert_shared_feed_forward_length = 32"),
        (
            "deepseek_v2",
            {"expert_gating_func": 2},
            "expert_gating_func = 2 .* softmax, and sigmoid with a correction bias",
        ),
        ("deepseek_v2", {"attention__temperature_scale": 0.1}, "attention.temperature_scale = 0.1 is not supported$"),
        ("glm4_moe_lite", {"expert_gating_func": 1}, "expert_gating_func = 1 .* sigmoid where there is a correction"),
        ("gpt_oss", {"expert_gating_func": 2}, "expert_gating_func = 2 .* 3 .softmax over the chosen"),
        ("gpt_oss", {"rope__freq_base_swa": 1e4}, "freq_base_swa = 10000.0 .*; elmoe runs the same as rope.freq_base"),
        ("granitemoe", {"rope__scaling__finetuned": False}, "rope.scaling.finetuned = False is not supported"),
        ("mixtral", {"rope__scaling__factor": 2.0}, "scaling.factor = 2.0 .* without rope.scaling.type"),
        ("olmoe", {"expert_weights_norm": "yes"}, "expert_weights_norm = 'yes' .*; elmoe runs true or false"),
        (
            "qwen3_moe",
            {"attention__head_count": "4"},
            "attention.head_count = '4' .*; elmoe runs a whole number from 1",
        ),
        ("qwen3_moe", {"block_count": True}, "block_count = True"),
    ],
)
def test_what_elmoe_does_not_run(name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"x\.gguf: .*{message}"):
        config_of(described(MODELS[name], **fields))


UNREAD = {
    "attention__causal": False,
    "attention__clamp_kqv": 8.0,
    "attention__scale": 0.5,
    "attention__sliding_window": 64,
    "attention__temperature_scale": 0.1,
    "embedding_scale": 12.0,
    "expert_group_count": 2,
    "expert_shared_count": 1,
    "expert_weights_norm": False,
    "expert_weights_scale": 2.5,
    "final_logit_softcapping": 30.0,
    "leading_dense_block_count": 1,
    "logit_scale": 6.0,
    "residual_scale": 0.22,
    "rope__scale_linear": 2.0,
    "swiglu_clamp_exp": [0.0, 7.0],
    "use_parallel_residual": True,
}


@pytest.mark.parametrize("field", UNREAD)
@pytest.mark.parametrize("name", ["deepseek_v2", "gpt_oss", "granitemoe", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe"])
def test_a_field_that_changes_something_is_read_or_refused(name: str, field: str) -> None:
    model, key = described(MODELS[name], **{field: UNREAD[field]}), field.replace("__", ".")
    if key in READ[ARCHS[name]]:
        config_of(model)
        return
    with pytest.raises(UnsupportedModelError, match=rf"{model.arch}\.{re.escape(key)} = .* is not supported$"):
        config_of(model)


@pytest.mark.parametrize("key", NEUTRAL)
def test_values_that_change_nothing(key: str) -> None:
    for name in ("gpt_oss", "olmoe", "qwen3_moe"):
        expected = config_of(described(MODELS[name]))
        for value in (*NEUTRAL[key], [NEUTRAL[key][0]] * 2):
            if key not in READ[ARCHS[name]]:
                assert config_of(described(MODELS[name], **{key.replace(".", "__"): value})) == expected


def test_windows_and_scores_that_change_nothing() -> None:
    expected = config_of(described(MODELS["qwen3_moe"]))
    assert config_of(described(MODELS["qwen3_moe"], attention__sliding_window=128)) == expected
    assert config_of(described(MODELS["qwen3_moe"], attention__scale=0.17677669)) == expected


@pytest.mark.parametrize(("name", "usual"), [("qwen3_moe", True), ("qwen2_moe", False), ("olmoe", False)])
def test_whether_the_weights_of_experts_add_up_to_one(name: str, usual: bool) -> None:
    for value, expected in ((None, usual), (True, True), (False, False)):
        assert config_of(described(MODELS[name], expert_weights_norm=value))["norm_topk_prob"] is expected


@pytest.mark.parametrize("name", ["block_count", "embedding_length", "context_length", "expert_used_count"])
def test_missing_fields(name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"x\.gguf: qwen3moe\.{name} is missing; fetch the file again"):
        config_of(described(MODELS["qwen3_moe"], **{name: None}))


@pytest.mark.parametrize("fields", [{"block_count": 1 << 31}, {"nextn_predict_layers": 2}])
def test_a_number_of_layers_that_no_model_has(fields: dict[str, int]) -> None:
    with pytest.raises(CheckpointError, match=r"x\.gguf: it says that it has (2147483648|0) layers; it is damaged"):
        config_of(described(MODELS["gpt_oss"], **fields))


@pytest.mark.parametrize("value", [[], ["a"], [1.5], "", "x", -1, 2.5, float("nan"), True, 1 << 40], ids=repr)
def test_fields_of_any_type(value: Any) -> None:
    """Taken, or refused as bad input."""
    for name in ("deepseek_v2", "gpt_oss", "granitemoe", "mixtral", "qwen3_moe"):
        for field in (*describe(MODELS[name]), *NEUTRAL, "expert_gating_func", "attention.sliding_window_pattern"):
            with suppress(ElmoeError):
                supported_model(config_of(described(MODELS[name], **{field.replace(".", "__"): value})))


def test_missing_embedding() -> None:
    with pytest.raises(CheckpointError, match=r"x\.gguf: tensor token_embd\.weight is missing; fetch the file"):
        config_of(described(MODELS["qwen3_moe"], without=["token_embd.weight"]))


@pytest.mark.parametrize("arch", ["gemma3", "qwen3", "clip"])
def test_other_archs(arch: str) -> None:
    model = Described(Path("x.gguf"), {"general.architecture": arch}, {})
    with pytest.raises(
        UnsupportedModelError, match=rf"architecture = '{arch}' is not supported; .* deepseek2, gpt-oss"
    ):
        config_of(model)


def test_no_arch() -> None:
    with pytest.raises(CheckpointError, match=r"x\.gguf: general\.architecture is missing"):
        config_of(Described(Path("x.gguf"), {}, {}))


def test_experts_of_two_types() -> None:
    model = described(MODELS["qwen3_moe"], expert_kind=MXFP4)
    mixed = dict(model.tensors) | {"blk.1.ffn_down_exps.weight": TensorInfo((3, 64, 32), Q8_0, 0)}
    message = (
        r"blk\.0\.ffn_down_exps\.weight is MXFP4 and blk\.1\.ffn_down_exps\.weight is not; .* convert the original"
    )
    with pytest.raises(UnsupportedModelError, match=message):
        config_of(Described(model.path, model.metadata, mixed))
