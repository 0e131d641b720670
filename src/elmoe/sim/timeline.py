"""The events of a cycle-mode run as a Chrome trace, for chrome://tracing or Perfetto.

One track per resource (the PE array has one per source of weights); times in microseconds, as the format wants. Knows
nothing about how the events came about.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from elmoe.sim.cycle import EXT, HB, LINK, PE, VECTOR
from elmoe.sim.dataflow import STEPS
from elmoe.sim.pe import Event
from elmoe.trace.atomic import atomic_file

TRACKS = {
    (EXT, EXT): "EXT memory",
    (HB, HB): "HB bank",
    (PE, EXT): "PE, weights from EXT",
    (PE, HB): "PE, weights from HB",
    VECTOR: "vector unit",
    LINK: "aggregation link",
}
"""In the order in which they are shown."""
NS_PER_US = 1000.0
PROCESS = 0


def chrome_trace(events: Sequence[Event], title: str, chunks: bool = False) -> dict[str, Any]:
    """``{"traceEvents": [...], ...}``.

    What a resource does for one step of one expert is one bar, with its busy time as an argument; with `chunks` every
    fill of a WMEM half is a bar of its own (a layer at batch 256 has some 100,000).
    """
    rows = [_named("process_name", PROCESS, title)]
    for number, (track, name) in enumerate(TRACKS.items()):
        found = [event for event in events if track in (event.resource, (event.resource, event.source))]
        if found:
            rows.append(_named("thread_name", number, name))
            rows += [_bar(number, run) for run in _runs(found, chunks)]
    return {"traceEvents": rows, "displayTimeUnit": "ns"}


def write_timeline(path: Path, events: Sequence[Event], title: str, chunks: bool = False) -> None:
    """Write the trace as JSON; the file appears whole or not at all. StorageError when that is refused."""
    text = json.dumps(chrome_trace(events, title, chunks), separators=(",", ":"))
    with atomic_file(path) as file:
        file.write(text.encode())


def _named(what: str, track: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": PROCESS, "tid": track, "args": {"name": name}}


def _runs(events: Iterable[Event], chunks: bool) -> list[list[Event]]:
    """Events of one track in order of time, those of one step of one expert together."""
    runs: list[list[Event]] = []
    for event in sorted(events, key=lambda event: (event.start_ns, event.end_ns)):
        if not chunks and runs and _what(runs[-1][-1]) == _what(event):
            runs[-1].append(event)
        else:
            runs.append([event])
    return runs


def _what(event: Event) -> tuple[str, int, int]:
    return event.source, event.expert, event.step


def _bar(track: int, run: Sequence[Event]) -> dict[str, Any]:
    first = run[0]
    return {
        "ph": "X",
        "name": _title(first),
        "pid": PROCESS,
        "tid": track,
        "ts": first.start_ns / NS_PER_US,
        "dur": (run[-1].end_ns - first.start_ns) / NS_PER_US,
        "args": {"busy_ns": sum(event.end_ns - event.start_ns for event in run), "pieces": len(run)},
    }


def _title(event: Event) -> str:
    if event.expert < 0:
        return event.source
    work = event.source if event.resource in (VECTOR, LINK) else STEPS[event.step]
    return f"expert {event.expert} {work}"
