"""All figures in the order of the page, and making them from what is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from elmoe.report import beyond_figures, measured_figures, paper_figures
from elmoe.report.figure import select
from elmoe.report.reproduction import Drawn
from elmoe.report.sources import AREA, ELASTICITY, LOCALITY, MACHINES, Made, Sources
from elmoe.report.store import SIMULATOR, Store, code_hash, hash_of

LACKING = {
    MACHINES: "no machine file was given (--this-machine FILE.toml)",
    AREA: "the RTL's numbers were not gathered",
    ELASTICITY: "drafts were not measured",
    LOCALITY: "routing was not measured",
}


def _number(made: Made) -> int:
    return int(made.figure.id.removeprefix("fig")) if made.figure.id.startswith("fig") else 0


def _catalogue() -> tuple[Made, ...]:
    """By section, then by number; table 3 leads its section."""
    every = (*paper_figures.FIGURES, *measured_figures.FIGURES, *beyond_figures.FIGURES)
    sections = (paper_figures.FIRST_SECTION, paper_figures.SECTION, beyond_figures.SECTION)
    return tuple(sorted(every, key=lambda made: (sections.index(made.figure.section), _number(made))))


CATALOGUE = _catalogue()
HEADLINE = "headline"
"""What `--only` calls the averages."""


def wanted(only: str | None) -> tuple[list[Made], bool]:
    """(figures, whether the averages are asked for). ConfigError for an unknown name."""
    if only is None:
        return list(CATALOGUE), True
    names = [name.strip() for name in only.split(",")]
    figures = select([made.figure for made in CATALOGUE], [name for name in names if name != HEADLINE])
    return [made for made in CATALOGUE if made.figure in figures], HEADLINE in names


def draw(
    chosen: Sequence[Made], sources: Sources, store: Store, done: Callable[[Drawn, bool], None]
) -> tuple[list[Drawn], dict[str, str]]:
    """(figures with rows, figures left out and why). done: called with each figure and whether its rows were kept."""
    drawn, left_out = [], {}
    for made in chosen:
        lacking = made.missing(sources)
        if lacking is not None:
            left_out[f"{made.figure.id} ({made.figure.name})"] = LACKING[lacking]
            continue
        input_hash = _input_hash(made, sources)
        about = {"figure": made.figure.id, "title": made.figure.title, "evidence": made.figure.evidence}
        stored = store.rows(made.figure.id, input_hash, lambda made=made: made.build(sources), about)  # type: ignore[misc]
        one = Drawn(made.figure, stored.rows, input_hash, made.facts(stored.rows))
        drawn.append(one)
        done(one, stored.kept)
    return drawn, left_out


def _input_hash(made: Made, sources: Sources) -> str:
    """Of everything that the rows follow from."""
    needed = {name: sources.digests.get(name) for name in made.needs}
    shows_machines = MACHINES in (*made.needs, *made.uses)
    machines = [(one.path, one.digest) for one in sources.machines] if shows_machines else []
    return hash_of(made.figure.id, code_hash(SIMULATOR), needed, machines)
