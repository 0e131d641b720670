"""`elmoe reproduce`: the paper's tables and figures, from simulator, engine and RTL, into one page."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from elmoe.cli.console import Json, emit_json, err, out, progress_bar, say, table
from elmoe.cli.report_sources import gather, prompt_sets
from elmoe.errors import ConfigError, StorageError
from elmoe.report import images
from elmoe.report.catalogue import draw, wanted
from elmoe.report.deviations import headline_deviations, table3_deviations
from elmoe.report.methods import assumptions
from elmoe.report.reproduction import Drawn, Reproduction, plotly_js, write_page
from elmoe.report.sources import GivenMachine, Made, Sources
from elmoe.report.store import DRAWING, Store, code_hash, file_hash, hash_of
from elmoe.sim.headline import QUOTED as QUOTED_HEADLINE
from elmoe.sim.headline import Headline, headline
from elmoe.sim.host.spec import is_host, load_host
from elmoe.sim.spec import MEASURED, load_machine

NONE = "none"


def reproduce(
    folder: Annotated[Path, typer.Option("--out", help="Folder for the report.")] = Path("reproduce-output"),
    only: Annotated[
        str | None, typer.Option(help="Figures, as table3,fig14 or by name (speedup,energy,headline). Default: all.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model to measure, as `elmoe run` takes it. Repeatable. Default: tiny.")
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE", help="Prompts (JSONL) of a workload. Repeatable. Default: the sets of elmoe."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Prompts of each set that drafts are measured on.")] = 6,
    this_machine: Annotated[
        list[Path] | None, typer.Option(help="A machine (.toml) to show beside the paper's systems. Repeatable.")
    ] = None,
    pictures: Annotated[
        str | None, typer.Option("--images", help="png, svg, png,svg or none. Default: both, with elmoe[report].")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Compute everything again, whatever is in the folder.")
    ] = False,
    json: Json = False,
) -> None:
    """Redraw every table and figure of the paper, simulated beside quoted, into one page; data and images beside it."""
    started = time.perf_counter()
    figures, with_headline = wanted(only)
    plotly_js()
    suffixes = _image_kinds(pictures)
    machines = [*_shipped_machines(), *(_given_machine(path) for path in this_machine or [])]
    sets = prompt_sets(prompts)
    _make_folder(folder)
    found = gather(figures, model or ["tiny"], sets, limit, Store(folder / "data" / "measured", fresh))
    sources = Sources(found.rows, found.digests, tuple(machines))
    drawn, left_out = _drawn(figures, sources, Store(folder / "data", fresh))
    averages = [headline(hb_gb) for hb_gb in (4.0, 8.0)]
    report = _report(drawn, left_out, averages, machines, with_headline)
    page = folder / "report.html"
    write_page(page, report)
    written = _write_images(folder / "images", drawn, suffixes, fresh)
    seconds = time.perf_counter() - started
    if json:
        emit_json(_document(report, averages[-1], page, written, seconds))
        return
    if with_headline:
        _show_averages(averages[-1])
    for name, why in left_out.items():
        say(f"left out: {name}: {why}", err)
    say(f"{page}: {len(drawn)} figures, {page.stat().st_size / 1e6:.1f} MB, {len(written)} images, {seconds:.0f} s")


def _drawn(figures: Sequence[Made], sources: Sources, store: Store) -> tuple[list[Drawn], dict[str, str]]:
    """Figures with rows, and those left out; with a bar, and a line for each on standard error."""
    with progress_bar("figures") as progress:
        count = 0

        def done(one: Drawn, kept: bool) -> None:
            nonlocal count
            count += 1
            progress(count, len(figures))
            say(f"{one.figure.id} {one.figure.name}: {len(one.rows)} rows{' (kept)' if kept else ''}", err)

        return draw(figures, sources, store, done)


def _report(
    drawn: list[Drawn],
    left_out: dict[str, str],
    averages: list[Headline],
    machines: list[GivenMachine],
    with_headline: bool,
) -> Reproduction:
    deviations = table3_deviations() if any(one.figure.id == "table3" for one in drawn) else []
    deviations += headline_deviations(averages[-1]) if with_headline else []
    return Reproduction(
        figures=drawn,
        left_out=left_out,
        headlines=averages if with_headline else [],
        deviations=deviations,
        assumptions=assumptions([one.path for one in machines]),
        command=shlex.join(["elmoe", *sys.argv[1:]]) if sys.argv[1:2] == ["reproduce"] else "elmoe reproduce",
    )


# --- options ---


def _shipped_machines() -> list[GivenMachine]:
    """Measured machines that come with elmoe."""
    return [
        GivenMachine(name, file_hash(Path(str(files("elmoe.sim") / "specs" / "measured" / f"{name}.toml"))))
        for name in MEASURED
    ]


def _given_machine(path: Path) -> GivenMachine:
    load_host(str(path)) if is_host(str(path)) else load_machine(str(path))  # says what is wrong with it
    return GivenMachine(str(path), file_hash(path))


def _image_kinds(asked: str | None) -> tuple[str, ...]:
    """ConfigError for other kinds, and where Matplotlib is asked for and missing."""
    if asked == NONE:
        return ()
    if asked is None and not images.available():
        say("images are left out; they need matplotlib: pip install 'elmoe[report]'", err)
        return ()
    kinds = images.SUFFIXES if asked is None else tuple(part.strip() for part in asked.split(","))
    for kind in kinds:
        if kind not in images.SUFFIXES:
            raise ConfigError(f"--images: unknown kind {kind!r}; use {', '.join(images.SUFFIXES)} or {NONE}")
    if not images.available():
        raise ConfigError("images need matplotlib; pip install 'elmoe[report]', or leave them out with --images none")
    return kinds


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made: {error.strerror}; choose another with --out") from error


# --- results ---


def _write_images(folder: Path, drawn: Sequence[Drawn], suffixes: tuple[str, ...], fresh: bool) -> list[Path]:
    if not suffixes:
        return []
    written = []
    with progress_bar("images") as progress:
        for number, one in enumerate(drawn, start=1):
            image_hash = hash_of(one.input_hash, code_hash(DRAWING))
            written += images.write_images(folder, one.figure, one.rows, suffixes, image_hash, fresh)
            progress(number, len(drawn))
    return written


def _document(
    report: Reproduction, average: Headline, page: Path, written: Sequence[Path], seconds: float
) -> dict[str, Any]:
    details = {
        one.figure.id: {
            "name": one.figure.name,
            "title": one.figure.title,
            "evidence": one.figure.evidence,
            "rows": len(one.rows),
            "input_hash": one.input_hash,
            "data": str(page.parent / "data" / f"{one.figure.id}.parquet"),
            "example": one.example,
        }
        for one in report.figures
    }
    gains = {name: asdict(getattr(average, name)) for name in QUOTED_HEADLINE}
    quoted = {name: {"mean": gain.mean, "largest": gain.largest} for name, gain in QUOTED_HEADLINE.items()}
    return {
        "figures": [*(["headline"] if report.headlines else []), *details],
        "headline": {name: gain["mean"] for name, gain in gains.items()},
        "headline_simulated": gains,
        "headline_quoted": quoted,
        "deviations": [asdict(one) for one in report.deviations],
        "details": details,
        "left_out": dict(report.left_out),
        "report": str(page),
        "images": [str(path) for path in written],
        "seconds": seconds,
    }


def _show_averages(average: Headline) -> None:
    lines = []
    for name, quoted in QUOTED_HEADLINE.items():
        gain = getattr(average, name)
        shown = f"{gain.mean:.2f} (max {gain.largest:.1f})"
        lines.append((name.replace("_", " "), f"{quoted.mean:g} (max {quoted.largest:g})", shown))
    out.print(table(f"ELMoE-3D, {average.hb_gb:g} GB", ("", "quoted", "simulated"), lines))
