"""The page that `elmoe demo` writes: one HTML file that shows what happened, without network, scripts or fonts.

Takes plain values and knows nothing about the engine. The same report gives the same bytes.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup, escape

from elmoe.models.shape import ModelShape
from elmoe.sim.own_trace import OwnTrace
from elmoe.trace.atomic import atomic_file, storage_errors
from elmoe.trace.pool_activity import PoolActivity
from elmoe.trace.schema import Acceptance, PassKind

DEFINED = ("acceptance_rate", "level_acceptance", "mean_accepted_length", "coverage")
KIND_NAMES = {
    PassKind.PREFILL: "prefill",
    PassKind.AR: "plain step",
    PassKind.DRAFT: "draft",
    PassKind.VERIFY: "verify",
}


@dataclass(frozen=True)
class AnswerPiece:
    """The text of one generated token."""

    text: str
    """May be empty: a stop token, or a token that ends inside a character."""
    drafted: bool
    """The draft had proposed the token and the target accepted it."""


@dataclass(frozen=True)
class Answer:
    """One prompt and what the model said."""

    prompt: str
    pieces: tuple[AnswerPiece, ...]
    finish_reason: str
    acceptance: Mapping[str, Any]
    """`Acceptance.as_dict()` of this request, decoded with SD."""


@dataclass(frozen=True)
class DemoReport:
    """All that the page says. Both arms ran the same prompts."""

    model: str
    shape: ModelShape
    backend: str
    machine: str
    """The machine in words, such as `2 cores of an AMD EPYC 9B14, 8 GB`."""
    settings: Mapping[str, object]
    """The resolved configuration: speculation, pool, batch, sampling."""
    lossless: bool
    """Both arms gave the same tokens."""
    ar_stats: Mapping[str, Any]
    """`RunStats.as_dict()` of plain decoding."""
    sd_stats: Mapping[str, Any]
    """`RunStats.as_dict()` of Elastic-SD."""
    answers: tuple[Answer, ...]
    pool: PoolActivity
    """From the trace of the SD arm."""
    simulated: OwnTrace
    """That trace on the simulated accelerators."""

    @property
    def ratio(self) -> float:
        """Decode speed of SD over AR."""
        plain = self.ar_stats["decode_tok_s"]
        return float(self.sd_stats["decode_tok_s"] / plain) if plain else 0.0


@dataclass(frozen=True)
class Bar:
    """Weight bytes per generated token on one tier in one arm, stacked by kind of pass."""

    arm: str
    tier: str
    parts: tuple[tuple[str, float], ...]
    """(kind, bytes per token)."""

    @property
    def total(self) -> float:
        """Bytes per token."""
        return sum(size for _, size in self.parts)


@dataclass(frozen=True)
class Cell:
    """One expert in the heat map."""

    expert: int
    hotness: float
    residency: float
    shade: float
    """Hotness relative to the hottest expert of the map."""


def write_demo_page(path: Path, demo: DemoReport) -> None:
    """Write the page; it appears whole or not at all. Raises StorageError if it cannot be written."""
    html = render_demo_page(demo).encode("utf-8", errors="replace")
    with atomic_file(path) as file, storage_errors(path):
        file.write(html)


def render_demo_page(demo: DemoReport) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": _percent, "size": _size, "count": _count, "exact": _exact}
    source = (files("elmoe.report") / "templates" / "demo.html.j2").read_text(encoding="utf-8")
    bars = _bars(demo)
    return environment.from_string(source).render(
        demo=demo,
        version=importlib.metadata.version("elmoe"),
        settings=list(_flat(demo.settings)),
        definitions=[(name, getattr(Acceptance, name).__doc__.replace("``", "")) for name in DEFINED],
        bars=bars,
        widest=max((bar.total for bar in bars), default=0.0) or 1.0,
        arms=_arms(demo),
        heat=_heat(demo.pool),
        machines=_machines(demo.simulated),
        hottest=float(demo.pool.hotness.max(initial=0.0)),
    )


def _bars(demo: DemoReport) -> list[Bar]:
    """Tier by tier, plain decoding above SD."""
    kinds = {"Plain": (PassKind.AR,), "Elastic-SD": (PassKind.DRAFT, PassKind.VERIFY, PassKind.AR)}
    bars = []
    for tier in ("slow", "fast"):
        for arm, stats in (("Plain", demo.ar_stats), ("Elastic-SD", demo.sd_stats)):
            tokens = max(stats["emitted"], 1)
            sizes = [(kind, stats["passes"][kind.value][f"{tier}_bytes_read"] / tokens) for kind in kinds[arm]]
            bars.append(Bar(arm, tier, tuple((kind.value, size) for kind, size in sizes if size)))
    return bars


def _arms(demo: DemoReport) -> list[tuple[str, list[dict[str, Any]]]]:
    """Rows of the table of passes, by arm; kinds that did not occur are left out."""
    arms = []
    for arm, stats in (("Plain decoding", demo.ar_stats), ("Elastic-SD", demo.sd_stats)):
        totals = [(kind, stats["passes"][kind.value]) for kind in PassKind]
        rows = [{"name": KIND_NAMES[kind]} | dict(values) for kind, values in totals if values["passes"]]
        arms.append((arm, rows))
    return arms


def _machines(simulated: OwnTrace) -> list[dict[str, Any]]:
    """One line per accelerator: time and energy per token, and where they go."""
    slowest = max(row["latency_ms_per_token"] for row in simulated.rows)
    return [
        {
            "name": row["system"],
            "mode": "plain" if row["mode"] == "ar" else f"{row['scheme']}-SD",
            "latency_us": 1e3 * row["latency_ms_per_token"],
            "width": row["latency_ms_per_token"] / slowest,
            "speedup": row["speedup_vs_xpu"],
            "energy_uj": 1e3 * row["energy_mj_per_token"]["total"],
            "bottleneck": row["bottleneck"],
        }
        for row in simulated.rows
    ]


def _heat(pool: PoolActivity) -> list[list[Cell]]:
    """Cells by MoE layer, the hottest expert of each layer first."""
    hottest = float(pool.hotness.max(initial=0.0)) or 1.0
    order = np.argsort(-pool.hotness, axis=1, kind="stable")
    return [
        [
            Cell(int(expert), float(hotness[expert]), float(resident[expert]), float(hotness[expert]) / hottest)
            for expert in experts
        ]
        for hotness, resident, experts in zip(pool.hotness, pool.residency, order, strict=True)
    ]


def _flat(settings: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Settings with nested ones as `outer.inner`."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _size(count: float) -> str:
    """Bytes with a decimal unit and three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n\r"} | {0x7F: 0x2421}
"""Control characters, which HTML forbids, to their pictures."""


def _exact(text: str) -> Markup:
    """Model text, escaped so that every character of it arrives."""
    return Markup(str(escape(text.translate(PICTURES))).replace("\r", "&#13;"))
