"""llama.cpp on a model larger than its memory: decode tokens/s with mmap inside a memory cgroup, at its best setting.

    python bench/tiers_peer.py MODEL.elmoe [--peer-python PYTHON_WITH_LLAMA_CPP] [--limit-bytes 420000000]

MODEL.elmoe: `python bench/random_checkpoint.py FOLDER`, then `elmoe convert FOLDER -o MODEL.elmoe` (1.13 B parameters,
uniform routing). The peer gets the same weights as a Q8_0 GGUF file, dropped from the page cache before each load; its
whole process, interpreter included, lives inside the limit (`cgroup.py`). Every setting decodes the same random tokens;
steps are timed one by one, after a few that nobody times, and the median counts. A setting that cannot run under the
limit has an `error` instead of a speed. Where the disk's read-ahead is large, a smaller one is tried, too, on a device
of its own (`read_ahead.py`). Writes bench/results/tiers_peer.json.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cgroup import GroupError, MemoryGroup, drop_cached, process_read_bytes
from elmoe.bench.disk import median_rate
from elmoe.bench.gguf_q8 import cached_gguf
from elmoe.bench.peer import PYTHON_VARIABLE, WHAT_A_PYTHON_IS, Peer
from elmoe.bench.workload import Decoding, RacePlan
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.resolve import resolve
from elmoe.errors import ElmoeError
from harness import ROOT, markdown_table, provenance, write_result
from read_ahead import read_ahead_kb, with_read_ahead

NAME = "tiers_peer"
ARM = "llama.cpp"
LIMIT_BYTES = 420_000_000
BATCHES = (1, 8)
PROBE_REQUEST_BYTES, PROBE_DEPTH = 1 << 20, 4
PEER_PYTHON = ROOT / "build" / "peer" / "bin" / "python"
"""Where an environment with the peer is looked for unless one is named."""


@dataclass(frozen=True)
class Setting:
    """How llama.cpp is run. The defaults are its own, but for threads."""

    name: str
    threads: int = 2
    options: Mapping[str, int] = field(default_factory=dict)
    """Fields of ``llama_model_params``; `load_mode` as llama.h numbers it."""
    read_ahead_kb: int | None = None
    """Of the block device under the file. None: as it is."""


NONE, MMAP, MMAP_MLOCK, DIRECT_IO = 0, 1, 3, 4
"""`enum llama_load_mode`."""
SETTINGS = (
    Setting("default"),
    Setting("one thread", threads=1),
    Setting("four threads", threads=4),
    Setting("mmap, no repacking", options={"load_mode": MMAP, "use_extra_bufts": 0}),
    Setting("mmap, lazy", options={"load_mode": MMAP, "lazy_mode": 2}),
    Setting("one thread, read-ahead 128 KiB", threads=1, read_ahead_kb=128),
    Setting("four threads, read-ahead 128 KiB", threads=4, read_ahead_kb=128),
    Setting("eight threads, read-ahead 128 KiB", threads=8, read_ahead_kb=128),
    Setting("mmap, mlock", options={"load_mode": MMAP_MLOCK}),
    Setting("no mmap", options={"load_mode": NONE}),
    Setting("direct I/O", options={"load_mode": DIRECT_IO}),
)
"""More threads than processors keep more page faults under way. What reads the whole model into memory of its own
cannot run; it is tried to show so."""


@dataclass(frozen=True)
class Workload:
    """What is decoded."""

    context: int = 4
    warm_up: int = 2
    """Steps that nobody times."""
    steps: int = 6
    seed: int = 0

    def decoding(self, checkpoint: Checkpoint, batch: int) -> Decoding:
        """Random tokens, the same for every setting."""
        plan = RacePlan(batches=(batch,), steps=self.warm_up + self.steps, context=self.context, seed=self.seed)
        return plan.decoding(checkpoint.shape, batch, 0)


def measure(
    gguf: Path, works: Sequence[Decoding], setting: Setting, limit_bytes: int, python: str, warm_up: int
) -> list[dict[str, Any]]:
    """One row per batch: arm, batch, decode_tok_s, limit_bytes, settings, and what the kernel counted meanwhile.

    A row has `error` and no speed where the peer died or refused. Raises GroupError where no limit can be set,
    ConfigError where there is no peer, StorageError where the read-ahead cannot be set.
    """
    if setting.read_ahead_kb is not None:
        with with_read_ahead(gguf, setting.read_ahead_kb) as copy:
            return measure(copy, works, replace(setting, read_ahead_kb=None), limit_bytes, python, warm_up)
    drop_cached(gguf)
    rows: list[dict[str, Any]] = []
    with MemoryGroup(limit_bytes) as group, tempfile.TemporaryDirectory() as folder:
        common = {
            "arm": ARM,
            "limit_bytes": limit_bytes,
            "settings": asdict(setting) | {"read_ahead_kb": read_ahead_kb(gguf)},
        }
        with Peer(str(group.wrapper(Path(folder), python))) as peer:
            failure: ElmoeError | None = None
            try:
                cells = max(work.cells for work in works)
                peer.load(gguf, setting.threads, max(work.batch for work in works), cells, setting.options)
            except ElmoeError as error:
                failure = error
            for work in works:
                row = common | {"batch": work.batch}
                try:
                    row |= _timed(peer, work, warm_up) if failure is None else {}
                except ElmoeError as error:
                    failure = error  # it may be dead
                if failure is not None:
                    row["error"] = "killed: out of memory" if group.killed else str(failure)
                rows.append(row | {"peak_bytes": group.peak_bytes})
    return rows


def _timed(peer: Peer, work: Decoding, warm_up: int) -> dict[str, Any]:
    before, started = process_read_bytes(peer.process), time.perf_counter()
    seconds = peer.decode(work)
    elapsed, read_bytes = time.perf_counter() - started, process_read_bytes(peer.process) - before
    return {
        "decode_tok_s": work.batch / statistics.median(seconds[warm_up:]),
        "step_seconds": seconds,
        "read_bytes": read_bytes,
        "read_gb_per_s": read_bytes / elapsed / 1e9,
    }


def best(rows: Sequence[Mapping[str, Any]], batch: int) -> Mapping[str, Any]:
    """The fastest row of a batch. Raises ElmoeError where no setting ran."""
    speeds = [row for row in rows if row["batch"] == batch and "decode_tok_s" in row]
    if not speeds:
        raise ElmoeError(f"{ARM} ran at no setting at batch {batch}; give it a higher --limit-bytes")
    return max(speeds, key=lambda row: row["decode_tok_s"])


def table(rows: Sequence[Mapping[str, Any]], batches: Sequence[int]) -> str:
    """Markdown: a line per setting, tokens/s by batch."""
    lines: list[list[object]] = []
    for name in dict.fromkeys(row["settings"]["name"] for row in rows):
        mine = {row["batch"]: row for row in rows if row["settings"]["name"] == name}
        cells = [f"{mine[b]['decode_tok_s']:.2f}" if "error" not in mine[b] else mine[b]["error"] for b in batches]
        lines.append([name, *cells])
    return markdown_table([f"{ARM}, tokens/s", *(f"batch {batch}" for batch in batches)], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an .elmoe folder")
    parser.add_argument("--peer-python", default=str(PEER_PYTHON) if PEER_PYTHON.exists() else None)
    parser.add_argument("--limit-bytes", type=int, default=LIMIT_BYTES)
    parser.add_argument("--batch", type=int, action="append", help="default: 1 and 8")
    parser.add_argument("--steps", type=int, default=Workload.steps)
    parser.add_argument("--setting", action="append", choices=[setting.name for setting in SETTINGS])
    arguments = parser.parse_args()
    batches = arguments.batch or list(BATCHES)
    python = arguments.peer_python or os.environ.get(PYTHON_VARIABLE) or sys.executable
    if shutil.which(python) is None:
        parser.error(f"{python} cannot be run; {WHAT_A_PYTHON_IS}")
    try:
        checkpoint = Checkpoint.open(resolve(arguments.model))
        gguf = cached_gguf(checkpoint)
        workload = Workload(steps=arguments.steps)
        works = [workload.decoding(checkpoint, batch) for batch in batches]
        rows, probes = [], []
        for setting in SETTINGS:
            if arguments.setting is None or setting.name in arguments.setting:
                probes.append(median_rate(gguf, PROBE_REQUEST_BYTES, PROBE_DEPTH))
                found = measure(gguf, works, setting, arguments.limit_bytes, python, workload.warm_up)
                for row in found:
                    print({name: row.get(name) for name in ("settings", "batch", "decode_tok_s", "error")}, flush=True)
                rows += found
        fastest = {batch: best(rows, batch)["settings"]["name"] for batch in batches}
    except (ElmoeError, GroupError) as error:
        raise SystemExit(f"error: {error}") from None
    settings = asdict(workload) | {"limit_bytes": arguments.limit_bytes, "model": Path(arguments.model).name}
    settings |= {"model_bytes": gguf.stat().st_size}
    write_result(NAME, provenance(settings) | {"disk_gb_per_s": probes, "best": fastest, "rows": rows})
    print(table(rows, batches))


if __name__ == "__main__":
    main()
