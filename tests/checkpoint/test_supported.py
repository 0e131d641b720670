from __future__ import annotations

from typing import Any

import pytest
from synthetic import CONFIG

from elmoe.checkpoint.supported import supported_model
from elmoe.errors import UnsupportedModelError
from elmoe.models.program import Storage


def test_shape_and_program() -> None:
    shape, program = supported_model(CONFIG)
    assert shape.moe_layers == (0, 2)
    assert len(program.moe_blocks) == 2


def test_mxfp4_experts() -> None:
    _, program = supported_model(CONFIG | {"quantization_config": {"quant_method": "mxfp4"}})
    expert = program.moe_blocks[0].expert
    assert {expert.gate_up.storage, expert.down.storage} == {Storage.MXFP4}
    assert {linear.storage for linear in program.linears} == {Storage.INT8}


def test_expert_count_as_transformers_5_saves_it() -> None:
    config = {key: value for key, value in CONFIG.items() if key != "num_experts"} | {"num_local_experts": 3}
    assert supported_model(config)[0].experts == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "llama"},
            "model_type = 'llama' has no experts .* elmoe runs Mixture-of-Experts models: deepseek_v2, .* qwen3_moe",
        ),
        ({}, "model_type = None has no experts"),
        (
            {"model_type": "qwen3_moe"},
            r"the number of experts \(num_experts, .* or n_routed_experts\) is missing",
        ),
        (CONFIG | {"num_experts": 0}, "model_type = 'qwen3_moe' has no experts"),
        (CONFIG | {"mlp_only_layers": [0, 1, 2]}, "no layer is a Mixture-of-Experts block"),
        (CONFIG | {"decoder_sparse_step": 4}, "no layer is a Mixture-of-Experts block"),
        ({"model_type": "deepseek_v3", "n_routed_experts": 8}, "model_type = 'deepseek_v3' is not supported"),
        ({"model_type": "llama4", "text_config": {"num_experts": 8}}, "model_type = 'llama4' is not supported"),
        (
            CONFIG | {"quantization_config": {"quant_method": "fp8"}},
            "weights are quantised already, and not as MXFP4; give the BF16",
        ),
    ],
)
def test_refusals(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        supported_model(config)
