"""Figures about models, from what the engine measured. Rows come as plain data (`sources.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from elmoe.report.figure import Chart, Command, Figure, chosen
from elmoe.report.paper_figures import FIRST_SECTION as SECTION
from elmoe.report.simulated import Study, command
from elmoe.report.sources import ELASTICITY, LOCALITY, Made, Sources
from elmoe.sim.model import SCALE_BYTES, load_model

Rows = list[dict[str, Any]]

LIMITS = ("--limit {limit}", "--max-tokens {max_tokens}", "--json")
GRID = Command(
    ("elmoe elasticity {measured_model}", "--prompts {prompts}", *LIMITS),
    {"agreement": ("grid", {k: k for k in ("bits", "pool_fraction", "treatment", "pool")}, "agreement")},
    {"kind": "measured"},
)


def _locality(part: str, *keys: str, values: tuple[str, ...]) -> Command:
    match = {key: key for key in keys}
    return Command(
        ("elmoe locality {measured_model}", "--prompts {prompts}", *LIMITS),
        {value: (part, match, value) for value in values},
        {"kind": part},
    )


def _measured(sources: Sources, source: str, *kinds: str) -> Rows:
    return [dict(row) for row in sources.rows[source] if row["kind"] in kinds]


def _activation(sources: Sources) -> Rows:
    simulated = Study(("elmoe-3d",), (("none", "ar"), ("elastic", "sd"))).rows(["unique_experts"])
    return _measured(sources, LOCALITY, "activation") + [row | {"kind": "simulated"} for row in simulated]


def _per_token(rows: Rows) -> dict[str, float]:
    """In how many cases speculation reads fewer experts per token."""
    measured = chosen(rows, kind="activation")
    cases = {(row["mode"], row["measured_model"], row["workload"], row["batch"]): row for row in measured}
    plain = {key[1:]: row["experts_per_token"] for key, row in cases.items() if key[0] == "ar"}
    fewer = [cases["sd", *key]["experts_per_token"] < value for key, value in plain.items()]
    return {"fewer": sum(fewer), "points": len(fewer)}


ACTIVATION = Made(
    Figure(
        id="fig2",
        name="activation",
        charts=(
            Chart(
                kind="bars",
                title="Measured: distinct experts per layer and pass",
                x="batch",
                y="experts_per_pass",
                color="mode",
                facet="workload",
                pick={"measured_model": "tiny"},
                where={"kind": "activation"},
                category_x=True,
                x_title="batch",
                y_title="experts per pass",
                hover=("tokens_per_pass", "sequences_per_pass", "experts_per_token"),
            ),
            Chart(
                kind="bars",
                title="Measured: the same per decoded token",
                x="batch",
                y="experts_per_token",
                color="mode",
                facet="workload",
                pick={"measured_model": "tiny"},
                where={"kind": "activation"},
                category_x=True,
                x_title="batch",
                y_title="experts per token",
                hover=("tokens_per_pass", "sequences_per_pass", "experts_per_pass"),
            ),
            Chart(
                kind="bars",
                title="Simulated: distinct experts per layer and pass, 13 tokens per sequence in SD",
                x="batch",
                y="unique_experts",
                color="mode",
                facet="model",
                where={"kind": "simulated"},
                category_x=True,
                x_title="batch",
                y_title="experts per pass",
                hover=("speedup_vs_xpu", "bottleneck"),
            ),
        ),
        commands=(
            _locality("activation", "mode", "batch", values=("experts_per_pass", "experts_per_token")),
            command("unique_experts", where={"kind": "simulated"}),
        ),
        section=SECTION,
    ),
    _activation,
    (LOCALITY,),
    _per_token,
)


def _elasticity(sources: Sources) -> Rows:
    grid = [row for row in _measured(sources, ELASTICITY, "measured") if row["pool"] == "hot"]
    drawn = [row for row in grid if row["treatment"] in ("augment", "none")]
    room = Study(("elmoe-3d",), (("elastic", "sd"),), hb_gb=(4, 8), batches=(1,)).rows(["memory_bytes.hb_experts"])
    return drawn + [fitting for row in room for fitting in _fitting(row)]


def _fitting(row: dict[str, Any]) -> Rows:
    """The share of a model's experts that fits beside the rest, by bits."""
    model = load_model(row["model"])
    weights = model.moe_layers * model.experts * model.expert_params
    rows = []
    for bits in range(2, 9):
        size = weights * (bits / 8 + SCALE_BYTES)
        share = min(1.0, row["memory_bytes.hb_experts"] / size)
        if not model.mxfp4_experts and share < 1:
            more = {"kind": "fits", "bits": bits, "fits_share": share, "share_per_byte": 1 / size}
            rows.append({name: row[name] for name in row if name != "memory_bytes.hb_experts"} | more)
    return rows


ELASTIC = Made(
    Figure(
        id="fig3",
        name="elasticity",
        charts=(
            Chart(
                kind="heat",
                title="Agreement of draft and target",
                x="pool_fraction",
                y="bits",
                z="agreement",
                facet="workload",
                pick={"measured_model": "tiny", "hb_gb": 8},
                where={"kind": "measured"},
                outline={"kind": "fits"},
                outline_x="fits_share",
                outline_color="model",
                x_title="share of experts in the pool",
                y_title="draft bits",
                z_title="agreement",
                hover=("overlap", "positions"),
            ),
        ),
        commands=(
            GRID,
            Command(
                command().parts,
                {"fits_share": ("rows", 0, "memory_bytes", "hb_experts")},
                {"kind": "fits"},
                {"fits_share": "share_per_byte"},
            ),
        ),
        section=SECTION,
    ),
    _elasticity,
    (ELASTICITY,),
)

UNIQUE = Made(
    Figure(
        id="fig4",
        name="unique-experts",
        charts=(
            Chart(
                kind="line",
                title="Distinct experts per layer",
                x="tokens",
                y="experts_per_layer",
                color="where",
                facet="workload",
                pick={"measured_model": "tiny"},
                x_title="tokens",
                y_title="distinct experts",
            ),
        ),
        commands=(_locality("unique", "where", "tokens", values=("experts_per_layer",)),),
        section=SECTION,
    ),
    lambda sources: _measured(sources, LOCALITY, "unique"),
    (LOCALITY,),
)

MISSES = Made(
    Figure(
        id="fig5",
        name="misses",
        charts=(
            Chart(
                kind="line",
                title="Miss rate against batch",
                x="batch",
                y="miss_rate",
                color="policy",
                facet="workload",
                pick={"measured_model": "tiny", "capacity_share": 0.5},
                log_x=True,
                x_title="batch",
                y_title="misses per read",
            ),
            Chart(
                kind="line",
                title="Miss rate against the share of experts cached",
                x="capacity_share",
                y="miss_rate",
                color="policy",
                facet="workload",
                pick={"measured_model": "tiny", "batch": 4},
                x_title="share of experts cached",
                y_title="misses per read",
            ),
        ),
        commands=(_locality("misses", "batch", "policy", "capacity_share", values=("miss_rate",)),),
        section=SECTION,
    ),
    lambda sources: _measured(sources, LOCALITY, "misses"),
    (LOCALITY,),
)


def _pools(sources: Sources) -> Rows:
    rows = _measured(sources, ELASTICITY, "measured")
    return [row for row in rows if row["bits"] in (4, 8) and row["treatment"] in ("augment", "none")]


def _hot_over_random(rows: Rows) -> dict[str, float]:
    """Mean ratio of agreements at 4 bits with half of the experts."""
    hot, random = (chosen(rows, pool=pool, bits=4, pool_fraction=0.5) for pool in ("hot", "random"))
    at = {(row["measured_model"], row["workload"]): row["agreement"] for row in random}
    ratios = [row["agreement"] / at[row["measured_model"], row["workload"]] for row in hot]
    return {"more": sum(ratios) / len(ratios) - 1}


POOLS = Made(
    Figure(
        id="fig6",
        name="pools",
        charts=(
            Chart(
                kind="line",
                title="Agreement of draft and target",
                x="pool_fraction",
                y="agreement",
                color="pool",
                dash="bits",
                facet="workload",
                pick={"measured_model": "tiny"},
                x_title="share of experts in the pool",
                y_title="agreement",
                hover=("overlap", "positions"),
            ),
        ),
        commands=(GRID,),
        section=SECTION,
    ),
    _pools,
    (ELASTICITY,),
    _hot_over_random,
)


def _treatments(sources: Sources) -> Rows:
    rows = _measured(sources, ELASTICITY, "measured")
    return [row for row in rows if row["bits"] < 8 and row["pool_fraction"] == 1]


TREATMENTS = Made(
    Figure(
        id="fig7",
        name="treatments",
        charts=(
            Chart(
                kind="line",
                title="Agreement of draft and target",
                x="bits",
                y="agreement",
                color="treatment",
                facet="workload",
                pick={"measured_model": "tiny"},
                x_title="draft bits",
                y_title="agreement",
                hover=("overlap", "positions"),
            ),
        ),
        commands=(GRID,),
        section=SECTION,
    ),
    _treatments,
    (ELASTICITY,),
)

FIGURES: Sequence[Made] = (ACTIVATION, ELASTIC, UNIQUE, MISSES, POOLS, TREATMENTS)
