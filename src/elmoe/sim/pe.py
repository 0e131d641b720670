"""The parts of the cycle mode: an agenda of events, weight streams with double buffers, the array of a PE, FIFO units.

Between two events nothing changes, so time jumps from event to event and is still exact: a half of WMEM is filled as a
whole, read tile by tile, and free again when its last tile is done. Knows nothing about experts or dependencies.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

HALVES = 2
"""Double buffering: one half of a stream's WMEM is filled while the other is read."""
ROUNDING = 1e-6
"""ns: times closer than this are equal."""

Action = Callable[[float], None]


class Event(NamedTuple):
    """One stretch of time in which a resource works on one thing."""

    resource: str
    """EXT, HB, PE, VECTOR or LINK."""
    source: str
    """Stream that a PE event multiplies weights of; what is sent or computed on LINK and VECTOR."""
    expert: int
    """-1 for work of the whole layer."""
    step: int
    """GATE_UP or DOWN of `dataflow.py`."""
    chunk: int
    """Number of the WMEM fill within its stream; -1 where no weights are involved."""
    start_ns: float
    end_ns: float


class Agenda:
    """What happens next. Simultaneous events happen in the order in which they were noted: runs are deterministic."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Action]] = []
        self._noted = 0

    def at(self, time_ns: float, action: Action) -> None:
        """Call `action` with the time when it has come."""
        heapq.heappush(self._heap, (time_ns, self._noted, action))
        self._noted += 1

    def run(self) -> float:
        """Until nothing is left; the time of the last event."""
        now, heap, pop = 0.0, self._heap, heapq.heappop
        while heap:
            now, _, action = pop(heap)
            action(now)
        return now


class Unit:
    """A resource that serves requests in order of arrival."""

    def __init__(self, name: str, agenda: Agenda, events: list[Event]) -> None:
        self.name = name
        self.busy_ns = 0.0
        self._agenda = agenda
        self._events = events
        self._free = 0.0

    def request(self, now: float, length_ns: float, what: tuple[str, int, int], then: Action) -> None:
        """Serve for `length_ns`, then call `then`; `what` is source, expert and step of the event."""
        start = max(now, self._free)
        self._free = start + length_ns
        self.busy_ns += length_ns
        if length_ns > 0:
            self._events.append(Event(self.name, *what, -1, start, self._free))
        self._agenda.at(self._free, then)


@dataclass
class Task:
    """One step of one expert on one stream: its weights, and how long a tile of them keeps the array busy."""

    expert: int
    step: int
    tiles: int
    """Per PE."""
    weight_bytes: int
    """Read from the memory, for all PEs."""
    macs: int
    """Of all PEs."""
    bits: int
    tile_ns: float
    load_ns: float
    """A tile from WMEM into the array, beside the products of the one before; 0 where that is not modelled."""
    open: bool
    """Its operands are there. Until then its weights are fetched as far as WMEM reaches, but not multiplied."""
    done: Action


@dataclass(frozen=True, slots=True)
class Chunk:
    """What fills one half of a WMEM buffer."""

    task: Task
    tiles: int
    weight_bytes: int
    macs: int
    last: bool


@dataclass
class Stream:
    """Weights of one memory on their way to the PEs, in schedule order, through a double buffer in WMEM."""

    name: str
    gb_per_s: float
    agenda: Agenda
    events: list[Event]
    chunks: list[Chunk] = field(default_factory=list)
    fetched: int = 0
    read: int = 0
    """Chunks that the array has finished."""
    tiles_left: int = 0
    """Of the chunk that the array is reading."""
    busy_ns: float = 0.0
    moved_bytes: int = 0
    array: Array | None = None
    _fetching: bool = False

    def add(self, task: Task, tiles_per_half: int) -> None:
        """Cut a task into chunks. Bytes and products are shared out so that they add up exactly."""
        for start in range(0, task.tiles, tiles_per_half):
            stop = min(start + tiles_per_half, task.tiles)
            size = task.weight_bytes * stop // task.tiles - task.weight_bytes * start // task.tiles
            macs = task.macs * stop // task.tiles - task.macs * start // task.tiles
            self.chunks.append(Chunk(task, stop - start, size, macs, stop == task.tiles))

    def fetch(self, now: float) -> None:
        """Begin to fill the next half if one is free."""
        if self._fetching or self.fetched == len(self.chunks) or self.fetched - self.read >= HALVES:
            return
        self._fetching = True
        chunk = self.chunks[self.fetched]
        length = chunk.weight_bytes / self.gb_per_s
        task = chunk.task
        self.events.append(Event(self.name, self.name, task.expert, task.step, self.fetched, now, now + length))
        self.busy_ns += length
        self.moved_bytes += chunk.weight_bytes
        self.agenda.at(now + length, self._arrived)

    def _arrived(self, now: float) -> None:
        self._fetching = False
        self.fetched += 1
        self.fetch(now)
        assert self.array is not None
        self.array.dispatch(now)

    def ready(self) -> bool:
        """Whether the array can work on the oldest half."""
        return self.read < self.fetched and self.chunks[self.read].task.open

    def finished_chunk(self, now: float, done: float) -> None:
        """The oldest half is free again; its sums are there at `done`."""
        chunk = self.chunks[self.read]
        self.read += 1
        self.fetch(now)
        if chunk.last and done > now:
            self.agenda.at(done, chunk.task.done)
        elif chunk.last:
            chunk.task.done(now)


class Array:
    """The multipliers of one PE, shared by its streams.

    Of the streams that are ready the first in the list goes first, and takes over from a later one at the next tile
    boundary: whole halves would make the first stream wait longer than its buffer lasts. Starts at a clock edge.

    Where loading is modelled, a tile enters shadow registers while the one before it is multiplied. What comes next is
    chosen when the last tile chosen becomes active: with `load` and `tile` of the tiles, as in `rtl/pe.py`,
    ``active[i+1] = max(max(active[i], ready[i+1]) + load, active[i] + tile)``.
    """

    def __init__(
        self, streams: list[Stream], clock_ghz: float, pipeline_ns: float, agenda: Agenda, events: list[Event]
    ) -> None:
        self.streams = streams
        self.busy_ns = 0.0
        self.macs = {4: 0, 8: 0}
        self._clock_ghz = clock_ghz
        self._pipeline_ns = pipeline_ns
        self._agenda = agenda
        self._events = events
        self._running: Stream | None = None
        self._start = self._first = self._last = self._free = self._before = self._end = 0.0
        """First tile leaves WMEM, is active; last one is active, is multiplied (and before the run); next choice."""
        self._tiles = 0
        self._run = 0
        for stream in streams:
            stream.array = self

    def dispatch(self, now: float) -> None:
        """Something became ready."""
        if self._running is not None:
            if self._running is not self.streams[0] and self.streams[0].ready():
                self._cut(now)
            return
        for stream in self.streams:
            if stream.ready():
                self._begin(stream, now)
                return

    def _begin(self, stream: Stream, now: float) -> None:
        chunk = stream.chunks[stream.read]
        if not stream.tiles_left:
            stream.tiles_left = chunk.tiles
        self._running = stream
        self._start = math.ceil(now * self._clock_ghz - ROUNDING) / self._clock_ghz
        self._before = self._free
        self._first = max(self._start + chunk.task.load_ns, self._free)
        self._stop_after(stream.tiles_left, chunk.task)

    def _cut(self, now: float) -> None:
        """Let the tiles that have left WMEM, or are leaving it, be the last ones."""
        assert self._running is not None
        task = self._running.chunks[self._running.read].task
        begun = now - ROUNDING > self._start
        later = max(0, math.ceil((now - self._first - ROUNDING) / max(task.tile_ns, task.load_ns)))
        tiles = (begun if task.load_ns else 0) + later
        if tiles < self._tiles:
            self._stop_after(tiles, task)

    def _stop_after(self, tiles: int, task: Task) -> None:
        self._tiles = tiles
        self._last = self._first + (tiles - 1) * max(task.tile_ns, task.load_ns)
        self._free = self._last + task.tile_ns if tiles else self._before
        self._end = (self._last if task.load_ns else self._free) if tiles else self._start
        self._run += 1
        run = self._run
        self._agenda.at(self._end, lambda now: self._stopped(now, run))

    def _stopped(self, now: float, run: int) -> None:
        if run != self._run:
            return  # cut short meanwhile
        stream = self._running
        assert stream is not None
        self._running = None
        stream.tiles_left -= self._tiles
        if self._tiles:
            self._note(stream, stream.chunks[stream.read])
        if not stream.tiles_left:
            stream.finished_chunk(now, self._free + self._pipeline_ns)
        self.dispatch(now)

    def _note(self, stream: Stream, chunk: Chunk) -> None:
        self.busy_ns += self._free - self._first
        if not stream.tiles_left:
            self.macs[chunk.task.bits] += chunk.macs
        task = chunk.task
        self._events.append(Event("PE", stream.name, task.expert, task.step, stream.read, self._first, self._free))
