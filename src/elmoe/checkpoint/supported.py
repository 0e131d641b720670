"""Whether elmoe runs a model: the questions that every way into one asks first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elmoe.errors import UnsupportedModelError
from elmoe.models.program import Program
from elmoe.models.registry import FAMILIES, family_of
from elmoe.models.shape import ModelShape

EXPERT_FIELDS = ("num_experts", "num_local_experts", "n_routed_experts")
"""How the families that transformers knows spell the number of experts."""


def supported_model(config: Mapping[str, Any]) -> tuple[ModelShape, Program]:
    """Shape and layer program of a ``config.json``.

    Raises UnsupportedModelError for a family elmoe does not run, a dense model, and weights that are quantised
    already (but for MXFP4 experts).
    """
    if config.get("model_type") in FAMILIES and all(config.get(field) is None for field in EXPERT_FIELDS):
        raise UnsupportedModelError(
            f"config.json: the number of experts ({', '.join(EXPERT_FIELDS[:-1])} or {EXPERT_FIELDS[-1]}) is missing; "
            "fetch the file again"
        )
    if "text_config" not in config and not any(config.get(field) for field in EXPERT_FIELDS):
        raise UnsupportedModelError(
            f"config.json: model_type = {config.get('model_type')!r} has no experts (no num_experts); "
            f"elmoe runs Mixture-of-Experts models: {', '.join(sorted(FAMILIES))}"
        )
    family = family_of(config)
    quantization = config.get("quantization_config")
    if quantization and not (isinstance(quantization, Mapping) and quantization.get("quant_method") == "mxfp4"):
        raise UnsupportedModelError(
            "config.json: quantization_config says that the weights are quantised already, and not as MXFP4; "
            "give the BF16, FP16 or FP32 checkpoint of the model"
        )
    shape, program = family.shape(config), family.program(config)
    if not shape.moe_layers:
        raise UnsupportedModelError("config.json: no layer is a Mixture-of-Experts block; elmoe runs MoE models")
    return shape, program
