"""Figures that the paper does not have: what the simulator says about questions that come after it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from elmoe.report.figure import Chart, Figure, chosen
from elmoe.report.simulated import BATCHES, PLAIN, Study, command, host_rows, long_rows, machine_rows
from elmoe.report.sources import MACHINES, Made, Sources
from elmoe.sim.host.spec import is_host
from elmoe.sim.model import MODELS
from elmoe.sim.spec import SYSTEMS, load_machine
from elmoe.sim.sweep_rows import pareto

Rows = list[dict[str, Any]]

SECTION = "Beyond the paper"
ELASTIC = ("elastic", "sd")
OURS = ("elmoe-3d",)
BOTH = (PLAIN, ELASTIC)
CONTEXTS = tuple(1024 * 2**power for power in range(8))
SPEEDS = ("speedup_vs_xpu", "latency_ms_per_token")


def _contexts(_: Sources) -> Rows:
    study = Study(OURS, BOTH, hb_gb=(4, 8), batches=(1, 4, 16), contexts=CONTEXTS)
    return study.rows(["cached_experts_per_layer", "speedup_vs_ar"])


LONG_CONTEXT = Made(
    Figure(
        id="fig16",
        name="long-context",
        charts=(
            Chart(
                kind="line",
                title="Speedup over the xPU",
                x="context",
                y="speedup_vs_xpu",
                color="mode",
                facet="model",
                pick={"hb_gb": 8, "batch": 4},
                log_x=True,
                log_y=True,
                x_title="tokens in the cache",
                y_title="speedup over xPU",
                hover=("latency_ms_per_token", "cached_experts_per_layer", "bottleneck"),
            ),
            Chart(
                kind="line",
                title="Whole experts per layer that HB still has room for",
                x="context",
                y="cached_experts_per_layer",
                color="model",
                pick={"hb_gb": 8, "batch": 4},
                where={"mode": "ar"},
                log_x=True,
                x_title="tokens in the cache",
                y_title="experts per layer",
                hover=("speedup_vs_xpu",),
            ),
        ),
        commands=(command("speedup_vs_xpu", "cached_experts_per_layer"),),
        section=SECTION,
    ),
    _contexts,
)

WHAT_IF: dict[str, dict[str, tuple[str, ...]]] = {
    "HB bandwidth x 0.5 / 2": {"less": ("hb.gb_per_s=819.2",), "more": ("hb.gb_per_s=3276.8",)},
    "HB capacity 4 / 16 GB": {"less": ("hb.capacity_gb=4",), "more": ("hb.capacity_gb=16",)},
    "EXT bandwidth x 0.5 / 2": {
        "less": ("ext.gb_per_s=51.2",),
        "more": ("ext.gb_per_s=204.8", "links.streamline_gb_per_s=256"),
    },
    "PEs x 0.5 / 2": {"less": ("compute.pes=16",), "more": ("compute.pes=64",)},
    "reuse in a request 0.5 / 0.9": {"less": ("tree.inside_reuse=0.5",), "more": ("tree.inside_reuse=0.9",)},
    "tree depth 4 / 12": {"less": ("tree.depth=4",), "more": ("tree.depth=12",)},
}
ACCEPTANCE = "acceptance x 0.8 / 1.2"


def _sensitivity(_: Sources) -> Rows:
    base = _elastic((), None)
    found = [row | {"parameter": "as built", "side": "base"} for row in base]
    for parameter, sides in WHAT_IF.items():
        for side, vary in sides.items():
            found += [row | {"parameter": parameter, "side": side} for row in _elastic(vary, None)]
    for row in base:
        for side, factor in (("less", 0.8), ("more", 1.2)):
            rate = round(min(1.0, factor * row["acceptance_rate"]), 4)
            point = Study(OURS, (ELASTIC,), (row["model"],), batches=(row["batch"],), acceptance=rate)
            found += [other | {"parameter": ACCEPTANCE, "side": side} for other in point.rows()]
    return found


def _elastic(vary: tuple[str, ...], acceptance: float | None) -> Rows:
    return Study(OURS, (ELASTIC,), batches=(1, 4, 16), acceptance=acceptance, vary=vary).rows()


SENSITIVITY = Made(
    Figure(
        id="fig17",
        name="sensitivity",
        charts=(
            Chart(
                kind="tornado",
                title="ms per token",
                x="latency_ms_per_token",
                y="parameter",
                color="side",
                facet="model",
                pick={"batch": 4},
                x_title="ms per token",
                hover=("vary", "acceptance_rate", "speedup_vs_xpu", "bottleneck"),
            ),
        ),
        commands=(command("latency_ms_per_token"),),
        section=SECTION,
    ),
    _sensitivity,
)

RATES = tuple(round(0.1 * step, 1) for step in range(1, 11))
REUSES = (0, 0.25, 0.5, 0.75, 0.9)


def _when_sd(_: Sources) -> Rows:
    return [
        row | {"reuse": reuse}
        for reuse in REUSES
        for rate in RATES
        for row in Study(
            OURS, (ELASTIC,), batches=(*BATCHES, 32, 64), acceptance=rate, vary=(f"tree.inside_reuse={reuse}",)
        ).rows(["speedup_vs_ar", "unique_experts"])
    ]


WHEN_SD = Made(
    Figure(
        id="fig18",
        name="sd-or-ar",
        charts=(
            Chart(
                kind="heat",
                title="Speed of Elastic-SD over plain decoding",
                x="batch",
                y="acceptance",
                z="speedup_vs_ar",
                facet="reuse",
                pick={"model": MODELS[0]},
                category_x=True,
                x_title="batch",
                y_title="acceptance rate",
                z_title="SD / AR",
                middle=1.0,
                hover=("latency_ms_per_token", "unique_experts", "bottleneck"),
            ),
        ),
        commands=(command("speedup_vs_ar", "unique_experts"),),
        section=SECTION,
    ),
    _when_sd,
)


def _refresh(_: Sources) -> Rows:
    names = {
        "none": (),
        "per bank": ("ext.refresh=pb", "hb.refresh=pb"),
        "all banks": ("ext.refresh=ab", "hb.refresh=ab"),
    }
    return [
        row | {"refresh": name}
        for name, vary in names.items()
        for row in Study(OURS, BOTH, batches=(1, 4, 16), vary=vary).rows(["tokens_per_s"])
    ]


REFRESH = Made(
    Figure(
        id="fig19",
        name="refresh",
        charts=(
            Chart(
                kind="bars",
                title="Tokens per second of the batch",
                x="mode",
                y="tokens_per_s",
                color="refresh",
                facet="model",
                pick={"batch": 4},
                category_x=True,
                own_scale=True,
                y_title="tokens per second",
                hover=("latency_ms_per_token", "speedup_vs_xpu", "bottleneck"),
            ),
        ),
        commands=(command("tokens_per_s"),),
        section=SECTION,
    ),
    _refresh,
    facts=lambda rows: {"pb": _loss(rows, "per bank"), "ab": _loss(rows, "all banks")},
)


def _loss(rows: Rows, refresh: str) -> float:
    pairs = zip(chosen(rows, refresh="none"), chosen(rows, refresh=refresh), strict=True)
    ratios = [slow["tokens_per_s"] / fast["tokens_per_s"] for fast, slow in pairs]
    return 1 - sum(ratios) / len(ratios)


def _named(rows: Rows) -> Rows:
    """With a name for system and mode together."""
    short = {"ar": "AR", "sd": "SD"}
    return [row | {"way": f"{row['system']}, {short[row['mode']]}"} for row in rows]


def _ways(system: str) -> tuple[tuple[str, str], ...]:
    scheme = load_machine(system).scheme
    return (PLAIN,) if scheme == "none" else (PLAIN, (scheme, "sd"))


COSTS = ("energy", "hardware")


def _cost(_: Sources) -> Rows:
    parts = {name: f"cost_usd_per_million_tokens.{name}" for name in COSTS}
    keep = [*parts.values(), "cost_usd_per_million_tokens.total"]
    found = [row for system in SYSTEMS for row in Study((system,), _ways(system), hb_gb=(4, 8)).rows(keep)]
    return _named(long_rows(found, parts, "part", "usd"))


COST = Made(
    Figure(
        id="fig20",
        name="cost",
        charts=(
            Chart(
                kind="stack",
                title="USD per million tokens",
                x="way",
                y="usd",
                color="part",
                facet="model",
                pick={"hb_gb": 8, "batch": 4},
                y_title="USD per million tokens",
                hover=(
                    "cost_usd_per_million_tokens.total",
                    "latency_ms_per_token",
                    "energy_mj_per_token.total",
                    "bottleneck",
                ),
            ),
        ),
        commands=tuple(
            command(
                "cost_usd_per_million_tokens.total",
                usd=("cost_usd_per_million_tokens", name),
                where={"part": name},
            )
            for name in COSTS
        ),
        section=SECTION,
    ),
    _cost,
)


def _given(sources: Sources, keep: Sequence[str] = ()) -> Rows:
    """Accelerators of files, in plain decoding and with the scheme that each is for."""
    found: Rows = []
    for given in sources.machines:
        if is_host(given.path):
            continue
        machine = load_machine(given.path)
        scheme = machine.scheme if machine.scheme != "none" else "elastic"
        found += machine_rows(machine, given.path, (PLAIN, (scheme, "sd")), keep)
    return found


def _shown(rows: Iterable[dict[str, Any]]) -> Rows:
    """Built-in systems, under the names that machines of files have."""
    return [row | {"shown_system": row["system"], "system_file": None} for row in rows]


def _front(sources: Sources) -> Rows:
    sizes = {system: (4, 8, 16) if system in ("hb-xpu", "elmoe-3d") else (4, 8) for system in SYSTEMS}
    studies = (Study((name,), _ways(name), hb_gb=sizes[name], batches=(1, 4, 16)) for name in SYSTEMS)
    built_in = _shown(row for study in studies for row in study.rows())
    shown = built_in + [row for row in _given(sources) if row["batch"] in (1, 4, 16)]
    same = [row | {"acceptance": None} for row in shown]  # compared whatever was assumed about acceptance
    return [row | {"front": mark} for row, mark in zip(shown, pareto(same), strict=True)]


FRONT = Made(
    Figure(
        id="fig21",
        name="pareto",
        charts=(
            Chart(
                kind="points",
                title="mJ per token against ms per token",
                x="latency_ms_per_token",
                y="energy_mj_per_token.total",
                color="shown_system",
                dash="mode",
                facet="model",
                pick={"batch": 4},
                log_x=True,
                log_y=True,
                x_title="ms per token",
                y_title="mJ per token",
                mark="front",
                hover=("hb_gb", "scheme", "speedup_vs_xpu", "bottleneck"),
            ),
        ),
        commands=(command("latency_ms_per_token", "energy_mj_per_token.total"),),
        section=SECTION,
    ),
    _front,
    uses=(MACHINES,),
)


def _machines(sources: Sources) -> Rows:
    keep = ("tokens_per_s", "speedup_vs_ar")
    built_in = (*Study(SYSTEMS, (PLAIN,)).rows(keep), *Study(OURS, (ELASTIC,)).rows(keep))
    hosts = [row for one in sources.machines if is_host(one.path) for row in host_rows(one.path, keep)]
    return _given(sources, keep) + hosts + _shown(built_in)


GIVEN = Made(
    Figure(
        id="fig22",
        name="machines",
        charts=(
            Chart(
                kind="line",
                title="Tokens per second of the batch",
                x="batch",
                y="tokens_per_s",
                color="shown_system",
                dash="mode",
                facet="model",
                log_x=True,
                log_y=True,
                x_title="batch",
                y_title="tokens per second",
                hover=("latency_ms_per_token", "energy_mj_per_token.total", "bottleneck"),
            ),
            Chart(
                kind="line",
                title="Speed of SD over plain decoding",
                x="batch",
                y="speedup_vs_ar",
                color="shown_system",
                facet="model",
                where={"mode": "sd"},
                log_x=True,
                x_title="batch",
                y_title="SD / AR",
                hover=("latency_ms_per_token", "acceptance_rate", "bottleneck"),
            ),
        ),
        commands=(command("tokens_per_s", "speedup_vs_ar"),),
        section=SECTION,
    ),
    _machines,
    (MACHINES,),
)

FIGURES: Sequence[Made] = (LONG_CONTEXT, SENSITIVITY, WHEN_SD, REFRESH, COST, FRONT, GIVEN)
