"""The paper's headline: how much faster and leaner ELMoE-3D is than xPU and than the best prior accelerator.

Every point is a (model, workload, batch). Each system decodes as it would be used: plain decoding on the xPU and its
near-memory kin; the better of plain decoding and its scheme on the HB machines.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from elmoe.sim.model import MODELS, load_model
from elmoe.sim.profile import SchemeSpecs, named_profile, scheme_specs, workloads
from elmoe.sim.run import Query, evaluate
from elmoe.sim.spec import BASELINE, SYSTEMS, load_machine

Floats = npt.NDArray[np.float64]

BATCHES = (1, 2, 4, 8, 16)
OURS, HB_RIVAL = "elmoe-3d", "hb-xpu"
PRIOR = ("xpu-pim", "xpu-logicpim", "xpu-nmp")
"""Prior accelerators. HB-xPU, the same stack without the paper's ideas, is reported apart."""


@dataclass(frozen=True)
class Best:
    """The better mode of one system on one model and workload, by batch [N]."""

    latency_ms: Floats
    energy_mj: Floats
    speculative: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Gain:
    """Ratios over all points."""

    mean: float
    largest: float
    smallest: float = math.nan
    """Not known of quoted ones."""

    @classmethod
    def of(cls, ratios: Iterable[Floats]) -> Gain:
        """Mean and extremes."""
        values = np.concatenate(list(ratios))
        return cls(float(values.mean()), float(values.max()), float(values.min()))


QUOTED = {
    "speedup_vs_xpu": Gain(6.6, 12.0),
    "speedup_vs_best_prior": Gain(2.2, 9.9),
    "energy_vs_xpu": Gain(4.4, 7.2),
    "energy_vs_best_prior": Gain(1.4, 4.9),
}
"""The paper's averages and maxima at 8 GB."""
QUOTED_MT_BENCH = {4.0: 3.4, 8.0: 7.0}
"""Mean speedup in the best mode on MT-Bench, by HB size (paper)."""


@dataclass(frozen=True)
class Headline:
    """Gains of ELMoE-3D."""

    hb_gb: float
    speedup_vs_xpu: Gain
    speedup_vs_best_prior: Gain
    speedup_vs_hb_xpu: Gain
    energy_vs_xpu: Gain
    energy_vs_best_prior: Gain
    energy_vs_hb_xpu: Gain
    mt_bench_speedup: float
    """Mean over models and batches on MT-Bench."""
    system_speedup: dict[str, Gain]
    """Of every system over xPU."""


Points = dict[tuple[str, str], Best]
"""By (model, workload)."""


def headline(hb_gb: float, batches: tuple[int, ...] = BATCHES, specs: SchemeSpecs | None = None) -> Headline:
    """Evaluate all systems at context 1024. specs: other choices than the built-in ones."""
    found = {system: _points(system, hb_gb, batches, specs) for system in SYSTEMS}
    ours, xpu, hb_rival = found[OURS], found[BASELINE], found[HB_RIVAL]
    prior = {key: _best_of([found[system][key] for system in PRIOR]) for key in ours}
    on_mt_bench = [xpu[key].latency_ms / ours[key].latency_ms for key in ours if key[1] == "mt-bench"]
    return Headline(
        hb_gb=hb_gb,
        speedup_vs_xpu=_speed(xpu, ours),
        speedup_vs_best_prior=_speed(prior, ours),
        speedup_vs_hb_xpu=_speed(hb_rival, ours),
        energy_vs_xpu=_energy(xpu, ours),
        energy_vs_best_prior=_energy(prior, ours),
        energy_vs_hb_xpu=_energy(hb_rival, ours),
        mt_bench_speedup=float(np.mean(on_mt_bench)),
        system_speedup={system: _speed(xpu, points) for system, points in found.items()},
    )


def best_mode(
    system: str, hb_gb: float, model: str, workload: str, batches: tuple[int, ...], specs: SchemeSpecs | None = None
) -> Best:
    """The faster of plain decoding, without a draft model in the way, and the system's scheme, batch by batch."""
    machine, load = load_machine(system).with_hb_gb(hb_gb), load_model(model)
    specs = specs or scheme_specs()
    profile = named_profile(load, workload, specs)
    plain = evaluate(Query(machine, load, profile, workload, "none", "ar", batches), specs)
    if machine.scheme == "none":
        return Best(plain.latency_ms, plain.energy_mj.total, np.zeros(len(batches), dtype=bool))
    drafted = evaluate(Query(machine, load, profile, workload, machine.scheme, "sd", batches), specs)
    faster = drafted.latency_ms < plain.latency_ms
    return Best(
        np.where(faster, drafted.latency_ms, plain.latency_ms),
        np.where(faster, drafted.energy_mj.total, plain.energy_mj.total),
        faster,
    )


def _points(system: str, hb_gb: float, batches: tuple[int, ...], specs: SchemeSpecs | None) -> Points:
    return {
        (model, name): best_mode(system, hb_gb, model, name, batches, specs) for model in MODELS for name in workloads()
    }


def _best_of(rivals: list[Best]) -> Best:
    """Per point the fastest rival for latency, the leanest for energy."""
    latency = np.min([rival.latency_ms for rival in rivals], axis=0)
    energy = np.min([rival.energy_mj for rival in rivals], axis=0)
    return Best(latency, energy, np.zeros(len(latency), dtype=bool))


def _speed(slow: Points, fast: Points) -> Gain:
    return Gain.of(slow[key].latency_ms / fast[key].latency_ms for key in fast)


def _energy(high: Points, low: Points) -> Gain:
    return Gain.of(high[key].energy_mj / low[key].energy_mj for key in low)
