"""Rotary embeddings of a config.json: both spellings, YaRN as transformers computes it, the rest refused."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from elmoe.errors import UnsupportedModelError
from elmoe.models.program import Rope, Yarn
from elmoe.models.rotary import latent_score_factor, rope_of

Values = dict[str, Any]
LONGEST = {"max_position_embeddings": 4096}
SCALING: Values = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
PLAIN = Yarn(4.0, 1024, 32.0, 1.0, truncate=True, attention_factor=0.1 * math.log(4) + 1)


@pytest.mark.parametrize(
    "values",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_theta": 500000, "rope_scaling": {"type": "default"}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 5e5}},
        {"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 1.0}},
        {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
        {"rope_theta": 5e5, "rope_parameters": None, "partial_rotary_factor": 1.0},
    ],
)
def test_spellings(values: Values) -> None:
    assert rope_of(values, 8) == Rope(5e5, 8)


def test_theta_that_a_family_assumes() -> None:
    assert rope_of({}, 8) == Rope(1e4, 8)
    assert rope_of({}, 8, 150000.0) == Rope(150000.0, 8)
    assert rope_of({"rope_parameters": {"rope_type": "default"}}, 8, 1e6) == Rope(1e6, 8)
    assert rope_of({"rope_theta": 2e4}, 8, 1e6) == Rope(2e4, 8)


@pytest.mark.parametrize(
    "values",
    [
        {"rope_scaling": SCALING},
        {"rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 1024}},
        {"rope_parameters": SCALING | {"rope_theta": 1e4}},
        {"rope_parameters": {"rope_theta": 7.0}, "rope_theta": 1e4, "rope_scaling": SCALING},
        {"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 1024}},
        {"rope_scaling": {"type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 1024},
        {"rope_scaling": SCALING | {"beta_fast": 32, "beta_slow": None, "truncate": True, "mscale": 0.5}},
    ],
)
def test_spellings_of_yarn(values: Values) -> None:
    assert rope_of(LONGEST | values, 8) == Rope(1e4, 8, PLAIN)


@pytest.mark.parametrize(
    ("change", "yarn"),
    [
        ({"beta_fast": 16, "beta_slow": 2}, {"beta_fast": 16.0, "beta_slow": 2.0}),
        ({"truncate": False}, {"truncate": False}),
        ({"attention_factor": 0.9}, {"attention_factor": 0.9}),
        ({"attention_factor": 0.9, "mscale": 1.0, "mscale_all_dim": 0.5}, {"attention_factor": 0.9}),
        ({"factor": 0.5}, {"factor": 0.5, "attention_factor": 1.0}),
        ({"mscale": 0.707, "mscale_all_dim": 0.707}, {"attention_factor": 1.0}),
        (
            {"mscale": 1.0, "mscale_all_dim": 0.5},
            {"attention_factor": (0.1 * math.log(4) + 1) / (0.05 * math.log(4) + 1)},
        ),
        ({"mscale_all_dim": 0.5}, {}),
        ({"mscale": 1.0, "mscale_all_dim": 0}, {}),
        ({"original_max_position_embeddings": None}, {"original_context": 4096}),
    ],
)
def test_fields_of_yarn(change: Values, yarn: Values) -> None:
    expected = Yarn(**({name: getattr(PLAIN, name) for name in PLAIN.__dataclass_fields__} | yarn))
    assert rope_of(LONGEST | {"rope_scaling": SCALING | change}, 8).yarn == expected


@pytest.mark.parametrize(
    ("scaling", "factor"),
    [
        (None, 1.0),
        ({"type": "default", "mscale_all_dim": 0.5}, 1.0),
        (SCALING, 1.0),
        (SCALING | {"mscale_all_dim": 0}, 1.0),
        (SCALING | {"mscale_all_dim": 0.5}, (0.05 * math.log(4) + 1) ** 2),
        (SCALING | {"mscale": 1.0, "mscale_all_dim": 1.0}, (0.1 * math.log(4) + 1) ** 2),
        (SCALING | {"factor": 1.0, "mscale_all_dim": 1.0}, 1.0),
    ],
)
def test_factor_of_latent_scores(scaling: Values | None, factor: float) -> None:
    assert latent_score_factor(LONGEST | {"rope_scaling": scaling}) == factor


@pytest.mark.parametrize("kind", ["linear", "dynamic", "llama3", "longrope", None, ["yarn"]])
@pytest.mark.parametrize(
    ("field", "key"), [("rope_scaling", "type"), ("rope_scaling", "rope_type"), ("rope_parameters", "rope_type")]
)
def test_other_kinds_are_refused(field: str, key: str, kind: Any) -> None:
    message = f"{field}: {key} = {kind!r} is not supported; elmoe runs 'default' or 'yarn'"
    refused({field: {key: kind, "factor": 4.0}}, message)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope_theta": -1.0}, "rope_theta must be a positive number, not -1.0"),
        ({"rope_theta": True}, "rope_theta must be a positive number, not True"),
        ({"rope_scaling": [1]}, "rope_scaling must be an object, not [1]"),
        ({"rope_parameters": "yarn"}, "rope_parameters must be an object, not 'yarn'"),
        ({"rope_parameters": {"rope_theta": "a"}}, "rope_parameters: rope_theta must be a positive number, not 'a'"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
            "rope_parameters: full_attention has parameters of its own; elmoe runs one set",
        ),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "rope_parameters: partial_rotary_factor = 0.5 is not supported; elmoe runs 1 or None",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported; elmoe runs 1 or None"),
        ({"rope_theta": 1, "rope_scaling": SCALING}, "YaRN needs a rope_theta above 1, not 1.0"),
        ({"rope_scaling": SCALING | {"factor": 0}}, "rope_scaling: factor must be a positive number, not 0"),
        ({"rope_scaling": SCALING | {"mscale": "1"}}, "rope_scaling: mscale must be a positive number, not '1'"),
        ({"rope_scaling": SCALING | {"truncate": 1}}, "rope_scaling: truncate must be true or false, not 1"),
        (
            {"rope_scaling": SCALING | {"original_max_position_embeddings": 1024.0}},
            "rope_scaling: original_max_position_embeddings must be a positive integer, not 1024.0",
        ),
    ],
)
def test_odd_values_are_refused(values: Values, message: str) -> None:
    refused(values, message)


def refused(values: Values, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"^{re.escape(f'config.json: {message}')}$"):
        rope_of(LONGEST | values, 8)
