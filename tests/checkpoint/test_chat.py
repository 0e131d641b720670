from __future__ import annotations

import pytest

from elmoe.checkpoint.chat import ChatTemplate
from elmoe.errors import CheckpointError, PromptError

HELLO = [{"role": "user", "content": "hello"}]


def render(text: str, messages: list[dict[str, object]] | None = None, prompt: bool = True, **variables: str) -> str:
    return ChatTemplate(text, variables, "chat_template.jinja").render(messages or HELLO, prompt)


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


def test_extensions_that_templates_use() -> None:
    loop = "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    assert render(loop) == "01"
    assert render("a{% generation %}b{{ 1 }}{% endgeneration %}c") == "ab1c"
    assert len(render("{{ strftime_now('%Y') }}")) == 4


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ raise_exception('roles must alternate') }}",
            "the chat template refuses these messages: roles must alternate",
        ),
        ("{{ messages[0]['role'] + messages[0]['name'] }}", "refuses these messages"),
        ("{{ messages[0]['content'] + 1 }}", "refuses these messages"),
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


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__.__init__.__globals__ }}",
        "{% set _ = messages.append(1) %}",
    ],
)
def test_the_sandbox_holds(template: str) -> None:
    with pytest.raises(CheckpointError, match="does what templates may not"):
        render(template)
