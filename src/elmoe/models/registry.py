"""Which family module runs a ``config.json``; the one place that lists them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from elmoe.errors import UnsupportedModelError
from elmoe.models import qwen3_moe
from elmoe.models.program import Program
from elmoe.models.shape import ModelShape


class Family(Protocol):
    """What a family module offers."""

    MODEL_TYPE: str

    def shape(self, values: Mapping[str, Any]) -> ModelShape:
        """Sizes from ``config.json``."""

    def program(self, values: Mapping[str, Any]) -> Program:
        """Layer program from ``config.json``."""

    def hf_names(self, name: str) -> tuple[str, ...]:
        """Hugging Face tensors that make the stored dense tensor `name`."""

    def hf_expert_names(self, layer: int, expert: int) -> tuple[str, str, str]:
        """Hugging Face (gate, up, down) tensors of one expert."""


FAMILIES: dict[str, Family] = {qwen3_moe.MODEL_TYPE: qwen3_moe}


def family_of(values: Mapping[str, Any]) -> Family:
    """The family module for a ``config.json``; UnsupportedModelError lists what is supported."""
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        supported = ", ".join(sorted(FAMILIES))
        raise UnsupportedModelError(f"config.json: model_type = {kind!r} is not supported; elmoe runs {supported}")
    return FAMILIES[kind]
