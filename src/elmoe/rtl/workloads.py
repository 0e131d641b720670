"""What blocks are given when their energy is measured: numbers as in a layer, not the corners of `vectors.py`.

Activation codes are Gaussian with a deviation of 32, weight codes of 40, as INT8 in groups of 32 has them when its
inputs are Gaussian (a group's largest of 32 is about 2.5 deviations, which becomes 127; outliers make it less).
"""

from __future__ import annotations

import numpy as np

from elmoe.rtl.designs import GROUP, NIBBLE_BITS, Design, Precision, Role
from elmoe.rtl.tile import joined
from elmoe.rtl.vectors import Cycle, Group, Pass, Vectors, control, dot_vectors, scale_vectors, stored

ACTIVATION_DEVIATION, WEIGHT_DEVIATION = 32.0, 40.0
GROUPS_PER_SUM = 64


def dot_workload(design: Design, precision: Precision, groups: int, hold: int, seed: int = 3) -> Vectors:
    """`groups` products of 32; weights stay for `hold` of them (blocks of rows that share a tile)."""
    rng = np.random.default_rng(seed)
    low = -8 if design is Design.NATIVE_4X8 else -127
    passes = []
    codes: list[int] = []
    for k in range(groups):
        if k % hold == 0:
            codes = _gaussian(rng, WEIGHT_DEVIATION / (16 if low == -8 else 1), low, -low - (low == -8))
        activations = _gaussian(rng, ACTIVATION_DEVIATION, -127, 127)
        for number, role in enumerate(precision.roles(design)):
            passes.append(Pass(activations, codes, role, number == 0 and k % GROUPS_PER_SUM == 0))
    return dot_vectors(design, passes)


def scale_workload(groups: int, passes: int, seed: int = 3) -> Vectors:
    """One group in `passes` cycles. In W8 the sum of the first pass goes by on its way to nowhere, and costs energy."""
    rng = np.random.default_rng(seed)
    totals = rng.normal(0, ACTIVATION_DEVIATION * WEIGHT_DEVIATION * GROUP**0.5, groups)
    weight_scales = np.abs(rng.normal(4e-4, 1e-4, groups)).astype(np.float16).view(np.uint16)
    scales = np.abs(rng.normal(0.02, 0.01, groups)).astype(np.float32)
    addends = (np.cumsum(totals) * 8e-6).astype(np.float32).view(np.uint32)
    whole, patterns = np.rint(totals).astype(int), scales.view(np.uint32)
    found = []
    for k in range(groups):
        parts = [int(whole[k]) // 16 * 16, int(whole[k])][-passes:]
        of_group = (int(weight_scales[k]), int(patterns[k]))
        found += [Group(*of_group, total, k % 320 < 5, int(addends[k])) for total in parts]
    return scale_vectors(found)


def column_workload(design: Design, precision: Precision, tiles: int, tile_cycles: int, seed: int = 3) -> Vectors:
    """A weight column while tiles change every `tile_cycles`: its words come once per tile, those of others pass by."""
    rng = np.random.default_rng(seed)
    inputs: list[Cycle] = []
    roles = precision.roles(design)
    for _ in range(tiles):
        codes = _gaussian(rng, WEIGHT_DEVIATION, -127, 127)
        for cycle in range(tile_cycles):
            others = _gaussian(rng, WEIGHT_DEVIATION, -127, 127)
            load = {0: 0b10, tile_cycles // 2: 0b01 if precision is Precision.W8 else 0}.get(cycle, 0)
            plane = Role.LSB if load == 0b01 else Role.MSB
            nibbles = joined([stored(design, code, plane) for code in (codes if load else others)], NIBBLE_BITS)
            role = roles[cycle % len(roles)]
            inputs.append(
                {"nibbles": nibbles, "load": load, "advance": int(cycle == tile_cycles - 1)} | control(design, role)
            )
    return Vectors(inputs, [None] * len(inputs))


def _gaussian(rng: np.random.Generator, deviation: float, low: int, high: int) -> list[int]:
    return [int(x) for x in np.clip(np.rint(rng.normal(0, deviation, GROUP)), low, high)]
