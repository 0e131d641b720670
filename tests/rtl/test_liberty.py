"""Liberty files: reading, choosing, merging, functions; and errors that name the remedy."""

from __future__ import annotations

import gzip
import itertools

import pytest

from elmoe.errors import ConfigError
from elmoe.rtl.boolean import evaluate, parse_function, verilog
from elmoe.rtl.cell_models import cell_models
from elmoe.rtl.liberty import Library, parse, read_library
from rtl.small_library import small_library


@pytest.fixture
def library(tmp_path) -> Library:
    path = tmp_path / "small.lib"
    path.write_text(small_library(), encoding="utf-8")
    return read_library([path])


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("A * B", [0, 0, 0, 1]),
        ("A B", [0, 0, 0, 1]),
        ("!A B'", [1, 0, 0, 0]),
        ("(A + B)'", [1, 0, 0, 0]),
        ("A ^ B + A", [0, 1, 1, 1]),
        ("(A ^ (B))", [0, 1, 1, 0]),
        ("!(A & !B) | 0", [1, 1, 0, 1]),
        ("1", [1, 1, 1, 1]),
    ],
)
def test_functions(text, truth):
    tree = parse_function(text)
    points = [dict(zip("AB", p, strict=True)) for p in itertools.product((0, 1), repeat=2)]
    assert [evaluate(tree, point) for point in points] == truth
    python = verilog(tree).replace("1'b", "")
    assert [eval(python, {}, point) & 1 for point in points] == truth


@pytest.mark.parametrize("text", ["A + ", "A ) B", ""])
def test_no_functions(text):
    with pytest.raises(ConfigError, match=r"(a|the) Liberty function"):
        parse_function(text)


def test_cells_are_chosen_by_what_they_do(library):
    assert library.buffer() == ("BUF", "A")
    assert library.flip_flop() == "DFFN", "the smaller one, although its output is inverted"
    roles = {"cell": "FULLADD", "a": "X", "b": "Y", "c": "Z", "carry_n": "CN", "sum_n": "SN"}
    assert library.full_adder() == roles
    assert library.voltage == 0.5
    assert "BUFxp5" not in library.cells, "left out by default"


def test_areas_without_semicolons(library):
    assert library.cell("FULLADD").area == 6.0
    assert "area : 6.0;" in library.text()


def test_nested_groups():
    group = parse('a (b, "c d") { x : 1; y (2, 3); e () { z : "q r"; } }')
    assert (group.kind, group.arguments, group.attributes) == ("a", ["b", "c d"], {"x": "1", "y": "2,3"})
    assert group.first("e").attributes == {"z": "q r"}


def test_several_and_packed_files(tmp_path, library):
    text = small_library()
    first, second = tmp_path / "a.lib", tmp_path / "b.lib.gz"
    cut = text.index("\n  cell (FULLADD)")
    first.write_text(text[:cut] + "}\n", encoding="utf-8")
    second.write_bytes(gzip.compress((text[: text.index("\n  cell (")] + text[cut:]).encode()))
    assert read_library([first, second]).text() == library.text()


def test_everything(tmp_path):
    path = tmp_path / "small.lib"
    path.write_text(small_library(), encoding="utf-8")
    assert "BUFxp5" in read_library([path], ()).cells
    with pytest.raises(ConfigError, match="every cell matches --dont-use"):
        read_library([path], ["*"])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "does not exist; give the Liberty file"),
        (b"module a; endmodule", "is no Liberty file of cells"),
        (b"\x1f\x8bgarbage", "cannot be read as a Liberty file"),
        (b"\xff\xfe", "cannot be read as a Liberty file"),
        (small_library()[:2000].encode(), "ends inside a group; it is cut short"),
    ],
)
def test_bad_files(tmp_path, content, complaint):
    path = tmp_path / "bad.lib"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=complaint):
        read_library([path])


@pytest.mark.parametrize(
    ("keep", "method", "complaint"),
    [
        ("DFFN", "buffer", "have no buffer; give the library's inverters and buffers too"),
        ("BUF", "flip_flop", "have no D flip-flop; give the library's sequential cells too"),
    ],
)
def test_a_library_that_lacks_a_kind(library, keep, method, complaint):
    with pytest.raises(ConfigError, match=complaint):
        getattr(library.only(keep), method)()
    assert library.only(keep).full_adder() is None


def test_models_of_cells(library):
    text = cell_models(library, ["NOR2", "DFFN"])
    assert "assign Y = (~A & ~B);" in text
    assert "always @(posedge CK) IQ <= ~D;" in text
    assert "(A => Y) = 0;" in text
    with pytest.raises(ConfigError, match="have no cell NOR9; give all files"):
        cell_models(library, ["NOR9"])
