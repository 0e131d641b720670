"""Fields of machines and schemes, changed by name."""

from __future__ import annotations

import pytest

from elmoe.errors import ConfigError
from elmoe.sim.profile import scheme_specs
from elmoe.sim.spec import load_machine
from elmoe.sim.what_if import parse_setting, what_if

MACHINES = [load_machine("xpu"), load_machine("elmoe-3d")]


def test_settings_are_numbers_or_names() -> None:
    assert parse_setting("hb.gb_per_s=1638.4") == ("hb.gb_per_s", 1638.4)
    assert parse_setting("tree.depth=4") == ("tree.depth", 4)
    assert parse_setting("ext.refresh=pb") == ("ext.refresh", "pb")


def test_only_machines_that_have_the_part_change() -> None:
    (xpu, ours), specs = what_if(MACHINES, scheme_specs(), [("hb.gb_per_s", 1638.4), ("ext.refresh", "pb")])
    assert ours.hb is not None
    assert (ours.hb.gb_per_s, ours.ext.refresh, xpu.ext.refresh, xpu.hb) == (1638.4, "pb", "pb", None)
    assert ours.hb.quantities["gb_per_s"].status.value == "assumed"
    assert specs == scheme_specs()


def test_schemes_change_for_all() -> None:
    machines, specs = what_if(MACHINES, scheme_specs(), [("tree.depth", 4), ("tree.inside_reuse", 0.5)])
    assert machines == MACHINES
    assert (specs.tree.depth, specs.tree.inside_reuse, specs.tree.width) == (4, 0.5, scheme_specs().tree.width)
    assert specs.tree.quantities["depth"].source == "what if"


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("nonsense", r"--vary: cannot read 'nonsense'; write for example hb.gb_per_s=1638.4"),
        ("=3", "cannot read"),
        ("hb.gb_per_s=", "cannot read"),
        ("hb.gb=3", r"--vary: unknown field 'hb.gb'; did you mean 'hb.gb_per_s'\?"),
        ("near.tops=3", r"--vary: unknown field 'near.tops'"),
        ("tree.depth=0", r"--vary tree.depth: must be above 0, not 0"),
        ("ext.refresh=hourly", r"--vary: ext.refresh: 'hourly' is not one of none, ab, pb"),
        ("ext.gb_per_s=fast", r"--vary: ext.gb_per_s: 'fast' is not a number"),
    ],
)
def test_what_cannot_be_is_refused_by_name(setting: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        what_if(MACHINES, scheme_specs(), [parse_setting(setting)])
