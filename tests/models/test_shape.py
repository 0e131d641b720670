"""Sizes refuse what cannot run; fields of a config.json are named in the errors."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from elmoe.errors import CheckpointError, UnsupportedModelError
from elmoe.models.shape import Config, ModelShape

SHAPE = ModelShape(
    family="qwen3_moe",
    layers=4,
    moe_layers=(0, 2, 3),
    hidden=96,
    heads=8,
    kv_heads=2,
    head_dim=8,
    experts=6,
    experts_per_tok=2,
    expert_hidden=32,
    dense_hidden=160,
    vocab=300,
    max_context=256,
    tied_head=False,
)


LATENT = replace(
    SHAPE, kv_heads=8, head_dim=24, latent_dim=64, query_latent_dim=32, nope_dim=16, rope_dim=8, value_dim=12
)


def test_kv_bytes() -> None:
    """Keys and values, 4 layers, 2 heads of 8, two bytes each."""
    assert SHAPE.kv_elements_per_token == 2 * 4 * 2 * 8
    assert SHAPE.kv_bytes_per_token == 256


def test_kv_bytes_of_latents() -> None:
    """One latent of 64 and one rotated key of 8 per layer, whatever the number of heads."""
    assert LATENT.kv_elements_per_token == 4 * (64 + 8)
    assert replace(LATENT, heads=16, kv_heads=16).kv_bytes_per_token == 2 * 4 * 72


def test_as_dict_goes_through_json() -> None:
    values = json.loads(json.dumps(SHAPE.as_dict()))
    values |= {name: tuple(values[name]) for name in ("moe_layers", "windowed_layers")}
    assert ModelShape(**values) == SHAPE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 80}, "config.json: hidden = 80 is not a multiple of the quantisation group 32"),
        ({"expert_hidden": 48}, "config.json: expert_hidden = 48 is not a multiple of the quantisation group 32"),
        ({"dense_hidden": 100}, "config.json: dense_hidden = 100 is not a multiple of the quantisation group 32"),
        ({"head_dim": 6}, "config.json: heads * head_dim = 48 is not a multiple of the quantisation group 32"),
        ({"shared_hidden": 48}, "config.json: shared_hidden = 48 is not a multiple of the quantisation group 32"),
        ({"head_dim": 5, "heads": 32}, "config.json: head_dim = 5 is odd; rotary embeddings turn pairs"),
        ({"kv_heads": 3}, "config.json: 8 attention heads cannot share 3 key-value heads"),
        ({"kv_heads": 16}, "config.json: 8 attention heads cannot share 16 key-value heads"),
        ({"experts_per_tok": 7}, "config.json: 7 experts per token out of 6 experts"),
        ({"experts_per_tok": 0}, "config.json: 0 experts per token out of 6 experts"),
    ],
)
def test_shapes_that_cannot_run_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"^{re.escape(message)}$"):
        replace(SHAPE, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_dim": 48}, "latent_dim = 48 is not a multiple of the quantisation group 32"),
        ({"query_latent_dim": 48}, "query_latent_dim = 48 is not a multiple of the quantisation group 32"),
        ({"value_dim": 14}, "heads * value_dim = 112 is not a multiple of the quantisation group 32"),
        ({"rope_dim": 7}, "rope_dim = 7 is odd; rotary embeddings turn pairs"),
    ],
)
def test_latent_shapes_that_cannot_run_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"^{re.escape(f'config.json: {message}')}$"):
        replace(LATENT, **change)


def test_heads_without_position_may_have_any_size() -> None:
    assert replace(LATENT, nope_dim=13, head_dim=21).nope_dim == 13


def test_the_dense_size_is_free_without_dense_layers() -> None:
    assert replace(SHAPE, moe_layers=(0, 1, 2, 3), dense_hidden=100).dense_hidden == 100


def test_all_experts_may_be_active() -> None:
    assert replace(SHAPE, experts_per_tok=6).experts_per_tok == 6


@pytest.mark.parametrize("value", [0, -1, True, False, 1.0, "3", [3], {}])
def test_integer_refuses(value: Any) -> None:
    text = re.escape(f"config.json: layers must be a positive integer, not {value!r}")
    with pytest.raises(UnsupportedModelError, match=f"^{text}$"):
        Config({"layers": value}).integer("layers", 5)


@pytest.mark.parametrize("value", [-1, True, 0.0, "0"])
def test_integer_from_zero(value: Any) -> None:
    assert Config({"first": 0}).integer("first", 1, least=0) == 0
    text = re.escape(f"config.json: first must be an integer from 0 on, not {value!r}")
    with pytest.raises(UnsupportedModelError, match=f"^{text}$"):
        Config({"first": value}).integer("first", 1, least=0)


def test_integer_or_none() -> None:
    assert Config({"rank": 3}).integer_or_none("rank") == 3
    assert Config({"rank": None}).integer_or_none("rank") is None
    with pytest.raises(UnsupportedModelError, match=r"rank is missing; it must be a positive integer or null$"):
        Config({}).integer_or_none("rank")
    with pytest.raises(UnsupportedModelError, match=r"rank must be a positive integer, not 0$"):
        Config({"rank": 0}).integer_or_none("rank")


def test_a_number_beyond_any_model() -> None:
    for name in ("num_experts", "num_local_experts", "n_routed_experts", "num_hidden_layers", "vocab_size"):
        with pytest.raises(
            UnsupportedModelError, match=rf"{name} = 2147483648 is beyond any model; the file is damaged$"
        ):
            Config({name: 1 << 31}).integer(name)


@pytest.mark.parametrize("values", [{}, {"layers": None}])
def test_integer_default(values: dict[str, Any]) -> None:
    assert Config(values).integer("layers", 5) == 5
    with pytest.raises(UnsupportedModelError, match=r"layers must be a positive integer, not None$"):
        Config(values).integer("layers")


@pytest.mark.parametrize("value", [0, -1.5, True, "1e6", float("nan"), float("inf"), [1.0]])
def test_number_refuses(value: Any) -> None:
    text = re.escape(f"model: eps must be a positive number, not {value!r}")
    with pytest.raises(UnsupportedModelError, match=f"^{text}$"):
        Config({"eps": value}, "model").number("eps", 1.0)


def test_number_takes_integers_and_defaults() -> None:
    assert Config({"theta": 10000}).number("theta", 1.0) == 10000.0
    assert isinstance(Config({"theta": 10000}).number("theta", 1.0), float)
    assert Config({"theta": None}).number("theta", 0.5) == Config({}).number("theta", 0.5) == 0.5


@pytest.mark.parametrize("value", [0, 1, "true", []])
def test_flag_refuses(value: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=r"^config\.json: tied must be true or false, not "):
        Config({"tied": value}).flag("tied")


def test_flag_default() -> None:
    assert Config({}).flag("tied") is False
    assert Config({}).flag("tied", True) is True
    assert Config({"tied": True}).flag("tied") is True


@pytest.mark.parametrize("value", [[1, "2"], [1.0], [True], [None], "12", 3, {"a": 1}])
def test_integers_refuses(value: Any) -> None:
    text = re.escape(f"config.json: dense must be a list of integers, not {value!r}")
    with pytest.raises(UnsupportedModelError, match=f"^{text}$"):
        Config({"dense": value}).integers("dense")


@pytest.mark.parametrize("values", [{}, {"dense": None}, {"dense": []}])
def test_integers_default(values: dict[str, Any]) -> None:
    assert Config(values).integers("dense") == ()


def test_texts() -> None:
    assert Config({}).texts("kinds", ("a", "b"), 2) is None
    assert Config({"kinds": None}).texts("kinds", ("a", "b"), 2) is None
    assert Config({"kinds": ["b", "a"]}).texts("kinds", ("a", "b"), 2) == ("b", "a")


@pytest.mark.parametrize("value", [[], ["a"], ["a", "a", "a"], ["a", "c"], ["a", ["a"]], "ab", 2, {"a": 1, "b": 2}])
def test_texts_refuses(value: Any) -> None:
    text = re.escape(f"config.json: kinds must be a list of 2 times 'a' or 'b', not {value!r}")
    with pytest.raises(UnsupportedModelError, match=f"^{text}$"):
        Config({"kinds": value}).texts("kinds", ("a", "b"), 2)


def test_require_lists_what_elmoe_runs() -> None:
    Config({"act": "silu"}).require("act", ("silu",))
    Config({}).require("act", ("silu",), "silu")
    with pytest.raises(
        UnsupportedModelError, match=r"^config\.json: act = 'gelu' is not supported; elmoe runs 'silu'$"
    ):
        Config({"act": "gelu"}).require("act", ("silu",))
    with pytest.raises(UnsupportedModelError, match=r"window = True is not supported; elmoe runs False or None$"):
        Config({"window": True}).require("window", (False, None))


def test_an_unsupported_model_is_a_checkpoint_error() -> None:
    assert issubclass(UnsupportedModelError, CheckpointError)
