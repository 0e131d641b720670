import pytest

from elmoe.cli.prompts import gather, read_jsonl
from elmoe.errors import PromptError


def test_prompts_are_read_in_both_spellings(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "one"}\n\n{"turns": ["two", "later"], "id": 7}\n', encoding="utf-8")
    assert read_jsonl(file) == ["one", "two"]
    assert gather(["zero"], file, 2) == ["zero", "one"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('{"prompt": "a"}\n{"x": 1}', "line 2: no prompt; write"),
        ("not json", "line 1: not JSON"),
        ("[1]", "line 1: no prompt"),
        ('{"turns": []}', "line 1: no prompt"),
        ('{"prompt": 3}', "line 1: no prompt"),
        ("[" * 100_000, "line 1: not JSON"),
        ('{"prompt": "a", "n": ' + "1" * 5000 + "}", "line 1: not JSON"),
        ("\n", "holds no prompt; write one JSON object per line"),
    ],
)
def test_a_broken_file_names_the_line(tmp_path, content, text):
    file = tmp_path / "p.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(PromptError, match=text):
        read_jsonl(file)


def test_line_separators_inside_strings_and_a_byte_order_mark_are_no_obstacle(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + '{"prompt": "a\u2028b\x85c"}\r\n'.encode())
    assert read_jsonl(file) == ["a\u2028b\x85c"]


def test_no_prompt_at_all():
    with pytest.raises(PromptError, match="use -p TEXT"):
        gather([], None)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(PromptError, match="cannot be read: No such file"):
        read_jsonl(tmp_path / "none.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(PromptError, match="is not UTF-8 text"):
        read_jsonl(tmp_path / "b.jsonl")
