"""What the figures of `elmoe reproduce` need beside the simulator: measurements of models, and the RTL's numbers.

Every table that was measured is kept in the report's folder, by model and prompts, with the hash of its inputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elmoe.checkpoint.manifest import MANIFEST_FILE
from elmoe.checkpoint.resolve import resolve
from elmoe.cli.console import err, progress_bar, say
from elmoe.cli.measurements import DraftMeter, elasticity_row, measure_locality
from elmoe.cli.prompts import PROMPT_SETS, Given, prompt_file, read_jsonl
from elmoe.errors import ConfigError
from elmoe.report.figure import Row
from elmoe.report.sources import AREA, ELASTICITY, LOCALITY, Made
from elmoe.report.store import Store, Stored, code_hash, file_hash, hash_of
from elmoe.rtl.designs import Design
from elmoe.rtl.pe_model import area_parts, measured

ENGINE = ("errors.py", "quant", "models", "checkpoint", "backend", "engine", "trace", "sim", "cli/measurements.py")
"""Code that decides what is measured."""
LOCALITY_LIMIT, LOCALITY_TOKENS = 16, 48
ELASTICITY_TOKENS = 40
PES = 16
NAME = re.compile(r"[\w.-]+")
"""Of a prompt set: part of a file's name."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one workload."""

    name: str
    path: str
    """As `--prompts` takes it."""
    prompts: list[Given]
    digest: str


@dataclass(frozen=True)
class Measured:
    """Rows by source, and hashes of what they follow from."""

    rows: dict[str, Sequence[Row]]
    digests: dict[str, str]


def prompt_sets(given: list[str] | None) -> list[PromptSet]:
    """Prompts by workload. ConfigError for what is no NAME=FILE, or a name that comes twice."""
    pairs = [text.partition("=") for text in given or [f"{name}={name}" for name in PROMPT_SETS]]
    names = [name for name, _, _ in pairs]
    for name, equals, path in pairs:
        if not equals or not NAME.fullmatch(name) or not path:
            raise ConfigError(f"--prompts: cannot read {name + equals + path!r}; write for example code=my_code.jsonl")
        if names.count(name) > 1:
            raise ConfigError(f"--prompts: {name!r} is given twice; one file per workload")
    found = []
    for name, _, path in pairs:
        file = prompt_file(Path(path))
        found.append(PromptSet(name, path, read_jsonl(file), file_hash(file)))
    return found


def gather(figures: Sequence[Made], models: list[str], sets: list[PromptSet], limit: int, store: Store) -> Measured:
    """What the figures need and nobody but the command line may fetch."""
    needed = {name for made in figures for name in made.needs}
    rows: dict[str, Sequence[Row]] = {}
    digests: dict[str, str] = {}
    gatherers: dict[str, Callable[[str], list[Stored]]] = {
        ELASTICITY: lambda model: _elasticity(model, sets, limit, store),
        LOCALITY: lambda model: _locality(model, sets, store),
    }
    for name, measure in gatherers.items():
        if name in needed:
            found = [stored for model in models for stored in measure(model)]
            rows[name] = [row for stored in found for row in stored.rows]
            digests[name] = hash_of([stored.input_hash for stored in found])
    if AREA in needed:
        rows[AREA], digests[AREA] = _area_rows(), code_hash(("rtl",))
    return Measured(rows, digests)


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
