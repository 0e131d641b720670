"""`elmoe bench`: plain decoding and Elastic-SD, and a peer on the same weights, timed in turn."""

from __future__ import annotations

import os
import platform
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Annotated, Any

import typer

from elmoe import __version__
from elmoe.backend.protocol import Backend
from elmoe.backend.select import open_backend
from elmoe.bench.arms import Arm, BackendArm, EngineArm
from elmoe.bench.bandwidth import BandwidthProbe
from elmoe.bench.gguf_q8 import cached_gguf, check_expressible
from elmoe.bench.peer import Peer, PeerArm, agreement
from elmoe.bench.race import race, rows
from elmoe.bench.workload import RacePlan
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.resolve import resolve
from elmoe.cli import options as opt
from elmoe.cli.console import Json, Model, emit_json, err, out, parse_integers, progress_bar, say, table
from elmoe.engine.controller import Mode, Speculation
from elmoe.engine.engine import Engine, EngineOptions
from elmoe.errors import ConfigError

PEERS = ("llama.cpp",)


def bench(
    model: Model,
    batch: Annotated[str, typer.Option(help="Batch sizes, for example 1,4,8,16.")] = "1,4,8,16",
    against: Annotated[str | None, typer.Option(help="A peer to compare with: llama.cpp.")] = None,
    prefill: Annotated[int, typer.Option(help="Tokens of the prompt whose prefill is timed.")] = 128,
    steps: Annotated[int, typer.Option(help="Decode steps per arm, batch and round.")] = 32,
    rounds: Annotated[int, typer.Option(help="Turns of all arms; medians over them.")] = 5,
    context: Annotated[int, typer.Option(help="Tokens of a sequence before the first step.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the random token ids.")] = 0,
    width: opt.Width = 2,
    depth: opt.Depth = 4,
    verify: opt.Verify = None,
    draft_bits: opt.DraftBits = 4,
    draft_experts: opt.DraftExperts = None,
    pool_fraction: opt.PoolFraction = None,
    backend: opt.BackendName = "cpu",
    peer_python: Annotated[
        str | None, typer.Option(help="Interpreter that has the peer. Default: $ELMOE_PEER_PYTHON, or ours.")
    ] = None,
    json: Json = False,
) -> None:
    """Time plain decoding, Elastic-SD and a peer on the same weights, in turn, on random token ids."""
    plan = RacePlan(tuple(parse_integers(batch, "--batch")), prefill, steps, rounds, context, seed)
    elastic = opt.speculation(Mode.SD, width, depth, verify, draft_bits, draft_experts)
    options = opt.engine_options(elastic, pool_fraction, None, max(plan.batches), backend)
    if against not in (None, *PEERS):
        raise ConfigError(f"there is no peer {against!r}; elmoe bench compares with {', '.join(PEERS)}")
    with ExitStack() as stack:
        peer = stack.enter_context(Peer(peer_python)) if against else None  # first: it may not be installed
        with progress_bar("converting") as progress:
            checkpoint = Checkpoint.open(resolve(model, progress))
        plan.check_fit(checkpoint.shape)
        if peer is not None:
            check_expressible(checkpoint)
        runner = open_backend(backend, checkpoint)
        threads = thread_count(runner)
        arms = own_arms(runner, options)
        if peer is not None:
            load_peer(peer, checkpoint, plan, threads)
            peer.description["logits_correlation"] = agreement(BackendArm(runner), peer, plan.prompt(runner.shape, 0))
            arms.insert(1, PeerArm(peer, PEERS[0], arms[0].name))
        probe = BandwidthProbe()
        with progress_bar("timing, in turn") as progress:
            timings = race(arms, plan, runner.shape, probe, progress)
    found = rows(arms, plan, timings, against)
    where = provenance(plan, options, threads, probe, peer)
    if json:
        emit_json({"rows": found, "model": model} | where)
    else:
        show(found, where, against)


def own_arms(backend: Backend, options: EngineOptions) -> list[Arm]:
    """AR by bare passes, as a peer is timed; then the engine's modes, which share everything else.

    The controller has an engine of its own: it knows what it measured itself.
    """
    engine, controlled = Engine(backend, options=options), Engine(backend, options=options)
    plain = EngineArm(engine, "ar-engine", Speculation(mode=Mode.AR), baseline="ar-engine")
    drafted = EngineArm(engine, "sd", options.speculation, baseline=plain.name)
    auto = replace(options.speculation, mode=Mode.AUTO)
    return [BackendArm(backend), plain, drafted, EngineArm(controlled, "auto", auto, baseline=plain.name)]


def load_peer(peer: Peer, checkpoint: Checkpoint, plan: RacePlan, threads: int) -> None:
    """Give the peer the same weights, room for the plan's sequences, and as many threads as we have."""
    with progress_bar("writing the weights as GGUF") as progress:
        model = cached_gguf(checkpoint, progress)
    peer.load(model, threads, max(plan.batches), max(plan.prefill, plan.context + plan.steps))


def thread_count(backend: Backend) -> int:
    """Threads of a backend that says so, else the processors that we may use: as many as the peer gets."""
    return int(getattr(backend, "threads", 0)) or len(os.sched_getaffinity(0))


def provenance(
    plan: RacePlan, options: EngineOptions, threads: int, probe: BandwidthProbe, peer: Peer | None
) -> dict[str, Any]:
    """Where and how the rows were made."""
    speculation = options.speculation
    return {
        "elmoe": __version__,
        "date": time.strftime("%Y-%m-%d"),
        "host": {
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "load": os.getloadavg()[0],  # of the last minute: above our threads, others were at work
        },
        "threads": threads,
        "read_gb_per_s": probe.median,
        "peer": peer.description | {"idle_cpu": peer.idle_cpu} if peer is not None else None,
        "settings": plan.as_dict()
        | {
            "backend": options.backend,
            "pool_fraction": options.pool_fraction,
            "width": speculation.width,
            "depth": speculation.depth,
            "verify": speculation.verify,
            "draft_bits": speculation.quality.bits,
            "draft_experts": speculation.quality.experts_per_tok,
        },
    }


def show(found: list[dict[str, Any]], where: dict[str, Any], against: str | None) -> None:
    """A table, and the conditions under it."""
    columns = ["arm", "batch", "tok/s", "prefill", "/ AR", "bandwidth"]
    lines = [
        [
            row["arm"],
            row["batch"],
            f"{row['decode_tok_s']:.1f}",
            f"{row['prefill_tok_s']:.0f}",
            f"{row['ratio_to_ar']:.2f}",
            f"{row['fraction_of_bandwidth']:.0%}" if row["fraction_of_bandwidth"] is not None else "",
        ]
        for row in found
    ]
    if against is not None:
        columns.insert(5, f"/ {against}")
        for line, row in zip(lines, found, strict=True):
            line.insert(5, f"{row['ratio_to_peer']:.2f}")
    settings = where["settings"]
    out.print(table(f"medians of {settings['rounds']} rounds of {settings['steps']} steps", columns, lines))
    say("ar and the peer: bare passes; ar-engine and sd: through the engine", err)
    say(f"{where['threads']} threads; memory reads {where['read_gb_per_s']:.1f} GB/s", err)
    if where["peer"] is not None:
        idle = where["peer"]["idle_cpu"]
        say(
            f"{against} ({where['peer']['version']}) on the same weights: logits correlate by "
            f"{where['peer']['logits_correlation']:.5f}; cores that the waiting side kept busy: "
            f"peer {idle['peer']:.2f}, elmoe {idle['elmoe']:.2f}",
            err,
        )
