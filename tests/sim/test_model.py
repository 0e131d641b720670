"""Sizes of models from their config.json, by hand."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.family_models import FAMILY_MODELS
from elmoe.errors import ConfigError, UnsupportedModelError
from elmoe.models.registry import family_of
from elmoe.sim.model import MODELS, SimModel, load_model, model_from_config, model_from_shape


def parameters(model: SimModel) -> int:
    """All of them; norms and biases are left out everywhere."""
    experts = model.moe_layers * model.experts * model.expert_params
    return model.dense_params + model.router_params + experts + (0 if model.tied_head else model.embedding_params)


@pytest.mark.parametrize(
    ("name", "billions", "active"),
    [
        ("qwen3-30b-a3b", 30.5, 3.3),
        ("glm-4.7-flash", 29.9, 3.6),
        ("deepseek-v2-lite", 15.7, 2.7),
        ("gpt-oss-20b", 20.9, 3.6),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, billions: float, active: float) -> None:
    model = load_model(name)
    assert parameters(model) / 1e9 == pytest.approx(billions, abs=0.05)
    token = model.moe_layers * model.experts_per_tok * model.expert_params + model.dense_params
    without_embedding = (token + model.router_params) / 1e9
    assert without_embedding <= active + 0.35
    assert without_embedding + model.embedding_params / 1e9 >= active - 0.35


def test_qwen3_by_hand() -> None:
    model = load_model("qwen3-30b-a3b")
    attention = 48 * 2048 * 128 * (32 + 4 + 4 + 32)
    head = 151936 * 2048
    assert model.attention_params == attention
    assert (model.mlp_params, model.router_params) == (0, 48 * 2048 * 128)
    assert model.dense_params == attention + head
    assert model.dense_bytes == (attention + head) * 34 / 32 + 48 * 2048 * 128 * 4
    assert model.dense_draft_bytes == (attention + head) * 18 / 32 + 48 * 2048 * 128 * 4
    assert model.expert_bytes == 3 * 2048 * 768 * 34 / 32
    assert model.expert_draft_bytes == 3 * 2048 * 768 * 18 / 32
    assert model.embedding_bytes == head * 34 / 32
    assert model.kv_bytes(np.array([1.0, 1024.0])).tolist() == [96 * 1024, 96 * 2**20]
    assert model.attention_macs_per_token(np.array([10.0]))[0] == 48 * 32 * 128 * 2 * 10
    assert model.expert_bits == 8


@pytest.mark.parametrize(("name", "layers", "heads"), [("glm-4.7-flash", 47, 20), ("deepseek-v2-lite", 27, 16)])
def test_latent_attention_keeps_576_elements(name: str, layers: int, heads: int) -> None:
    model = load_model(name)
    assert model.kv_elements == 576 * layers
    assert model.windowed_kv_elements == model.window == 0
    assert model.kv_bytes(np.array([1.0]))[0] == 2 * 576 * layers
    assert model.attention_macs == layers * heads * (576 + 512)
    assert model.moe_layers == layers - 1


def test_latent_projections_by_hand() -> None:
    deepseek, glm = load_model("deepseek-v2-lite"), load_model("glm-4.7-flash")
    per_layer = 2048 * 16 * 192 + 2048 * 576 + 512 * 16 * 256 + 16 * 128 * 2048
    assert deepseek.attention_params == 27 * per_layer
    assert deepseek.mlp_params == 3 * 2048 * 10944 + 26 * 2 * 3 * 2048 * 1408
    per_layer = 2048 * 768 + 768 * 20 * 256 + 2048 * 576 + 512 * 20 * (192 + 256) + 20 * 256 * 2048
    assert glm.attention_params == 47 * per_layer
    assert glm.mlp_params == 3 * 2048 * 10240 + 46 * 3 * 2048 * 1536


def test_gpt_oss_by_hand() -> None:
    """Half of its layers look 128 tokens back; its experts have 4 bits and a scale byte per 32 as they are."""
    model = load_model("gpt-oss-20b")
    per_layer = 2 * 8 * 64
    assert (model.kv_elements, model.windowed_kv_elements, model.window) == (12 * per_layer, 12 * per_layer, 128)
    contexts = np.array([1.0, 128.0, 129.0, 1000.0])
    np.testing.assert_array_equal(model.kv_bytes(contexts), 2 * 12 * per_layer * (contexts + np.minimum(contexts, 128)))
    macs = 12 * 2 * 64 * 64 * (contexts + np.minimum(contexts, 128))
    np.testing.assert_array_equal(model.attention_macs_per_token(contexts), macs)
    assert model.mxfp4_experts
    assert model.expert_bytes == model.expert_draft_bytes == 3 * 2880 * 2880 * 17 / 32
    assert model.expert_bits == 4
    assert model.dense_draft_bytes < model.dense_bytes
    assert model.total_bytes == pytest.approx(12.07e9, rel=1e-3)


MIXTRAL: dict[str, Any] = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "intermediate_size": 14336,
    "sliding_window": None,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}
OLMOE: dict[str, Any] = {
    "num_hidden_layers": 16,
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "intermediate_size": 1024,
    "vocab_size": 50304,
    "max_position_embeddings": 4096,
}
GRANITE: dict[str, Any] = {
    "num_hidden_layers": 32,
    "hidden_size": 1536,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 40,
    "num_experts_per_tok": 8,
    "intermediate_size": 512,
    "vocab_size": 49155,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
QWEN2: dict[str, Any] = {
    "num_hidden_layers": 24,
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "intermediate_size": 5632,
    "decoder_sparse_step": 1,
    "sliding_window": 32768,
    "use_sliding_window": False,
    "vocab_size": 151936,
    "max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("config", "billions"),
    [(MIXTRAL, 46.7), (OLMOE, 6.9), (GRANITE, 3.3), (QWEN2, 14.3)],
    ids=["mixtral", "olmoe", "granite", "qwen2"],
)
def test_other_families(config: dict[str, Any], billions: float) -> None:
    """mixtral, olmoe, granitemoe (tied head), qwen2_moe (shared expert), with their published sizes."""
    model = model_from_config(config, "x")
    assert parameters(model) / 1e9 == pytest.approx(billions, abs=0.06)
    assert model.window == 0
    assert model.moe_layers == model.layers


def test_a_tied_head_is_read_as_the_head_and_stored_once() -> None:
    tied, own = model_from_config(GRANITE, "x"), model_from_config(GRANITE | {"tie_word_embeddings": False}, "x")
    assert (tied.embedding_bytes, own.embedding_bytes) == (0, 49155 * 1536 * 34 / 32)
    assert tied.dense_bytes == own.dense_bytes
    assert own.total_bytes - tied.total_bytes == own.embedding_bytes


def test_layers_without_experts() -> None:
    base = QWEN2 | {"moe_intermediate_size": 128}
    assert model_from_config(base | {"decoder_sparse_step": 2}, "x").moe_layers == 12
    model = model_from_config(base | {"mlp_only_layers": [0, 5, 99]}, "x")
    shared = 3 * 2048 * 5632
    assert (model.moe_layers, model.mlp_params) == (22, 2 * shared + 22 * shared)
    assert model_from_config(OLMOE | {"first_k_dense_replace": 3}, "x").moe_layers == 13


def test_windows_of_other_families() -> None:
    everywhere = model_from_config(MIXTRAL | {"sliding_window": 4096}, "x")
    assert (everywhere.kv_elements, everywhere.window) == (0, 4096)
    assert len(set(everywhere.kv_bytes(np.array([4096.0, 9000.0])))) == 1
    few = model_from_config(
        MIXTRAL | {"sliding_window": 64, "layer_types": ["full_attention"] * 30 + ["sliding_attention"] * 2}, "x"
    )
    assert (few.kv_elements, few.windowed_kv_elements) == (30 * 2048, 2 * 2048)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_local_experts": None}, "none of num_experts, n_routed_experts, num_local_experts is given; is this a"),
        ({"num_local_experts": 0}, "num_local_experts must be a positive integer, not 0"),
        ({"num_local_experts": True}, "num_local_experts must be a positive integer, not True"),
        ({"num_experts_per_tok": 9}, "9 experts per token out of 8 experts"),
        ({"hidden_size": -1}, "hidden_size must be a positive integer, not -1"),
        ({"hidden_size": "4096"}, "hidden_size must be a positive integer"),
        ({"num_hidden_layers": 10**9}, "is beyond any model; the file is damaged"),
        ({"vocab_size": None}, "vocab_size must be a positive integer, not None"),
        ({"first_k_dense_replace": 33}, "first_k_dense_replace = 33 of 32 layers"),
        ({"first_k_dense_replace": 32}, "no layer has experts"),
        ({"kv_lora_rank": 512}, "qk_nope_head_dim must be a positive integer"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false"),
        ({"layer_types": ["mamba", "attention"]}, "layer_types = ['mamba', 'attention'] is not supported; elmoe knows"),
        ({"layer_types": "sliding_attention"}, "layer_types = sliding_attention is not supported"),
        (
            {"layer_types": ["sliding_attention"] * 32, "sliding_window": None},
            "sliding_window must be a positive integer",
        ),
    ],
)
def test_broken_configs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        model_from_config(MIXTRAL | change, "some/config.json")
    assert message in str(caught.value)
    assert str(caught.value).startswith("some/config.json: ")


def test_a_dense_model_is_refused() -> None:
    dense = {key: value for key, value in MIXTRAL.items() if "experts" not in key}
    with pytest.raises(UnsupportedModelError, match="is this a Mixture of Experts"):
        model_from_config(dense, "llama")


def test_files_and_folders(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(OLMOE), encoding="utf-8")
    assert load_model(str(path)).experts == load_model(str(tmp_path)).experts == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a config.json: it holds no object"),
        ("[" * 100_000, "is not JSON"),
        ("{}", "num_hidden"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises((ConfigError, UnsupportedModelError), match=message):
        load_model(str(path))


def test_names_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown model 'qwen3-30b-a3'; did you mean 'qwen3-30b-a3b'\?"):
        load_model("qwen3-30b-a3")
    with pytest.raises(ConfigError, match=r"config.json cannot be read: No such file"):
        load_model(str(tmp_path))
    assert len(MODELS) == 4


@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_families_of_the_engine_are_read_by_their_own_rules(name: str) -> None:
    """Also where fields are missing: layer types, head sizes, which layers are dense."""
    config = dict(FAMILY_MODELS[name])
    for field in ("layer_types", "first_k_dense_replace", "max_window_layers"):
        config.pop(field, None)
        shape = family_of(config).shape(config)
        found = model_from_config(config, name)
        assert found.moe_layers == len(shape.moe_layers)
        assert found.window == shape.window
        assert found.kv_elements + found.windowed_kv_elements == shape.kv_elements_per_token


@pytest.mark.parametrize("name", MODELS)
def test_the_model_of_a_trace_is_that_of_its_config(name: str) -> None:
    text = (files("elmoe.sim") / "specs" / "models" / f"{name}.json").read_text(encoding="utf-8")
    config = json.loads(text)
    shape = family_of(config).shape(config)
    assert model_from_shape(shape, name) == model_from_config(config, name) == load_model(name)
