"""Area and energy of a whole PE and of the logic die, put together from measured blocks.

Every part says how it is known: *measured* (synthesised with ASAP7, cells only), *published* (a macro's own Liberty
file), *extrapolated* (a measured part times a count, or a neighbour's energy per flip-flop) or *assumed*. The measured
numbers are `asap7.json`, written by `bench/rtl.py`. Not in the model, because nothing here measures them: vector unit,
HB controller, links, clock tree, test logic. Source of the array: ELMoE-3D.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib.resources import files
from typing import Any

from elmoe.errors import ConfigError
from elmoe.rtl.designs import GROUP, Design, Precision
from elmoe.rtl.tile import PeShape

MEMORY_BYTES = 32 * 1024
"""WMEM, and IOMEM again (paper)."""
MACRO = "srambank_64x4x64"
MACRO_BYTES, MACRO_BITS = 2048, 64
"""The smallest published macro of 64 bits: as many ports per byte as there are."""
ACTIVATION_WORD_SHARE = 4.5
"""Words of 1024 bits of a block of 16 rows: 16 x 32 codes and 16 FP32 scales."""
UM2_PER_MM2 = 1e6
DEFAULT_UTILISATION = 0.7


class Known(Enum):
    """How far a part can be trusted."""

    MEASURED = "measured"
    PUBLISHED = "published"
    EXTRAPOLATED = "extrapolated"
    ASSUMED = "assumed"


@dataclass(frozen=True)
class Part:
    """One part of a sum."""

    name: str
    low: float
    high: float
    known: Known
    source: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "part": self.name,
            "low": self.low,
            "high": self.high,
            "status": self.known.value,
            "source": self.source,
        }


def measured() -> dict[str, Any]:
    """The numbers of `bench/rtl.py`."""
    return dict(json.loads((files("elmoe.rtl") / "asap7.json").read_text(encoding="utf-8")))


def area_parts(design: Design, numbers: Mapping[str, Any], shape: PeShape | None = None) -> list[Part]:
    """Cell area of one PE in um2. ConfigError for a design or shape that was not measured."""
    shape = shape or PeShape()
    if shape != PeShape() or not design.sliced:
        raise ConfigError("area was measured for bit-sliced PEs of 16 x 32 x 32 with the default port")
    area = numbers["area_um2"]
    lanes, macros = shape.rows * shape.columns, 2 * MEMORY_BYTES // MACRO_BYTES
    dot, scale, shell = area["dot32"][design.value], area["scale"]["augmented"], area["shell"][design.value]
    # Whole lanes differ by the noise of synthesis, about a percent: accumulators are the mean of what is left in both.
    rest = [area["lane"][kind.value] - area["dot32"][kind.value] - scale for kind in Design if kind.sliced]
    sums = sum(rest) / len(rest)
    sram = macros * numbers["sram"][MACRO]["area_um2"]
    each = "one synthesised, times 512"
    return [
        Part("dot products", lanes * dot, lanes * dot, Known.EXTRAPOLATED, each),
        Part("group scales, FP32 additions", lanes * scale, lanes * scale, Known.EXTRAPOLATED, each),
        Part("accumulators", lanes * sums, lanes * sums, Known.EXTRAPOLATED, "a lane less dot32 and scale, times 512"),
        Part(
            "weight and activation registers, encoders, sequencer",
            shell,
            shell,
            Known.MEASURED,
            "the PE synthesised around black boxes",
        ),
        Part("WMEM and IOMEM", sram, sram, Known.PUBLISHED, f"{macros} x {MACRO}"),
    ]


def die_mm2(parts: list[Part], pes: int, utilisation: float = DEFAULT_UTILISATION) -> float:
    """PEs of a logic die, mm2; the utilisation is assumed."""
    if pes < 1 or not 0 < utilisation <= 1:
        raise ConfigError("a die has at least one PE and a utilisation in (0, 1]")
    return pes * sum(part.high for part in parts) / utilisation / UM2_PER_MM2


def mac_parts(design: Design, precision: Precision, numbers: Mapping[str, Any]) -> list[Part]:
    """Energy of one multiply-accumulate in fJ, when a tile serves one block of 16 rows. Idle lanes are clock-gated.

    ConfigError for a precision that the design has not.
    """
    passes, shape = len(precision.roles(design)), PeShape()
    per_pass = shape.rows * shape.columns * GROUP
    words = shape.tile_words(precision)
    macros = shape.port_bits // MACRO_BITS
    dot = numbers["energy_fj"]["dot32"][design.value][precision.value]
    scale = numbers["energy_fj"]["scale"][str(passes)]
    flop = numbers["energy_fj"]["flip_flop_clock"]
    column = numbers["energy_fj"]["column"][precision.value]
    sram = numbers["sram"][MACRO]
    access = [(read + write) * macros * 1e3 for read, write in zip(sram["read_pj"], sram["write_pj"], strict=True)]
    operands = words + ACTIVATION_WORD_SHARE
    why = f"clock-pin energy in the Liberty file of {MACRO}, the same for all sizes; written once, read once"
    return [
        scaled("dot product", dot, 1, Known.MEASURED, "SDF simulation of dot32, weights changing every group"),
        scaled("group scale, FP32 sum", scale, 1 / GROUP, Known.MEASURED, "SDF simulation of scale"),
        scaled("accumulators", flop, 32 / GROUP, Known.EXTRAPOLATED, "clock of 32 flip-flops per group"),
        scaled(
            "weight registers", column, words * shape.columns / per_pass, Known.MEASURED, "SDF simulation of column"
        ),
        scaled(
            "activation registers",
            flop,
            shape.rows * (8 * GROUP + 32) / per_pass,
            Known.EXTRAPOLATED,
            "clock of their flip-flops per block",
        ),
        scaled("WMEM and IOMEM", access, operands / per_pass, Known.ASSUMED, why),
    ]


def scaled(name: str, pair: Sequence[float], factor: float, known: Known, source: str) -> Part:
    """A part from its lower and upper bound and how much of it is counted."""
    low, high = pair
    return Part(name, low * factor, high * factor, known, source)


def total(parts: list[Part]) -> tuple[float, float]:
    """Lower and upper bound of a sum."""
    return sum(part.low for part in parts), sum(part.high for part in parts)
