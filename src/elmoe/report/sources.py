"""What figures are made of, besides the simulator: plain rows that somebody measured, and machines given as files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from elmoe.report.figure import Figure, Row

ELASTICITY, LOCALITY, AREA, MACHINES = "elasticity", "locality", "area", "machines"
"""Names of sources. elasticity, locality: rows of `elmoe elasticity` and `elmoe locality` with the columns
`measured_model`, `prompts`, `workload`, `limit` and `max_tokens`; area: the parts of `elmoe rtl area`; machines:
`GivenMachine`."""


@dataclass(frozen=True)
class GivenMachine:
    """A machine of a TOML file."""

    path: str
    """As a command takes it."""
    digest: str


@dataclass(frozen=True)
class Sources:
    """What is there. A figure that needs what is not there is left out."""

    rows: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    """Source -> hash of everything that its rows follow from."""
    machines: tuple[GivenMachine, ...] = ()


@dataclass(frozen=True)
class Made:
    """A figure and how its rows come about."""

    figure: Figure
    build: Callable[[Sources], list[dict[str, Any]]]
    needs: tuple[str, ...] = ()
    """Sources without which it is left out."""
    facts: Callable[[list[dict[str, Any]]], dict[str, float]] = lambda _: {}
    """Numbers of its rows that its text names in braces."""
    uses: tuple[str, ...] = ()
    """Sources that it shows where they are there."""

    def missing(self, sources: Sources) -> str | None:
        """The first source that it lacks."""
        has = set(sources.rows) | ({MACHINES} if sources.machines else set())
        return next((name for name in self.needs if name not in has), None)
