"""What a model's routing and drafts are like (`Profile`), and what the schemes are made of (`SchemeSpecs`).

Named profiles come from ``specs/profiles.toml``; `profile_from_trace` measures one. Knows nothing about machines.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from elmoe.errors import ConfigError, TraceError
from elmoe.sim.locality import hot_coverage, lru_hit_rate, lru_miss_rate, measure, power_law, unique_experts
from elmoe.sim.model import SimModel
from elmoe.sim.quantity import Spec, as_table, nearest, quantity
from elmoe.trace.parquet import Trace
from elmoe.trace.schema import PassKind

Floats = npt.NDArray[np.float64]

RATIO, RESIDENT, PASSES = "ratio", "resident", "passes"
"""How misses follow from a cache. ratio: Che's miss rate of single accesses, applied to the distinct experts of a pass,
however many they are (what the paper's AR columns need). resident: the same, but no pass hits more experts than the
cache holds. passes: Che's approximation for passes that read a set at once (physical; for measured traces)."""


DEFAULT_ORIGIN = "none of its own: popularity and acceptance are assumed (profiles.toml, default)"


@dataclass(frozen=True)
class Tree(Spec):
    """The draft tree and what goes with it."""

    width: int = quantity("1", above=0)
    """Tokens per sequence in each draft pass but the first."""
    depth: int = quantity("1", above=0)
    """Draft passes."""
    verify: int = quantity("1", above=0)
    """Drafted tokens per sequence in the verify pass; the pass has one row more, the last committed token."""
    inside_reuse: float = quantity("1", minimum=0)
    pool_sharpness: float = quantity("1", minimum=0)


@dataclass(frozen=True)
class EagleSpec(Spec):
    """An EAGLE-3 head: feature fusion, one transformer layer with doubled attention input, an own output head."""

    kv_layers: int = quantity("1", above=0)
    vocabulary: str = quantity("name", choices=("target", "32k"))
    bytes_per_weight: float = quantity("B", above=0)


@dataclass(frozen=True)
class SlmSpec(Spec):
    """A separate small dense model."""

    parameters: int = quantity("1", above=0)
    kv_elements: int = quantity("1", above=0)
    attention_macs: int = quantity("1", above=0)
    bytes_per_weight: float = quantity("B", above=0)


@dataclass(frozen=True)
class Placement(Spec):
    """Choices of placement and accounting."""

    embedding: str = quantity("name", choices=("hb", "ext"))
    decode_hits: str = quantity("name", choices=(RATIO, RESIDENT))


@dataclass(frozen=True)
class SchemeSpecs:
    """``specs/schemes.toml``."""

    tree: Tree
    eagle: EagleSpec
    slm: SlmSpec
    placement: Placement

    def as_tables(self) -> dict[str, dict[str, Any]]:
        """Every number with unit, source and status, as plain values for JSON."""
        return {item.name: as_table(getattr(self, item.name).quantities) for item in fields(self)}


@dataclass(frozen=True)
class Acceptance(Spec):
    """One model's entry of ``specs/profiles.toml``."""

    popularity_exponent: float = quantity("1", minimum=0)
    eagle_acceptance: float = quantity("1", minimum=0)
    slm_acceptance: float = quantity("1", minimum=0)
    quant_acceptance: float = quantity("1", minimum=0)

    def rates(self, factor: float = 1.0) -> dict[str, float]:
        """By scheme, on a workload that accepts `factor` times as much."""
        quoted = {"eagle": self.eagle_acceptance, "slm": self.slm_acceptance, "quant": self.quant_acceptance}
        return {scheme: min(1.0, rate * factor) for scheme, rate in quoted.items()}


@dataclass(frozen=True)
class Profile:
    """Locality and acceptance of one model on one workload. E experts."""

    name: str
    inclusion: Floats
    """[E] share of tokens that pick each expert: what distinct experts of a pass follow from."""
    popularity: Floats
    """[E] access shares that the cache sees, sum 1, hottest first."""
    inside_reuse: float
    decode_hits: str
    verify_hits: str
    acceptance: Mapping[str, float]
    """By scheme; elastic may be missing: it then follows from quant and the pool."""
    pool_sharpness: float
    origin: str = ""
    """Where it comes from, in words."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        arrays = {"inclusion": self.inclusion.tolist(), "popularity": self.popularity.tolist()}
        return {item.name: getattr(self, item.name) for item in fields(self)} | arrays

    def unique(self, batch: Floats, tokens: Floats) -> Floats:
        """Distinct experts per layer of a pass over `tokens` tokens of each of `batch` requests."""
        return unique_experts(self.inclusion, batch, tokens, self.inside_reuse)

    def unique_in_pool(self, pool: Floats, experts_per_tok: int, batch: Floats, tokens: Floats) -> Floats:
        """The same of a pass that may only use `pool` experts per layer, all of them equally."""
        share = np.minimum(1.0, experts_per_tok / pool)[..., None]
        return pool * unique_experts(share, batch, tokens, self.inside_reuse)

    def miss_rate(self, capacity: Floats, batch: Floats, tokens: Floats, rule: str) -> Floats:
        """Share of the distinct experts of a pass that are not in a cache of `capacity` experts per layer."""
        if rule == PASSES:
            return lru_miss_rate(self.inclusion, capacity, batch, tokens, self.inside_reuse)
        missed = 1.0 - lru_hit_rate(self.popularity, capacity)
        if rule == RATIO:
            return missed
        return np.maximum(missed, 1.0 - capacity / self.unique(batch, tokens))

    def acceptance_rate(self, scheme: str, pool: Floats) -> Floats:
        """Accepted draft tokens / tree depth. pool: experts per layer that an elastic draft may use."""
        if scheme == "none":
            return np.zeros_like(pool)
        if scheme in self.acceptance:
            return np.full_like(pool, self.acceptance[scheme])
        return self.acceptance["quant"] * hot_coverage(self.popularity, pool) ** self.pool_sharpness


@cache
def scheme_specs() -> SchemeSpecs:
    """The built-in schemes."""
    table = _toml("schemes.toml")
    return SchemeSpecs(
        tree=Tree.from_table(table["tree"], "schemes.toml: tree"),
        eagle=EagleSpec.from_table(table["eagle"], "schemes.toml: eagle"),
        slm=SlmSpec.from_table(table["slm"], "schemes.toml: slm"),
        placement=Placement.from_table(table["placement"], "schemes.toml: placement"),
    )


@cache
def workloads() -> dict[str, float]:
    """Acceptance of each named workload relative to the one that the profiles were made on."""
    return {name: float(entry["value"]) for name, entry in _toml("profiles.toml")["workloads"].items()}


def profile_entries() -> dict[str, dict[str, Any]]:
    """``specs/profiles.toml``, each number with its source."""
    tables = _toml("profiles.toml")
    return {"workloads": tables["workloads"]} | tables["models"]


def named_profile(model: SimModel, workload: str, specs: SchemeSpecs) -> Profile:
    """The profile of a built-in model, or the default one; ConfigError for an unknown workload."""
    if workload not in workloads():
        raise ConfigError(f"unknown workload {workload!r}{nearest(workload, workloads())}")
    tables = _toml("profiles.toml")["models"]
    name = model.name if model.name in tables else "default"
    entry = Acceptance.from_table(tables[name], f"profiles.toml: {name}")
    return Profile(
        name=f"{name}/{workload}",
        inclusion=np.full(model.experts, model.experts_per_tok / model.experts),
        popularity=power_law(entry.popularity_exponent, model.experts),
        inside_reuse=specs.tree.inside_reuse,
        decode_hits=specs.placement.decode_hits,
        verify_hits=RESIDENT,
        acceptance=entry.rates(workloads()[workload]),
        pool_sharpness=specs.tree.pool_sharpness,
        origin="calibrated on table 3, 4 GB (profiles.toml)" if name == model.name else DEFAULT_ORIGIN,
    )


def profile_from_trace(trace: Trace, specs: SchemeSpecs) -> Profile:
    """Locality and Elastic-SD acceptance as a trace shows them; other schemes keep the default acceptance."""
    found = measure(trace, longest=8, policies=())
    counts = np.sort(found.counts, axis=-1)[:, ::-1].mean(axis=0)
    shares = counts / counts.sum()
    default = Acceptance.from_table(_toml("profiles.toml")["models"]["default"], "profiles.toml: default")
    rates = default.rates()
    elastic = level_acceptance(trace)
    origin = f"locality measured on {trace.tokens} tokens of {trace.source}; acceptance assumed"
    if elastic is not None:
        rates["elastic"] = elastic
        origin += ", but that of Elastic-SD measured"
    return Profile(
        name=f"trace {trace.path.name}",
        inclusion=np.minimum(1.0, shares * trace.shape.experts_per_tok),
        popularity=shares,
        inside_reuse=float(np.clip(found.reuse.mean(), 0.0, 0.99)),
        decode_hits=PASSES,
        verify_hits=PASSES,
        acceptance=rates,
        pool_sharpness=specs.tree.pool_sharpness,
        origin=origin,
    )


def specs_for_trace(trace: Trace, specs: SchemeSpecs) -> SchemeSpecs:
    """The schemes with the tree that the trace was recorded with, where it drafted."""
    speculation = trace.settings.get("speculation")
    if not isinstance(speculation, Mapping) or level_acceptance(trace) is None:
        return specs
    names = ("width", "depth", "verify")
    sizes = {name: size for name in names if isinstance(size := speculation.get(name), int) and size > 0}
    if len(sizes) < len(names):
        raise TraceError(f"{trace.path}: its settings name no tree (width, depth, verify); record it again")
    return replace(specs, tree=specs.tree.changed(f"trace {trace.path.name}", **sizes))


def level_acceptance(trace: Trace) -> float | None:
    """Accepted draft tokens / depth of the trees, over the verify passes of a trace; None without any."""
    accepted = levels = depth = 0
    for record in trace.passes():
        if record.kind is PassKind.DRAFT:
            depth = max(depth, record.depth + 1)
        elif record.kind is PassKind.VERIFY:
            sequences = len(np.unique(record.sequences))
            accepted += int(np.count_nonzero(record.kept)) - sequences
            levels += depth * sequences
            depth = 0
    if levels and accepted > levels:
        raise TraceError(f"{trace.path}: more draft tokens accepted than drafted; record it again")
    return accepted / levels if levels else None


@cache
def _toml(name: str) -> dict[str, Any]:
    return tomllib.loads((files("elmoe.sim") / "specs" / name).read_text(encoding="utf-8"))
