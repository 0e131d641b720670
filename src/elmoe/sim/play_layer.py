"""One MoE layer of a query in cycle mode, beside the fast formula: what `elmoe simulate --timeline` shows."""

from __future__ import annotations

from dataclasses import dataclass

from elmoe.errors import ConfigError
from elmoe.sim.cycle import LayerTiming, simulate_layer
from elmoe.sim.layer import expert_resources, layer_ns
from elmoe.sim.layer_pass import LayerPass, counted_layer
from elmoe.sim.profile import SchemeSpecs
from elmoe.sim.run import Query, evaluate
from elmoe.sim.systems import effective_bandwidth


@dataclass(frozen=True)
class PlayedLayer:
    """A layer's pass through the target's experts, and how long both modes say it takes."""

    layer: LayerPass
    timing: LayerTiming
    fast_ns: float
    """With the rows of every expert."""
    even_ns: float
    """With rows spread evenly, as in the rows of `elmoe simulate`."""

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "experts": sum(1 for rows in self.layer.rows if rows),
            "hits": sum(1 for rows, hit in zip(self.layer.rows, self.layer.hits, strict=True) if rows and hit),
            "tokens": self.layer.tokens,
            "cycle_us": self.timing.total_ns * 1e-3,
            "fast_us": self.fast_ns * 1e-3,
            "fast_even_rows_us": self.even_ns * 1e-3,
            "busy_us": {name: busy * 1e-3 for name, busy in self.timing.busy_ns.items()},
        }


def play_layer(query: Query, specs: SchemeSpecs) -> PlayedLayer:
    """The decode or verify pass of the query's first point: as many distinct experts and hits as the fast core expects
    (to whole experts), rows falling on them at random (seeded). ConfigError for machines with near-memory compute.
    """
    machine, model = query.machine, query.model
    if machine.near is not None:
        raise ConfigError(f"the cycle mode plays machines with or without HB, not the near memory of {machine.name}")
    batch, _ = query.points
    outcome = evaluate(query, specs)
    unique, miss_rate = float(outcome.step.unique_experts[0]), float(outcome.step.miss_rate[0])
    tokens = int(batch[0]) * (specs.tree.verify + 1 if query.mode == "sd" else 1)
    experts = min(max(round(unique), model.experts_per_tok), tokens * model.experts_per_tok)
    hits = min(round(unique * (1.0 - miss_rate)), experts)
    split = query.scheme == "elastic" and query.mode == "sd"
    layer = counted_layer(model, "verify" if split else "ar", tokens, experts, hits)
    bandwidth = effective_bandwidth(machine)
    hb_rate = bandwidth.hb if machine.hb is not None else 0.0
    timing = simulate_layer(machine, layer, bandwidth.ext, hb_rate)
    fast, even = (
        float(layer_ns(expert_resources(machine, layer.work(ragged), bandwidth.ext, bandwidth.hb))[0])
        for ragged in (True, False)
    )
    return PlayedLayer(layer, timing, fast, even)
