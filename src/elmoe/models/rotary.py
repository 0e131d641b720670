"""The rotary embedding that a ``config.json`` asks for, in the spellings of transformers 4 and 5.

Transformers 4 writes ``rope_theta`` and ``rope_scaling``, transformers 5 writes ``rope_parameters``. Knows nothing
about families.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from elmoe.errors import UnsupportedModelError
from elmoe.models.program import Rope, Yarn
from elmoe.models.shape import Config

KINDS = ("default", "yarn")
DEFAULT_THETA = 10000.0


def rope_of(values: Mapping[str, Any], head_dim: int, theta: float = DEFAULT_THETA) -> Rope:
    """The rotary embedding of `head_dim` elements; `theta` is what the family assumes when the file does not say.

    UnsupportedModelError names a kind of scaling that elmoe does not run.
    """
    parameters, kind = _parameters(values)
    if "rope_theta" in parameters.values:
        theta = parameters.number("rope_theta", theta)
    else:
        theta = Config(values).number("rope_theta", theta)
    if kind == "default":
        return Rope(theta, head_dim)
    if theta <= 1:
        raise UnsupportedModelError(f"config.json: YaRN needs a rope_theta above 1, not {theta!r}")
    return Rope(theta, head_dim, _yarn(parameters, Config(values)))


def longest_context(values: Mapping[str, Any]) -> int:
    """Tokens that a sequence may have: YaRN's stretched context where ``max_position_embeddings`` is shorter."""
    parameters, kind = _parameters(values)
    longest = Config(values).integer("max_position_embeddings")
    if kind == "default":
        return longest
    yarn = _yarn(parameters, Config(values))
    return max(longest, round(yarn.factor * yarn.original_context))


def latent_score_factor(values: Mapping[str, Any]) -> float:
    """What YaRN multiplies the attention scores of DeepSeek's latent attention by, beside the attention factor."""
    parameters, kind = _parameters(values)
    everywhere = _number_or_none(parameters, "mscale_all_dim")
    if kind == "default" or everywhere is None:
        return 1.0
    return _mscale(_yarn(parameters, Config(values)).factor, everywhere) ** 2


def _parameters(values: Mapping[str, Any]) -> tuple[Config, str]:
    """The object of rotary parameters, empty when there is none, and the kind of scaling."""
    field = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    parameters = values.get(field) or {}
    if not isinstance(parameters, Mapping):
        raise UnsupportedModelError(f"config.json: {field} must be an object, not {parameters!r}")
    nested = [key for key, value in parameters.items() if isinstance(value, Mapping)]
    if nested:
        raise UnsupportedModelError(f"config.json: {field}: {nested[0]} has parameters of its own; elmoe runs one set")
    found = Config(parameters, f"config.json: {field}")
    name = "rope_type" if "rope_type" in parameters else "type"
    found.require(name, KINDS, "default")
    found.require("partial_rotary_factor", (1, None))
    Config(values).require("partial_rotary_factor", (1, None))
    return found, parameters.get(name, "default")


def _yarn(parameters: Config, config: Config) -> Yarn:
    """As ``_compute_yarn_parameters`` of transformers reads them."""
    longest = config.integer("max_position_embeddings")
    within = parameters.integer("original_max_position_embeddings", longest)
    original = config.integer("original_max_position_embeddings", within)
    factor = parameters.number("factor", longest / original)
    scale, everywhere = _number_or_none(parameters, "mscale"), _number_or_none(parameters, "mscale_all_dim")
    attention = _mscale(factor, 1.0)
    if scale is not None and everywhere is not None:
        attention = _mscale(factor, scale) / _mscale(factor, everywhere)
    return Yarn(
        factor=factor,
        original_context=original,
        beta_fast=_number_or_none(parameters, "beta_fast") or 32.0,
        beta_slow=_number_or_none(parameters, "beta_slow") or 1.0,
        truncate=parameters.flag("truncate", True),
        attention_factor=parameters.number("attention_factor", attention),
    )


def _number_or_none(parameters: Config, name: str) -> float | None:
    """A positive number; None when it is 0, null or missing, which mean the same."""
    return parameters.number(name, 1.0) if parameters.values.get(name) not in (None, 0) else None


def _mscale(factor: float, scale: float) -> float:
    """DeepSeek's ``yarn_get_mscale``."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0
