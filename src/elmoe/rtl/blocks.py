"""The blocks that can be emitted, verified and synthesised on their own, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from elmoe.errors import ConfigError
from elmoe.rtl.designs import Design

ALL = tuple(Design)
SLICED = tuple(design for design in Design if design.sliced)


@dataclass(frozen=True)
class Block:
    """One block of the PE, or of a design that it is compared with."""

    name: str
    what: str
    designs: tuple[Design, ...]
    build: Callable[[Design, bool], Any]
    """(design, structural) -> Amaranth component."""

    def file_name(self, design: Design) -> str:
        """Name of the Verilog module, and of its file without suffix."""
        suffix = "" if len(self.designs) == 1 else "_" + design.value.replace("-", "_")
        return self.name + suffix


@dataclass(frozen=True)
class Ports:
    """Widths of a block's inputs and outputs, without the clock."""

    inputs: Mapping[str, int]
    outputs: Mapping[str, int]


def ports_of(component: Any) -> Ports:
    """Of an Amaranth component whose ports are plain signals."""
    from amaranth.hdl import Value
    from amaranth.lib.wiring import In

    inputs: dict[str, int] = {}
    outputs: dict[str, int] = {}
    for name, member in component.signature.members.items():
        (inputs if member.flow is In else outputs)[name] = len(Value.cast(getattr(component, name)))
    return Ports(inputs, outputs)


def blocks() -> dict[str, Block]:
    """By name. Raises ConfigError without Amaranth."""
    try:
        from elmoe.rtl import dot, pe, scale
        from elmoe.rtl.tile import PeShape
    except ImportError as error:
        if error.name is None or not error.name.startswith("amaranth"):
            raise
        raise ConfigError("Amaranth is not installed; pip install elmoe[rtl]") from None
    made = [
        Block("unit", "one multiplier with its encoder", ALL, dot.Unit),
        Block("dot32", "32-way dot product, INT32 accumulator; encoders are the columns'", ALL, dot.Dot32),
        Block("dot32_own_encoders", "the same with an encoder in every unit", SLICED, dot.Dot32OwnEncoders),
        Block("column", "registers of 32 weights, both slices, and their encoders", ALL, dot.WeightColumn),
        Block(
            "nibble_column",
            "registers of 32 weights, one slice at a time, and their encoders",
            SLICED,
            dot.NibbleColumn,
        ),
        Block("pair", "two columns, one hardwired to MSB slices", SLICED, dot.ColumnPair),
        Block(
            "scale",
            "FP16 group scale and FP32 accumulation of one lane",
            (Design.AUGMENTED,),
            lambda _, structural: scale.ScaleAccumulate(structural),
        ),
        Block(
            "lane",
            "dot32, scale and the running sums: one cell of the array",
            SLICED,
            lambda design, structural: pe.Lane(design, structural, PeShape().slots),
        ),
    ]
    return {block.name: block for block in made}


def block_named(name: str) -> Block:
    """ConfigError names the known ones."""
    known = blocks()
    if name not in known:
        raise ConfigError(f"unknown block {name!r}; known are {', '.join(known)}")
    return known[name]
