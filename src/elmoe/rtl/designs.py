"""The multiplier designs that are compared, and what one pass over a weight slice means in each.

An INT8 code is stored as two nibbles, ``code = 16 * msb + lsb``. A bit-sliced unit multiplies 8-bit activations with a
5-bit signed *field*, one nibble per pass; designs differ in how a nibble becomes a field and how far the product of the
MSB slice is shifted. Knows nothing about hardware description. Source: ELMoE-3D, "LSB-augmented bit slicing".
"""

from __future__ import annotations

from enum import Enum

from elmoe.errors import ConfigError

GROUP = 32
"""Products that share a scale: the length of the dot product."""
ACTIVATION_BITS = 8
NIBBLE_BITS = 4
FULL_ADDER = "elmoe_full_adder"
"""Inverting full adder: inputs a, b, c; outputs carry_n (inverted majority) and sum_n (inverted parity)."""


class Role(Enum):
    """What a pass multiplies: one nibble plane, or the whole code in designs without slices."""

    DRAFT = "draft"
    """MSB slice alone: the unit that is missing below it is constant (LSB augmentation) or absent (truncation)."""
    MSB = "msb"
    """MSB slice; the LSB slice follows."""
    LSB = "lsb"
    WHOLE = "whole"


class Design(Enum):
    """A multiplier array."""

    AUGMENTED = "augmented"
    """MSB slice left-aligned in the field, the field's last bit 1 in a draft and 0 otherwise."""
    CONVENTIONAL = "conventional"
    """MSB slice sign-extended, LSB slice zero-extended; a draft truncates."""
    NATIVE_8X8 = "native-8x8"
    NATIVE_4X8 = "native-4x8"

    @property
    def sliced(self) -> bool:
        """Whether codes are multiplied nibble by nibble."""
        return self in (Design.AUGMENTED, Design.CONVENTIONAL)

    @property
    def field_bits(self) -> int:
        """Width of the multiplier's weight operand."""
        return {Design.NATIVE_8X8: 8, Design.NATIVE_4X8: 4}.get(self, 5)

    @property
    def product_bits(self) -> int:
        """Width of one product."""
        return ACTIVATION_BITS + self.field_bits

    @property
    def sum_bits(self) -> int:
        """Width of a sum of 32 products."""
        return self.product_bits + (GROUP - 1).bit_length()

    @property
    def msb_shift(self) -> int:
        """Left shift of a sum over MSB slices. The left-aligned field is twice the nibble already."""
        return {Design.AUGMENTED: 3, Design.CONVENTIONAL: 4}.get(self, 0)

    @property
    def roles(self) -> tuple[Role, ...]:
        """The passes that the design can make."""
        return (Role.DRAFT, Role.MSB, Role.LSB) if self.sliced else (Role.WHOLE,)


class Precision(Enum):
    """Of a tile's weights."""

    W4 = "w4"
    """Draft: MSB slices, one pass."""
    W8 = "w8"
    """Target: both slices, two passes."""

    def roles(self, design: Design) -> tuple[Role, ...]:
        """Passes in order; ConfigError where the design has no such precision."""
        if design.sliced:
            return (Role.DRAFT,) if self is Precision.W4 else (Role.MSB, Role.LSB)
        if (design is Design.NATIVE_4X8) == (self is Precision.W4):
            return (Role.WHOLE,)
        raise ConfigError(f"{design.value} multiplies no {self.value} weights; use augmented or conventional")
