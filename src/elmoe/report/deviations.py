"""Why simulated numbers differ from quoted ones by more than 15 %: a reason for each. From docs/validation.md.

Nothing here changes the simulator; where one number for all models is to blame, the one that a cell would need is
computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from elmoe.report.texts import reason
from elmoe.sim.headline import QUOTED, Gain, Headline
from elmoe.sim.profile import SchemeSpecs, scheme_specs
from elmoe.sim.table3 import Quoted, compare, quoted_cells

LIMIT = 0.15
REUSES = tuple(round(float(reuse), 2) for reuse in np.linspace(0.0, 0.99, 34))


@dataclass(frozen=True)
class Deviation:
    """A number that differs from its quoted one by more than LIMIT."""

    what: str
    quoted: float
    simulated: float
    why: str

    @property
    def share(self) -> float:
        """Simulated / quoted - 1."""
        return self.simulated / self.quoted - 1.0


def table3_deviations() -> list[Deviation]:
    """Of the 4 GB half, in its order."""
    found = compare(quoted_cells())
    needed = _needed_reuse([item.quoted for item in found if _off(item.sd_speedup, item.quoted.sd_speedup)])
    made = []
    for item in found:
        cell = item.quoted
        for mode in ("ar", "sd"):
            simulated, quoted = getattr(item, f"{mode}_speedup"), getattr(cell, f"{mode}_speedup")
            if _off(simulated, quoted):
                key, where = (cell.model, cell.scheme, cell.batch), f"{mode.upper()}, batch {cell.batch}"
                why = reason("ar", *key) if mode == "ar" else _reuse_reason(*needed[cell])
                made.append(Deviation(f"{cell.model}, {cell.scheme}, {where}", quoted, simulated, why))
    return made


def headline_deviations(found: Headline) -> list[Deviation]:
    """Of the averages."""
    made = []
    for name, quoted in QUOTED.items():
        gain: Gain = getattr(found, name)
        for kind in ("mean", "largest"):
            said, ours = getattr(quoted, kind), getattr(gain, kind)
            if _off(ours, said):
                why = reason("headline", name, kind)
                made.append(Deviation(f"{name.replace('_', ' ')}, {kind}", said, ours, why))
    return made


def _off(simulated: float, quoted: float) -> bool:
    return abs(simulated / quoted - 1.0) > LIMIT


def _reuse_reason(needed: float | None, without: float) -> str:
    used = scheme_specs().tree.inside_reuse
    shared = f"One reuse of experts inside a request ({used:g}) serves all models and batches; "
    if needed is not None:
        return shared + f"this cell would need {needed:.2f}."
    return (
        f"{shared}no other explains this cell: without any it is at {without:.2f}, its verify pass reading nearly all "
        "experts. Its draft passes must be slower there than ours."
    )


def _needed_reuse(cells: Sequence[Quoted]) -> dict[Quoted, tuple[float | None, float]]:
    """The reuse at which each cell's SD speedup is the quoted one, and its speedup without any reuse."""
    specs = scheme_specs()
    curves = np.array([[item.sd_speedup for item in compare(cells, _with_reuse(specs, reuse))] for reuse in REUSES])
    return {cell: (_crossing(curves[:, i], cell.sd_speedup), float(curves[0, i])) for i, cell in enumerate(cells)}


def _with_reuse(specs: SchemeSpecs, reuse: float) -> SchemeSpecs:
    return replace(specs, tree=specs.tree.changed("what this cell would need", inside_reuse=reuse))


def _crossing(curve: Any, goal: float) -> float | None:
    """Where a curve that rises with REUSES passes the goal."""
    if not curve[0] <= goal <= curve[-1]:
        return None
    return float(np.interp(goal, curve, REUSES))
