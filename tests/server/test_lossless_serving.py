"""With and without speculation, alone and among fifteen others: the same tokens, log-probabilities and JSON."""

import asyncio
import json

import openai
import pytest

MODES = {
    "ar": {"mode": "ar"},
    "sd": {"mode": "sd", "width": 2, "depth": 4},
    "deep": {"mode": "sd", "width": 3, "depth": 7},
}
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "people": {"type": "integer", "minimum": 0, "maximum": 999},
    },
    "required": ["city", "people"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
ASKED = [
    {"temperature": 0, "logprobs": True, "top_logprobs": 3, "max_tokens": 40},
    {"temperature": 0, "response_format": FORM, "max_tokens": 60},
    {"temperature": 0.8, "seed": 7, "response_format": FORM, "logprobs": True, "max_tokens": 60},
    {"temperature": 1.0, "seed": 3, "presence_penalty": 0.7, "max_tokens": 40, "extra_body": {"top_k": 40}},
]


def answers(served, mode, batch):
    """What each of `ASKED` gives: text, log-probabilities, tokens; `batch` of them run at once."""

    async def ask(client, index, options):
        extra = options.get("extra_body", {}) | {"speculation": MODES[mode], "return_token_ids": True}
        return await client.chat.completions.create(
            model="random",
            messages=[{"role": "user", "content": f"Tell me all about number {index}, if you please, and be quick."}],
            **options | {"extra_body": extra},
        )

    async def run():
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            todo = [(index, options) for index, options in enumerate(ASKED * 4)]
            if batch == 1:
                return [await ask(client, *each) for each in todo]
            return await asyncio.gather(*(ask(client, *each) for each in todo))

    made = asyncio.run(run())
    choices = [answer.choices[0] for answer in made]
    return [(choice.message.content, choice.finish_reason, choice.logprobs, choice.token_ids) for choice in choices]


@pytest.fixture(scope="module")
def plain(served):
    return answers(served, "ar", 1)


@pytest.mark.parametrize(("mode", "batch"), [("ar", 16), ("sd", 1), ("sd", 16), ("deep", 16)])
def test_the_same_answers(served, plain, mode, batch):
    assert answers(served, mode, batch) == plain


def test_the_structured_ones_are_structured(plain):
    whole = [json.loads(text) for (text, reason, *_), asked in zip(plain, ASKED * 4, strict=True)
             if "response_format" in asked and reason == "stop"]  # fmt: skip
    assert len(whole) >= 6
    assert all(set(value) == {"city", "people"} for value in whole)
