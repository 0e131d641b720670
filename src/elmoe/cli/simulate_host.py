"""The hosts of `elmoe simulate`: options of their own, and their rows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any

import typer

from elmoe.cli.console import parse_bytes
from elmoe.errors import ConfigError
from elmoe.sim.host.cache import Budget
from elmoe.sim.host.rows import Load, Point, profile_row, trace_row
from elmoe.sim.host.spec import Host
from elmoe.sim.profile import SchemeSpecs
from elmoe.sim.quantity import nearest
from elmoe.sim.schemes import MODES
from elmoe.trace.replay import Policy

CACHE_POLICIES: dict[str, tuple[Policy | None, float]] = {
    "benefit": (Policy.BENEFIT, 1.0),
    "hotness": (Policy.HOT, 0.0),
    "lru": (Policy.LRU, 1.0),
    "lfu": (Policy.LFU, 1.0),
    "belady": (Policy.BELADY, 1.0),
    "none": (None, 1.0),
}
"""The engine's names, and Belady's optimum: what ranks records, and LSB records kept / MSB records kept."""
DEFAULT_CONTEXT = 1024
FastBytes = Annotated[
    str | None, typer.Option(help="Of a host: budget of its fast tier, for example 1.2GiB. Default: all in RAM.")
]
PolicyName = Annotated[
    str | None, typer.Option(help=f"Of a host: which experts stay, {', '.join(CACHE_POLICIES)}. Default: benefit.")
]
LsbShare = Annotated[
    float | None, typer.Option(help="Of a host: LSB records kept / MSB records kept. Default: the policy's.")
]


@dataclass(frozen=True)
class Asked:
    """As given on the command line."""

    fast_bytes: str | None
    cache_policy: str | None
    lsb_share: float | None
    mode: str | None
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    acceptance: float | None

    @property
    def budget(self) -> Budget:
        """Validated."""
        name = self.cache_policy or Policy.BENEFIT.value
        if name not in CACHE_POLICIES:
            raise ConfigError(f"unknown cache-policy {name!r}{nearest(name, CACHE_POLICIES)}")
        policy, share = CACHE_POLICIES[name]
        return Budget(parse_bytes(self.fast_bytes), policy, share if self.lsb_share is None else self.lsb_share)


def host_rows(hosts: list[Host], loads: list[Load], options: Asked, specs: SchemeSpecs) -> list[dict[str, Any]]:
    """Rows of every host and load; a trace brings its own batch and context."""
    if not hosts:
        asked = {
            "fast-bytes": options.fast_bytes,
            "cache-policy": options.cache_policy,
            "lsb-share": options.lsb_share,
        }
        for name, value in asked.items():
            if value is not None:
                raise ConfigError(f"{name} is about hosts; give --system a file with kind = 'host' (docs/simulator.md)")
        return []
    if options.mode not in (None, *MODES):
        raise ConfigError(f"unknown mode {options.mode!r}{nearest(str(options.mode), MODES)}")
    found: list[dict[str, Any]] = []
    for host, load in product(hosts, loads):
        if load.trace is not None:
            found.append(trace_row(host, load, load.trace, options.budget, options.mode, specs))
            continue
        mode = options.mode or "sd"
        contexts = options.contexts or (min(DEFAULT_CONTEXT, load.model.max_context),)
        for batch, context in product(options.batches, contexts):
            at = Point(mode, batch, context, options.acceptance)
            found.append(profile_row(host, load, options.budget, at, specs))
    return found
