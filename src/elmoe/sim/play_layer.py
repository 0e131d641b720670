"""One MoE layer of a query in cycle mode, beside the fast formula: what `elmoe simulate --timeline` shows."""

from __future__ import annotations

from dataclasses import dataclass

from elmoe.errors import ConfigError
from elmoe.sim.cycle import LayerTiming, simulate_layer
from elmoe.sim.layer import expert_resources, layer_ns
from elmoe.sim.layer_pass import LayerPass, draw_layer
from elmoe.sim.memory_map import memory_map
from elmoe.sim.profile import SchemeSpecs
from elmoe.sim.run import Query
from elmoe.sim.systems import effective_bandwidth


@dataclass(frozen=True)
class PlayedLayer:
    """A layer's pass through the target's experts, and how long both modes say it takes."""

    layer: LayerPass
    timing: LayerTiming
    fast_ns: float

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "experts": sum(1 for rows in self.layer.rows if rows),
            "hits": sum(1 for rows, hit in zip(self.layer.rows, self.layer.hits, strict=True) if rows and hit),
            "tokens": self.layer.tokens,
            "cycle_us": self.timing.total_ns * 1e-3,
            "fast_us": self.fast_ns * 1e-3,
            "busy_us": {name: busy * 1e-3 for name, busy in self.timing.busy_ns.items()},
        }


def play_layer(query: Query, specs: SchemeSpecs) -> PlayedLayer:
    """The decode or verify pass of the query's first point.

    Routing is drawn at random (seeded; popularity falls with rank to the power of -0.5), and HB holds the most popular
    experts that fit. ConfigError for machines with near-memory compute.
    """
    machine, model = query.machine, query.model
    if machine.near is not None:
        raise ConfigError(f"the cycle mode plays machines with or without HB, not the near memory of {machine.name}")
    batch, context = query.points
    places = memory_map(machine, model, query.scheme, batch[:1], context[:1], specs)
    split = query.scheme == "elastic" and query.mode == "sd"
    held = float((places.draft_experts if split else places.whole_experts)[0])
    tokens = int(batch[0]) * (specs.tree.verify + 1 if query.mode == "sd" else 1)
    layer = draw_layer(model, "verify" if split else "ar", tokens, min(1.0, held / model.experts))
    bandwidth = effective_bandwidth(machine)
    hb_rate = bandwidth.hb if machine.hb is not None else 0.0
    timing = simulate_layer(machine, layer, bandwidth.ext, hb_rate)
    fast = layer_ns(expert_resources(machine, layer.work(), bandwidth.ext, bandwidth.hb))
    return PlayedLayer(layer, timing, float(fast[0]))
