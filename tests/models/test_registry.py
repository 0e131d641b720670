"""One entry per family, and errors that list them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from backend.family_models import FAMILY_MODELS
from elmoe.errors import UnsupportedModelError
from elmoe.models import qwen3_moe
from elmoe.models.registry import FAMILIES, family_of
from models.published import PUBLISHED


def test_qwen3_moe_is_found(qwen3_30b_a3b: dict[str, Any]) -> None:
    assert family_of(qwen3_30b_a3b) is qwen3_moe


def test_published_models_are_found() -> None:
    found = {family_of(values).MODEL_TYPE for values in PUBLISHED.values()}
    assert found | {"qwen3_moe"} == set(FAMILIES)
    assert list(FAMILIES) == sorted(FAMILIES)


def test_families_are_listed_under_their_model_type() -> None:
    for kind, family in FAMILIES.items():
        assert kind == family.MODEL_TYPE
        for name in ("shape", "program", "parts", "expert_parts", "ignored"):
            assert callable(getattr(family, name))


@pytest.mark.parametrize("kind", ["qwen3", "llama", "Qwen3_moe", "", None, 3, ["qwen3_moe"], {}])
def test_other_families_are_refused(kind: Any) -> None:
    runs = ", ".join(sorted(FAMILIES))
    text = re.escape(f"config.json: model_type = {kind!r} is not supported; elmoe runs {runs}")
    with pytest.raises(UnsupportedModelError, match=f"^{text}$"):
        family_of({"model_type": kind})


@pytest.mark.parametrize(("kind", "missing"), [("qwen3_moe", 4), ("qwen2_moe", 16), ("mixtral", 8), ("gpt_oss", 8)])
def test_a_missing_number_of_key_value_heads_is_what_transformers_takes(kind: str, missing: int) -> None:
    config = dict(FAMILY_MODELS[kind]) | {"num_attention_heads": 32}
    assert family_of(config).shape(config | {"num_key_value_heads": None}).kv_heads == 32
    del config["num_key_value_heads"]
    assert family_of(config).shape(config).kv_heads == missing


def test_yarn_stretches_the_context(qwen3_30b_a3b: dict[str, Any]) -> None:
    """The recipe of Qwen's model cards adds rope_scaling and leaves max_position_embeddings as it is."""
    config = qwen3_30b_a3b | {"max_position_embeddings": 40960}
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert qwen3_moe.shape(config).max_context == 40960
    assert qwen3_moe.shape(config | {"rope_scaling": yarn}).max_context == 131072
    gpt_oss = PUBLISHED["openai/gpt-oss-20b"]
    assert family_of(gpt_oss).shape(gpt_oss).max_context == 131072


def test_a_missing_family_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="model_type = None is not supported"):
        family_of({})
