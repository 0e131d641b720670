"""Where chunks of a sweep are evaluated: here, in processes of this machine, or on a Ray cluster.

An arm takes a sweep and chunks and yields each with its rows as it is done, in any order: every arm gives the same
rows. Knows nothing about files.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

from elmoe.errors import CapacityError, ConfigError
from elmoe.sim.sweep import Chunk, Sweep
from elmoe.sim.sweep_rows import evaluate_chunk

if TYPE_CHECKING:
    import pyarrow as pa

Arm = Callable[[Sweep, Sequence[Chunk]], "Iterator[tuple[Chunk, pa.Table]]"]

TASKS_PER_CPU = 2
"""Chunks that a cluster is given ahead, so that none of it waits for us."""
KNOCK_SECONDS = 5.0


def in_process(sweep: Sweep, chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, pa.Table]]:
    """One after another, here."""
    for chunk in chunks:
        yield chunk, evaluate_chunk(sweep, chunk)


def processes(count: int) -> Arm:
    """In `count` processes, or here where one is enough."""

    def evaluate(sweep: Sweep, chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, pa.Table]]:
        workers = min(count, len(chunks))
        if workers <= 1:
            yield from in_process(sweep, chunks)
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
            waiting = {pool.submit(evaluate_chunk, sweep, chunk): chunk for chunk in chunks}
            try:
                for future in as_completed(waiting):
                    yield waiting.pop(future), future.result()
            except BrokenProcessPool:
                raise CapacityError(
                    "a worker process was ended, perhaps for want of memory; "
                    "the same command continues, give it fewer --workers"
                ) from None
            finally:
                pool.shutdown(cancel_futures=True)

    return evaluate


def _start_worker() -> None:
    """Ctrl-C is the parent's to handle; a parent that is killed must not leave workers behind, waiting for work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def ray(address: str) -> Arm:
    """On a Ray cluster: `auto` finds a running one, `local` starts one here, else ``HOST:PORT`` or ``ray://...``.

    Every node needs this version of elmoe. Processors that differ may differ in the last bit of a result.
    """
    try:
        import ray as cluster
    except ImportError:
        raise ConfigError("--ray needs Ray; pip install elmoe[ray], or use --workers") from None

    def evaluate(sweep: Sweep, chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, pa.Table]]:
        try:
            _knock(address)
            cluster.init(address=address, log_to_driver=False, logging_level="error")
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(f"--ray {address}: no cluster there ({error}); use local, or --workers") from None
        try:
            yield from _by_cluster(cluster, sweep, chunks)
        finally:
            cluster.shutdown()

    return evaluate


def _knock(address: str) -> None:
    """OSError where nobody listens: Ray itself tries for minutes, and ends the process at the end."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()


def _by_cluster(cluster: Any, sweep: Sweep, chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, pa.Table]]:
    task, shared = cluster.remote(evaluate_chunk), cluster.put(sweep)
    ahead = TASKS_PER_CPU * max(1, int(cluster.cluster_resources().get("CPU", 1)))
    left = iter(chunks)
    waiting: dict[Any, Chunk] = {}
    while True:
        while len(waiting) < ahead and (chunk := next(left, None)) is not None:
            waiting[task.remote(shared, chunk)] = chunk
        if not waiting:
            return
        ready, _ = cluster.wait(list(waiting), num_returns=1)
        for reference in ready:
            yield waiting.pop(reference), cluster.get(reference)
