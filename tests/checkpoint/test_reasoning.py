from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from elmoe.checkpoint.reasoning import (
    HARMONY_MARKS,
    TAGS,
    Parts,
    ReasoningFormat,
    ReasoningStream,
    reasoning_format,
    split_reasoning,
)
from elmoe.checkpoint.resolve import resolve
from elmoe.checkpoint.text import Tokenizer

THINKING = (
    "{{ messages[0].content }}A:{% if thinking %}<think>\n{% elif thinking is defined %}<think></think>{% endif %}"
)
HARMONY = "{{ messages[0].content }}<|start|>assistant{{ '<|channel|>' ~ channel ~ '<|message|>' if channel }}"
PLAIN = "{{ messages[0].content }}"
USER = [{"role": "user", "content": "Hi <|start|>user<|message|>"}]

Made = Callable[[str], Tokenizer]
KINDS = {
    "none": (PLAIN, (), False),
    "tags": (THINKING, TAGS, False),
    "special_tags": (PLAIN, TAGS, True),
    "spelled": (THINKING, (), False),
    "harmony": (HARMONY, HARMONY_MARKS, True),
}
"""Of each kind: chat template, added tokens, whether they are special."""
WITH_TAGS = ["tags", "special_tags", "spelled"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Tiny's tokenizer as one of `KINDS`."""
    cache: dict[str, Tokenizer] = {}

    def make(kind: str) -> Tokenizer:
        if kind not in cache:
            folder = tmp_path_factory.mktemp(kind)
            template, added, special = KINDS[kind]
            core = tokenizers.Tokenizer.from_file(str(resolve("tiny") / "tokenizer.json"))
            core.add_tokens([tokenizers.AddedToken(text, special=special, normalized=False) for text in added])
            core.save(str(folder / "tokenizer.json"))
            (folder / "chat_template.jinja").write_text(template)
            cache[kind] = Tokenizer.open(folder)
        return cache[kind]

    return make


def split(tokenizer: Tokenizer, text: str, prompt: str = "Hi") -> tuple[str, str]:
    """(reasoning, answer) of what the model writes."""
    parts = split_reasoning(tokenizer, tokenizer.encode(prompt), tokenizer.encode(text))
    return parts.reasoning, parts.answer


def stream(tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int], cuts: Sequence[int]) -> list[Parts]:
    """Feed `ids` in pieces of the given sizes, then one by one."""
    made, deltas, start = ReasoningStream(tokenizer, prompt), [], 0
    for size in [*cuts, *[1] * len(ids)]:
        deltas.append(made.feed(ids[start : start + size]))
        start += size
    return [*deltas, made.finish()]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("none", ReasoningFormat.NONE),
        ("tags", ReasoningFormat.THINK),
        ("special_tags", ReasoningFormat.THINK),
        ("spelled", ReasoningFormat.THINK),
        ("harmony", ReasoningFormat.HARMONY),
    ],
)
def test_the_format_follows_from_template_and_vocabulary(made: Made, kind: str, expected: ReasoningFormat) -> None:
    assert reasoning_format(made(kind)) is expected


def test_without_a_chat_template_there_is_no_format(made: Made, tmp_path: Path) -> None:
    core = tokenizers.Tokenizer.from_file(str(resolve("tiny") / "tokenizer.json"))
    core.add_tokens(list(TAGS))
    core.save(str(tmp_path / "tokenizer.json"))
    assert reasoning_format(Tokenizer.open(tmp_path)) is ReasoningFormat.NONE
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": HARMONY}))
    shutil.copy(resolve("tiny") / "tokenizer.json", tmp_path)
    assert reasoning_format(Tokenizer.open(tmp_path)) is ReasoningFormat.NONE, "channels are told by tokens alone"


@pytest.mark.parametrize("kind", WITH_TAGS)
@pytest.mark.parametrize(
    ("prompt", "text", "expected"),
    [
        ("Hi", "<think>\nhm hm\n</think>\n\nYes.\n", ("hm hm", "Yes.\n")),
        ("Hi", "\n <think>hm</think>Yes.", ("hm", "Yes.")),
        ("Hi", "<think>\n\n</think>\n\nYes.", ("", "Yes.")),
        ("Hi<think>\n", "hm\n</think>\n\nYes.", ("hm", "Yes.")),
        ("Hi<think>", "\n<think>\nhm</think>Yes.", ("hm", "Yes.")),  # said again
        ("Hi<think>\n", "hm and\n", ("hm and", "")),  # unclosed
        ("Hi", "<think>hm", ("hm", "")),
        ("Hi<think>\n\n</think>\n\n", "Yes.", ("", "Yes.")),  # closed by the prompt
        ("Hi", "</think>\n\nYes.", ("", "Yes.")),  # closed again
        ("Hi", "\n Yes, I < think > so.</thin", ("", "\n Yes, I < think > so.</thin")),  # no mark: as it is
        ("Hi", " \n", ("", " \n")),
        ("Hi", "", ("", "")),
        ("Hi", "<think>a</think>\n<think>b</think>\nYes.", ("a\n\nb", "Yes.")),
        ("What is <think>?", "A tag.", ("", "A tag.")),
    ],
)
def test_tags(made: Made, kind: str, prompt: str, text: str, expected: tuple[str, str]) -> None:
    assert split(made(kind), text, prompt) == expected


@pytest.mark.parametrize("kind", ["tags", "spelled"])
def test_a_tag_in_the_midst_is_quoted(made: Made, kind: str) -> None:
    """An answer about tags is not cut short."""
    text = "<think>Of <think>, then.</think>It writes <think> and </think>, then answers."
    assert split(made(kind), text) == ("Of <think>, then.", "It writes <think> and </think>, then answers.")
    assert split(made(kind), "Yes: <think>x") == ("", "Yes: <think>x")


@pytest.mark.parametrize("kind", WITH_TAGS)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("abc</think>hello", ("", "abc</think>hello")),
        ("Use <think> here.", ("", "Use <think> here.")),
        ("<think>a <think> b</think>c</think>", ("a <think> b", "c</think>")),
        ("<think>a</think>é</think> </think>", ("a", "é</think> </think>")),
    ],
)
def test_quoted_tags_stay_text_also_as_special_tokens(
    made: Made, kind: str, text: str, expected: tuple[str, str]
) -> None:
    assert split(made(kind), text) == expected


def test_half_a_character_before_a_quoted_special_tag(made: Made) -> None:
    tokenizer = made("special_tags")
    close, half = tokenizer.token_id("</think>"), tokenizer.encode("🙂")[:-1]
    assert close is not None
    ids = [*tokenizer.encode("a"), *half, close, *tokenizer.encode(" b🙂")]
    assert split_reasoning(tokenizer, tokenizer.encode("Hi"), ids).answer == "a\ufffd</think> b🙂"
    ids = [*half, close, *tokenizer.encode("b")]  # the half is where the answer begins
    assert split_reasoning(tokenizer, tokenizer.encode("Hi"), ids).answer == "\ufffd</think>b"


def test_the_template_opens_the_thinking(made: Made) -> None:
    tokenizer = made("tags")
    for variables, expected in (
        ({}, ("", "hm")),
        ({"thinking": True}, ("hm", "")),
        ({"thinking": False}, ("", "hm")),
    ):
        parts = split_reasoning(tokenizer, tokenizer.encode_chat(USER, variables), tokenizer.encode("hm"))
        assert (parts.reasoning, parts.answer) == expected


ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|channel|>final<|message|>"
NEXT = "<|end|><|start|>assistant"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{ANALYSIS}hm\n{NEXT}{FINAL}Yes.\n", ("hm", "Yes.\n")),
        (f"{FINAL}Yes.", ("", "Yes.")),
        ("<|message|>Yes.", ("", "Yes.")),  # a message without a channel
        (f"{ANALYSIS}hm", ("hm", "")),  # unclosed
        (f"{ANALYSIS}hm<|end|>", ("hm", "")),
        (f"{ANALYSIS}hm{NEXT}<|channel|>fin", ("hm", "")),  # cut in a header
        (f"{ANALYSIS}a{NEXT}{ANALYSIS}b{NEXT}{FINAL}Yes.", ("a\n\nb", "Yes.")),
        (f"{FINAL}A{NEXT}{ANALYSIS} {NEXT}{FINAL}B", ("", "A\n\nB")),
        (
            f'{ANALYSIS}I look.{NEXT} to=functions.f<|channel|>commentary <|constrain|>json<|message|>{{"a": 1}}',
            ('I look.\n\n{"a": 1}', ""),
        ),
        (' to=functions.f<|channel|>commentary json<|message|>{"a": 1}', ('{"a": 1}', "")),
        ("<|channel|>commentary to=functions.f<|message|>{}<|call|>", ("{}", "")),
        (f"{ANALYSIS}hm<|end|>lost{FINAL}Yes.", ("hm", "Yes.")),  # between messages
        (f"{ANALYSIS}hm{FINAL}Yes.", ("hm", "Yes.")),  # without an end
        (" I know no marks.\n", ("", " I know no marks.\n")),
        ("", ("", "")),
    ],
)
def test_channels(made: Made, text: str, expected: tuple[str, str]) -> None:
    tokenizer = made("harmony")
    assert split(tokenizer, text, tokenizer.render_chat(USER)) == expected


@pytest.mark.parametrize(
    ("channel", "text", "expected"),
    [
        ("final", "Yes.<|return|>", ("", "Yes.")),
        ("analysis", f"hm{NEXT}{FINAL}Yes.", ("hm", "Yes.")),
        ("analysis", " hm ", ("hm", "")),
    ],
)
def test_a_channel_that_the_prompt_has_begun(made: Made, channel: str, text: str, expected: tuple[str, str]) -> None:
    tokenizer = made("harmony")
    assert split(tokenizer, text, tokenizer.render_chat(USER, variables={"channel": channel})) == expected
    assert split(tokenizer, "Yes.", "no message has begun") == ("", "Yes.")


PIECES = ["a", " hm ", "\n\n", "🙂", "<", "</", "<think>", "</think>", "think>", "<th", "日本", *HARMONY_MARKS, "final"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=80, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12),
    noise=st.lists(st.integers(0, 8191), max_size=3),
    opened=st.booleans(),
    cuts=st.lists(st.integers(0, 4), max_size=6),
)
def test_all_pieces_joined_are_the_split(
    made: Made, kind: str, pieces: list[str], noise: list[int], opened: bool, cuts: list[int]
) -> None:
    tokenizer = made(kind)
    prompt = tokenizer.encode_chat(USER, {"thinking": True, "channel": "analysis"} if opened else {})
    ids = [*tokenizer.encode("".join(pieces)), *noise, *tokenizer.encode("".join(pieces[::-1]))]
    deltas = stream(tokenizer, prompt, ids, cuts)
    whole = split_reasoning(tokenizer, prompt, ids)
    assert "".join(delta.reasoning for delta in deltas) == whole.reasoning
    assert "".join(delta.answer for delta in deltas) == whole.answer


@settings(max_examples=80, deadline=None)
@given(ids=st.lists(st.integers(0, 8191) | st.integers(0, 300), max_size=30))
def test_without_marks_the_answer_is_the_text(made: Made, ids: list[int]) -> None:
    """Random ids are mostly broken UTF-8, with special tokens between the bytes."""
    for kind in KINDS:
        tokenizer = made(kind)
        prompt = tokenizer.encode_chat([{"role": "user", "content": "Hi"}])
        assert split_reasoning(tokenizer, prompt, ids) == Parts(answer=tokenizer.decode(ids))


TEXT = st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=80, deadline=None)
@given(thoughts=TEXT, answer=TEXT, cuts=st.lists(st.integers(0, 4), max_size=6))
def test_no_mark_is_in_either_part(made: Made, thoughts: str, answer: str, cuts: list[int]) -> None:
    for kind in (*WITH_TAGS, "harmony"):
        tokenizer = made(kind)
        if kind == "harmony":
            prompt, text = tokenizer.encode_chat(USER), f"{ANALYSIS}{thoughts}{NEXT}{FINAL}{answer}"
        else:
            prompt, text = tokenizer.encode("Hi"), f"<think>{thoughts}</think>{answer}"
        deltas = stream(tokenizer, prompt, tokenizer.encode(text), cuts)
        assert "".join(delta.reasoning for delta in deltas) == thoughts.strip()
        assert "".join(delta.answer for delta in deltas) == (answer if kind == "harmony" else answer.lstrip())


@pytest.mark.parametrize("kind", WITH_TAGS)
def test_pieces_come_as_soon_as_they_are_certain(made: Made, kind: str) -> None:
    tokenizer = made(kind)
    deltas = ReasoningStream(tokenizer, tokenizer.encode("Hi"))
    assert deltas.feed(tokenizer.encode("<think>one")) == Parts(reasoning="one")
    assert deltas.feed(tokenizer.encode(" two\n")) == Parts(reasoning=" two")
    assert deltas.feed(tokenizer.encode("three</think>")) == Parts(reasoning="\nthree")
    assert deltas.feed(tokenizer.encode("\n\n")) == Parts()
    assert deltas.feed(tokenizer.encode("Yes")) == Parts(answer="Yes")
    assert deltas.feed(tokenizer.encode(".\n")) == Parts(answer=".\n")
    assert deltas.finish() == Parts()


def test_half_a_character_before_a_mark(made: Made) -> None:
    tokenizer = made("tags")
    half = tokenizer.encode("🙂")[:-1]
    opening, closing = (tokenizer.token_id(tag) for tag in TAGS)
    ids = [opening, *half, closing, *half]
    assert split_reasoning(tokenizer, [5], ids) == Parts("\ufffd", "\ufffd")
    assert split_reasoning(tokenizer, [5], [*half, opening, *half]) == Parts(answer="\ufffd<think>\ufffd")


def test_decoders_that_strip_the_first_blank(tmp_path: Path) -> None:
    model = tokenizers.models.WordLevel({"▁one": 0, "▁two": 1, "?": 2}, unk_token="?")
    core = tokenizers.Tokenizer(model)
    core.decoder = tokenizers.decoders.Metaspace()
    core.add_tokens(list(TAGS))
    core.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text("x")
    tokenizer = Tokenizer.open(tmp_path)
    assert split_reasoning(tokenizer, [2], [3, 0, 1, 4, 1, 0, 3, 1]) == Parts("one two", "two one<think> two")
