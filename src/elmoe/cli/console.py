"""What every verb shares: one JSON document or a table on standard output, everything else on standard error.

Errors: an `ElmoeError` becomes one line and its exit code; anything else is a fault of ours, shown with a traceback.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from elmoe.errors import ConfigError

out = Console()
err = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Model = Annotated[
    str,
    typer.Argument(
        help="A built-in name (tiny), an .elmoe folder, a Hugging Face folder, or a GGUF file.", show_default=False
    ),
]

UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
MAX_DIGITS = 30


def say(text: str, console: Console = out, style: str | None = None) -> None:
    """Print text as it is: no markup, no colours of rich's own, no line breaks of its own."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True, emoji=False)


def emit_json(document: Mapping[str, Any]) -> None:
    """The one document of `--json`. NaN is not JSON: it would be a bug, and raises."""
    print(json.dumps(document, allow_nan=False, ensure_ascii=True))


def parse_bytes(text: str | None) -> int | None:
    """`8GiB`, `512MB`, `1000000` -> bytes."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in UNITS:
        raise ConfigError(f"cannot read {text!r} as a number of bytes; write for example 8GiB, 512MB or 1000000")
    if len(match[1]) > MAX_DIGITS:
        raise ConfigError(f"{match[1][:MAX_DIGITS]}... is beyond any memory")
    return int(float(match[1]) * UNITS[match[2].lower()])


def parse_integers(text: str, name: str) -> list[int]:
    """`1,2,3` -> [1, 2, 3]."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"{name}: cannot read {text!r}; write integers separated by commas, for example 1,2,3"
        ) from None


def human_bytes(count: float) -> str:
    """12_345_678 -> `12.3 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A readable table; numbers to the right."""
    made = Table(title=title, title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        made.add_row(*(str(cell) for cell in row))
    return made


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error that appears with the first call of the yielded (done, total) function."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
    task: TaskID | None = None

    def update(done: int, total: int) -> None:
        nonlocal task
        if task is None:
            bar.start()
            task = bar.add_task(label, total=total)
        bar.update(task, completed=done, total=total)

    try:
        yield update
    finally:
        if task is not None:
            bar.stop()
