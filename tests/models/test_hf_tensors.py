"""Parts of all families against checkpoints that transformers saved: every element has one place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from elmoe.models import hf_tensors
from elmoe.models.program import Storage
from elmoe.models.registry import family_of
from elmoe.models.source_tensors import Part

GOLDEN = Path(__file__).parents[1] / "golden"
MODELS = sorted(path.parent for path in GOLDEN.glob("*/config.json"))


def all_parts(values: dict[str, Any]) -> list[tuple[str, tuple[Part, ...], int, int]]:
    """(stored name, its parts, rows, inputs) of everything that a program stores; vectors have all in `rows`."""
    family = family_of(values)
    program, shape = family.program(values), family.shape(values)
    stored = [(linear.name, linear.outputs, linear.inputs) for linear in program.linears]
    stored += [(name, int(np.prod(dims)), 1) for name, dims in program.vectors.items()]
    found = [(name, family.parts(values, name), rows, inputs) for name, rows, inputs in stored]
    for block in program.moe_blocks:
        layer, (gate_up, down) = shape.moe_layers[block.layer], (block.expert.gate_up, block.expert.down)
        for expert in range(shape.experts):
            gate, up, out = family.expert_parts(values, layer, expert)
            found.append((gate_up.name, (gate, up), gate_up.outputs, gate_up.inputs))
            found.append((down.name, (out,), down.outputs, down.inputs))
    return found


def elements(part: Part) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Where in the flat tensor a part's elements are, [rows, inputs]."""
    slab = np.arange(np.prod(part.shape)).reshape(part.view)[part.slab]
    slab = slab.T if part.transposed else slab
    rows = np.arange(part.rows)
    if part.order is not None:
        rows = rows.reshape(-1, len(part.order))[:, part.order].reshape(-1)
    return slab[part.first + part.step * rows, : part.inputs]


@pytest.fixture(params=MODELS, ids=lambda path: path.name)
def model(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def config_of(model: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((model / "config.json").read_text())
    return values


def test_every_element_of_a_checkpoint_has_one_place(model: Path) -> None:
    uses: dict[str, np.ndarray[Any, np.dtype[np.int64]]] = {}
    for _, parts, _, _ in all_parts(config_of(model)):
        for part in parts:
            count = uses.setdefault(part.tensor, np.zeros(np.prod(part.shape), dtype=np.int64))
            count[elements(part)] += 1
    assert all((count == 1).all() for count in uses.values())
    with safe_open(model / "model.safetensors", "np") as file:
        logical = {name.removesuffix("_blocks") for name in file.keys() if not name.endswith("_scales")}  # noqa: SIM118
    assert uses.keys() == logical


def test_shapes_are_those_of_the_checkpoint(model: Path) -> None:
    with safe_open(model / "model.safetensors", "np") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    for _, parts, _, _ in all_parts(config_of(model)):
        for part in parts:
            blocks = shapes.get(f"{part.tensor}_blocks")
            found = shapes[part.tensor] if blocks is None else (*blocks[:2], 32 * blocks[2])
            assert part.shape == found, part.tensor


def test_parts_fill_what_is_stored(model: Path) -> None:
    for name, parts, rows, inputs in all_parts(config_of(model)):
        filled = sum(part.rows * (part.width if inputs == 1 else 1) for part in parts)
        assert filled == rows, name
        if inputs > 1:
            padded = 32 if name.endswith("key_up") else 1
            assert {-(-part.width // padded) * padded for part in parts} == {inputs}, name


def test_only_experts_are_mxfp4() -> None:
    values = config_of(GOLDEN / "random_gpt_oss")
    program = family_of(values).program(values)
    assert {linear.storage for linear in program.linears} == {Storage.INT8}
    assert {block.expert.down.storage for block in program.moe_blocks} == {Storage.MXFP4}
    assert {block.expert.gate_up.storage for block in program.moe_blocks} == {Storage.MXFP4}


@pytest.mark.parametrize(
    ("tensor", "ignored"),
    [
        ("model.layers.3.mlp.gate.weight", False),
        ("model.layers.4.eh_proj.weight", True),
        ("model.layers.5.mlp.experts.0.up_proj.weight", True),
        ("model.layers.6.mlp.gate.weight", False),
        ("model.layers.mtp.weight", False),
        ("model.layers.-1.weight", False),
        ("mtp.model.layers.4.mlp.gate.weight", False),
        ("lm_head.weight", False),
    ],
)
def test_layers_past_the_last_are_ignored(tensor: str, ignored: bool) -> None:
    values = {"num_hidden_layers": 4, "num_nextn_predict_layers": 2}
    assert hf_tensors.past_the_last_layer(values, tensor) is ignored
    assert not hf_tensors.past_the_last_layer({"num_hidden_layers": 4}, tensor)
