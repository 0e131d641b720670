import pytest

from elmoe.cli.prompts import gather, read_jsonl
from elmoe.errors import ConfigError, PromptError


def test_prompts_are_read_in_both_spellings(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "one"}\n\n{"turns": ["two", "later"], "id": 7}\n', encoding="utf-8")
    assert read_jsonl(file) == ["one", "two"]
    assert gather(["zero"], None, file, 2) == ["zero", "one"]


def test_token_ids_are_prompts_too(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"token_ids": [4, 5]}\n{"prompt": "one"}\n', encoding="utf-8")
    assert gather(["zero"], ["1,2", "3"], file) == ["zero", [1, 2], [3], [4, 5], "one"]
    with pytest.raises(ConfigError, match="--tokens: cannot read '1,x'; write integers separated by commas"):
        gather(None, ["1,x"], None)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('{"prompt": "a"}\n{"x": 1}', "line 2: no prompt; write"),
        ("not json", "line 1: not JSON"),
        ("[1]", "line 1: no prompt"),
        ('{"turns": []}', "line 1: no prompt"),
        ('{"prompt": 3}', "line 1: no prompt"),
        ('{"token_ids": []}', "line 1: no prompt; write .* or {.token_ids.: .1, 2, 3.}"),
        ('{"token_ids": [1, true]}', "line 1: no prompt"),
        ('{"token_ids": "1,2"}', "line 1: no prompt"),
        ('{"token_ids": [1], "prompt": "a"}', "line 1: a text and token_ids; leave one of them out"),
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
        gather([], None, None)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(PromptError, match="cannot be read: No such file"):
        read_jsonl(tmp_path / "none.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(PromptError, match="is not UTF-8 text"):
        read_jsonl(tmp_path / "b.jsonl")
