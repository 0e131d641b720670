"""The tables of docs/rtl.md and the simulator's second set of energies, from bench/results/rtl.json.

python bench/rtl_tables.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from elmoe.rtl.designs import Design, Precision
from elmoe.rtl.pe_model import DEFAULT_UTILISATION, Part, area_parts, die_mm2, mac_parts, measured, total
from elmoe.rtl.tile import PeShape
from harness import RESULTS, ROOT, markdown_table, replace_block

DOCS = ROOT / "docs" / "rtl.md"
MAC_ENERGY = ROOT / "src" / "elmoe" / "sim" / "specs" / "mac_energy.toml"
DESIGNS = [design.value for design in Design]
SIZES = {"conservative": "area_um2", "all": "area_um2", "none": "transistors"}


def area(document: dict[str, Any]) -> str:
    """Blocks by design: conservative cells / all cells / transistors."""
    found = {
        (row["block"], row["design"], row["cells_of"]): row[SIZES[row["cells_of"]]] for row in document["synthesis"]
    }
    blocks = list(dict.fromkeys(row["block"] for row in document["synthesis"]))

    def cell(block: str, design: str) -> str:
        sizes = [found.get((block, design, cells)) for cells in SIZES]
        return "" if sizes[0] is None else f"{sizes[0]:.1f} / {sizes[1]:.1f} / {sizes[2]}"

    rows = [[f"`{block}`", *(cell(block, design) for design in DESIGNS)] for block in blocks]
    return markdown_table(["um2, conservative / all cells / transistors", *DESIGNS], rows)


def overheads(document: dict[str, Any]) -> str:
    """What augmentation costs, by where the encoder is and what it is compared with."""
    by_cells = document["overhead_percent"]
    sizes = {
        (row["cells_of"], row["block"], row["design"]): row["area_um2"] or row["transistors"]
        for row in document["synthesis"]
    }

    def array(cells: str, column: str) -> float:
        whole = {
            d: 512 * sizes[cells, "dot32", d] + 32 * sizes[cells, column, d] for d in ("augmented", "conventional")
        }
        return 100 * (whole["augmented"] / whole["conventional"] - 1)

    lines: list[tuple[str, Callable[[str], float]]] = [
        ("dot product alone (`dot32`)", lambda cells: by_cells[cells]["dot32"]),
        (
            "array, slices streamed through one register (`dot32`, `nibble_column`)",
            lambda cells: array(cells, "nibble_column"),
        ),
        ("array, both slices held (`dot32`, `column`): our PE", lambda cells: array(cells, "column")),
        ("one lane with its group scale (`lane`)", lambda cells: by_cells[cells]["lane"]),
        ("encoder inside every unit (`dot32_own_encoders`)", lambda cells: by_cells[cells]["dot32_own_encoders"]),
        ("against MSB columns hardwired to 4 bits (`pair`)", lambda cells: by_cells[cells]["pair"]),
        ("one unit alone (`unit`)", lambda cells: by_cells[cells]["unit"]),
    ]
    rows = [[name, *(f"{of(cells):+.2f} %" for cells in SIZES)] for name, of in lines]
    return markdown_table(["augmented over conventional", "conservative cells", "all cells", "transistors"], rows)


def timing(document: dict[str, Any]) -> str:
    """Slack at 1 GHz."""
    found = {(row["block"], row["design"]): row["slack_ps_at_1_ghz"] for row in document["timing"]}
    blocks = list(dict.fromkeys(block for block, _ in found))
    rows = [[f"`{b}`", *(f"{found[b, d]:+.0f}" if (b, d) in found else "" for d in DESIGNS)] for b in blocks]
    return markdown_table(["slack at 1 GHz, ps", *DESIGNS], rows)


def verification(document: dict[str, Any]) -> str:
    """Netlists of ASAP7 cells against the golden model."""
    rows = document["verification"]

    def counts(block: str, level: str) -> list[str]:
        part = [row for row in rows if (row["block"], row["level"]) == (block, level)]
        return [f"{sum(row['compared'] for row in part):,}", str(sum(row["mismatches"] for row in part))]

    blocks = list(dict.fromkeys(row["block"] for row in rows))
    cells = [[f"`{block}`, all designs", *counts(block, "netlist"), *counts(block, "sdf")] for block in blocks]
    columns = ["block", "netlist: outputs compared", "differ", "with delays at 1 GHz: compared", "differ"]
    return markdown_table(columns, cells)


def energies(document: dict[str, Any]) -> str:
    """Of the dot product, fJ per multiply-accumulate."""
    dots = [row for row in document["energy"] if row["block"] == "dot32"]
    middle = {(row["design"], row["precision"], row["hold"]): row["lower_fj"] + row["upper_fj"] for row in dots}
    rows = []
    for row in dots:
        cell = f"{row['lower_fj']:.0f} to {row['upper_fj']:.0f}"
        key = (row["precision"], row["hold"])
        plain = middle.get(("conventional", *key), 0)
        change = f"{100 * (middle['augmented', *key] / plain - 1):+.1f} %" if row["design"] == "augmented" else ""
        rows.append([row["design"], *key, cell, change, f"{row['cycle_toggles']:.0f}"])
    columns = ["`dot32`", "weights", "groups per weight tile", "fJ per multiply-accumulate"]
    columns += ["augmented over conventional", "toggles per cycle"]
    return markdown_table(columns, rows)


def pe_area() -> str:
    """Parts of a PE, and dies."""
    numbers = measured()
    parts = {design: area_parts(design, numbers) for design in (Design.CONVENTIONAL, Design.AUGMENTED)}
    rows = [
        [part.name, f"{plain.high:,.0f}", f"{part.high:,.0f}", part.known.value, part.source]
        for plain, part in zip(*parts.values(), strict=True)
    ]
    sums = [total(found)[1] for found in parts.values()]
    change = f"{100 * (sums[1] / sums[0] - 1):+.2f} %"
    rows.append(["**sum**", f"{sums[0]:,.0f}", f"{sums[1]:,.0f}", "", change])
    for pes in (16, 32):
        sizes = [f"{die_mm2(found, pes):.2f} mm2" for found in parts.values()]
        rows.append([f"{pes} PEs", *sizes, "assumed", f"utilisation {DEFAULT_UTILISATION:.0%}"])
    return markdown_table(["um2", "conventional", "augmented", "status", "how"], rows)


ARMS = (
    ("sliced_w4_pj", Design.AUGMENTED, Precision.W4),
    ("sliced_w8_pj", Design.AUGMENTED, Precision.W8),
    ("native_w8_pj", Design.NATIVE_8X8, Precision.W8),
)


def mac_energy() -> str:
    """Parts of a multiply-accumulate."""
    numbers = measured()
    columns = [mac_parts(design, precision, numbers) for _, design, precision in ARMS]

    def cell(part: Part) -> str:
        return f"{part.low:.1f} to {part.high:.1f}"

    rows = [[found[0].name, *map(cell, found), found[0].known.value] for found in zip(*columns, strict=True)]
    rows.append(["**sum**", *(f"{low:.0f} to {high:.0f}" for low, high in map(total, columns)), ""])
    names = [f"{design.value}, {precision.value}" for _, design, precision in ARMS]
    return markdown_table(["fJ per multiply-accumulate", *names, "status"], rows)


def energy_file() -> str:
    """specs/mac_energy.toml: the middle of each range."""
    numbers = measured()
    lines = [
        "# The second set of energies beside those of the systems' own files; `elmoe simulate --mac-energy rtl`.",
        "# Written by bench/rtl_tables.py from bench/results/rtl.json; parts and assumptions: docs/rtl.md.",
        "[rtl]",
    ]
    for name, design, precision in ARMS:
        low, high = total(mac_parts(design, precision, numbers))
        value = round((low + high) / 2 * 1e-3, 4)
        source = (
            f"bench/rtl.py: middle of {low * 1e-3:.3f} to {high * 1e-3:.3f} pJ, {design.value}; arithmetic and weight "
            "registers measured, SRAM assumed"
        )
        lines.append(f'{name} = {{ value = {value}, unit = "pJ", source = "{source}", status = "extrapolated" }}')
    return "\n".join(lines) + "\n"


def weight_changes() -> str:
    """How often weights can change."""
    rows = []
    for bits in (256, 512, 1024):
        shape = PeShape(port_bits=bits)
        words = [shape.tile_words(precision) for precision in Precision]
        rows.append([bits, *words, *(f"{100 / n:.0f} %" for n in (words[0], words[1] / 2))])
    columns = ["WMEM bits per cycle", "cycles per W4 tile", "per W8 tile", "array busy at one block of rows, W4", "W8"]
    return markdown_table(columns, rows)


def write_docs(document: dict[str, Any]) -> None:
    """All tables, and the file of energies."""
    tables = {
        "rtl-area": area(document),
        "rtl-overhead": overheads(document),
        "rtl-timing": timing(document),
        "rtl-verification": verification(document),
        "rtl-energy": energies(document),
        "rtl-pe": pe_area(),
        "rtl-mac": mac_energy(),
        "rtl-weights": weight_changes(),
    }
    for name, table in tables.items():
        replace_block(DOCS, name, table)
    MAC_ENERGY.write_text(energy_file(), encoding="utf-8")


if __name__ == "__main__":
    write_docs(json.loads((RESULTS / "rtl.json").read_text(encoding="utf-8")))
