"""What one serving step does under each scheme: phases of operators with their bytes, rows and multiply-accumulates.

A step is one AR pass, or `depth` draft passes and a verify pass (the first draft pass has one row per sequence, the
others `width`). Where bytes lie is `memory_map.py`'s, how long an operator takes `systems.py`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from elmoe.errors import ConfigError
from elmoe.sim.layer import ExpertWork
from elmoe.sim.memory_map import MemoryMap
from elmoe.sim.model import BYTES_LSB, SimModel
from elmoe.sim.profile import Profile, SchemeSpecs
from elmoe.sim.quantity import nearest
from elmoe.sim.spec import SCHEMES

Floats = npt.NDArray[np.float64]

MODES = ("ar", "sd")


@dataclass(frozen=True)
class Dense:
    """Matrix products whose weights every row needs, or attention over the KV cache. Arrays [N]."""

    name: str
    hb_bytes: Floats
    ext_bytes: Floats
    rows: Floats
    """Rows that share one weight tile."""
    macs: Floats
    bits: int
    """Weight bits: 8 or 4; 16 for attention, whose keys and values are FP16."""
    exchanges: int = 0
    """Layers whose row results are gathered by all PEs."""
    hidden: int = 0


@dataclass(frozen=True)
class Experts:
    """The experts of all MoE layers; `work` is one layer's."""

    name: str
    work: ExpertWork
    layers: int


Operator = Dense | Experts


@dataclass(frozen=True)
class Phase:
    """Operators that run one after another, `count` times per step."""

    name: str
    count: int
    operators: tuple[Operator, ...]


@dataclass(frozen=True)
class Step:
    """One serving step of a scheme over [N] (batch, context) points."""

    phases: tuple[Phase, ...]
    acceptance_rate: Floats
    accepted_length: Floats
    """Accepted draft tokens per sequence and step; one token more is emitted."""
    unique_experts: Floats
    """Distinct experts per layer of the target's pass."""
    miss_rate: Floats
    """Share of them that is not (even in part) in HB."""


@dataclass(frozen=True)
class Scenario:
    """Everything that a step follows from. Arrays [N]."""

    model: SimModel
    scheme: str
    mode: str
    batch: Floats
    context: Floats
    places: MemoryMap
    profile: Profile
    specs: SchemeSpecs
    acceptance: float | None = None
    """Overrides the profile's acceptance rate."""

    def __post_init__(self) -> None:
        for value, known, what in ((self.scheme, SCHEMES, "scheme"), (self.mode, MODES, "mode")):
            if value not in known:
                raise ConfigError(f"unknown {what} {value!r}{nearest(value, known)}")
        if self.mode == "sd" and self.scheme == "none":
            raise ConfigError("mode sd needs a scheme: eagle, slm, quant or elastic")
        if self.acceptance is not None and not 0 <= self.acceptance <= 1:
            raise ConfigError(f"acceptance must lie in 0..1, not {self.acceptance:g}")


def step(scenario: Scenario) -> Step:
    """The phases of one step."""
    tree = scenario.specs.tree
    if scenario.mode == "ar":
        decode, unique, miss = _target(scenario, "decode", np.ones_like(scenario.batch))
        zero = np.zeros_like(scenario.batch)
        return Step((decode,), zero, zero, unique, miss)
    one, wide = np.ones_like(scenario.batch), np.full_like(scenario.batch, tree.width)
    drafts = [Phase("draft", 1, _draft(scenario, one))]
    if tree.depth > 1:
        drafts.append(Phase("draft", tree.depth - 1, _draft(scenario, wide)))
    verify, unique, miss = _target(scenario, "verify", one * (tree.verify + 1))
    rate = scenario.profile.acceptance_rate(scenario.scheme, _draft_pool(scenario))
    if scenario.acceptance is not None:
        rate = np.full_like(rate, scenario.acceptance)
    accepted = mean_accepted_length(rate, tree.depth, tree.verify)
    return Step((*drafts, verify), rate, accepted, unique, miss)


def mean_accepted_length(acceptance_rate: Floats, depth: int, verify: int) -> Floats:
    """Accepted draft tokens per step from the paper's acceptance rate alpha: ``alpha * depth``.

    alpha is accepted tokens per tree level (`Acceptance.level_acceptance` of `trace/schema.py`), not the chance that
    one more token holds, from which the length would be a geometric sum. At most the tokens that are verified.
    """
    return np.minimum(acceptance_rate * depth, verify)


def _draft_pool(scenario: Scenario) -> Floats:
    """Experts per layer that an elastic draft may use; all of them where there is no HB to throttle to."""
    model = scenario.model
    if not scenario.places.in_hb:
        return np.full_like(scenario.batch, model.experts)
    return np.clip(scenario.places.draft_experts, model.experts_per_tok, model.experts)


def _target(scenario: Scenario, name: str, tokens: Floats) -> tuple[Phase, Floats, Floats]:
    """A pass of the full model over `tokens` rows per sequence."""
    model, profile, places = scenario.model, scenario.profile, scenario.places
    unique = profile.unique(scenario.batch, tokens)
    sliced = scenario.scheme == "elastic" and scenario.mode == "sd" and not model.mxfp4_experts
    capacity = _target_cache(scenario, sliced)
    rule = profile.decode_hits if scenario.mode == "ar" else profile.verify_hits
    miss = profile.miss_rate(capacity, scenario.batch, tokens, rule)
    rows = scenario.batch * tokens
    work = ExpertWork(
        hits=unique * (1.0 - miss),
        misses=unique * miss,
        rows=rows * model.experts_per_tok,
        tokens=rows,
        hidden=model.hidden,
        expert_hidden=model.expert_hidden,
        hb_bytes=model.expert_draft_bytes if sliced else model.expert_bytes,
        hit_ext_bytes=model.expert_params * BYTES_LSB if sliced else 0.0,
        miss_bytes=model.expert_bytes,
        hb_bits=4 if sliced else model.expert_bits,
        miss_bits=model.expert_bits,
    )
    dense = _weights(model.dense_bytes, model.dense_params, places.in_hb, rows, 8, model)
    attention = _attention(scenario, tokens)
    return Phase(name, 1, (dense, attention, Experts("experts", work, model.moe_layers))), unique, miss


def _target_cache(scenario: Scenario, sliced: bool) -> Floats:
    """Experts per layer of which the target finds weights in HB."""
    if scenario.scheme == "quant" and not scenario.model.mxfp4_experts:
        return np.zeros_like(scenario.batch)  # what HB has left holds the draft's copy of the experts
    return scenario.places.draft_experts if sliced else scenario.places.whole_experts


def _draft(scenario: Scenario, tokens: Floats) -> tuple[Operator, ...]:
    """One draft pass over `tokens` rows per sequence."""
    if scenario.scheme in ("eagle", "slm"):
        return _separate_draft(scenario, tokens)
    model, places = scenario.model, scenario.places
    rows = scenario.batch * tokens
    if scenario.scheme == "elastic":
        pool = _draft_pool(scenario)
        unique = scenario.profile.unique_in_pool(pool, model.experts_per_tok, scenario.batch, tokens)
        # The pool is never below k experts: what HB lacks of them is read outside.
        hits = np.minimum(unique, places.draft_experts)
    else:
        unique = scenario.profile.unique(scenario.batch, tokens)
        miss = scenario.profile.miss_rate(places.draft_experts, scenario.batch, tokens, scenario.profile.verify_hits)
        hits = unique * (1.0 - miss)
    work = ExpertWork(
        hits=hits,
        misses=unique - hits,
        rows=rows * model.experts_per_tok,
        tokens=rows,
        hidden=model.hidden,
        expert_hidden=model.expert_hidden,
        hb_bytes=model.expert_draft_bytes,
        hit_ext_bytes=0.0,
        miss_bytes=model.expert_draft_bytes,
        hb_bits=4,
        miss_bits=4,
    )
    attention = _attention(scenario, tokens)
    return _draft_dense(scenario, rows), attention, Experts("experts", work, model.moe_layers)


def _draft_dense(scenario: Scenario, rows: Floats) -> Dense:
    """Elastic: the MSB planes of the target. Quant: its own copy, or the target where that is of 4 bits already."""
    model, places = scenario.model, scenario.places
    if scenario.scheme == "elastic":
        return _weights(model.dense_draft_bytes, model.dense_params, places.in_hb, rows, 4, model)
    if not places.draft.weight_bytes:
        return _weights(model.dense_bytes, model.dense_params, places.in_hb, rows, 8, model)
    router = np.full_like(rows, model.router_bytes)  # the target's own: it has no copy
    hb_bytes = places.draft_hb + (router if places.in_hb else 0.0)
    ext_bytes = places.draft_ext + (0.0 if places.in_hb else router)
    macs = rows * model.dense_params
    return Dense("dense", hb_bytes, ext_bytes, rows, macs, 4, exchanges=model.layers, hidden=model.hidden)


def _separate_draft(scenario: Scenario, tokens: Floats) -> tuple[Operator, ...]:
    """EAGLE head or small model: its weights, and its own KV."""
    draft, places = scenario.places.draft, scenario.places
    rows = scenario.batch * tokens
    model_bytes = np.full_like(scenario.batch, draft.weight_bytes)
    kv_bytes = scenario.batch * scenario.context * draft.kv_bytes_per_token
    inside = places.draft_hb / np.maximum(model_bytes + kv_bytes, 1.0)
    weights = Dense("draft weights", model_bytes * inside, model_bytes * (1 - inside), rows, rows * draft.params, 8)
    macs = rows * draft.attention_macs * scenario.context
    return weights, Dense("attention", kv_bytes * inside, kv_bytes * (1 - inside), tokens, macs, 16)


def _weights(size: float, params: float, in_hb: bool, rows: Floats, bits: int, model: SimModel) -> Dense:
    whole, none = np.full_like(rows, size), np.zeros_like(rows)
    hb_bytes, ext_bytes = (whole, none) if in_hb else (none, whole)
    return Dense("dense", hb_bytes, ext_bytes, rows, rows * params, bits, exchanges=model.layers, hidden=model.hidden)


def _attention(scenario: Scenario, tokens: Floats) -> Dense:
    """Every sequence's KV is read once per pass, for all of its rows."""
    places = scenario.places
    macs = scenario.batch * tokens * scenario.model.attention_macs_per_token(scenario.context)
    return Dense("attention", places.kv_hb, places.kv_ext, tokens, macs, 16)
