"""Figures about models, from what the engine measured. Rows come as plain data (`sources.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from elmoe.report.figure import Chart, Command, Figure, chosen
from elmoe.report.simulated import Study, command
from elmoe.report.sources import ELASTICITY, LOCALITY, Made, Sources
from elmoe.sim.model import SCALE_BYTES, load_model

Rows = list[dict[str, Any]]

SECTION = "Models, measured with the engine"
LIMITS = ("--limit {limit}", "--max-tokens {max_tokens}", "--json")
GRID = Command(
    ("elmoe elasticity {measured_model}", "--prompts {prompts}", *LIMITS),
    {"agreement": ("grid", {k: k for k in ("bits", "pool_fraction", "treatment", "pool")}, "agreement")},
    {"kind": "measured"},
)
HOW = (
    "The embedded model has 32 experts, top-4, 28.9 M parameters: real weights, but far smaller than the paper's models, and better at some "
    "of these texts than at others. Greedy; prompts as shipped (<code>chat</code>, <code>math</code>, <code>instructions</code>, "
    "<code>code</code>) unless files are given."
)


def _locality(part: str, *keys: str, value: str) -> Command:
    match = {key: key for key in keys}
    return Command(
        ("elmoe locality {measured_model}", "--prompts {prompts}", *LIMITS),
        {value: (part, match, value)},
        {"kind": part},
    )


def _measured(sources: Sources, source: str, *kinds: str) -> Rows:
    return [dict(row) for row in sources.rows[source] if row["kind"] in kinds]


def _activation(sources: Sources) -> Rows:
    simulated = Study(("elmoe-3d",), (("none", "ar"), ("elastic", "sd"))).rows(["unique_experts"])
    return _measured(sources, LOCALITY, "activation") + [row | {"kind": "simulated"} for row in simulated]


ACTIVATION = Made(
    Figure(
        id="fig2",
        name="activation",
        title="Verification activates more experts than plain decoding, but not per token",
        evidence="measured; simulated for the paper's models",
        says="A verify pass carries a tree of tokens and so touches more experts. Divided by the tokens that it brings, speculation reads "
        "fewer from batch 2 on with the embedded model: rejected tokens cost less than shared experts save.",
        how=HOW + " Elastic-SD with width 2, depth 4, 8 verified tokens, half of the experts in the pool.",
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
            _locality("activation", "mode", "batch", value="experts_per_pass"),
            command("unique_experts", where={"kind": "simulated"}),
        ),
        section=SECTION,
    ),
    _activation,
    (LOCALITY,),
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
        title="How often a draft of fewer bits and fewer experts agrees with its target",
        evidence="measured; what fits is simulated",
        says="Right of a line the draft does not fit the stacked memory of a machine that runs the named model. 4 bits lose little, and "
        "buy twice the experts of 8 bits: that is the trade which Elastic-SD makes.",
        how=HOW + " Agreement: share of positions at which the draft, fed from the target's own KV cache, has the same most likely token. Hot pools, "
        "LSB-augmented slices (8 bits: whole weights). Lines: experts of the paper's INT8 models that fit 8 or 4 GB at batch 1 beside dense weights "
        "and KV, b bits and a scale per weight; the agreement of those models is not known here. GPT-OSS has no slices to drop.",
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
        title="Distinct experts inside a request and across requests",
        evidence="measured",
        says="Successive tokens of one request repeat experts more than tokens of different requests do: a draft tree is cheaper to verify "
        "than a batch of as many strangers.",
        how=HOW + " Inside: consecutive decoded tokens of one request, mean over all places. Across: one token from each of as many requests, mean "
        "over all choices. Mean over layers.",
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
        commands=(_locality("unique", "where", "tokens", value="experts_per_layer"),),
        section=SECTION,
    ),
    lambda sources: _measured(sources, LOCALITY, "unique"),
    (LOCALITY,),
)

MISSES = Made(
    Figure(
        id="fig5",
        name="misses",
        title="Miss rate of expert caches against batch and size",
        evidence="measured routing, exact replay",
        says="LRU loses more to the optimum (Belady) the larger the batch; the engine's hotness rule is close to LRU. With all experts cached "
        "what is left are first reads.",
        how=HOW + " Routing of plain decoding, regrouped to the batch; each layer has a cache of its own, empty at first; a pass reads its distinct experts "
        "at once.",
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
        commands=(_locality("misses", "batch", "policy", "capacity_share", value="miss_rate"),),
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
        title="Hot pools against random ones",
        evidence="measured",
        says="With half of the experts at 4 bits, a pool of the experts used last agrees {more:.0%} more often than a random one. The paper quotes about "
        "22 % more acceptance, for its models and sizes of pools: with fewer experts per layer a random half misses more of what a token wants, so the "
        "embedded model shows a larger difference.",
        how=HOW + " A pool is fixed for 8 positions; hot: the most used in the 32 positions before.",
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
        title="Augmentation against rounding, truncation and a dedicated copy",
        evidence="measured",
        says="The augmented slice is stored bits only, as the truncated one is; half a unit added makes a draft of it. Truncation is useless "
        "at 4 bits and below. The paper reports that rounding collapses below 4 bits; on this model it does not.",
        how=HOW + " All experts in the pool. <em>augment</em>: the upper bits and a constant half unit; <em>round</em>: nearest upper bits; "
        "<em>truncate</em>: upper bits alone; <em>dedicated</em>: a copy with group scales of its own.",
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
