"""`elmoe explore`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from elmoe.cli.console import Json, emit_json, err, progress_bar, say
from elmoe.errors import ConfigError
from elmoe.sim.explore import explore as run_sweep
from elmoe.sim.sweep_file import load_sweep
from elmoe.sim.workers import processes
from elmoe.sim.workers import ray as on_ray


def explore(
    sweep: Annotated[
        Path, typer.Argument(help="A .toml file of lists, as examples/sweep_hb.toml.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .parquet file to write.", show_default=False)],
    workers: Annotated[int | None, typer.Option(min=1, max=256, help="Processes. Default: 1.")] = None,
    ray: Annotated[
        str | None, typer.Option(help="Use Ray instead: auto, local, or a cluster's address (elmoe[ray]).")
    ] = None,
    json: Json = False,
) -> None:
    """Sweep the simulator over models, machines and loads; a run that was ended continues where it was."""
    if workers is not None and ray is not None:
        raise ConfigError("give --workers or --ray, not both")
    asked = load_sweep(sweep)
    arm = processes(workers or 1) if ray is None else on_ray(ray)
    started = time.perf_counter()
    try:
        with progress_bar("exploring") as progress:
            found = run_sweep(asked, output, arm, progress)
    except KeyboardInterrupt:
        say(f"what is done is kept in {output}.parts; the same command continues", err)
        raise
    seconds = time.perf_counter() - started
    if json:
        emit_json(
            {
                "points": found.points,
                "done": found.done,
                "problems": found.problems,
                "pareto": found.pareto,
                "seconds": seconds,
                "path": str(output),
            }
        )
        return
    text = f"{output}: {found.points:,} points, {found.pareto:,} of them on a Pareto front"
    if found.problems:
        text += f", {found.problems:,} impossible (column problem)"
    if found.done < found.points:
        text += f", {found.points - found.done:,} kept from before"
    say(f"{text}, {seconds:.1f} s")
