"""Short Python functions from functions.json: write one, explain one, tell what a call returns; and basic concepts.

KINDS also holds the kinds of functions_output. `python -m chat_makers.functions`, started in the folder above, runs
many drawn variants of every task and compares their results with the expected ones.
"""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

from chat_makers import functions_output
from chat_makers.functions_output import WORDS, draw_ints, fenced
from chat_makers.phrasing import capitalize, dress, lower_first, with_paraphrases

Turns = list[tuple[str, str]]

TABLES = json.loads((Path(__file__).parent / "functions.json").read_text(encoding="utf-8"))
TASKS: list[dict] = TABLES["tasks"]
CONCEPTS: list[dict] = TABLES["concepts"]
CALLABLE = [task for task in TASKS if task["arguments"] != "none"]
WITH_FUNCTION = [task for task in TASKS if not task.get("is_class")]

REQUESTS = [
    "Write a Python function to {a}.",
    "Write a Python function that can {a}.",
    "How do I {a} in Python?",
    "python function to {a}",
    "Can you write code to {a}?",
    "Can you write a Python function to {a}?",
    "Please write a function to {a}.",
    "I need a Python function to {a}.",
    "Show me how to {a} in Python.",
    "How can I {a} with Python?",
    "Give me Python code to {a}.",
    "Write code to {a} in Python.",
    "Write a short Python function to {a}.",
    "Could you show me a function to {a}?",
    "How would you {a} in Python?",
    "Write a function called {f} to {a}.",
    "Write {f} in Python, a function to {a}.",
    "Code to {a}, please.",
    "What is a simple way to {a} in Python?",
    "I want to {a} in Python. How?",
    "Help me {a} in Python.",
    "Make a small Python function to {a}.",
    "Implement a function to {a}.",
    "Define a Python function {f} to {a}.",
]
CLASS_REQUESTS = [
    "Write {a} in Python.",
    "Can you write {a} in Python?",
    "Please write {a}.",
    "Show me {a} in Python.",
    "How do I write {a} in Python?",
    "I need {a} in Python.",
    "Give me an example: {a}.",
    "Python code for {a}, please.",
]
OPENINGS = [
    "",
    "",
    "",
    "",
    "Here is one way:\n\n",
    "Here is the code:\n\n",
    "Sure:\n\n",
    "You can write it like this:\n\n",
]
# Other names a parameter or a variable may get in a drawn variant.
OTHER_NAMES = {
    "numbers": ["values", "nums", "data"],
    "text": ["s", "string", "sentence"],
    "items": ["values", "elements"],
    "word": ["s", "text"],
    "n": ["number", "num", "x"],
    "words": ["strings", "tokens"],
    "result": ["output", "answer"],
    "char": ["c", "letter"],
    "count": ["total", "counter"],
    "number": ["num", "value"],
    "item": ["value", "element"],
    "lists": ["nested", "groups"],
    "counts": ["result", "table"],
    "path": ["filename"],
    "line": ["row", "text"],
    "data": ["d", "table"],
}
EXPLAIN_QUESTIONS = [
    "What does this function do?",
    "Explain this function.",
    "Can you explain this code?",
    "What does this code do?",
    "What is this Python function for?",
    "Please explain this Python code.",
    "Describe what this function does.",
]
RETURN_QUESTIONS = [
    "What does {call} return?",
    "What is the result of {call}?",
    "What do I get from {call}?",
    "What will {call} return?",
    "Tell me the value of {call}.",
]
NAMES = [
    "Ana",
    "Tom",
    "Mia",
    "Leo",
    "Sara",
    "Ben",
    "Eva",
    "Max",
    "Nora",
    "Omar",
    "Lena",
    "Ivan",
    "Zoe",
    "Paul",
    "Amir",
    "Kate",
]


def draw_words(rng: random.Random) -> list[str]:
    """Return three or four different words."""
    return rng.sample(WORDS, rng.randint(3, 4))


ARGUMENTS: dict[str, Callable[[random.Random], tuple]] = {
    "int": lambda rng: (rng.randint(0, 60),),
    "small": lambda rng: (rng.randint(1, 8),),
    "pos": lambda rng: (rng.randint(1, 20),),
    "big": lambda rng: (rng.randint(10, 9999),),
    "signed": lambda rng: (rng.randint(-20, 20),),
    "year": lambda rng: (rng.randint(1880, 2060),),
    "score": lambda rng: (rng.randint(5, 100),),
    "two_ints": lambda rng: (rng.randint(0, 30), rng.randint(0, 30)),
    "two_pos": lambda rng: (rng.randint(1, 24), rng.randint(1, 24)),
    "two_small": lambda rng: (rng.randint(1, 6), rng.randint(1, 4)),
    "word": lambda rng: (rng.choice(WORDS),),
    "text": lambda rng: (" ".join(draw_words(rng)),),
    "two_words": lambda rng: (rng.choice(WORDS), rng.choice(WORDS)),
    "words": lambda rng: (draw_words(rng),),
    "name": lambda rng: (rng.choice(NAMES),),
    "ints": lambda rng: (draw_ints(rng),),
    "signed_list": lambda rng: (draw_ints(rng, -9, 12),),
    "two_lists": lambda rng: (rng.sample(range(1, 10), 3), rng.sample(range(1, 10), 3)),
    "nested": lambda rng: ([draw_ints(rng)[: rng.randint(1, 3)] for _ in range(rng.randint(2, 3))],),
}


def load_function(code: str, name: str) -> Callable:
    """Return the object `name` that our own `code` defines."""
    namespace: dict = {"__name__": "example"}
    exec(code, namespace)
    return namespace[name]


FUNCTIONS = {task["names"][0]: load_function(task["versions"][0], task["names"][0]) for task in CALLABLE}


def as_call(name: str, arguments: tuple) -> str:
    """Return the source text of a call, with strings in double quotes."""
    shown = ", ".join(repr(value) for value in arguments).replace("'", '"')
    return f"{name}({shown})"


def rename(code: str, old: str, new: str) -> str:
    """Return `code` with the name `old` replaced, but not an attribute or the letter of an escape."""
    return re.sub(rf"(?<![.\w\\]){re.escape(old)}\b", new, code)


def draw_variant(rng: random.Random, task: dict) -> tuple[str, str, str]:
    """Return one version of the task's code with drawn names, the name of its function, and how it works."""
    place = rng.randrange(len(task["versions"]))
    code, explanation = task["versions"][place], task["explanations"][place]
    name = task["names"][0]
    if task.get("is_class"):
        return code, name, explanation
    chosen = rng.choice(task["names"])
    for old, others in OTHER_NAMES.items():
        if rng.random() < 0.35:
            new = rng.choice(others)
            if not re.search(rf"\b{new}\b", code) and re.search(rf"(?<![.\w\\]){old}\b", code):
                code = rename(code, old, new)
    code = rename(code, name, chosen)
    return code, chosen, explanation


def add_docstring(code: str, sentence: str) -> str:
    """Return `code` with a docstring under the line that begins its function."""
    lines = code.split("\n")
    for place, line in enumerate(lines):
        if line.startswith("def "):
            lines.insert(place + 1, f'    """{capitalize(sentence)}."""')
            break
    return "\n".join(lines)


def draw_call(rng: random.Random, task: dict, name: str) -> tuple[str, str] | None:
    """Return an example call and its result as text, drawn anew where the task allows it."""
    original = task["names"][0]
    if task["arguments"] != "none" and rng.random() < 0.75:
        arguments = ARGUMENTS[task["arguments"]](rng)
        result = repr(FUNCTIONS[original](*arguments))
        if len(result) < 80:
            return as_call(name, arguments), result
    if task["example"] is None:
        return None
    return rename(task["example"][0], original, name), task["example"][1]


def make_write(rng: random.Random) -> Turns:
    """Ask for a function; the answer is the code, often with a sentence or an example."""
    task = rng.choice(TASKS)
    variant = draw_variant(rng, task)
    ask = rng.choice(task["asks"])
    requests = CLASS_REQUESTS if task.get("is_class") else REQUESTS
    question = dress(rng, rng.choice(requests).format(a=ask, f=variant[1]), brief=False)
    return [(question, written_answer(rng, task, variant, ask))]


def written_answer(rng: random.Random, task: dict, variant: tuple[str, str, str], ask: str) -> str:
    """Return the answer that shows the code of `variant`, with drawn extras."""
    code, name, explanation = variant
    if not task.get("is_class") and rng.random() < 0.25:
        code = add_docstring(code, ask)
    call = draw_call(rng, task, name)
    extra = rng.random()
    if call and extra < 0.25:
        code = f"{code}\n\nprint({call[0]})  # {printed(call[1])}"
    answer = rng.choice(OPENINGS) + fenced(code)
    if 0.25 <= extra < 0.65:
        subject = "The class" if task.get("is_class") else rng.choice(["The function", "It"])
        answer += f"\n\n{subject} {explanation}."
    elif call and 0.65 <= extra < 0.8:
        answer += f"\n\nFor example, `{call[0]}` gives `{call[1]}`."
    return answer


def printed(shown: str) -> str:
    """Return what print() shows for a value whose repr is `shown`; a comment keeps line ends as written."""
    if shown.startswith("'") and shown.endswith("'"):
        return shown[1:-1]
    return shown


def make_explain(rng: random.Random) -> Turns:
    """Show a function and ask what it does."""
    task = rng.choice(WITH_FUNCTION)
    code, name, explanation = draw_variant(rng, task)
    question = dress(rng, rng.choice(EXPLAIN_QUESTIONS)) + "\n\n" + fenced(code)
    purpose = task["asks"][0]
    answer = rng.choice(
        [
            f"The function `{name}` is used to {purpose}. It {explanation}.",
            f"You can use it to {purpose}. It {explanation}.",
            f"The function {explanation}. You can use it to {purpose}.",
        ]
    )
    return [(question, answer)]


def make_return(rng: random.Random) -> Turns:
    """Show a function and ask what a call of it returns."""
    task = rng.choice(CALLABLE)
    code, name, explanation = draw_variant(rng, task)
    arguments = ARGUMENTS[task["arguments"]](rng)
    call = as_call(name, arguments)
    result = repr(FUNCTIONS[task["names"][0]](*arguments))
    question = rng.choice(RETURN_QUESTIONS).format(call=f"`{call}`")
    answer = rng.choice(
        [
            f"`{call}` returns `{result}`.",
            f"It returns `{result}`.",
            f"The function {explanation}, so `{call}` returns `{result}`.",
        ]
    )
    return [(f"{question}\n\n{fenced(code)}", answer)]


def make_concept(rng: random.Random) -> Turns:
    """Ask for a basic concept of Python."""
    concept = rng.choice(CONCEPTS)
    answer = concept["answer"]
    if rng.random() < 0.75:
        answer += "\n\n" + fenced(concept["code"]).replace("```python\npip", "```\npip").replace(
            "```python\npython", "```\npython"
        )
    return [(dress(rng, rng.choice(with_paraphrases(concept["questions"]))), answer)]


def make_chain(rng: random.Random) -> Turns:
    """Ask for a function and then for an explanation, an example, a docstring or another task."""
    task = rng.choice(WITH_FUNCTION)
    code, name, explanation = draw_variant(rng, task)
    ask = rng.choice(task["asks"])
    turns = [(dress(rng, rng.choice(REQUESTS).format(a=ask, f=name), brief=False), fenced(code))]
    call = draw_call(rng, task, name)
    step = rng.choice(["explain", "example", "docstring", "other"])
    if step == "explain":
        question = rng.choice(
            ["How does it work?", "Can you explain it?", "Explain it, please.", "What does it do exactly?"]
        )
        turns.append((question, f"The function {explanation}."))
    elif step == "example" and call:
        question = rng.choice(
            ["Give me an example.", "Show me an example call.", "How do I call it?", "How do I use it?"]
        )
        turns.append((question, f"{fenced(f'print({call[0]})')}\n\nThis prints `{printed(call[1])}`."))
    elif step == "docstring":
        question = rng.choice(["Add a docstring, please.", "Can you add a docstring?", "Now with a docstring."])
        turns.append((question, fenced(add_docstring(code, ask))))
    else:
        other = rng.choice(WITH_FUNCTION)
        other_code = draw_variant(rng, other)[0]
        question = rng.choice(
            ["Thanks. Now {a}.", "And a function to {a}?", "Now one to {a}, please.", "Great. How do I {a}?"]
        )
        turns.append((question.format(a=rng.choice(other["asks"])), fenced(other_code)))
    if rng.random() < 0.15:
        turns.append((rng.choice(["Thanks!", "Thank you.", lower_first("Great, thanks.")]), "You're welcome!"))
    return turns


def check(draws: int = 30) -> int:
    """Run `draws` variants of each task on the expected result; return how many variants ran."""
    rng = random.Random(0)
    ran = 0
    for task in TASKS:
        original = task["names"][0]
        for version in task["versions"]:
            load_function(version, original)
        for _ in range(draws):
            code, name, _ = draw_variant(rng, task)
            code = code if task.get("is_class") else add_docstring(code, task["asks"][0])
            namespace: dict = {"__name__": "example"}
            exec(code, namespace)
            if task["example"]:
                call = rename(task["example"][0], original, name)
                result = repr(eval(call, namespace))
                assert result == task["example"][1], (call, result, task["example"][1], code)
            if task["arguments"] != "none":
                arguments = ARGUMENTS[task["arguments"]](rng)
                expected = FUNCTIONS[original](*arguments)
                assert eval(as_call(name, arguments), namespace) == expected, (name, arguments, code)
            ran += 1
    return ran


KINDS: dict[str, tuple[float, Callable[[random.Random], Turns]]] = {
    "python_write": (8.0, make_write),
    "python_explain": (2.0, make_explain),
    "python_return": (2.0, make_return),
    **functions_output.KINDS,
    "python_concept": (2.0, make_concept),
    "python_chain": (2.5, make_chain),
}

if __name__ == "__main__":
    print(f"{check()} variants of {len(TASKS)} tasks ran with the expected results")
