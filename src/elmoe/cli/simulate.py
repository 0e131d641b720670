"""`elmoe simulate`: one or several accelerators on one or several models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from elmoe.cli.console import Json, emit_json, err, out, parse_integers, say, table
from elmoe.cli.simulate_host import Asked, FastBytes, LsbShare, PolicyName, host_rows
from elmoe.errors import ConfigError
from elmoe.sim.cost import prices
from elmoe.sim.dram import load_device
from elmoe.sim.host.rows import Load
from elmoe.sim.host.spec import Host, is_host, load_host
from elmoe.sim.model import MODELS, load_model, model_from_shape
from elmoe.sim.play_layer import PlayedLayer, play_layer
from elmoe.sim.profile import (
    DEFAULT_ORIGIN,
    SchemeSpecs,
    named_profile,
    profile_from_trace,
    scheme_specs,
    specs_for_trace,
)
from elmoe.sim.quantity import as_table
from elmoe.sim.run import Query, rows
from elmoe.sim.spec import MAC_ENERGIES, SCHEMES, SYSTEMS, Machine, load_machine
from elmoe.sim.timeline import write_timeline
from elmoe.sim.what_if import parse_setting, what_if
from elmoe.sim.write_rows import write_rows
from elmoe.trace.parquet import Trace, read_trace

SETTINGS = ("model", "system", "scheme", "HB GB", "batch", "context", "workload")
DEFAULT_CONTEXT = 1024
COLUMNS = (*SETTINGS, "alpha", "ms/token", "vs xpu", "mJ/token", "waits for")


def simulate(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join(MODELS)}, all, or a config.json. Repeatable. Default: {MODELS[0]}, or the trace's."
        ),
    ] = None,
    system: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(SYSTEMS)}, all, or a .toml file. Repeatable. Default: elmoe-3d."),
    ] = None,
    scheme: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(SCHEMES)}, or all. Repeatable. Default: what the system is for."),
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help="ar (the scheme's memory map resident) or sd. Default: sd with a scheme.")
    ] = None,
    hb_gb: Annotated[
        str | None, typer.Option(help="HB capacity in GB, for example 4 or 4,8. Default: the system's.")
    ] = None,
    batch: Annotated[str, typer.Option(help="Sequences, for example 1,4,16.")] = "1",
    context: Annotated[
        str | None,
        typer.Option(
            help="Tokens in the cache per sequence, for example 1024,32768. Default: 1024, or the model's context."
        ),
    ] = None,
    workload: Annotated[list[str] | None, typer.Option(help="mt-bench, gsm8k, alpaca, humaneval. Repeatable.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Measure locality and acceptance from this trace.")] = None,
    acceptance: Annotated[
        float | None, typer.Option(help="Accepted draft tokens / tree depth, instead of the profile's.")
    ] = None,
    mac_energy: Annotated[
        str, typer.Option(help=f"Energy of a multiply-accumulate: {' or '.join(MAC_ENERGIES)} (docs/rtl.md).")
    ] = MAC_ENERGIES[0],
    fast_bytes: FastBytes = None,
    cache_policy: PolicyName = None,
    lsb_share: LsbShare = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=VALUE",
            help="Another value in a field of machines or schemes, as hb.gb_per_s=1638.4 or tree.depth=4. Repeatable.",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Also write .parquet, .csv or .json.")] = None,
    timeline: Annotated[
        Path | None, typer.Option(help="Play one MoE layer of the first row cycle by cycle; Chrome trace as JSON.")
    ] = None,
    json: Json = False,
) -> None:
    """Predict latency, energy per token and bottleneck of an accelerator on a model."""
    recorded = None if trace is None else read_trace(trace)
    specs = scheme_specs() if recorded is None else specs_for_trace(recorded, scheme_specs())
    accelerators, hosts = _systems(system)
    varied = [parse_setting(text) for text in vary or []]
    machines, specs = what_if(_machines(accelerators, hb_gb, mac_energy, hosts), specs, varied)
    loads = _loads(model, workload, recorded, specs)
    asked = Asked(
        fast_bytes=fast_bytes,
        cache_policy=cache_policy,
        lsb_share=lsb_share,
        mode=mode,
        batches=tuple(parse_integers(batch, "batch")),
        contexts=() if context is None else tuple(parse_integers(context, "context")),
        acceptance=acceptance,
    )
    queries = list(_queries(loads, machines, scheme, asked))
    found = rows(queries, specs) + host_rows(hosts, loads, asked, specs)
    _say_origins(loads)
    config = {"mac_energy": mac_energy} | _config(machines, hosts, loads, specs)
    if output is not None:
        write_rows(output, found, config)
    played = None if timeline is None else _played(timeline, queries, specs)
    if json:
        emit_json({"rows": found, "config": config} | ({} if played is None else {"layer": played.as_dict()}))
        return
    _show(found)
    _say_files(timeline, played, output, len(found))


def _queries(loads: list[Load], machines: list[Machine], scheme: list[str] | None, asked: Asked) -> Iterator[Query]:
    """Every load on every accelerator."""
    for load, machine in product(loads, machines):
        contexts = asked.contexts or (min(DEFAULT_CONTEXT, load.model.max_context),)
        for wanted in _schemes(scheme, machine):
            among_others = scheme == ["all"] or (scheme is None and len(machines) > 1)
            plain = wanted == "none" and (asked.mode is None or among_others)
            way = "ar" if plain else asked.mode or "sd"
            yield Query(
                machine=machine,
                model=load.model,
                profile=load.profile,
                workload=load.workload,
                scheme=wanted,
                mode=way,
                batches=asked.batches,
                contexts=contexts,
                acceptance=asked.acceptance,
            )


def _played(timeline: Path, queries: list[Query], specs: SchemeSpecs) -> PlayedLayer:
    """One MoE layer of the first query, and its file."""
    if not queries:
        raise ConfigError("timeline is about accelerators; give --system one of them")
    played = play_layer(queries[0], specs)
    write_timeline(timeline, played.timing.events, f"{queries[0].machine.name}, {queries[0].model.name}")
    return played


def _config(machines: list[Machine], hosts: list[Host], loads: list[Load], specs: SchemeSpecs) -> dict[str, Any]:
    """Every number that a result hangs on, with its source."""
    devices = {name for machine in machines for name in machine.devices}
    return {
        "prices": as_table(prices().quantities),
        "machines": [
            {"system": machine.name, "hb_gb": machine.hb_equivalent_gb, **machine.as_tables()} for machine in machines
        ],
        "hosts": [{"system": host.name, **host.as_tables()} for host in hosts],
        "models": {load.model.name: asdict(load.model) for load in loads},
        "profiles": [{"model": load.model.name, "workload": load.workload, **load.profile.as_dict()} for load in loads],
        "dram": {name: as_table(load_device(name).quantities) for name in sorted(devices)},
        "schemes": specs.as_tables(),
    }


def _loads(
    names: list[str] | None, workloads: list[str] | None, recorded: Trace | None, specs: SchemeSpecs
) -> list[Load]:
    """Everything asked for."""
    if recorded is not None:
        if workloads:
            raise ConfigError("give --workload or --trace, not both: a trace brings its own locality")
        profile = profile_from_trace(recorded, specs)
        models = [load_model(name) for name in names] if names else [model_from_shape(recorded.shape, recorded.source)]
        for item in models:
            if (item.experts, item.experts_per_tok) != (recorded.shape.experts, recorded.shape.experts_per_tok):
                raise ConfigError(
                    f"{recorded.path} has {recorded.shape.experts_per_tok} of {recorded.shape.experts} experts per "
                    f"token, {item.name} {item.experts_per_tok} of {item.experts}; record a trace of that model"
                )
        return [Load(item, profile, "trace", recorded) for item in models]
    chosen = MODELS if names is not None and "all" in names else names or MODELS[:1]
    models = [load_model(name) for name in chosen]
    return [Load(item, named_profile(item, one, specs), one) for item in models for one in workloads or ["mt-bench"]]


def _systems(names: list[str] | None) -> tuple[list[str], list[Host]]:
    """Accelerators by name, and hosts."""
    chosen = SYSTEMS if names is not None and "all" in names else names or ["elmoe-3d"]
    hosts = [name for name in chosen if is_host(name)]
    return [name for name in chosen if name not in hosts], [load_host(name) for name in hosts]


def _machines(names: list[str], hb_gb: str | None, mac_energy: str, hosts: list[Host]) -> list[Machine]:
    found = [load_machine(name).with_mac_energy(mac_energy) for name in names]
    if hb_gb is None:
        return found
    if hosts:
        raise ConfigError(f"hb-gb is about accelerators; the fast tier of {hosts[0].name} is given by --fast-bytes")
    try:
        sizes = [float(part) for part in hb_gb.split(",")]
    except ValueError:
        raise ConfigError(f"hb-gb: cannot read {hb_gb!r}; write for example 4 or 4,8") from None
    return [machine.with_hb_gb(size) for machine in found for size in sizes]


def _say_origins(loads: list[Load]) -> None:
    """On standard error: what is assumed about a model, or measured on how little."""
    for load in loads:
        if load.trace is not None or load.profile.origin == DEFAULT_ORIGIN:
            say(f"profile of {load.model.name}: {load.profile.origin}", err)


def _schemes(names: list[str] | None, machine: Machine) -> tuple[str, ...]:
    if names == ["all"]:
        return SCHEMES
    return tuple(names) if names else (machine.scheme,)


def _say_files(timeline: Path | None, played: PlayedLayer | None, output: Path | None, count: int) -> None:
    """What was written where."""
    if played is not None:
        found_us, fast_us = played.timing.total_ns * 1e-3, played.fast_ns * 1e-3
        say(f"{timeline}: one MoE layer in {found_us:.1f} us, by the fast formula {fast_us:.1f} us")
    if output is not None:
        say(f"{output}: {count} rows", err)


def _show(found: list[dict[str, Any]]) -> None:
    """One line per row; what all rows have in common goes into the title."""
    lines = [
        (
            row["model"],
            row["system"],
            f"{row['scheme']}-{row['mode']}",
            f"{row['hb_gb']:g}",
            row["batch"],
            row["context"],
            row["workload"],
            _number(row["acceptance_rate"], ".2f"),
            f"{row['latency_ms_per_token']:.4g}",
            _number(row["speedup_vs_xpu"], ".2f"),
            _number(row["energy_mj_per_token"]["total"], ".3g"),
            row["bottleneck"],
        )
        for row in found
    ]
    shared = [i for i in range(len(SETTINGS)) if len({line[i] for line in lines}) == 1]
    title = "simulated: " + ", ".join(f"{COLUMNS[i]} {lines[0][i]}" for i in shared)
    kept = [i for i in range(len(COLUMNS)) if i not in shared]
    out.print(table(title, [COLUMNS[i] for i in kept], [[line[i] for i in kept] for line in lines]))
    if any(line[len(SETTINGS)] for line in lines):
        say("alpha: accepted draft tokens / tree depth")


def _number(value: float | None, style: str) -> str:
    return "" if value is None else format(value, style)
