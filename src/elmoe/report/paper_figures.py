"""Figures of the paper that the simulator redraws (and the die, which the RTL does).

Numbers of figures are this report's own; table 3 keeps its number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from elmoe.report.figure import Chart, Command, Figure, chosen
from elmoe.report.simulated import BATCHES, ENERGY, PLAIN, Study, command, long_rows
from elmoe.report.sources import AREA, Made, Sources
from elmoe.sim.spec import SCHEMES, SYSTEMS
from elmoe.sim.table3 import compare, quoted_cells

Rows = list[dict[str, Any]]

FIRST_SECTION = "Models: what they ask for, and what they allow"
SECTION = "The paper's machine"
OURS = ("elmoe-3d",)
DRAFTING = tuple((scheme, "sd") for scheme in SCHEMES[1:])
HB_SIZES = (4, 8)
MEMORY = {"dense weights": "hb_dense", "KV cache": "hb_kv", "draft model": "hb_draft", "experts": "hb_experts"}
OUTSIDE = {"KV cache": "ext_kv", "draft model": "ext_draft"}


def _intensity(_: Sources) -> Rows:
    plain = Study(("xpu",), batches=(*BATCHES, 32, 64)).rows(["phases.decode.ops_per_byte"])
    drafted = Study(("xpu",), (("eagle", "sd"),), batches=(*BATCHES, 32, 64)).rows(["phases.verify.ops_per_byte"])
    return [
        {name: value for name, value in row.items() if not name.startswith("phases")}
        | {"phase": phase, "ops_per_byte": row[f"phases.{phase}.ops_per_byte"]}
        for found, phase in ((plain, "decode"), (drafted, "verify"))
        for row in found
    ]


INTENSITY = Made(
    Figure(
        id="fig1",
        name="intensity",
        charts=(
            Chart(
                kind="line",
                title="Operations per byte",
                x="batch",
                y="ops_per_byte",
                color="model",
                facet="phase",
                log_x=True,
                log_y=True,
                x_title="batch",
                y_title="operations per byte",
                hover=("latency_ms_per_token", "bottleneck"),
            ),
        ),
        commands=tuple(
            command(ops_per_byte=("phases", phase, "ops_per_byte"), where={"phase": phase})
            for phase in ("decode", "verify")
        ),
        section=FIRST_SECTION,
    ),
    _intensity,
)


def _memory(_: Sources) -> Rows:
    keep = [f"memory_bytes.{name}" for name in (*MEMORY.values(), *OUTSIDE.values())]
    study = Study(OURS, (*DRAFTING,), hb_gb=HB_SIZES, batches=(1, 4, 16))
    found = study.rows(keep)
    places = (("HB", MEMORY), ("EXT beside the experts", OUTSIDE))
    return [
        row | {"place": place}
        for place, parts in places
        for row in long_rows(found, {label: f"memory_bytes.{name}" for label, name in parts.items()}, "part", "bytes")
    ]


MEMORY_MAP = Made(
    Figure(
        id="fig8",
        name="memory-map",
        charts=(
            Chart(
                kind="stack",
                title="Bytes in HB",
                x="scheme",
                y="bytes",
                color="part",
                facet="model",
                pick={"hb_gb": 8, "batch": 1},
                where={"place": "HB"},
                y_title="bytes in HB",
                hover=("speedup_vs_xpu",),
            ),
            Chart(
                kind="stack",
                title="KV and draft that no longer fit, in external memory",
                x="scheme",
                y="bytes",
                color="part",
                facet="model",
                pick={"hb_gb": 4, "batch": 16},
                where={"place": "EXT beside the experts"},
                y_title="bytes in EXT",
                hover=("speedup_vs_xpu",),
            ),
        ),
        commands=tuple(
            command(bytes=("memory_bytes", name), where={"part": label, "place": place})
            for place, parts in (("HB", MEMORY), ("EXT beside the experts", OUTSIDE))
            for label, name in parts.items()
        ),
        section=SECTION,
    ),
    _memory,
)


def _breakdown(_: Sources) -> Rows:
    parts = {phase: f"phases.{phase}.ms" for phase in ("draft", "verify")}
    study = Study(OURS, DRAFTING, hb_gb=HB_SIZES)
    return long_rows(study.rows([*parts.values(), "mean_accepted_length"]), parts, "phase", "ms")


PHASES = tuple(
    command("mean_accepted_length", ms=("phases", phase, "ms"), where={"phase": phase}) for phase in ("draft", "verify")
)
BREAKDOWN = Made(
    Figure(
        id="fig9",
        name="breakdown",
        charts=(
            Chart(
                kind="stack",
                title="Milliseconds of one step",
                x="scheme",
                y="ms",
                color="phase",
                facet="model",
                pick={"hb_gb": 8, "batch": 4},
                y_title="ms per step",
                hover=(
                    "mean_accepted_length",
                    "acceptance_rate",
                    "latency_ms_per_token",
                    "speedup_vs_xpu",
                    "bottleneck",
                ),
            ),
            Chart(
                kind="bars",
                title="Accepted draft tokens per step",
                x="scheme",
                y="mean_accepted_length",
                facet="model",
                pick={"hb_gb": 8, "batch": 4},
                where={"phase": "verify"},
                y_title="accepted tokens",
                hover=("acceptance_rate", "latency_ms_per_token", "speedup_vs_xpu"),
            ),
        ),
        commands=PHASES,
        section=SECTION,
    ),
    _breakdown,
)

LATENCY = Made(
    Figure(
        id="fig10",
        name="phases",
        charts=(
            Chart(
                kind="line",
                title="Milliseconds per step",
                x="batch",
                y="ms",
                color="hb_gb",
                dash="phase",
                facet="model",
                pick={"scheme": "elastic"},
                log_x=True,
                x_title="batch",
                y_title="ms per step",
                hover=("mean_accepted_length", "latency_ms_per_token", "bottleneck"),
            ),
        ),
        commands=PHASES,
        section=SECTION,
    ),
    _breakdown,
)


def _locality(_: Sources) -> Rows:
    return Study(OURS, (PLAIN, ("elastic", "sd")), hb_gb=HB_SIZES).rows(["unique_experts", "miss_rate"])


MODEL_LOCALITY = Made(
    Figure(
        id="fig11",
        name="model-locality",
        charts=(
            Chart(
                kind="line",
                title="Distinct experts per layer and pass",
                x="batch",
                y="unique_experts",
                color="model",
                dash="mode",
                pick={"hb_gb": 8},
                log_x=True,
                x_title="batch",
                y_title="distinct experts",
                hover=("miss_rate", "bottleneck"),
            ),
            Chart(
                kind="line",
                title="Share of them that is not in HB",
                x="batch",
                y="miss_rate",
                color="model",
                dash="mode",
                facet="hb_gb",
                log_x=True,
                x_title="batch",
                y_title="miss rate",
                hover=("unique_experts", "bottleneck"),
            ),
        ),
        commands=(command("unique_experts", "miss_rate"),),
        section=SECTION,
    ),
    _locality,
)


def _area(sources: Sources) -> Rows:
    return [dict(row) for row in sources.rows[AREA]]


DIE = Made(
    Figure(
        id="fig12",
        name="area",
        charts=(
            Chart(
                kind="bars",
                title="um2 of ASAP7 cells in one PE",
                x="part",
                y="um2",
                color="design",
                lying=True,
                y_title="um2",
                hover=("status", "source"),
            ),
        ),
        commands=tuple(
            Command(
                ("elmoe rtl area", "--pes {pes}", "--json"),
                {"um2": ("designs", design, "area_um2", {"part": "part"}, "high")},
                {"design": design},
            )
            for design in ("conventional", "augmented")
        ),
        section=SECTION,
    ),
    _area,
    (AREA,),
    lambda rows: {"overhead": _pe(rows, "augmented") / _pe(rows, "conventional") - 1},
)


def _pe(rows: Rows, design: str) -> float:
    return float(sum(row["um2"] for row in chosen(rows, design=design)))


def _schemes(_: Sources) -> Rows:
    return Study(OURS, DRAFTING, hb_gb=HB_SIZES).rows(["mean_accepted_length"])


def _over_eagle(rows: Rows) -> dict[str, float]:
    """Ratio of Elastic-SD to EAGLE-SD at batch 4 and more, both HB sizes."""
    speed = {(r["scheme"], r["model"], r["hb_gb"], r["batch"]): r["speedup_vs_xpu"] for r in rows if r["batch"] >= 4}
    ratios = [speed[key] / speed["eagle", *key[1:]] for key in speed if key[0] == "elastic" and key[3] != 2]
    return {"mean": sum(ratios) / len(ratios), "most": max(ratios)}


SCHEME_SPEED = Made(
    Figure(
        id="fig13",
        name="schemes",
        charts=(
            Chart(
                kind="bars",
                title="Speedup over the xPU",
                x="batch",
                y="speedup_vs_xpu",
                color="scheme",
                facet="model",
                pick={"hb_gb": 8},
                category_x=True,
                x_title="batch",
                y_title="speedup over xPU",
                hover=("acceptance_rate", "mean_accepted_length", "latency_ms_per_token", "bottleneck"),
            ),
        ),
        commands=(command("speedup_vs_xpu", "mean_accepted_length"),),
        section=SECTION,
    ),
    _schemes,
    facts=_over_eagle,
)


def _speedup(_: Sources) -> Rows:
    from elmoe.sim.profile import workloads

    energies = [f"energy_mj_per_token.{name}" for name in ENERGY]
    near = tuple(system for system in SYSTEMS if system not in ("hb-xpu", *OURS))
    ways = {near: ("eagle", "sd"), ("hb-xpu",): ("eagle", "sd"), OURS: ("elastic", "sd")}
    return [
        row
        for systems, drafted in ways.items()
        for row in Study(systems, (PLAIN, drafted), hb_gb=HB_SIZES, workloads=tuple(workloads())).rows(energies)
    ]


SPEEDUP = Made(
    Figure(
        id="fig14",
        name="speedup",
        charts=(
            *(
                Chart(
                    kind="line",
                    title=title,
                    x="batch",
                    y="speedup_vs_xpu",
                    color="system",
                    facet="model",
                    where={"mode": mode},
                    pick={"hb_gb": 8, "workload": "mt-bench"},
                    log_x=True,
                    x_title="batch",
                    y_title="speedup over xPU",
                    hover=(
                        "scheme",
                        "latency_ms_per_token",
                        "energy_mj_per_token.total",
                        "acceptance_rate",
                        "bottleneck",
                    ),
                )
                for mode, title in (("ar", "Plain decoding"), ("sd", "Speculation"))
            ),
        ),
        commands=(command("speedup_vs_xpu", "latency_ms_per_token", "energy_mj_per_token.total"),),
        section=SECTION,
    ),
    _speedup,
    facts=lambda rows: {"mean": _better_mode(rows)},
)


def _better_mode(rows: Rows) -> float:
    """Mean over models, workloads and batches of the better mode of ELMoE-3D at 8 GB."""
    best: dict[tuple[Any, ...], float] = {}
    for row in chosen(rows, system="elmoe-3d", hb_gb=8):
        key = (row["model"], row["workload"], row["batch"])
        best[key] = max(best.get(key, 0.0), row["speedup_vs_xpu"])
    return sum(best.values()) / len(best)


def _energy(sources: Sources) -> Rows:
    rows = [row for row in _speedup(sources) if row["workload"] == "mt-bench"]
    parts = {name: f"energy_mj_per_token.{name}" for name in ENERGY}
    return long_rows(rows, parts, "part", "mj")


ENERGIES = Made(
    Figure(
        id="fig15",
        name="energy",
        charts=(
            Chart(
                kind="stack",
                title="mJ per token",
                x="system",
                y="mj",
                color="part",
                facet="model",
                pick={"hb_gb": 8, "batch": 4, "mode": "ar"},
                y_title="mJ per token",
                hover=("energy_mj_per_token.total", "latency_ms_per_token", "speedup_vs_xpu", "bottleneck"),
            ),
        ),
        commands=tuple(
            command("energy_mj_per_token.total", mj=("energy_mj_per_token", name), where={"part": name})
            for name in ENERGY
        ),
        section=SECTION,
    ),
    _energy,
)


def _table3(_: Sources) -> Rows:
    quoted = [
        {
            "model": cell.quoted.model,
            "system": "elmoe-3d",
            "scheme": cell.quoted.scheme,
            "mode": mode,
            "hb_gb": cell.quoted.hb_gb,
            "batch": cell.quoted.batch,
            "context": 1024,
            "workload": "mt-bench",
            "acceptance": cell.quoted.acceptance_rate if mode == "sd" else None,
            "quoted": getattr(cell.quoted, f"{mode}_speedup"),
            "speedup_vs_xpu": getattr(cell, f"{mode}_speedup"),
        }
        for cell in compare(quoted_cells())
        for mode in ("ar", "sd")
    ]
    ways = [(scheme, mode) for scheme in SCHEMES[1:] for mode in ("ar", "sd")]
    larger = Study(OURS, tuple(ways), hb_gb=(8,), batches=(1, 4, 8, 16)).rows()
    return [row | {"deviation": row["speedup_vs_xpu"] / row["quoted"] - 1} for row in quoted] + [
        row | {"quoted": None, "deviation": None} for row in larger
    ]


TABLE3 = Made(
    Figure(
        id="table3",
        name="table-3",
        charts=(
            Chart(
                kind="points",
                title="Simulated against quoted, 4 GB; the band is 15 %",
                x="quoted",
                y="speedup_vs_xpu",
                color="scheme",
                dash="mode",
                facet="model",
                where={"hb_gb": 4},
                log_x=True,
                log_y=True,
                parity=True,
                x_title="quoted speedup",
                y_title="simulated speedup",
                hover=("batch", "acceptance", "deviation"),
            ),
        ),
        commands=(command("speedup_vs_xpu"),),
        section=SECTION,
    ),
    _table3,
    facts=lambda rows: {mode: _mean_deviation(rows, mode) for mode in ("ar", "sd")},
)


def _mean_deviation(rows: Rows, mode: str) -> float:
    logs = [abs(math.log(1 + row["deviation"])) for row in chosen(rows, mode=mode) if row["deviation"] is not None]
    return sum(logs) / len(logs)


FIGURES: Sequence[Made] = (
    *(INTENSITY, MEMORY_MAP, BREAKDOWN, LATENCY, MODEL_LOCALITY, DIE, SCHEME_SPEED),
    *(TABLE3, SPEEDUP, ENERGIES),
)
