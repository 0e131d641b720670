"""Every feature of the API, by the official client."""

import json
import math

import jsonschema
import openai
import pytest
from random_server import open_engine, serving

AR, SD = {"speculation": {"mode": "ar"}}, {"speculation": {"mode": "sd", "width": 2, "depth": 4}}
HELLO = [{"role": "user", "content": "Hello there, how are you on this fine day, and where will you go?"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "bb"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "maximum": 9, "minimum": 1}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}


def chat(client, **options):
    extra = options.pop("extra_body", SD)
    given = {"model": "random", "messages": HELLO, "max_tokens": 24, "temperature": 0} | options
    return client.chat.completions.create(**given, extra_body=extra)


def streamed(client, **options):
    """(text, finish reason, last chunk) of a streamed chat."""
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}, **options))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons[:-1] == [None] * (len(reasons) - 1)
    return text, reasons[-1], chunks[-1]


def test_an_answer_whole_and_streamed_with_numbers(client):
    answer = chat(client)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in {"length", "stop"}
    text, reason, last = streamed(client)
    assert (text, reason) == (answer.choices[0].message.content, answer.choices[0].finish_reason)
    for usage in (answer.usage, last.usage):
        assert usage.completion_tokens == usage.elmoe["emitted"] == 24
        assert usage.total_tokens == usage.prompt_tokens + 24
        assert usage.elmoe["tokens_by_draft"] + usage.elmoe["tokens_by_target"] == 24
        assert usage.elmoe["ttft_seconds"] >= 0
        assert usage.elmoe["tpot_seconds"] > 0
        assert 0 <= usage.elmoe["acceptance_rate"] <= 1
    assert last.usage.prompt_tokens_details.cached_tokens > 0, "the prompt was computed by the first request"


def test_speculation_is_per_request_and_can_be_declined(client):
    plain, drafted = chat(client, extra_body=AR), chat(client, extra_body=SD)
    assert plain.choices[0].message.content == drafted.choices[0].message.content
    assert plain.usage.elmoe["verify_steps"] == 0
    assert drafted.usage.elmoe["verify_steps"] > 0


def test_drafted_pieces_add_up_to_the_text(client):
    chunks = list(
        chat(client, stream=True, extra_body=SD | {"stream_options": {"include_drafted": True, "include_usage": True}})
    )
    pieces = [piece for chunk in chunks for piece in (getattr(chunk, "elmoe", None) or {"pieces": []})["pieces"]]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "".join(piece for piece, _ in pieces) == text
    assert {drafted for _, drafted in pieces} <= {True, False}


def test_token_ids_whole_and_streamed(client):
    ids = chat(client, extra_body=SD | {"return_token_ids": True}).choices[0].token_ids
    assert len(ids) == 24
    chunks = list(chat(client, stream=True, extra_body=AR | {"return_token_ids": True}))
    assert [token for chunk in chunks for token in getattr(chunk.choices[0], "token_ids", None) or []] == ids
    assert "token_ids" not in chat(client).choices[0].model_extra


def test_choices_differ_in_their_seeds_and_one_seed_is_one_text(client):
    first = chat(client, n=3, temperature=1.0, seed=5)
    again = chat(client, n=3, temperature=1.0, seed=5, extra_body=AR)
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) == 3
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert first.usage.prompt_tokens == chat(client, temperature=1.0).usage.prompt_tokens
    assert chat(client, temperature=1.0, seed=6).choices[0].message.content == texts[1]
    assert chat(client, temperature=1.0, seed=-3).choices[0].message.content


def test_a_stop_string_cuts_exactly_though_drafted_tokens_straddle_it(client):
    whole = chat(client, max_tokens=40).choices[0].message.content
    assert len(whole) > 30
    for start in range(3, len(whole) - 6, 4):
        stop = whole[start : start + 5]
        for extra in (AR, SD):
            answer = chat(client, max_tokens=40, stop=[stop, "never this"], extra_body=extra)
            assert answer.choices[0].message.content == whole[: whole.index(stop)]
            assert answer.choices[0].finish_reason == "stop"
        assert streamed(client, max_tokens=40, stop=stop)[:2] == (whole[: whole.index(stop)], "stop")


def test_logprobs_are_the_models_own(client):
    answer = chat(client, logprobs=True, top_logprobs=4)
    entries = answer.choices[0].logprobs.content
    assert len(entries) == 24
    assert b"".join(bytes(each.bytes) for each in entries).decode(errors="replace") == answer.choices[0].message.content
    for each in entries:
        assert each.top_logprobs[0].logprob == each.logprob  # greedy
        assert len(each.top_logprobs) == 4
        assert sum(math.exp(other.logprob) for other in each.top_logprobs) < 1
    plain = chat(client, logprobs=True, top_logprobs=4, extra_body=AR)
    assert plain.choices[0].logprobs == answer.choices[0].logprobs
    chunks = [c for c in chat(client, logprobs=True, top_logprobs=4, stream=True) if c.choices[0].logprobs]
    assert [each for chunk in chunks for each in chunk.choices[0].logprobs.content] == entries


def test_biases_and_penalties_change_the_text_alike_in_both_modes(served, client):
    plain = chat(client).choices[0].message.content
    _, written, _ = served.ask("/tokenize", {"prompt": plain})
    options = [
        {"logit_bias": {str(token): -100 for token in written["tokens"]}},
        {"presence_penalty": -2.0, "frequency_penalty": -2.0},
        {"extra_body": {"repetition_penalty": 0.4}},
        {"temperature": 0.9, "top_p": 0.7, "seed": 3, "extra_body": {"top_k": 30, "min_p": 0.02}},
    ]
    for each in options:
        extra = each.pop("extra_body", {})
        drafted = chat(client, **each, extra_body=SD | extra).choices[0].message.content
        assert chat(client, **each, extra_body=AR | extra).choices[0].message.content == drafted
        assert drafted != plain


@pytest.mark.parametrize("extra", [AR, SD])
def test_answers_follow_their_schema(client, extra):
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    for seed in range(4):
        answer = chat(client, response_format=form, max_tokens=200, temperature=1.0, seed=seed, extra_body=extra)
        assert answer.choices[0].finish_reason == "stop"
        jsonschema.validate(json.loads(answer.choices[0].message.content), SCHEMA)
    answer = chat(client, response_format={"type": "json_object"}, max_tokens=30, temperature=1.0, extra_body=extra)
    assert answer.choices[0].message.content.startswith("{")


def test_structured_answers_are_the_same_in_both_modes_and_streamed(client):
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
    for temperature in (0, 1.0):
        options = {"response_format": form, "max_tokens": 120, "temperature": temperature, "seed": 11}
        plain, drafted = chat(client, **options, extra_body=AR), chat(client, **options, extra_body=SD)
        assert plain.choices[0].message.content == drafted.choices[0].message.content
        assert streamed(client, **options)[0] == plain.choices[0].message.content
        assert drafted.usage.elmoe["accepted"] > 0


@pytest.mark.parametrize("extra", [AR, SD])
def test_tools_that_must_be_called(client, extra):
    named = {"type": "function", "function": {"name": "get_weather"}}
    answer = chat(client, tools=[CLOCK, WEATHER], tool_choice=named, max_tokens=120, extra_body=extra)
    (call,) = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None
    assert call.function.name == "get_weather"
    jsonschema.validate(json.loads(call.function.arguments), WEATHER["function"]["parameters"])
    one = chat(
        client, tools=[CLOCK, WEATHER], tool_choice="required", parallel_tool_calls=False, max_tokens=120,
        temperature=1.0, seed=2, extra_body=extra,
    )  # fmt: skip
    assert len(one.choices[0].message.tool_calls) == 1


def test_tool_calls_are_streamed_and_answered(client):
    options = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 120}
    whole = chat(client, **options).choices[0].message.tool_calls[0]
    deltas = [
        each for chunk in chat(client, stream=True, **options) for each in chunk.choices[0].delta.tool_calls or []
    ]
    assert deltas[0].function.name == whole.function.name
    assert deltas[0].id.startswith("call_")
    assert "".join(delta.function.arguments for delta in deltas) == whole.function.arguments
    messages = [
        *HELLO,
        {"role": "assistant", "tool_calls": [whole.model_dump()]},
        {"role": "tool", "tool_call_id": whole.id, "content": "sunny"},
    ]
    assert chat(client, messages=messages, tools=[WEATHER], tool_choice="none").choices[0].message.tool_calls is None


def test_strict_tools_leave_text_free_and_calls_not(client):
    strict = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
    options = {"tools": [strict], "max_tokens": 30, "temperature": 1.0, "seed": 4}
    plain, drafted = chat(client, **options, extra_body=AR), chat(client, **options, extra_body=SD)
    assert plain.choices[0].message.content == drafted.choices[0].message.content
    assert plain.choices[0].message.content


def test_raw_completions(client):
    options = {"model": "random", "max_tokens": 12, "temperature": 0}
    one = client.completions.create(prompt="Once upon", logprobs=2, **options)
    assert one.object == "text_completion"
    lists = one.choices[0].logprobs
    assert "".join(lists.tokens) == one.choices[0].text
    assert lists.text_offset == [len("".join(lists.tokens[:n])) for n in range(12)]
    assert all(max(top.values()) == own for top, own in zip(lists.top_logprobs, lists.token_logprobs, strict=True))
    both = client.completions.create(prompt=["Once upon", "Hello"], n=2, **options)
    assert [choice.text for choice in both.choices][:2] == [one.choices[0].text] * 2
    assert len(both.choices) == 4
    ids = client.completions.create(prompt=[5, 6, 7], **options)
    assert ids.usage.prompt_tokens == 3
    text = "".join(c.choices[0].text for c in client.completions.create(prompt="Once upon", stream=True, **options))
    assert text == one.choices[0].text
    form = {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}}}
    number = client.completions.create(prompt="A number:", **options, extra_body=form)
    assert isinstance(json.loads(number.choices[0].text), int)


def test_models_and_unknown_ones(client):
    assert [model.id for model in client.models.list()] == ["random"]
    assert client.models.retrieve("random").max_model_len == 1024
    for call in (lambda: client.models.retrieve("other/../x"), lambda: chat(client, model="other")):
        with pytest.raises(openai.NotFoundError, match="there is no model"):
            call()


CAT = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
REFUSED = [
    ({"extra_body": {"best_off": 2}}, "best_off is not a field that this server knows"),
    ({"modalities": ["audio"]}, "modalities is not supported by this server; leave it out"),
    ({"store": True}, "store is not supported"),
    ({"service_tier": "flex"}, "service_tier is not supported"),
    ({"prediction": {"type": "content", "content": "x"}}, "prediction is not supported"),
    ({"functions": [{"name": "f", "parameters": {}}]}, "functions is not supported"),
    ({"messages": CAT}, "messages"),
    ({"messages": []}, "messages: List should have at least 1 item"),
    ({"temperature": -1}, "temperature must be 0 or more"),
    ({"top_p": 0}, r"top_p must be in \(0, 1\]"),
    ({"n": 17}, "n must be at most 16, not 17"),
    ({"max_tokens": 5000}, "max_tokens must be at most 4096, not 5000"),
    ({"max_tokens": 2000}, "2000 new tokens exceed the model's context"),
    ({"top_logprobs": 3}, "top_logprobs needs logprobs: true"),
    ({"logit_bias": {"x": 1}}, "logit_bias: 'x' is not a token id"),
    ({"logit_bias": {"99999999": 1}}, "logit_bias: token 99999999 is not in the vocabulary"),
    ({"logit_bias": {"5": 101}}, r"logit_bias of token 5 must be in \[-100, 100\]"),
    ({"stop": [""]}, "an empty stop string"),
    ({"frequency_penalty": 3}, r"frequency_penalty must be in \[-2, 2\]"),
    ({"reasoning_effort": "high"}, "the model's chat template knows no variable 'reasoning_effort'"),
    ({"tool_choice": "required"}, "tool_choice needs tools"),
    (
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "nope"}}},
        "there is no tool 'nope'",
    ),
    ({"tools": [WEATHER], "response_format": {"type": "json_object"}}, "a JSON answer and tools at once"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no"}}}},
        "the grammar or schema cannot be used: .*Invalid type: no",
    ),
    ({"extra_body": {"speculation": {"mode": "eagle"}}}, "speculation.mode: Input should be 'ar', 'sd' or 'auto'"),
    ({"extra_body": {"speculation": {"width": 17}}}, "speculation.width: Input should be less than or equal to 16"),
    ({"extra_body": {"speculation": {"k": 3}}}, "speculation.k is not a field"),
    ({"extra_body": {"chat_template_kwargs": {"messages": []}}}, "knows no variable 'messages'"),
    ({"stream_options": {"include_usage": True}}, "stream_options needs stream: true"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "streams are not obfuscated"),
    (
        {"messages": [{"role": "user", "content": "x" * 9000}]},
        "exceed the model's context or the memory; 0 new tokens",
    ),
]


@pytest.mark.parametrize(("options", "text"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_be_done_is_refused_by_name(client, options, text):
    with pytest.raises(openai.BadRequestError, match=text):
        chat(client, **options)


@pytest.mark.parametrize("kind", ["tool_tokens", "harmony"])
def test_tools_in_the_marks_of_other_models(model_folder, kind):
    """A random model may write reasoning first, for as long as it likes; some seeds come to the call."""
    with serving(open_engine(model_folder(kind))) as served:
        client, calls = served.client(), []
        for seed in range(8):
            options = {
                "tools": [WEATHER],
                "tool_choice": "required",
                "max_tokens": 120,
                "temperature": 1.0,
                "seed": seed,
            }
            answer = chat(client, **options).choices[0]
            deltas = [each for chunk in chat(client, stream=True, **options, extra_body=AR)
                      for each in chunk.choices[0].delta.tool_calls or []]  # fmt: skip
            if answer.finish_reason == "tool_calls" and not answer.message.content:
                call = answer.message.tool_calls[0].function
                assert call.name == deltas[0].function.name == "get_weather"
                pieces = [delta.function.arguments for delta in deltas if delta.index == 0]
                assert "".join(pieces) == call.arguments
                calls.append(json.loads(call.arguments))
        assert calls
        for arguments in calls:
            jsonschema.validate(arguments, WEATHER["function"]["parameters"])


def test_reasoning_is_kept_apart(model_folder):
    with serving(open_engine(model_folder("think"))) as served:
        client = served.client()
        extra = SD | {"chat_template_kwargs": {"thinking": True}}
        answer = chat(client, extra_body=extra).choices[0].message
        assert answer.content == ""
        assert answer.reasoning_content
        chunks = list(chat(client, stream=True, extra_body=extra))
        pieces = [getattr(chunk.choices[0].delta, "reasoning_content", None) or "" for chunk in chunks]
        assert "".join(pieces) == answer.reasoning_content
        with pytest.raises(openai.BadRequestError, match="knows no variable 'enable_thinking'"):
            chat(client, extra_body={"chat_template_kwargs": {"enable_thinking": False}})
