"""`elmoe reproduce`: the paper's tables and figures, from simulator, engine and RTL, into one page."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from elmoe.checkpoint.manifest import MANIFEST_FILE
from elmoe.checkpoint.resolve import resolve
from elmoe.cli.console import Json, emit_json, err, out, progress_bar, say, table
from elmoe.cli.measurements import DraftMeter, elasticity_row, measure_locality
from elmoe.cli.prompts import PROMPT_SETS, Given, prompt_file, read_jsonl
from elmoe.errors import ConfigError, StorageError
from elmoe.report import images
from elmoe.report.catalogue import draw, wanted
from elmoe.report.deviations import headline_deviations, table3_deviations
from elmoe.report.figure import Row
from elmoe.report.methods import assumptions
from elmoe.report.reproduction import Drawn, Reproduction, plotly_js, write_page
from elmoe.report.sources import AREA, ELASTICITY, LOCALITY, GivenMachine, Made, Sources
from elmoe.report.store import DRAWING, Store, Stored, code_hash, file_hash, hash_of
from elmoe.rtl.designs import Design
from elmoe.rtl.pe_model import area_parts, measured
from elmoe.sim.headline import QUOTED as QUOTED_HEADLINE
from elmoe.sim.headline import Headline, headline
from elmoe.sim.spec import load_machine

ENGINE = ("errors.py", "quant", "models", "checkpoint", "backend", "engine", "trace", "sim", "cli/measurements.py")
"""Code that decides what is measured."""
LOCALITY_LIMIT, LOCALITY_TOKENS = 16, 48
ELASTICITY_TOKENS = 40
PES = 16
NONE = "none"


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one workload."""

    name: str
    path: str
    """As `--prompts` takes it."""
    prompts: list[Given]
    digest: str


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
    sets = _prompt_sets(prompts)
    _make_folder(folder)
    sources = _gather(figures, model or ["tiny"], sets, limit, machines, Store(folder / "data" / "measured", fresh))
    store = Store(folder / "data", fresh)
    with progress_bar("figures") as progress:
        count = 0

        def done(one: Drawn, kept: bool) -> None:
            nonlocal count
            count += 1
            progress(count, len(figures))
            say(f"{one.figure.id} {one.figure.name}: {len(one.rows)} rows{' (kept)' if kept else ''}", err)

        drawn, left_out = draw(figures, sources, store, done)
    averages = [headline(hb_gb) for hb_gb in (4.0, 8.0)]
    deviations = table3_deviations() if any(one.figure.id == "table3" for one in drawn) else []
    deviations += headline_deviations(averages[-1]) if with_headline else []
    report = Reproduction(
        figures=drawn,
        left_out=left_out,
        headlines=averages if with_headline else [],
        deviations=deviations,
        assumptions=assumptions([one.path for one in sources.machines]),
        command=shlex.join(["elmoe", *sys.argv[1:]]) if sys.argv[1:2] == ["reproduce"] else "elmoe reproduce",
    )
    page = folder / "report.html"
    write_page(page, report)
    written = _write_images(folder / "images", drawn, suffixes, fresh)
    seconds = time.perf_counter() - started
    if json:
        emit_json(_document(report, averages[-1], page, written, seconds, with_headline))
        return
    if with_headline:
        _show_averages(averages[-1])
    for name, why in left_out.items():
        say(f"left out: {name}: {why}", err)
    say(f"{page}: {len(drawn)} figures, {page.stat().st_size / 1e6:.1f} MB, {len(written)} images, {seconds:.0f} s")


# --- sources ---


def _gather(
    figures: Sequence[Made],
    models: list[str],
    sets: list[PromptSet],
    limit: int,
    machines: list[GivenMachine],
    store: Store,
) -> Sources:
    """What the figures need and nobody but the command line may fetch."""
    needed = {name for made in figures for name in made.needs}
    rows: dict[str, Sequence[Row]] = {}
    digests: dict[str, str] = {}
    gatherers: dict[str, Callable[[str], list[Stored]]] = {
        ELASTICITY: lambda model: _elasticity(model, sets, limit, store),
        LOCALITY: lambda model: _locality(model, sets, store),
    }
    for name, gather in gatherers.items():
        if name in needed:
            found = [stored for model in models for stored in gather(model)]
            rows[name] = [row for stored in found for row in stored.rows]
            digests[name] = hash_of([stored.input_hash for stored in found])
    if AREA in needed:
        rows[AREA], digests[AREA] = _area_rows(), code_hash(("rtl",))
    return Sources(rows, digests, tuple(machines))


def _elasticity(model: str, sets: list[PromptSet], limit: int, store: Store) -> list[Stored]:
    """Agreement of drafts, one table per prompt set. The engine is opened when the first one is not there yet."""
    meters: list[DraftMeter] = []

    def build(one: PromptSet) -> list[dict[str, Any]]:
        if not meters:
            meters.append(DraftMeter(model))
        given = one.prompts[:limit]
        with progress_bar(f"drafts of {model} on {one.name}") as progress:
            found = meters[0].measure(given, ELASTICITY_TOKENS, progress=progress)
        about = _about(model, one, limit, ELASTICITY_TOKENS)
        return [{"kind": "measured"} | about | elasticity_row(cell) for cell in found.cells]

    return _measured(ELASTICITY, model, sets, (limit, ELASTICITY_TOKENS), store, build)


def _locality(model: str, sets: list[PromptSet], store: Store) -> list[Stored]:
    """Routing, one table per prompt set."""

    def build(one: PromptSet) -> list[dict[str, Any]]:
        given = one.prompts[:LOCALITY_LIMIT]
        with progress_bar(f"routing of {model} on {one.name}") as progress:
            found = measure_locality(model, given, LOCALITY_TOKENS, progress=progress)
        about = _about(model, one, LOCALITY_LIMIT, LOCALITY_TOKENS)
        return [{"kind": part} | about | row for part in ("activation", "unique", "misses") for row in found[part]]

    return _measured(LOCALITY, model, sets, (LOCALITY_LIMIT, LOCALITY_TOKENS), store, build)


def _measured(
    what: str,
    model: str,
    sets: list[PromptSet],
    settings: tuple[int, int],
    store: Store,
    build: Callable[[PromptSet], list[dict[str, Any]]],
) -> list[Stored]:
    with progress_bar("converting") as progress:
        weights = file_hash(resolve(model, progress) / MANIFEST_FILE)
    found = []
    for one in sets:
        input_hash = hash_of(what, weights, model, one.name, one.path, one.digest, settings, code_hash(ENGINE))
        name = f"{what}-{Path(model).stem}-{one.name}"
        stored = store.rows(name, input_hash, lambda one=one: build(one), {"model": model})  # type: ignore[misc]
        say(f"{what} of {model} on {one.name}: {len(stored.rows)} rows{' (kept)' if stored.kept else ''}", err)
        found.append(stored)
    return found


def _about(model: str, one: PromptSet, limit: int, max_tokens: int) -> dict[str, Any]:
    return {
        "measured_model": model,
        "workload": one.name,
        "prompts": one.path,
        "limit": limit,
        "max_tokens": max_tokens,
    }


def _area_rows() -> list[dict[str, Any]]:
    """Parts of a PE, as `elmoe rtl area` has them."""
    numbers = measured()
    return [
        {"design": design.value, "pes": PES, "um2": part.high, "status": part.known.value}
        | {"part": part.name, "source": part.source}
        for design in (Design.CONVENTIONAL, Design.AUGMENTED)
        for part in area_parts(design, numbers)
    ]


# --- options ---


def _prompt_sets(given: list[str] | None) -> list[PromptSet]:
    """Prompts by workload. ConfigError for what is no NAME=FILE, or a name that comes twice."""
    pairs = [text.partition("=") for text in given or [f"{name}={name}" for name in PROMPT_SETS]]
    names = [name for name, _, _ in pairs]
    for name, equals, path in pairs:
        if not equals or not name or not path:
            raise ConfigError(f"--prompts: cannot read {name + equals + path!r}; write for example code=my_code.jsonl")
        if names.count(name) > 1:
            raise ConfigError(f"--prompts: {name!r} is given twice; one file per workload")
    found = []
    for name, _, path in pairs:
        file = prompt_file(Path(path))
        found.append(PromptSet(name, path, read_jsonl(file), file_hash(file)))
    return found


def _shipped_machines() -> list[GivenMachine]:
    """Measured machines that come with elmoe."""
    folder = files("elmoe.sim") / "specs" / "measured"
    if not folder.is_dir():
        return []
    paths = sorted(Path(str(entry)) for entry in folder.iterdir() if entry.name.endswith(".toml"))
    return [_given_machine(path) for path in paths]


def _given_machine(path: Path) -> GivenMachine:
    load_machine(str(path))  # says what is wrong with it
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
    report: Reproduction, average: Headline, page: Path, written: Sequence[Path], seconds: float, named: bool
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
        "figures": [*([] if not named else ["headline"]), *details],
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
