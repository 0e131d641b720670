from __future__ import annotations

import datetime
import enum
import json
from collections import OrderedDict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from elmoe.checkpoint import chat
from elmoe.checkpoint.chat import ChatTemplate, read_chat_templates
from elmoe.errors import CheckpointError, PromptError

HELLO = [{"role": "user", "content": "hello"}]
GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = json.loads((GOLDEN / "chat_families.json").read_text(encoding="utf-8"))
TEMPLATES = sorted(path.stem for path in (GOLDEN / "chat_templates").glob("*.jinja"))


def render(text: str, messages: list[dict[str, Any]] | None = None, prompt: bool = True, **variables: Any) -> str:
    return ChatTemplate(text, {}, "chat_template.jinja").render(messages or HELLO, prompt, variables)


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_in_the_manner_of_the_families_equal_transformers(name: str, monkeypatch: Any) -> None:
    """`tests/verify/make_chat_golden.py` made these."""
    monkeypatch.setattr(chat, "_now", lambda: datetime.datetime.fromisoformat(FAMILIES["now"]))
    text = (GOLDEN / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    template = ChatTemplate(text, FAMILIES["special_tokens"], name)
    checked = 0
    for title, expected in FAMILIES["texts"].items():
        of, conversation, given = title.split()
        if of != name:
            continue
        for prompted, wanted in zip((True, False), expected, strict=False):
            arguments = FAMILIES["conversations"][conversation], prompted, FAMILIES["variables"][given]
            if wanted is None:
                with pytest.raises(PromptError, match="the chat template refuses these messages: "):
                    template.render(*arguments)
            else:
                assert template.render(*arguments) == wanted, title
            checked += 1
    assert checked == 5 * len(FAMILIES["conversations"])


def test_blocks_are_trimmed_as_transformers_does() -> None:
    template = (
        "{%- for m in messages %}\n    {% if m.role == 'user' %}\n{{ m.content }}!\n    {% endif %}\n{% endfor %}\n"
    )
    assert render(template) == "hello!\n"


def test_variables_and_generation_prompt() -> None:
    template = "{{ bos_token }}{{ messages[0]['content'] }}{% if add_generation_prompt %}A:{% endif %}"
    assert render(template, bos_token="<s>") == "<s>helloA:"
    assert render(template, prompt=False, bos_token="<s>") == "<s>hello"
    assert render("{% if tools %}tools{% endif %}{% if documents is none %}none{% endif %}") == "none"


def test_tojson_keeps_letters_and_markup() -> None:
    assert render("{{ messages[0] | tojson }}", [{"content": "é<'&"}]) == '{"content": "é<\'&"}'
    assert render("{{ [1] | tojson(indent=1) }}") == "[\n 1\n]"
    compact = "{{ {'b': 1, 'a': 'é'} | tojson(ensure_ascii=true, separators=(',', ':'), sort_keys=true) }}"
    assert render(compact) == '{"a":"\\u00e9","b":1}'


def test_extensions_that_templates_use() -> None:
    loop = "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    assert render(loop) == "01"
    assert render("a{% generation %}b{{ 1 }}{% endgeneration %}c") == "ab1c"
    assert len(render("{{ strftime_now('%Y') }}")) == 4
    assert render("{% set ns = namespace(self=1) %}{% set ns.b = 2 %}{{ ns.self + ns.b }}") == "3"
    assert render("{{ dict(a=1).a }}{{ dict.fromkeys('xy', 2) }}") == "1{'x': 2, 'y': 2}"
    assert render("{% set a = 1 %}{% generation %}{% set a = 2 %}{{ a }}{% endgeneration %}{{ a }}") == "21"


def test_fields_of_messages_are_as_templates_expect_them() -> None:
    fields = "{% for m in messages %}{{ m | tojson(sort_keys=true) }};{% endfor %}"
    messages = [
        {"content": None, "tool_calls": None},
        {"reasoning": "r"},
        {"thinking": "t", "reasoning_content": None},
        {"thinking": "t", "reasoning_content": "c"},
    ]
    assert render(fields, messages).split(";") == [
        "{}",
        '{"reasoning": "r", "reasoning_content": "r", "thinking": "r"}',
        '{"reasoning_content": "t", "thinking": "t"}',
        '{"reasoning_content": "c", "thinking": "t"}',
        "",
    ]
    assert messages[0] == {"content": None, "tool_calls": None}, "the caller's own are left as they are"


class Colour(enum.StrEnum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class Harmful(float):
    def open(self) -> str:
        return "harm"


def test_templates_see_plain_values_only() -> None:
    message = MappingProxyType({"content": OrderedDict(a=(Colour.RED, Number.ONE, Harmful(0.5), True, None))})
    assert render("{{ messages[0].content }}", [message]) == "{'a': ['red', 1, 0.5, True, None]}"
    with pytest.raises(PromptError, match="has no attribute 'open'"):
        render("{{ x.open() }}", x=Harmful(0.5))
    with pytest.raises(PromptError, match="messages hold texts, numbers, lists and objects, as JSON does, not PosixPa"):
        render("{{ messages }}", [{"content": Path()}])
    with pytest.raises(PromptError, match=r"template variables hold texts, .* not bytes"):
        render("", x=b"")


def test_template_variables() -> None:
    template = "{% if not enable_thinking is defined %}{% set enable_thinking = 1 %}{% endif %}{{ enable_thinking }}"
    assert render(template) == "1"
    assert render(template, enable_thinking=False) == "False"
    assert render("{{ x }}", unknown=1) == "", "one that the template does not know does nothing"
    known = ChatTemplate(template + "{{ messages }}{{ bos_token }}{{ raise_exception }}", {}, "").variables
    assert known == {"enable_thinking", "bos_token"}
    assert ChatTemplate("{{ bos_token }}", {"bos_token": "<s>"}, "").render([], True, {"bos_token": "<t>"}) == "<t>"
    for name in ("messages", "add_generation_prompt"):
        with pytest.raises(PromptError, match=f"{name} is not a variable to be set"):
            ChatTemplate("", {}, "").render([], True, {name: []})
    for wrong in ({"tools": {}}, {"tools": ["x"]}, {"documents": "x"}):
        with pytest.raises(PromptError, match=f"{next(iter(wrong))} must be a list of JSON objects"):
            render("", **wrong)


def write(folder: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, {}),
        ({"tokenizer_config.json": {"chat_template": None}}, {}),
        ({"tokenizer_config.json": {"chat_template": ""}}, {}),
        ({"tokenizer_config.json": {"chat_template": "a"}}, {"default": "a"}),
        ({"tokenizer_config.json": {"chat_template": {"default": "a", "rag": "b"}}}, {"default": "a", "rag": "b"}),
        (
            {"tokenizer_config.json": {"chat_template": [{"name": "rag", "template": "b"}, {"name": "x"}, "junk"]}},
            {"rag": "b"},
        ),
        ({"tokenizer_config.json": {"chat_template": "a"}, "chat_template.jinja": "é"}, {"default": "é"}),
        (
            {"chat_template.jinja": "a", "additional_chat_templates/tool_use.jinja": "b"},
            {"default": "a", "tool_use": "b"},
        ),
        ({"chat_template.jinja": "a", "chat_template.tool_use.jinja": "b"}, {"default": "a", "tool_use": "b"}),
        (
            {"tokenizer_config.json": {"chat_template": "a"}, "additional_chat_templates/rag.jinja": "b"},
            {"rag": "b"},  # files of their own take the place of what tokenizer_config.json says
        ),
    ],
)
def test_where_templates_come_from(tmp_path: Path, files: dict[str, Any], expected: dict[str, str]) -> None:
    write(tmp_path, files)
    assert {name: template.text for name, template in read_chat_templates(tmp_path).items()} == expected


@pytest.mark.parametrize(
    ("settings", "special_map", "expected"),
    [
        ({"bos_token": "<s>", "eos_token": None, "image_token": "<i>"}, None, "<s>,-,-,<i>"),
        ({"extra_special_tokens": {"image_token": "<i>"}, "add_bos_token": True}, None, "-,-,-,<i>"),
        ({"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": 3, "unk_token": ""}, None, "<s>,-,,-"),
        ({"bos_token": "<s>"}, {"bos_token": "<x>", "eos_token": {"content": "<e>"}}, "<x>,<e>,-,-"),
        ({"bos_token": "<s>", "added_tokens_decoder": {}}, {"bos_token": "<x>", "eos_token": "<e>"}, "<s>,-,-,-"),
    ],
)
def test_special_tokens_that_templates_see(
    tmp_path: Path, settings: dict[str, Any], special_map: dict[str, Any] | None, expected: str
) -> None:
    names = ("bos_token", "eos_token", "unk_token", "image_token")
    template = ",".join(f"{{{{ {name} if {name} is defined else '-' }}}}" for name in names)
    write(tmp_path, {"tokenizer_config.json": settings, "chat_template.jinja": template})
    if special_map is not None:
        write(tmp_path, {"special_tokens_map.json": special_map})
    assert read_chat_templates(tmp_path)["default"].render([], True) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ raise_exception('roles must alternate') }}",
            "the chat template refuses these messages: roles must alternate",
        ),
        ("{{ messages[0]['role'] + messages[0]['name'] }}", "refuses these messages"),
        ("{{ messages[0]['content'] + 1 }}", "refuses these messages"),
        ("{{ 1 / 0 }}", "refuses these messages: division by zero"),
        ("{{ messages[5].role }}", "refuses these messages: .* has no element 5"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "refuses these messages: they are nested too deeply"),
        ("{{ messages[0].missing.deeper }}", "refuses these messages: .* has no attribute 'missing'"),
    ],
)
def test_messages_that_do_not_fit(template: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        render(template)


def test_a_broken_template_names_its_line() -> None:
    with pytest.raises(
        CheckpointError, match=r"chat_template\.jinja: the chat template is broken \(line 2: .*use raw prompts"
    ):
        render("a\n{% for m in messages %}")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: the chat template is nested too deeply"):
        render("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}")


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% break %}", "'break' outside loop"),
        ("{% continue %}", "'continue' not properly in loop"),
        ("{{ f(a=1, a=2) }}", "keyword argument repeated: a"),
        ("{% macro m(a, a) %}{% endmacro %}", "duplicate "),
        ("{{ x | nosuchfilter }}", r"line 1: No filter named 'nosuchfilter'\."),
    ],
)
def test_templates_that_are_no_code(template: str, problem: str) -> None:
    with pytest.raises(
        CheckpointError, match=rf"chat_template\.jinja: the chat template is broken \({problem}.*\); fetch"
    ):
        render(template)


def test_a_template_that_asks_for_too_much_memory() -> None:
    with pytest.raises(
        CheckpointError, match=r"chat_template\.jinja: the chat template asks for more memory than there"
    ):
        render("{{ 'x' * 10**18 }}")


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__.__init__.__globals__ }}",
        "{% set _ = messages.append(1) %}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ namespace(_x=1) }}",
        "{{ dict.__class__.__base__ }}",
    ],
)
def test_the_sandbox_holds(template: str) -> None:
    with pytest.raises(CheckpointError, match="does what templates may not"):
        render(template)
