"""`elmoe rtl emit`, `verify` and `synth`, from the outside."""

from __future__ import annotations

import json
import shlex
import sys

import pytest

from elmoe.cli import main as cli
from elmoe.rtl import dot, icarus
from rtl.small_library import small_library


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.lib").write_text(small_library(), encoding="utf-8")
    return tmp_path


def run(command: str) -> int:
    return cli._exit_code(shlex.split(command))


def document(command: str, capsys) -> dict:
    assert run(f"{command} --json") == 0
    return json.loads(capsys.readouterr().out)


def test_emit(workplace, capsys):
    found = document("rtl emit -o out --block unit --block scale", capsys)
    names = {entry["file"] for entry in found["files"]}
    assert names == {f"out/unit_{d}.v" for d in ("augmented", "conventional", "native_8x8", "native_4x8")} | {
        "out/scale.v"
    }
    text = (workplace / "out" / "unit_augmented.v").read_text(encoding="utf-8")
    assert text.startswith("// unit_augmented: made by elmoe ")
    assert "module unit_augmented(" in text


def test_emit_a_pe(workplace, capsys):
    command = "rtl emit -o out --block pe --design augmented --rows 1 --columns 4 --port-bits 128"
    (entry,) = document(command, capsys)["files"]
    text = (workplace / entry["file"]).read_text(encoding="utf-8")
    assert text.count("module lane(") == 1
    assert text.count("module pe(") == 1


def test_synth_with_a_library(workplace, capsys):
    found = document("rtl synth --block unit --design augmented --design conventional --liberty small.lib", capsys)
    assert found["cells"] > 50
    assert found["area_um2"] > 0
    assert found["lsb_augmentation_overhead_percent"] == found["overheads_percent"]["unit"]
    assert 0 < found["lsb_augmentation_overhead_percent"] < 20
    assert [row["design"] for row in found["rows"]] == ["augmented", "conventional"]


def test_synth_without(workplace, capsys):
    found = document("rtl synth --block unit", capsys)
    assert found["area_um2"] is None
    assert found["transistors"] > 500
    assert run("rtl synth --block unit") == 0
    out = capsys.readouterr().out
    assert "transistors" in out
    assert "native-4x8" in out


def test_area(workplace, capsys):
    found = document("rtl area --pes 32", capsys)
    assert abs(found["lsb_augmentation_overhead_percent"]) < 1
    augmented = found["designs"]["augmented"]
    assert augmented["pe_um2"] == pytest.approx(sum(part["high"] for part in augmented["area_um2"]))
    assert augmented["die_mm2"] == pytest.approx(32 * augmented["pe_um2"] / 0.7 / 1e6)
    assert {part["status"] for part in augmented["mac_fj"]["w4"]} == {"measured", "extrapolated", "assumed"}
    assert run("rtl area") == 0
    assert "16 PEs at 70% utilisation (assumed)" in capsys.readouterr().out


def test_verify(workplace, capsys):
    found = document("rtl verify --block nibble_column --level behavioural --level verilog --level sdf", capsys)
    assert found["mismatches"] == 0
    assert found["compared"] >= 2 * 768
    assert "no standard-cell library; give --liberty" in found["skipped"] or not icarus.available()
    assert run("rtl verify --block pe --design augmented --level behavioural") == 0
    assert "0 differ from the golden model" in capsys.readouterr().out


def test_verify_fails_when_the_rtl_is_wrong(workplace, capsys, monkeypatch):
    monkeypatch.setattr(dot, "encode", lambda _design, nibble, _msb, draft: dot.Cat(draft, nibble))
    assert run("rtl verify --block nibble_column --design augmented --level behavioural") == 1
    assert "nibble_column augmented at level behavioural is not the golden model: cycle 5" in capsys.readouterr().err


def test_a_missing_simulator(workplace, capsys, monkeypatch):
    monkeypatch.setattr(icarus.shutil, "which", lambda name: None)
    assert run("rtl verify --block unit --level verilog") == 2
    assert "nothing was verified: Icarus Verilog is not installed; apt-get install iverilog" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["emit", "verify", "synth"])
def test_without_amaranth(workplace, capsys, monkeypatch, verb):
    for name in [name for name in sys.modules if name.partition(".")[0] == "amaranth" or name.startswith("elmoe.rtl")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "amaranth", None)
    assert run(f"rtl {verb} --block unit") == 2
    assert capsys.readouterr().err == "error: Amaranth is not installed; pip install elmoe[rtl]\n"


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("rtl synth --liberty nope.lib", "nope.lib does not exist; give the Liberty file (.lib or .lib.gz)"),
        ("rtl synth --liberty .", "cannot be read as a Liberty file: Is a directory"),
        ("rtl synth --block nope", "unknown block 'nope'; known are unit, dot32,"),
        ("rtl synth --block pe", "the whole PE is not synthesised in one piece"),
        ("rtl synth --block scale --design conventional", "scale: not made as conventional"),
        ("rtl synth --design quick", "unknown design 'quick'; known are augmented,"),
        ("rtl synth --dont-use INV*", "--dont-use names cells of a library; give --liberty too"),
        ("rtl synth --block unit --yosys nope", "nope cannot be started: No such file or directory"),
        ("rtl verify --level deep", "unknown level 'deep'; known are behavioural, verilog, netlist, sdf"),
        ("rtl verify --block scale --design native-8x8", "nothing was verified: no block is made as these designs"),
        ("rtl emit --block pe --rows 0", "a PE has 1 to 255 rows, columns and row blocks, not (0, 32, 2)"),
        ("rtl emit --block pe --port-bits 77", "port_bits = 77: the port must carry whole columns"),
        ("rtl emit --block scale --design native-8x8", "scale: not made as native-8x8"),
        ("rtl emit --block unit -o small.lib", "small.lib cannot be written"),
        ("rtl area --pes 0", "a die has at least one PE and a utilisation in (0, 1]"),
        ("rtl melt", "No such command 'melt'"),
    ],
)
def test_bad_input(workplace, capsys, command, complaint):
    assert run(command) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert len(error.splitlines()) == 1


def test_help(workplace, capsys):
    assert run("rtl --help") == 0
    assert {"emit", "verify", "synth"} <= set(capsys.readouterr().out.split())
