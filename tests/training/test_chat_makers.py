"""What the generators of chat data make up: no draw fails, equations hold, documents are in the chat format."""

import random
import re

import pytest

from chat_makers.documents import SHARES, Writer, render

KINDS = [(module, kind) for module in SHARES for kind in module.KINDS]
EQUATION = re.compile(r"(?<![\d.,/+*-])(?<![-+*/=] )(\d+) ([-+*/]) (\d+) = (\d+)(?![\d,/]|\.\d| [-+*/])")
OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}


@pytest.mark.parametrize(("module", "kind"), KINDS, ids=[f"{m.__name__.split('.')[-1]}-{k}" for m, k in KINDS])
def test_every_kind(module, kind):
    weight, maker = module.KINDS[kind]
    assert weight > 0
    source = random.Random(kind)
    drawn = [maker(source) for _ in range(200)]
    for turns in drawn:
        assert turns
        for user, assistant in turns:
            assert user.strip(), turns
            assert assistant.strip(), turns
            assert "<|" not in user + assistant
    assert len({str(turns) for turns in drawn}) > 1


def test_equations_hold():
    source, writer, checked = random.Random(3), Writer(), 0
    for _ in range(5000):
        document = writer.document(source)
        answers = re.findall(r"assistant\n(.*?)<\|im_end", document, re.DOTALL)
        for a, op, b, result in EQUATION.findall(" ; ".join(text for text in answers if "```" not in text)):
            if op == "/" and int(a) % int(b):
                continue  # a division with a remainder
            assert OPERATIONS[op](int(a), int(b)) == int(result), document
            checked += 1
    assert checked > 1000


def test_documents_are_drawn_the_same_from_the_same_seed():
    first, second = random.Random(5), random.Random(5)
    writer = Writer()
    assert [writer.document(first) for _ in range(50)] == [writer.document(second) for _ in range(50)]


def test_documents_are_varied():
    source, writer = random.Random(6), Writer()
    drawn = [writer.document(source) for _ in range(4000)]
    assert len(set(drawn)) > 0.9 * len(drawn)


def test_chat_format():
    assert render([("Hi", "Hello"), ("Bye", "Goodbye")], "Be kind.") == (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nGoodbye<|im_end|>\n"
    )
