"""`elmoe rtl`: Verilog of the PE's blocks, their verification, their area."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from elmoe.cli.console import Json, emit_json, err, out, say, table
from elmoe.errors import ConfigError, InternalError
from elmoe.rtl.designs import Design, Precision
from elmoe.rtl.liberty import CONSERVATIVE
from elmoe.trace.atomic import atomic_file, storage_errors

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)

DESIGNS = ", ".join(design.value for design in Design)
Names = Annotated[list[str] | None, typer.Option("--block", help="A block, or pe; repeatable. Default: all.")]
Designs = Annotated[list[str] | None, typer.Option("--design", help=f"{DESIGNS}; repeatable. Default: all.")]
Liberty = Annotated[
    list[Path] | None,
    typer.Option(help="Liberty file (.lib, .lib.gz) of a standard-cell library; repeatable.", show_default=False),
]
DontUse = Annotated[
    list[str] | None,
    typer.Option(help=f"Pattern of cells to leave out; repeatable. Default: {' '.join(CONSERVATIVE)}; '' for none."),
]
YosysBinary = Annotated[
    str | None, typer.Option("--yosys", help="A yosys binary instead of the installed package.", show_default=False)
]
OVERHEAD_BLOCK = "dot32"
"""The block whose overhead `elmoe rtl synth` names first: one encoder per weight column serves all rows."""


@app.command()
def emit(
    folder: Annotated[Path, typer.Option("-o", "--output", help="Folder for the .v files.")] = Path("rtl-output"),
    block: Names = None,
    design: Designs = None,
    rows: Annotated[int, typer.Option(help="Of the PE's array.")] = 16,
    columns: Annotated[int, typer.Option(help="Of the PE's array.")] = 32,
    port_bits: Annotated[int, typer.Option(help="Bits that WMEM delivers to the PE per cycle.")] = 1024,
    row_blocks: Annotated[int, typer.Option(help="Blocks of rows that a weight tile can serve.")] = 2,
    yosys: YosysBinary = None,
    json: Json = False,
) -> None:
    """Write Verilog, one file per block and design."""
    from elmoe.rtl import emit as emitting
    from elmoe.rtl.pe_bench import emit_pe
    from elmoe.rtl.tile import PeShape
    from elmoe.rtl.yosys import find_yosys

    shape = PeShape(rows, columns, port_bits, row_blocks)
    found, chosen = _blocks(block), _designs(design)
    tool = find_yosys(yosys)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files = []
    for item in found.values():
        for which in chosen:
            if item is None and which.sliced:
                files.append(_write(folder / f"pe_{which.value}.v", emit_pe(which, shape, tool)))
            elif item is not None and which in item.designs:
                made = emitting.emit(item, which, tool)
                files.append(_write(folder / f"{made.top}.v", made.verilog))
    if not files:
        raise ConfigError(f"{', '.join(found)}: not made as {', '.join(item.value for item in chosen)}")
    if json:
        emit_json({"folder": str(folder), "files": files})
        return
    lines = [(entry["file"], entry["bytes"]) for entry in files]
    out.print(table(f"Verilog in {folder}", ("file", "bytes"), lines))


@app.command()
def verify(
    block: Names = None,
    design: Designs = None,
    level: Annotated[
        list[str] | None, typer.Option(help="behavioural, verilog, netlist, sdf; repeatable. Default: all.")
    ] = None,
    liberty: Liberty = None,
    dont_use: DontUse = None,
    yosys: YosysBinary = None,
    json: Json = False,
) -> None:
    """Compare the RTL with the golden model. Exit code 1 when anything differs."""
    from elmoe.rtl.verify import Tools, check_block, check_pe, levels_named

    levels = levels_named(level)
    tools = Tools(yosys, _library(liberty, dont_use))
    checks = []
    for item in _blocks(block).values():
        for which in _designs(design):
            for stage in levels:
                if item is None and which.sliced:
                    checks.append(check_pe(which, stage, tools))
                elif item is not None and which in item.designs:
                    checks.append(check_block(item, which, stage, tools))
                else:
                    continue
                _say_check(checks[-1])
    mismatches = sum(check.outcome.mismatches for check in checks)
    skipped = sorted({check.skipped for check in checks if check.skipped})
    compared = sum(check.outcome.compared for check in checks)
    if not compared:
        raise ConfigError(f"nothing was verified: {'; '.join(skipped) or 'no block is made as these designs'}")
    if json:
        emit_json(
            {"mismatches": mismatches, "compared": compared, "skipped": skipped, "rows": [c.as_dict() for c in checks]}
        )
    else:
        say(f"{compared} outputs compared, {mismatches} differ from the golden model")
        for reason in skipped:
            say(f"skipped: {reason}")
    if mismatches:
        worst = next(check for check in checks if check.outcome.mismatches)
        raise InternalError(
            f"{worst.block} {worst.design.value} at level {worst.level.value} is not the golden model: "
            f"{worst.outcome.first}"
        )


@app.command()
def synth(
    block: Names = None,
    design: Designs = None,
    liberty: Liberty = None,
    dont_use: DontUse = None,
    yosys: YosysBinary = None,
    json: Json = False,
) -> None:
    """Cells and area with a Liberty library; transistors without one. What LSB augmentation adds."""
    from elmoe.rtl.emit import emit as emit_block
    from elmoe.rtl.synth import overhead_percent, synthesise
    from elmoe.rtl.yosys import find_yosys

    found, chosen = _blocks(block), _designs(design)
    if block is not None and "pe" in block:
        raise ConfigError("the whole PE is not synthesised in one piece; its blocks are (docs/rtl.md, area of a PE)")
    library, tool = _library(liberty, dont_use), find_yosys(yosys)
    rows: list[dict[str, Any]] = []
    for name, item in found.items():
        if item is None:
            continue
        for which in (one for one in chosen if one in item.designs):
            made = emit_block(item, which, tool)
            result = synthesise(made.verilog, made.top, tool, library)
            rows.append({"block": name, "design": which.value} | result.figures())
            say(f"{name} {which.value}: {result.cells} cells", err)
    if not rows:
        raise ConfigError(f"{', '.join(found)}: not made as {', '.join(item.value for item in chosen)}")
    overheads = overhead_percent(rows)
    main = next((row for row in rows if (row["block"], row["design"]) == (OVERHEAD_BLOCK, "augmented")), rows[0])
    document = {
        "block": main["block"],
        "design": main["design"],
        "cells": main["cells"],
        "area_um2": main["area_um2"],
        "transistors": main["transistors"],
        "lsb_augmentation_overhead_percent": overheads.get(main["block"]),
        "overheads_percent": overheads,
        "yosys": tool.version,
        "rows": rows,
    }
    if json:
        emit_json(document)
        return
    _show_synthesis(rows, overheads, library is not None)


@app.command()
def area(
    pes: Annotated[int, typer.Option(help="PEs of the die: 16 at 4 GB of HB, 32 at 8 GB.")] = 16,
    utilisation: Annotated[float, typer.Option(help="Share of the die that cells cover (assumed).")] = 0.7,
    json: Json = False,
) -> None:
    """Area of a PE and its die, energy of a multiply-accumulate: every part with how it is known."""
    from elmoe.rtl.pe_model import area_parts, die_mm2, mac_parts, measured, total

    numbers = measured()
    found: dict[str, Any] = {}
    for design in (Design.CONVENTIONAL, Design.AUGMENTED):
        parts = area_parts(design, numbers)
        macs = {precision: mac_parts(design, precision, numbers) for precision in Precision}
        found[design.value] = {
            "pe_um2": total(parts)[1],
            "die_mm2": die_mm2(parts, pes, utilisation),
            "area_um2": [part.as_dict() for part in parts],
            "mac_fj": {key.value: [part.as_dict() for part in of] for key, of in macs.items()},
        }
    plain, augmented = (found[design.value] for design in (Design.CONVENTIONAL, Design.AUGMENTED))
    percent = 100 * (augmented["pe_um2"] / plain["pe_um2"] - 1)
    if json:
        settings = {"pes": pes, "utilisation": utilisation, "cells": "ASAP7 RVT TT, bench/rtl.py"}
        emit_json({"lsb_augmentation_overhead_percent": percent, "config": settings, "designs": found})
        return
    lines = [(part["part"], f"{part['high']:,.0f}", part["status"], part["source"]) for part in augmented["area_um2"]]
    out.print(table("one LSB-augmented PE, um2 of ASAP7 cells", ("part", "um2", "status", "how"), lines))
    say(f"{augmented['pe_um2']:,.0f} um2, {percent:+.2f} % over conventional bit-slicing")
    say(f"{pes} PEs at {utilisation:.0%} utilisation (assumed): {augmented['die_mm2']:.2f} mm2")


def _show_synthesis(rows: Sequence[dict[str, Any]], overheads: dict[str, float], with_library: bool) -> None:
    size = "area_um2" if with_library else "transistors"
    lines = [
        (
            row["block"],
            row["design"],
            row["cells"],
            f"{row[size]:.2f}" if with_library else row[size],
            f"{overheads[row['block']]:+.2f} %" if row["design"] == "augmented" and row["block"] in overheads else "",
        )
        for row in rows
    ]
    unit = "area um2" if with_library else "transistors"
    out.print(table("synthesis", ("block", "design", "cells", unit, "augmented over conventional"), lines))


def _say_check(check: Any) -> None:
    found = check.skipped or f"{check.outcome.compared} compared, {check.outcome.mismatches} differ"
    say(f"{check.block} {check.design.value} {check.level.value}: {found}", err)


def _blocks(names: list[str] | None) -> dict[str, Any]:
    """Blocks by name; the PE as None."""
    from elmoe.rtl.blocks import blocks

    known: dict[str, Any] = {**blocks(), "pe": None}
    for name in names or ():
        if name not in known:
            raise ConfigError(f"unknown block {name!r}; known are {', '.join(known)}")
    return {name: known[name] for name in names} if names else known


def _designs(names: list[str] | None) -> list[Design]:
    known = {design.value: design for design in Design}
    for name in names or ():
        if name not in known:
            raise ConfigError(f"unknown design {name!r}; known are {DESIGNS}")
    return [known[name] for name in names] if names else list(Design)


def _library(paths: list[Path] | None, dont_use: list[str] | None) -> Any:
    from elmoe.rtl.liberty import read_library

    if paths is None:
        if dont_use is not None:
            raise ConfigError("--dont-use names cells of a library; give --liberty too")
        return None
    return read_library(paths, CONSERVATIVE if dont_use is None else [pattern for pattern in dont_use if pattern])


def _write(path: Path, text: str) -> dict[str, Any]:
    data = text.encode()
    with atomic_file(path) as file, storage_errors(path):
        file.write(data)
    return {"file": str(path), "bytes": len(data)}
