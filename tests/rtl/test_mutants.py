"""Changes that the vectors must notice: each mutant differs from the golden model somewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from amaranth.hdl import Cat, Const, Mux

from elmoe.rtl import dot, scale, tile
from elmoe.rtl.behaviour import run_behavioural
from elmoe.rtl.blocks import block_named
from elmoe.rtl.designs import Design
from elmoe.rtl.pe_bench import AtRandom, run_behavioural_pe
from elmoe.rtl.vectors import Vectors, vectors
from elmoe.rtl.verify import SMALL_PE, pe_jobs

Encoder = Callable[[Design, Any, Any, Any], Any]


def draft_bit_tied_to_zero(_design, nibble, msb, _draft):
    return Mux(msb, Cat(Const(0, 1), nibble), Cat(nibble, Const(0, 1)))


def draft_bit_tied_to_one(_design, nibble, msb, _draft):
    return Mux(msb, Cat(Const(1, 1), nibble), Cat(nibble, Const(0, 1)))


def role_multiplexer_removed(_design, nibble, _msb, draft):
    return Cat(draft, nibble)


def lsb_slice_sign_extended(_design, nibble, msb, draft):
    return Mux(msb, Cat(draft, nibble), Cat(nibble, nibble[-1]))


def msb_slice_zero_extended(_design, nibble, _msb, _draft):
    return Cat(nibble, Const(0, 1))


ENCODERS = [
    (Design.AUGMENTED, draft_bit_tied_to_zero),
    (Design.AUGMENTED, draft_bit_tied_to_one),
    (Design.AUGMENTED, role_multiplexer_removed),
    (Design.AUGMENTED, lsb_slice_sign_extended),
    (Design.CONVENTIONAL, msb_slice_zero_extended),
]


@pytest.mark.parametrize("block", ["unit", "dot32_own_encoders", "nibble_column", "column"])
@pytest.mark.parametrize(("design", "mutant"), ENCODERS, ids=[mutant.__name__ for _, mutant in ENCODERS])
def test_encoders(design: Design, mutant: Encoder, block: str, monkeypatch):
    monkeypatch.setattr(dot, "encode", mutant)
    given = vectors(block, design)
    if block == "unit":  # combinational: any part of the vectors will do
        given = Vectors(given.inputs[::97], given.expected[::97])
    assert run_behavioural(block_named(block), design, given).mismatches


@pytest.mark.parametrize(("design", "wrong"), [(Design.CONVENTIONAL, 3), (Design.AUGMENTED, 4)])
def test_shift(design, wrong, monkeypatch):
    given = vectors("dot32", design)
    monkeypatch.setattr(Design, "msb_shift", wrong)
    assert run_behavioural(block_named("dot32"), design, given).mismatches


def never_up(parts, guard, sticky):
    return rounding(parts, Const(0, 1), sticky)


def half_away(parts, guard, sticky):
    return rounding(parts, guard, Const(1, 1))


rounding = scale.packed


@pytest.mark.parametrize("mutant", [never_up, half_away])
def test_rounding(mutant, monkeypatch):
    monkeypatch.setattr(scale, "packed", mutant)
    block = block_named("scale")
    assert run_behavioural(block, Design.AUGMENTED, vectors("scale", Design.AUGMENTED).head(3000)).mismatches


def test_subnormal_scales_flushed(monkeypatch):
    monkeypatch.setattr(scale, "DEEPEST_SUBNORMAL_SHIFT", 1)
    block = block_named("scale")
    assert run_behavioural(block, Design.AUGMENTED, vectors("scale", Design.AUGMENTED).head(5000)).mismatches


def test_sums_that_do_not_rest(monkeypatch):
    """Two groups of one sum too close together: only late activations show it."""
    from elmoe.rtl import pe

    jobs = pe_jobs(SMALL_PE, Design.AUGMENTED)
    wanted = [word for item in jobs for word in item.results]
    monkeypatch.setattr(pe, "ACCUMULATE_CYCLES", 1)
    runs = [run_behavioural_pe(Design.AUGMENTED, SMALL_PE, jobs, AtRandom(seed, 0.3)) for seed in range(4)]
    assert any(run.results != wanted for run in runs)
    assert tile.ACCUMULATE_CYCLES == 5
