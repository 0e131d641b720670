"""Machines as data: the six built-in ones, files that override them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from elmoe.errors import ConfigError
from elmoe.sim.quantity import Status
from elmoe.sim.spec import SCHEMES, SYSTEMS, Machine, load_machine, machine_from_table, machine_table

ENTRY = '{{ value = {}, unit = "{}", source = "a test", status = "assumed" }}'


def number(value: object, unit: str) -> str:
    return ENTRY.format(value, unit)


def write(folder: Path, text: str, name: str = "mine.toml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", SYSTEMS)
def test_built_in_machines_are_whole(name: str) -> None:
    machine = load_machine(name)
    assert machine.name == name
    assert machine.description
    assert machine.scheme in SCHEMES
    for section, found in machine.quantities().items():
        for field, entry in found.items():
            assert entry.source, f"{section}.{field}"
            assert isinstance(entry.status, Status)
            assert getattr(getattr(machine, section), field) == entry.value


@pytest.mark.parametrize("name", SYSTEMS)
def test_all_have_the_same_compute_and_external_memory(name: str) -> None:
    machine, xpu = load_machine(name), load_machine("xpu")
    assert machine.compute.tops(8) == pytest.approx(262.1, abs=0.1)
    assert machine.ext == xpu.ext
    assert (machine.ext.gb_per_s, machine.ext.capacity_gb, machine.ext.energy_pj_per_bit) == (102.4, 64, 3.88)


def test_the_papers_machine() -> None:
    machine = load_machine("elmoe-3d")
    assert machine.hb is not None
    assert machine.links is not None
    assert machine.near is None
    assert machine.compute.tops(4) == pytest.approx(524.3, abs=0.1)
    assert machine.compute.macs_per_ns(8) == 16 * 16 * 32 * 32 / 2
    assert (machine.hb.gb_per_s, machine.hb.channels) == (16 * 51.2, machine.compute.pes)
    assert machine.links.streamline_gb_per_s > machine.ext.gb_per_s
    large = machine.with_hb_gb(8)
    assert large.hb is not None
    assert (large.compute.pes, large.hb.channels, large.hb.capacity_gb, large.hb.gb_per_s) == (32, 32, 8, 1638.4)
    assert large.compute.tops(4) == pytest.approx(1048.6, abs=0.1)
    assert load_machine("hb-xpu").compute.macs_per_ns(4) == load_machine("hb-xpu").compute.macs_per_ns(8)


def test_the_rivals() -> None:
    """Multiples of the external bandwidth inside, and rows of compute per byte read."""
    external = load_machine("xpu").ext.gb_per_s
    near = {name: load_machine(name).near for name in ("xpu-pim", "xpu-logicpim", "xpu-nmp")}
    assert all(near.values())
    pim, logic, nmp = near["xpu-pim"], near["xpu-logicpim"], near["xpu-nmp"]
    assert pim is not None
    assert logic is not None
    assert nmp is not None
    assert (pim.gb_per_s, logic.gb_per_s) == (8 * external, 4 * external)
    assert [pim.tops, logic.tops, nmp.tops] == pytest.approx([1.64, 4 * 1.64, 13.1], abs=0.01)
    assert (nmp.capacity_gb, nmp.external_share) == (16, 6 / 8)


def test_with_hb_gb_says_so_in_the_numbers() -> None:
    found = load_machine("elmoe-3d").with_hb_gb(8).quantities()
    assert found["compute"]["pes"].value == 32
    assert found["hb"]["gb_per_s"].value == 1638.4
    assert found["hb"]["capacity_gb"].source == "8 GB of HB, one bank and PE per 0.25 GB"
    assert load_machine("elmoe-3d").with_hb_gb(4) == load_machine("elmoe-3d")


def test_machines_without_hb_get_the_same_pes() -> None:
    machine = load_machine("xpu-pim").with_hb_gb(8)
    assert (machine.compute.pes, machine.hb, machine.hb_equivalent_gb) == (32, None, 8)
    assert load_machine("xpu").hb_equivalent_gb == 4


@pytest.mark.parametrize("hb_gb", [0, -4, 4.1, float("nan"), float("inf"), 1e300])
def test_hb_sizes_that_no_stack_has(hb_gb: float) -> None:
    with pytest.raises(ConfigError, match=r"hb-gb must be a positive multiple of 0.25 \(one bank per PE\)"):
        load_machine("elmoe-3d").with_hb_gb(hb_gb)


def test_a_file_overrides_single_numbers_of_its_base(tmp_path: Path) -> None:
    text = f'base = "elmoe-3d"\nscheme = "slm"\n[ext]\ngb_per_s = {number(204.8, "GB/s")}\n'
    machine, base = load_machine(write(tmp_path, text)), load_machine("elmoe-3d")
    assert (machine.ext.gb_per_s, machine.ext.capacity_gb, machine.scheme) == (204.8, 64, "slm")
    assert (machine.compute, machine.hb, machine.power) == (base.compute, base.hb, base.power)
    assert machine.name == "mine", "results must not pass for the base's"
    assert load_machine(write(tmp_path, 'name = "other"\n' + text)).name == "other"


def test_a_file_may_describe_a_whole_machine(tmp_path: Path) -> None:
    lines = ['name = "whole"']
    for section, found in load_machine("elmoe-3d").quantities().items():
        lines.append(f"[{section}]")
        lines += [
            f"{key} = {number(repr(entry.value).replace(chr(39), chr(34)), entry.unit)}" for key, entry in found.items()
        ]
    machine = load_machine(write(tmp_path, "\n".join(lines)))
    base = load_machine("elmoe-3d")
    assert (machine.compute, machine.ext, machine.hb, machine.links) == (base.compute, base.ext, base.hb, base.links)
    assert (machine.scheme, machine.description) == ("none", "")


def test_reading_a_base_twice_gives_fresh_tables() -> None:
    machine_table("elmoe-3d")["ext"].clear()
    assert machine_from_table(machine_table("elmoe-3d"), "again") == load_machine("elmoe-3d")


NEAR = "\n".join(
    f"{key} = {number(1, unit)}"
    for key, unit in (
        ("gb_per_s", "GB/s"),
        ("efficiency", "1"),
        ("tops", "TOPS"),
        ("capacity_gb", "GB"),
        ("external_share", "1"),
        ("energy_pj_per_bit", "pJ/bit"),
        ("mac_pj", "pJ"),
    )
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'base = "xpu"\n[ext]\ngb_per_s = {number(0, "GB/s")}', "ext.gb_per_s: must be above 0, not 0"),
        (f'base = "xpu"\n[ext]\ngb_per_s = {number(-3, "GB/s")}', "ext.gb_per_s: must be above 0, not -3"),
        (f'base = "xpu"\n[ext]\ngb_per_s = {number(100, "GiB/s")}', "ext.gb_per_s: is in 'GB/s', not 'GiB/s'"),
        ('base = "xpu"\n[ext]\ngb_per_s = 100', "ext.gb_per_s: write { value = 100"),
        ('base = "xpu"\n[ext]\ngb_per_s = { value = 100, unit = "GB/s", status = "paper" }', "source is missing"),
        (
            f'base = "xpu"\n[ext]\ngb_per_sec = {number(1, "GB/s")}',
            "'gb_per_sec'; did you mean 'gb_per_s'?",
        ),
        (f'base = "xpu"\n[ext]\nmapping = {number(chr(34) + "x" + chr(34), "name")}', "'x' is not one of bgint"),
        ('base = "xpu"\n[exta]\n', "unknown field 'exta'; did you mean 'ext'?"),
        ('base = "xpu"\next = 5', "[ext] must be a table"),
        ('base = "elmoe-3"', "unknown base 'elmoe-3'; did you mean 'elmoe-3d'?"),
        ("base = 7", "unknown base 7"),
        ('base = "xpu"\nscheme = "elastc"', "unknown scheme 'elastc'; did you mean 'elastic'?"),
        ('name = "alone"', "compute is missing; start from a built-in system with base = 'elmoe-3d'"),
        ('base = "xpu"\n[hb]\n', "hb: device is missing"),
        (f'base = "xpu-nmp"\n[near]\nexternal_share = {number(2, "1")}', "external_share: must be at most 1, not 2"),
        (f'base = "elmoe-3d"\n[near]\n{NEAR}', "[hb] and [near] in one machine are not modelled"),
        ('base = "xpu"\n[ext\n', "is not TOML: Expected ']'"),
        ("a = " + "[" * 5000 + "]" * 5000, "is nested too deeply"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_machine(write(tmp_path, text))
    assert message in str(caught.value)
    assert "mine.toml" in str(caught.value)


def test_hb_needs_links(tmp_path: Path) -> None:
    table = machine_table("elmoe-3d")
    del table["links"]
    with pytest.raises(ConfigError, match=r"x: a machine with \[hb\] needs \[links\] between its PEs"):
        machine_from_table(table, "x")


def test_names_and_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown system 'elmoe3d'; did you mean 'elmoe-3d'\?; or give a .toml file"):
        load_machine("elmoe3d")
    with pytest.raises(ConfigError, match=r"no.toml does not exist"):
        load_machine(str(tmp_path / "no.toml"))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ConfigError, match=r"folder.toml cannot be read"):
        load_machine(str(tmp_path / "folder.toml"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"bytes.toml cannot be read"):
        load_machine(str(tmp_path / "bytes.toml"))


def test_machines_are_values() -> None:
    machine: Machine = load_machine("elmoe-3d")
    assert machine == load_machine("elmoe-3d")
    assert machine != machine.with_hb_gb(8)
