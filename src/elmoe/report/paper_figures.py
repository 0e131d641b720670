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

SECTION = "The paper's machine, simulated"
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
        title="A batch hardly raises the arithmetic intensity of a Mixture of Experts",
        evidence="simulated",
        says="Operations per byte of weights and KV that a pass reads. The xPU of 524 TOPS and 102.4 GB/s would need 5,120 to be "
        "kept busy; decoding 64 sequences at once reaches about a hundredth of that, because more tokens also pick more experts.",
        how="Two operations per multiply-accumulate; FP16 attention counts as two passes of the 8-bit array. <em>decode</em>: one token "
        "per sequence; <em>verify</em>: 13 tokens per sequence, as after an EAGLE draft.",
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
        section=SECTION,
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
        title="What lies in the stacked memory under each scheme",
        evidence="simulated",
        says="A separate draft takes room from the expert cache: the small model 1.6 GB and its KV, the 4-bit copy half of the dense "
        "weights once more. Elastic-SD adds nothing, so its pool is the largest.",
        how="Placement in the paper's order: static weights, KV cache, what the draft needs, then experts. INT8 with FP16 scales per 32 "
        "weights, FP16 KV, context 1,024.",
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
        title="What a speculative step costs, and how many tokens it brings",
        evidence="simulated",
        says="Elastic-SD drafts from HB alone, so its drafts are nearly as cheap as a light head's, and it accepts several times as "
        "many tokens. The 4-bit copy accepts most and drafts slowest: its experts come from external memory.",
        how="Tree of width 10, depth 8, 12 verified tokens for all schemes. Accepted length = acceptance rate x depth. Acceptance of EAGLE, "
        "small model and 4-bit copy as quoted in table 3 (MT-Bench); that of Elastic-SD follows from the pool.",
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
                hover=("mean_accepted_length", "acceptance_rate", "latency_ms_per_token", "speedup_vs_xpu", "bottleneck"),
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
        title="Draft and verify latency against batch and HB size",
        evidence="simulated",
        says="With twice the HB the draft halves: capacity comes with banks, and banks with bandwidth. Verification is bound by external "
        "memory, which a larger pool relieves.",
        how="All draft passes of a step together, one verify pass. One PE and one bank per 0.25 GB.",
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
        title="Distinct experts and misses of the paper's four models",
        evidence="simulated",
        says="A verify pass of 13 tokens per sequence reads more distinct experts than plain decoding, but fewer than as many strangers "
        "would. In SD the pool cannot hit more than it holds, so misses grow with the batch.",
        how="Profiles calibrated on the 4 GB half of table 3: uniform choice for distinct experts, a power law and Che's approximation for "
        "misses. In plain decoding the misses follow the paper's rule, the miss ratio of single accesses, and so do not depend on the "
        "batch except through the room that KV leaves.",
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
        title="Area of a PE, by part",
        evidence="synthesised",
        says="LSB augmentation adds {overhead:.2%} to the PE. The exact group scale, which keeps the result bit-identical with the engine, is larger "
        "than the dot products. The paper quotes 93 % of the die for its PEs; this model has nothing but PEs, so the two cannot be compared.",
        how="ASAP7 cells after synthesis, no wires and no clock tree; each part says whether it was measured, extrapolated or published "
        "(docs/rtl.md). Vector unit, HB controller and links are not in it.",
        charts=(
            Chart(
                kind="bars",
                title="um2 of ASAP7 cells in one PE",
                x="part",
                y="um2",
                color="design",
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


SCHEME_SPEED = Made(
    Figure(
        id="fig13",
        name="schemes",
        title="Four ways to speculate on the same machine",
        evidence="simulated",
        says="From batch 4 on Elastic-SD is {mean:.2f} times as fast as EAGLE-SD on average (the paper quotes 1.45) and {most:.2f} times at most (quoted: 2.08).",
        how="All on ELMoE-3D, same tree, same HB. MT-Bench acceptance.",
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
    facts=lambda rows: _over_eagle(rows),
)


def _over_eagle(rows: Rows) -> dict[str, float]:
    """Ratio of Elastic-SD to EAGLE-SD at batch 4 and more, both HB sizes."""
    speed = {(r["scheme"], r["model"], r["hb_gb"], r["batch"]): r["speedup_vs_xpu"] for r in rows if r["batch"] >= 4}
    ratios = [speed[key] / speed["eagle", *key[1:]] for key in speed if key[0] == "elastic" and key[3] != 2]
    return {"mean": sum(ratios) / len(ratios), "most": max(ratios)}



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
        title="Speedup over the xPU: six systems, four models, four workloads",
        evidence="simulated",
        says="At 8 GB ELMoE-3D in its better mode averages {mean:.1f} times the xPU. Plain decoding wins at small batches, where HB caches most of "
        "what is needed; speculation wins at large ones.",
        how="Plain decoding (AR) without any draft in memory, and speculation (SD): Elastic-SD on ELMoE-3D, EAGLE-SD on the others. Same "
        "compute in all systems. The four workloads are equal here, because acceptance rates are at hand for MT-Bench alone.",
        charts=(
            Chart(
                kind="line",
                title="Speedup over the xPU",
                x="batch",
                y="speedup_vs_xpu",
                color="system",
                dash="mode",
                facet="model",
                pick={"hb_gb": 8, "workload": "mt-bench"},
                log_x=True,
                x_title="batch",
                y_title="speedup over xPU",
                hover=("scheme", "latency_ms_per_token", "energy_mj_per_token.total", "acceptance_rate", "bottleneck"),
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
        title="Where the energy of a token goes",
        evidence="simulated",
        says="External memory takes most of the xPU's energy; what HB serves costs a ninth per bit. Static power is an assumption and a "
        "third of the xPU's energy at batch 1.",
        how="mJ per token: multiply-accumulates, bits of both memories, bits over links, static power times time. Energies per operation "
        "are assumed where the paper does not say (see the machines below).",
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
        title="Table 3: speedup of every scheme, plain and speculative",
        evidence="simulated, beside quoted",
        says="Mean deviation, |ln(simulated / quoted)|, over the 4 GB half: {ar:.0%} in plain decoding, {sd:.0%} in speculative decoding. Cells that differ by more than "
        "15 % are listed with the reason.",
        how="MT-Bench, context 1,024. 4 GB: simulated with the quoted acceptance rates as input, and the profiles calibrated on these "
        "very cells (docs/validation.md). 8 GB: simulated only; no quoted numbers are used, and Elastic-SD's acceptance follows from the pool.",
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
