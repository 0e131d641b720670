"""Grammars in the marks of every kind of model, and tool calls read back from them."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmoe.checkpoint.reasoning import ReasoningStream
from elmoe.checkpoint.text import Tokenizer
from elmoe.engine.controller import Mode, Speculation
from elmoe.engine.engine import Engine, EngineOptions
from elmoe.engine.grammar import Grammars, json_text_grammar
from elmoe.engine.request import Generation
from elmoe.engine.sampler import Sampling
from elmoe.errors import ConfigError
from elmoe.server.structured import AnswerGrammars, CallableFunction, CallFormat, call_format
from elmoe.server.tools import CallDelta, HarmonyCalls, HermesCalls

SCHEMA = {
    "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False,
}  # fmt: skip
FUNCTIONS = [CallableFunction("f", SCHEMA), CallableFunction("g", {"type": "object", "properties": {}})]
USER = [{"role": "user", "content": "Hi"}]
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 3}}\n</tool_call>'
ANALYSIS = "<|channel|>analysis<|message|>I.<|end|><|start|>assistant"
CHANNEL = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"


class Model:
    """The tokenizer and grammars of a kind of model."""

    def __init__(self, folder):
        self.tokenizer = Tokenizer.open(folder)
        self.stop = self.tokenizer.token_id("<|im_end|>")
        self.grammars = Grammars(self.tokenizer, self.tokenizer.vocab_size + 5, [self.stop])
        self.answers = AnswerGrammars(self.tokenizer, self.grammars)

    def prompt(self, **variables):
        return self.tokenizer.encode_chat(USER, variables)

    def follows(self, grammar, text):
        """Whether a text is allowed token by token and may end there."""
        constraint = self.grammars.compile(grammar)
        for token in self.tokenizer.encode(text):
            mask = constraint.mask([])
            if mask is None or not mask[token]:
                return False
            constraint.append(token)
        mask = constraint.mask([])
        return mask is not None and bool(mask[self.stop])


@pytest.fixture(scope="module")
def model(model_folder):
    return lambda kind: Model(model_folder(kind))


@pytest.mark.parametrize(
    ("kind", "form"),
    [("tools", "hermes"), ("tool_tokens", "hermes"), ("think", "hermes"), ("harmony", "harmony")],
)
def test_the_format_of_calls_follows_from_the_template(model, kind, form):
    assert call_format(model(kind).tokenizer) is CallFormat(form)


JSON_CASES = [
    ("tools", {}, '{"a": 1}', True),
    ("tools", {}, '{"a": "x"}', False),
    ("tools", {}, 'So {"a": 1}', False),
    ("think", {}, '<think>\nhm {"b"}\n</think>\n\n{"a": 1}', True),
    ("think", {}, '{"a": 1}', True),
    ("think", {}, "<think>\nhm", False),
    ("think", {"thinking": True}, 'hm\n</think>\n\n{"a": 1}', True),
    ("think", {"thinking": True}, '{"a": 1}', False),
    ("spelled_think", {}, '<think>hm</think>{"a": 1}', True),
    ("spelled_think", {"thinking": True}, 'hm</think>{"a": 1}', True),
    ("harmony", {}, ANALYSIS + '<|channel|>final<|message|>{"a": 1}', True),
    ("harmony", {}, '<|channel|>final <|constrain|>json<|message|>{"a": 1}', True),
    ("harmony", {}, "<|channel|>final<|message|>Yes", False),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "variables", "text", "allowed"), JSON_CASES)
def test_json_answers_with_a_place_for_reasoning(model, kind, variables, text, allowed):
    made = model(kind)
    assert made.follows(made.answers.json_answer(SCHEMA, made.prompt(**variables)), text) is allowed


@pytest.mark.parametrize("kind", ["tools", "tool_tokens", "think"])
@pytest.mark.parametrize(
    ("text", "required", "parallel", "allowed"),
    [
        (CALL, True, True, True),
        (f"{CALL}\n{CALL}", True, True, True),
        (f"{CALL}\n{CALL}", True, False, False),
        (CALL.replace('"f"', '"h"'), True, True, False),
        (CALL.replace("3", "true"), True, True, False),
        ("Hello.", True, True, False),
        ("Hello.", False, True, True),
        (CALL, False, True, True),
    ],
)
def test_calls(model, kind, text, required, parallel, allowed):
    made = model(kind)
    assert made.follows(made.answers.calls(FUNCTIONS, made.prompt(), parallel, required), text) is allowed


@pytest.mark.parametrize(
    ("text", "required", "allowed"),
    [
        (f'{CHANNEL}{{"a": 1}}', True, True),
        (f'<|channel|>analysis<|message|>I.<|end|><|start|>assistant{CHANNEL}{{"a": 1}}', True, True),
        (f'{CHANNEL}{{"a": null}}', True, False),
        ("<|channel|>final<|message|>Hi.", True, False),
        ("<|channel|>final<|message|>Hi.", False, True),
    ],
)
def test_calls_in_channels(model, text, required, allowed):
    made = model("harmony")
    assert made.follows(made.answers.calls(FUNCTIONS, made.prompt(), False, required), text) is allowed


@pytest.mark.parametrize("kind", ["tools", "tool_tokens", "think", "spelled_think", "harmony"])
def test_random_models_follow_their_grammars_alike_in_both_modes(model_folder, kind):
    texts = []
    for mode in (Mode.AR, Mode.SD):
        engine = Engine.open(model_folder(kind), EngineOptions(speculation=Speculation(mode=mode)))
        answers = AnswerGrammars(engine.tokenizer, engine.grammars)
        prompt = engine.tokenizer.encode_chat(USER)
        grammars = [answers.json_answer(SCHEMA, prompt), answers.calls(FUNCTIONS, prompt, False, True)]
        asked = [
            Generation(100, Sampling(temperature, seed=5), grammar=grammar, split_reasoning=True)
            for grammar in grammars for temperature in (0, 1.0)
        ]  # fmt: skip
        outputs = engine.generate([prompt] * len(asked), asked)
        texts.append([(output.token_ids, output.text, output.reasoning, output.calls) for output in outputs])
        if kind in ("tools", "tool_tokens"):
            for output in outputs[:2]:
                assert output.finish_reason == "length" or set(json.loads(output.text)) == {"a"}
    assert texts[0] == texts[1]


def test_masks_along_a_path_leave_the_constraint_where_it_was(model):
    made = model("tools")
    constraint = made.grammars.compile(json_text_grammar(SCHEMA))
    tokens = made.tokenizer.encode('{"a": 12}')
    start = constraint.mask([])
    along = [constraint.mask(tokens[:n]) for n in range(len(tokens))]
    assert all(mask is not None and mask[token] for mask, token in zip(along, tokens, strict=True))
    assert (constraint.mask([]) == start).all()
    assert np.flatnonzero(constraint.mask(tokens)).tolist() == [made.stop]
    assert constraint.mask([*tokens, made.stop]) is None, "behind the end anything may be drafted: it is cut off"
    assert constraint.mask([made.stop, tokens[0]]) is None
    assert constraint.mask(made.tokenizer.encode("no")) is None
    for token in tokens:
        assert not constraint.ended
        constraint.append(token)
    assert constraint.ended


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "no"}, "the grammar or schema cannot be used: .*Invalid type: no"),
        ({"$ref": "#/nowhere"}, "the grammar or schema cannot be used: .*Pointer '/nowhere' does not exist"),
        ({"pattern": "("}, "the grammar or schema cannot be used: .*regex parse error"),
        ({"enum": ["x" * (1 << 18)]}, "a grammar or schema may have 262,144 characters"),
    ],
)
def test_schemas_that_cannot_be_used(model, schema, text):
    grammars = model("tools").grammars
    with pytest.raises(ConfigError, match=text):
        grammars.compile(json_text_grammar(schema))


def fed(text, cuts):
    parser, content, calls, start = HermesCalls(), "", [], 0
    for size in [*cuts, len(text)]:
        more, found = parser.feed(text[start : start + size])
        content, calls, start = content + more, calls + found, start + size
    more, found = parser.finish()
    return content + more, calls + found


@given(st.lists(st.integers(1, 9), max_size=30))
def test_calls_are_found_however_the_text_is_cut(cuts):
    text = f"Well <tool {CALL}\n{CALL.replace('3', '4')}"
    content, calls = fed(text, cuts)
    assert content == "Well <tool "
    assert calls == [CallDelta(0, "f", '{"a": 3}'), CallDelta(1, "f", '{"a": 4}')]


@pytest.mark.parametrize(
    ("text", "content", "count"),
    [
        ("No call <tool_", "No call <tool_", 0),
        ("<tool_call>not json</tool_call>", "<tool_call>not json</tool_call>", 0),
        ('<tool_call>{"name": 3}</tool_call>', '<tool_call>{"name": 3}</tool_call>', 0),
        ('<tool_call>{"name": "f", "arguments": "{}"}', "", 1),
        ('<tool_call>{"name": "f"', '<tool_call>{"name": "f"', 0),
        ('<tool_call>{"name": "f", "parameters": {}}</tool_call>', "", 1),
    ],
)
def test_what_is_no_call_stays_text(text, content, count):
    got, calls = fed(text, [3, 5, 2])
    assert (got, len(calls)) == (content, count)


def test_harmony_messages_to_tools_go_apart(model):
    tokenizer = model("harmony").tokenizer
    prompt = tokenizer.encode_chat(USER)
    text = (
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
        f'{CHANNEL}{{"a": 1}}<|call|><|start|>assistant to=functions.g<|channel|>commentary<|message|>{{}}'
    )
    stream = ReasoningStream(tokenizer, prompt, calls=True)
    parts = [stream.feed([token]) for token in tokenizer.encode(text)] + [stream.finish()]
    assert "".join(part.reasoning for part in parts) == "hm"
    assert "".join(part.answer for part in parts) == ""
    told: dict[int, list[CallDelta]] = {}
    reader = HarmonyCalls()
    for part in parts:
        for delta in reader.feed(part.calls):
            told.setdefault(delta.index, []).append(delta)
    assert [(deltas[0].name, "".join(delta.arguments for delta in deltas)) for deltas in told.values()] == [
        ("f", '{"a": 1}'),
        ("g", "{}"),
    ]
    assert all(delta.name is None for deltas in told.values() for delta in deltas[1:])


def test_without_asking_for_calls_they_are_reasoning(model):
    tokenizer = model("harmony").tokenizer
    stream = ReasoningStream(tokenizer, tokenizer.encode_chat(USER))
    parts = [stream.feed(tokenizer.encode(f'{CHANNEL}{{"a": 1}}')), stream.finish()]
    assert "".join(part.reasoning for part in parts) == '{"a": 1}'
