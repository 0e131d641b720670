"""Bare arithmetic: "what's 23 + 45?", times tables, remainders, chains, missing numbers, follow-ups, doubts."""

import random

from chat_makers.word_problems import OPERATIONS, equation, sure_turn
from chat_makers.words import Turns, loosen, number_word

# Frames around any expression; SHORT ones only go around symbols ("23+45=").
FRAMES = [
    "What is {x}?",
    "What's {x}?",
    "How much is {x}?",
    "Calculate {x}.",
    "Compute {x}.",
    "What does {x} equal?",
    "Tell me {x}.",
    "Work out {x}.",
    "Please calculate {x}.",
    "Can you calculate {x}?",
    "Do you know what {x} is?",
    "Can you tell me what {x} is?",
    "What is the result of {x}?",
    "Find {x}.",
    "What do you get for {x}?",
    "Please tell me what {x} is.",
    "I need to know what {x} is.",
    "How much does {x} make?",
    "What is {x} equal to?",
    "Could you work out {x} for me?",
    "Hey, what is {x}?",
    "Quick question: what is {x}?",
    "Give me {x}.",
    "Help me with {x}.",
    "What is the answer to {x}?",
    "Math question: what is {x}?",
    "Hi, how much is {x}?",
]
SHORT = [
    "{x}",
    "{x} =",
    "{x}?",
    "{x} = ?",
    "{x}=",
    "Solve {x}.",
    "Evaluate {x}.",
    "Solve: {x}",
    "{x} please",
    "Compute: {x}",
]
WORDS = {"+": ["plus"], "-": ["minus"], "*": ["times", "multiplied by"], "/": ["divided by"]}
NAMED = {
    "+": ["the sum of {a} and {b}", "{a} added to {b}", "{a} and {b} together"],
    "-": ["the difference between {a} and {b}", "{b} less than {a}", "{b} subtracted from {a}", "{a} take away {b}"],
    "*": ["the product of {a} and {b}"],
    "/": ["the quotient of {a} and {b}", "{a} split into {b} equal parts"],
}
SIGNS = {"+": ["+"], "-": ["-"], "*": ["*", "*", "x", "×"], "/": ["/", "/", "÷", ":"]}


def ask_operation(rng: random.Random, a: int, op: str, b: int) -> str:
    """Return a question for a op b in symbols or words."""
    draw = rng.random()
    if draw < 0.5:
        sign = rng.choice(SIGNS[op])
        shown = f"{a} {sign} {b}" if rng.random() < 0.7 else f"{a}{sign}{b}"
        frames = SHORT if draw < 0.22 else FRAMES
        return loosen(rng, rng.choice(frames).format(x=shown))
    if draw < 0.88:
        first, second = (number_word(a), number_word(b)) if draw < 0.56 and a >= 0 else (str(a), str(b))
        shown = f"{first} {rng.choice(WORDS[op])} {second}"
    else:
        shown = rng.choice(NAMED[op]).format(a=a, b=b)
    return loosen(rng, rng.choice(FRAMES).format(x=shown))


def say_result(rng: random.Random, a: int, op: str, b: int) -> str:
    """Return the answer to a op b, the equation first."""
    shown = equation(a, op, b)
    draw = rng.random()
    if draw < 0.7:
        return f"{shown}."
    if draw < 0.85:
        return f"{shown}. The answer is {OPERATIONS[op](a, b)}."
    if shown.count("=") > 1:
        return f"{shown}, so the answer is {OPERATIONS[op](a, b)}."
    return f"{a} {WORDS[op][0]} {b} is {OPERATIONS[op](a, b)}."


def draw_pair(rng: random.Random, op: str) -> tuple[int, int]:
    """Return two numbers for a bare operation, mostly under 100."""
    draw = rng.random()
    if op == "*":
        if draw < 0.6:
            return rng.randint(0, 12), rng.randint(0, 12)
        if draw < 0.9:
            pair = [rng.randint(11, 99), rng.randint(2, 9)]
            rng.shuffle(pair)
            return pair[0], pair[1]
        return rng.randint(11, 40), rng.randint(11, 40)
    if op == "/":
        b = rng.randint(1, 12)
        return b * rng.randint(1, 12 if draw < 0.75 else 50), b
    top = 20 if draw < 0.2 else 99 if draw < 0.85 else 999
    a, b = rng.randint(0, top), rng.randint(0, top if rng.random() < 0.8 else 20)
    if op == "-" and a < b and rng.random() < 0.85:
        a, b = b, a
    return a, b


def operation_kind(op: str):
    """Return the maker of one operation."""

    def make(rng: random.Random) -> Turns:
        a, b = draw_pair(rng, op)
        return [(ask_operation(rng, a, op, b), say_result(rng, a, op, b))]

    return make


def times_table(rng: random.Random) -> Turns:
    """Return a product of the small times table, or its division."""
    a, b = rng.randint(1, 12), rng.randint(1, 12)
    if rng.random() < 0.65:
        return [(ask_operation(rng, a, "*", b), say_result(rng, a, "*", b))]
    return [(ask_operation(rng, a * b, "/", b), say_result(rng, a * b, "/", b))]


def whole_table(rng: random.Random) -> Turns:
    """Return a whole row of the times table."""
    number, last = rng.randint(2, 12), rng.choice((5, 10, 10, 12))
    asks = (
        f"What is the {number} times table?",
        f"Write the {number} times table up to {last}.",
        f"List the multiples of {number} up to {number * last}.",
        f"Show me the multiplication table of {number}.",
        f"Give me the first {last} multiples of {number}.",
        f"Say the {number} times table.",
    )
    question = rng.choice(asks)
    count = last if str(last) in question or str(number * last) in question else 10
    if question.startswith(("List", "Give")):
        return [(loosen(rng, question), ", ".join(str(number * factor) for factor in range(1, count + 1)) + ".")]
    rows = [f"{factor} * {number} = {factor * number}" for factor in range(1, count + 1)]
    return [(loosen(rng, question), "\n".join(rows))]


def remainder(rng: random.Random) -> Turns:
    """Return a division with a remainder."""
    b = rng.randint(2, 12)
    a = rng.randint(b + 1, 12 * b)
    quotient, rest = divmod(a, b)
    asks = (
        f"What is the remainder of {a} divided by {b}?",
        f"What is {a} divided by {b} with remainder?",
        f"Divide {a} by {b} and give the remainder.",
        f"{a} divided by {b}, what is left over?",
        f"What is {a} mod {b}?",
        f"How many times does {b} go into {a}, and what is left?",
        f"What remains when you divide {a} by {b}?",
        f"{a} / {b} with remainder",
    )
    answers = (
        f"{b} * {quotient} = {a - rest}, and {a} - {a - rest} = {rest}. So it is {quotient} with remainder {rest}.",
        f"{a} / {b} = {quotient} with remainder {rest}, because {b} * {quotient} = {b * quotient}.",
        f"{b} goes into {a} {quotient} time{'s' * (quotient != 1)}, which is {b * quotient}. The remainder is {rest}.",
    )
    return [(loosen(rng, rng.choice(asks)), rng.choice(answers))]


def chain(rng: random.Random) -> Turns:
    """Return an expression of three numbers, sometimes with a product or brackets."""
    a, b, c = rng.randint(1, 30), rng.randint(1, 20), rng.randint(1, 20)
    draw = rng.random()
    if draw < 0.4:
        text, steps = f"{a} + {b} + {c}", f"{a} + {b} = {a + b}, and {a + b} + {c} = {a + b + c}."
    elif draw < 0.6:
        c = rng.randint(1, a + b)
        text, steps = f"{a} + {b} - {c}", f"{a} + {b} = {a + b}, and {a + b} - {c} = {a + b - c}."
    elif draw < 0.8:
        b, c = rng.randint(2, 10), rng.randint(2, 10)
        text, steps = f"{a} + {b} * {c}", f"First {b} * {c} = {b * c}, then {a} + {b * c} = {a + b * c}."
    else:
        a, b, c = rng.randint(1, 9), rng.randint(1, 9), rng.randint(2, 9)
        text, steps = f"({a} + {b}) * {c}", f"First {a} + {b} = {a + b}, then {equation(a + b, '*', c)}."
    return [(loosen(rng, rng.choice(FRAMES + SHORT[:6]).format(x=text)), steps)]


def missing(rng: random.Random) -> Turns:
    """Return an equation with a hole, "5 + ? = 12"."""
    op = rng.choice("++-*")
    a, b = (rng.randint(2, 12), rng.randint(2, 12)) if op == "*" else (rng.randint(1, 50), rng.randint(1, 50))
    if op == "-" and a <= b:
        a, b = b + 1, a
    c = OPERATIONS[op](a, b)
    hole = rng.choice(("?", "x", "_", "__", "n"))
    asks = (
        f"What number is missing: {a} {op} {hole} = {c}?",
        f"{a} {op} {hole} = {c}",
        f"Fill in: {a} {op} {hole} = {c}",
        f"Solve {a} {op} {hole} = {c}.",
        f"Find the missing number: {a} {op} {hole} = {c}",
        f"Which number goes in the blank? {a} {op} {hole} = {c}",
        f"{a} {WORDS[op][0]} what equals {c}?",
        f"What do I have to put in for {hole} in {a} {op} {hole} = {c}?",
    )
    undo = {"+": f"{c} - {a} = {b}", "-": f"{a} - {c} = {b}", "*": f"{c} / {a} = {b}"}[op]
    answers = (f"{undo}, so the missing number is {b}.", f"It is {b}, because {a} {op} {b} = {c}.")
    return [(loosen(rng, rng.choice(asks)), rng.choice(answers))]


MORE = [
    "What about {x}?",
    "And {x}?",
    "And what is {x}?",
    "How about {x}?",
    "{x}?",
    "Now {x}.",
    "Okay, and {x}?",
    "Thanks! And {x}?",
]
ON_RESULT = {
    "+": ["And plus {d}?", "Add {d} to that.", "And {d} more?", "Now add {d}.", "Plus {d}?"],
    "-": ["And minus {d}?", "Subtract {d} from that.", "Now take away {d}.", "Minus {d}?"],
    "*": ["And times {d}?", "Multiply that by {d}.", "Now times {d}.", "Times {d}?"],
}


def follow_up(rng: random.Random) -> Turns:
    """Return a bare question and one to three follow-ups: another question, or the result taken further."""
    op = rng.choice("++--**/")
    a, b = draw_pair(rng, op)
    turns = [(ask_operation(rng, a, op, b), say_result(rng, a, op, b))]
    result = OPERATIONS[op](a, b)
    for _ in range(rng.choice((1, 1, 2))):
        if rng.random() < 0.5:
            op = rng.choice("+-*/")
            a, b = draw_pair(rng, op)
            sign = rng.choice((WORDS[op][0], op))
            turns.append((loosen(rng, rng.choice(MORE).format(x=f"{a} {sign} {b}")), say_result(rng, a, op, b)))
            result = OPERATIONS[op](a, b)
            continue
        op = rng.choice("++-*") if 0 < result < 100 else "+"
        d = rng.randint(2, 9) if op == "*" else rng.randint(1, max(1, result) if op == "-" else 30)
        question = rng.choice(ON_RESULT[op]).format(d=d)
        turns.append((loosen(rng, question), f"{equation(result, op, d)}."))
        result = OPERATIONS[op](result, d)
    return turns


def are_you_sure(rng: random.Random) -> Turns:
    """Return a bare question whose answer the user then doubts."""
    op = rng.choice("++--**/")
    a, b = draw_pair(rng, op)
    turns = [(ask_operation(rng, a, op, b), say_result(rng, a, op, b))]
    if b and OPERATIONS[op](a, b) >= 0:
        turns.append(sure_turn(rng, a, op, b))
    return turns


def true_or_false(rng: random.Random) -> Turns:
    """Return a claimed equation to judge, "is 7 + 5 = 12 correct?"."""
    op = rng.choice("++--**/")
    a, b = draw_pair(rng, op)
    right = OPERATIONS[op](a, b)
    claim = right if rng.random() < 0.5 else right + rng.choice((-10, -2, -1, 1, 2, 10))
    text = f"{a} {op} {b} = {claim}"
    asks = (
        f"Is {text}?",
        f"True or false: {text}",
        f"Is this correct: {text}?",
        f"Check this: {text}",
        f"Is it right that {text}?",
    )
    pick = rng.randrange(5)
    good = claim == right
    yes = ("True" if good else "False") if pick == 1 else ("Yes" if good else "No")
    answer = f"{yes}, {a} {op} {b} = {right}." if good else f"{yes}, {a} {op} {b} = {right}, not {claim}."
    return [(loosen(rng, asks[pick]), answer)]


KINDS = {
    "bare_add": (8.0, operation_kind("+")),
    "bare_subtract": (7.0, operation_kind("-")),
    "bare_multiply": (5.0, operation_kind("*")),
    "bare_divide": (4.0, operation_kind("/")),
    "times_table": (5.0, times_table),
    "whole_table": (0.3, whole_table),
    "remainder": (1.5, remainder),
    "chain": (2.0, chain),
    "missing_number": (1.5, missing),
    "bare_follow_up": (4.0, follow_up),
    "bare_sure": (2.5, are_you_sure),
    "true_or_false": (1.2, true_or_false),
}
