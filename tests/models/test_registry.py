"""One entry per family, and errors that list them."""

from __future__ import annotations

import re
from typing import Any

import pytest

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


def test_a_missing_family_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="model_type = None is not supported"):
        family_of({})
