"""Which family module runs a ``config.json``; the one place that lists them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from elmoe.errors import UnsupportedModelError
from elmoe.models import deepseek_v2, glm4_moe_lite, gpt_oss, granitemoe, mixtral, olmoe, qwen2_moe, qwen3_moe
from elmoe.models.program import Program
from elmoe.models.shape import ModelShape
from elmoe.models.source_tensors import Part


class Family(Protocol):
    """What a family module offers."""

    MODEL_TYPE: str

    def shape(self, values: Mapping[str, Any]) -> ModelShape:
        """Sizes from ``config.json``."""

    def program(self, values: Mapping[str, Any]) -> Program:
        """Layer program from ``config.json``."""

    def parts(self, values: Mapping[str, Any], name: str) -> tuple[Part, ...]:
        """What makes the stored dense tensor `name` of the program of ``config.json`` `values`.

        Stacked in order; of a ``gate_up`` matrix (gate, up), whose rows the caller interleaves; of an expert's bias
        vector, which is of all experts, (gate, up) or (down) of expert 0, then of expert 1, ...
        """

    def expert_parts(self, values: Mapping[str, Any], layer: int, expert: int) -> tuple[Part, Part, Part]:
        """(gate, up, down) of one expert; `layer` counts all layers."""

    def ignored(self, values: Mapping[str, Any], tensor: str) -> bool:
        """Whether a tensor of the checkpoint, though no part of the program, may be left out in silence."""


FAMILIES: dict[str, Family] = {
    deepseek_v2.MODEL_TYPE: deepseek_v2,
    glm4_moe_lite.MODEL_TYPE: glm4_moe_lite,
    gpt_oss.MODEL_TYPE: gpt_oss,
    granitemoe.MODEL_TYPE: granitemoe,
    mixtral.MODEL_TYPE: mixtral,
    olmoe.MODEL_TYPE: olmoe,
    qwen2_moe.MODEL_TYPE: qwen2_moe,
    qwen3_moe.MODEL_TYPE: qwen3_moe,
}


def family_of(values: Mapping[str, Any]) -> Family:
    """The family module for a ``config.json``; UnsupportedModelError lists what is supported."""
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        supported = ", ".join(sorted(FAMILIES))
        raise UnsupportedModelError(f"config.json: model_type = {kind!r} is not supported; elmoe runs {supported}")
    return FAMILIES[kind]
