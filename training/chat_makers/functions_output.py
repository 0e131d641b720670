"""What does this print? Expressions and programs of a few lines, made here and evaluated for the answer."""

import random
from collections.abc import Callable

from chat_makers.phrasing import dress

Turns = list[tuple[str, str]]

OUTPUT_QUESTIONS = [
    "What is the output of {c}?",
    "What does {c} print?",
    "What will {c} show?",
    "In Python, what does {c} print?",
    "What does Python print for {c}?",
    "Tell me the output of {c}.",
    "What is printed by {c}?",
]
WORDS = [
    "apple",
    "house",
    "river",
    "garden",
    "window",
    "summer",
    "yellow",
    "python",
    "banana",
    "orange",
    "monkey",
    "pencil",
    "bottle",
    "castle",
    "dragon",
    "flower",
    "kitten",
    "level",
    "music",
    "noon",
    "ocean",
    "paper",
    "queen",
    "radar",
    "stone",
    "table",
    "water",
    "zebra",
    "cat",
    "dog",
    "sun",
    "moon",
    "tree",
    "book",
    "milk",
    "bread",
    "happy",
    "green",
    "light",
    "cloud",
    "train",
    "smile",
]


def draw_ints(rng: random.Random, low: int = 1, high: int = 20) -> list[int]:
    """Return three to six whole numbers."""
    return [rng.randint(low, high) for _ in range(rng.randint(3, 6))]


def fenced(code: str) -> str:
    """Return `code` in a Python fence."""
    return f"```python\n{code}\n```"


def draw_expression(rng: random.Random) -> str:
    """Return the source of a short expression."""
    a, b, small = rng.randint(2, 20), rng.randint(2, 12), rng.randint(1, 4)
    word, other = rng.sample(WORDS, 2)
    numbers = draw_ints(rng)
    place = rng.randrange(3)
    return rng.choice(
        [
            f"{a} + {b}",
            f"{a} * {b}",
            f"{a} - {b}",
            f"{a} // {b}",
            f"{a} % {b}",
            f"{b} ** 2",
            f"{a} > {b}",
            f"{a} == {b}",
            f"{a} + {b} * {small}",
            f"({a} + {b}) * {small}",
            f"abs({b} - {a})",
            f'len("{word}")',
            f'"{word}".upper()',
            f'"{word}"[::-1]',
            f'"{word}"[{place}]',
            f'"{word}"[:{small}]',
            f'"{word}" + "{other}"',
            f'"{word}" * {small}',
            f'"{word[0]}" in "{word}"',
            f'"{word}".replace("{word[0]}", "{other[0]}")',
            f'"{word}".capitalize()',
            f"len({numbers})",
            f"sum({numbers})",
            f"max({numbers})",
            f"min({numbers})",
            f"sorted({numbers})",
            f"{numbers}[{place}]",
            f"{numbers}[-1]",
            f"{numbers}[:2]",
            f"{numbers}[::-1]",
            f"list(range({b}))",
            f"list(range({small}, {small + b}))",
            f"[n * {small} for n in range({b})]",
            f"{a} in {numbers}",
            f"str({a}) + str({b})",
            f'int("{a}") + {b}',
            f"not {a} > {b}",
            f"{a} > {small} and {b} < {small}",
            f'"{word} {other}".split()',
            f'"-".join(["{word}", "{other}"])',
            f"round({a} / {b}, 2)",
            f"bool({a % 2})",
            f"{{'x': {a}, 'y': {b}}}['x']".replace("'", '"'),
            f"len(set({numbers}))",
            f'"{word}".count("{word[1]}")',
        ]
    )


def make_output(rng: random.Random) -> Turns:
    """Ask for the output of a print call; our own expression is evaluated for the answer."""
    expression = draw_expression(rng)
    value = str(eval(expression))
    line = f"print({expression})"
    if rng.random() < 0.3:
        question = f"What does this code print?\n\n{fenced(line)}"
    else:
        question = dress(rng, rng.choice(OUTPUT_QUESTIONS).format(c=f"`{line}`" if rng.random() < 0.7 else line))
    answer = rng.choice(
        [f"It prints `{value}`.", f"The output is `{value}`.", f"`{line}` prints `{value}`.", f"`{value}`"]
    )
    return [(question, answer)]


def draw_program(rng: random.Random) -> tuple[str, str]:
    """Return a program of a few lines and its one line of output."""
    start, step, times = rng.randint(0, 10), rng.randint(1, 9), rng.randint(2, 6)
    name = rng.choice(["x", "n", "total", "count", "value"])
    numbers = draw_ints(rng)
    limit = rng.randint(5, 15)
    return rng.choice(
        [
            (
                f"{name} = {start}\nfor i in range({times}):\n    {name} += {step}\nprint({name})",
                str(start + step * times),
            ),
            (f"{name} = {start}\n{name} = {name} + {step}\nprint({name})", str(start + step)),
            (f"{name} = {start}\n{name} = {name} * {times}\nprint({name})", str(start * times)),
            (f"{name} = 0\nfor i in {numbers}:\n    {name} += i\nprint({name})", str(sum(numbers))),
            (
                f"{name} = 0\nfor i in {numbers}:\n    if i > {limit}:\n        {name} += 1\nprint({name})",
                str(sum(1 for number in numbers if number > limit)),
            ),
            (f"numbers = {numbers}\nnumbers.append({step})\nprint(len(numbers))", str(len(numbers) + 1)),
            (f"numbers = {numbers}\nprint(numbers[0] + numbers[1])", str(numbers[0] + numbers[1])),
            (
                f'{name} = {start + step}\nif {name} > {limit}:\n    print("big")\nelse:\n    print("small")',
                "big" if start + step > limit else "small",
            ),
            (f"a = {start}\nb = {step}\na, b = b, a\nprint(a)", str(step)),
        ]
    )


def make_program(rng: random.Random) -> Turns:
    """Show a short program and ask what it prints."""
    program, output = draw_program(rng)
    question = rng.choice(
        [
            "What does this code print?",
            "What is the output of this program?",
            "What will this print?",
            "What does this program print?",
            "Tell me the output of this code.",
        ]
    )
    answer = rng.choice([f"It prints `{output}`.", f"The output is `{output}`.", f"The program prints `{output}`."])
    return [(f"{dress(rng, question)}\n\n{fenced(program)}", answer)]


KINDS: dict[str, tuple[float, Callable[[random.Random], Turns]]] = {
    "python_output": (2.0, make_output),
    "python_program": (1.0, make_program),
}
