"""The area and energy model: sums, statuses, and what it refuses."""

from __future__ import annotations

import pytest

from elmoe.errors import ConfigError
from elmoe.rtl.designs import Design, Precision
from elmoe.rtl.pe_model import Known, area_parts, die_mm2, mac_parts, measured, total
from elmoe.rtl.tile import PeShape


def test_area_of_a_pe():
    plain, augmented = (area_parts(design, measured()) for design in (Design.CONVENTIONAL, Design.AUGMENTED))
    assert {part.known for part in augmented} == {Known.MEASURED, Known.PUBLISHED, Known.EXTRAPOLATED}
    assert all(part.low == part.high > 0 for part in augmented)
    assert abs(total(augmented)[1] / total(plain)[1] - 1) < 0.005
    assert die_mm2(augmented, 32) == pytest.approx(2 * die_mm2(augmented, 16))
    assert 5 < die_mm2(augmented, 16) < 30


def test_energy_of_a_multiply_accumulate():
    numbers = measured()
    draft, target = (mac_parts(Design.AUGMENTED, precision, numbers) for precision in (Precision.W4, Precision.W8))
    native = mac_parts(Design.NATIVE_8X8, Precision.W8, numbers)
    for parts in (draft, target, native):
        assert all(0 < part.low <= part.high for part in parts)
        assert {Known.MEASURED, Known.EXTRAPOLATED, Known.ASSUMED} == {part.known for part in parts}
    assert total(draft) < total(native) < total(target)


def test_statuses_are_told():
    entry = area_parts(Design.AUGMENTED, measured())[-1].as_dict()
    assert (entry["status"], entry["source"]) == ("published", "32 x srambank_64x4x64")


def test_what_was_not_measured():
    with pytest.raises(ConfigError, match="area was measured for bit-sliced PEs of 16 x 32 x 32"):
        area_parts(Design.NATIVE_8X8, measured())
    with pytest.raises(ConfigError, match="area was measured"):
        area_parts(Design.AUGMENTED, measured(), PeShape(rows=8))
    with pytest.raises(ConfigError, match="native-8x8 multiplies no w4 weights"):
        mac_parts(Design.NATIVE_8X8, Precision.W4, measured())
    with pytest.raises(ConfigError, match="at least one PE and a utilisation"):
        die_mm2([], 0)
