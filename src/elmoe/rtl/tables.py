"""Looking up Liberty tables: of one pin, at a typical slew."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict

from elmoe.rtl.liberty import Cell, Group

SLEW_PS = 30.0
"""Assumed at every input."""


def transition_energy(cell: Cell, pin: str, load: float) -> tuple[float, float]:
    """Energy of an average transition of a pin: drawn from VDD alone, and of both rails. In the library's unit.

    Output pins: internal energy at `load`. Input pins: what is spent inside while no output moves.
    """
    (group,) = (found.group for found in cell.pins if found.name == pin)
    by_rail: dict[str, list[float]] = defaultdict(list)
    for power in group.all("internal_power"):
        found = [table for table in power.groups if table.kind in {"rise_power", "fall_power"}]
        if found:
            mean = sum(interpolated(table, SLEW_PS, load) for table in found) / len(found)
            by_rail[power.attributes.get("related_pg_pin", "VDD")].append(mean)
    rails = {rail: sum(means) / len(means) for rail, means in by_rail.items()}
    return rails.get("VDD", 0.0), sum(rails.values())


def clock_energies(cell: Cell, clock: str) -> dict[str, list[float]]:
    """Both edges of a macro's clock by the condition that a table names, from VDD alone and of both rails."""
    (group,) = (found.group for found in cell.pins if found.name == clock)
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for power in group.all("internal_power"):
        edges = sum(interpolated(table, 0.0, 0.0) for table in power.groups)
        of_supply = power.attributes.get("related_pg_pin", "VDD") == "VDD"
        pair = found[power.attributes.get("when", "")]
        pair[0] += edges if of_supply else 0.0
        pair[1] += edges
    return dict(found)


def interpolated(table: Group, slew: float, load: float) -> float:
    """A Liberty table of one or two indices, linear between its points and held at its edges."""
    values = [float(x) for x in table.attributes["values"].replace(",", " ").split()]
    if "index_1" not in table.attributes:  # a scalar
        return values[0]
    rows = [float(x) for x in table.attributes["index_1"].replace(",", " ").split()]
    if "index_2" not in table.attributes:
        return _between(rows, values, slew)
    columns = [float(x) for x in table.attributes["index_2"].replace(",", " ").split()]
    width = len(columns)
    return _between(
        rows, [_between(columns, values[width * k : width * (k + 1)], load) for k in range(len(rows))], slew
    )


def _between(points: list[float], values: list[float], x: float) -> float:
    k = min(max(bisect_right(points, x) - 1, 0), len(points) - 2)
    share = min(max((x - points[k]) / (points[k + 1] - points[k]), 0.0), 1.0)
    return values[k] + share * (values[k + 1] - values[k])
