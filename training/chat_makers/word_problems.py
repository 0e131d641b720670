"""Word problems of one and two steps, drawn from the situations in word_problems.toml and two_step.toml."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from chat_makers.words import (
    NOUNS,
    Noun,
    Turns,
    capitalize,
    load_toml,
    loosen,
    number_word,
    parse_noun,
    two_people,
    with_article,
)

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a // b,
    "%": lambda a, b: a % b,
}
PEOPLE = Noun("person", "people")
LEGS4 = "cow, horse, dog, cat, sheep|sheep, goat, pig, rabbit, donkey, lamb, pony, camel, llama, table, chair"
EXTRA_POOLS = {"legs4": [parse_noun(entry) for entry in LEGS4.split(",")]}
CURRENCIES = ["dollars", "euros", "dollars", "euros", "coins"]
# An opener such as "On Monday" does not go with facts that speak of a time themselves.
TIME_WORDS = (
    "day",
    "morning",
    "week",
    "hour",
    "year",
    "noon",
    " at ",
    " on ",
    "weigh",
    "measure",
    "tall",
    "lesson",
    "twice",
)


def equation(a: int, op: str, b: int) -> str:
    """Return "a op b = c"; products outside the times table show their parts, "23 * 4 = 80 + 12 = 92"."""
    result = OPERATIONS[op](a, b)
    plain = f"{a} {op} {b} = {result}"
    if op != "*" or max(a, b) <= 12:
        return plain
    big, small = max(a, b), min(a, b)
    if small > 12 and small % 10:
        return f"{a} * {b} = {split_product(big, small)} = {result}"
    tens, ones = big // 10 * 10, big % 10
    if not ones or small in (1, 10):
        return plain
    return f"{a} * {b} = {tens * small} + {ones * small} = {result}"


def split_product(big: int, small: int) -> str:
    """Return the steps of a product of two two-digit numbers, "23 * 40 + 23 * 5 = 920 + 115"."""
    tens, ones = small // 10 * 10, small % 10
    return f"{big} * {tens} + {big} * {ones} = {big * tens} + {big * ones}"


@dataclass
class Situation:
    """One kind of story: its number ranges, nouns and phrases."""

    name: str
    op: str
    pool: str
    facts: list[str]
    ask: list[str]
    why: list[str]
    answer: list[str]
    whole: list[str] = field(default_factory=list)
    also: str = ""
    max: int = 0  # the largest first number; 0 sets no limit
    fixed_b: int = 0
    range_a: tuple[int, int] = (0, 0)
    range_b: tuple[int, int] = (0, 0)
    round_a: bool = False  # a is a round note, as in "pays with 20"
    big: bool = False  # three digits are usual here
    table: bool = True  # factors are mostly up to 12
    zero: bool = False  # all of a is taken away
    state: bool = False  # the person then has c things, and follow-ups may go on

    def __post_init__(self) -> None:
        self.nouns = noun_pool(self.pool)
        self.second_nouns = noun_pool(self.also) if self.also else self.nouns
        self.opener_facts = [text for text in self.facts if text.startswith("{N} ") and not has_time(text)]
        self.ask_first = [text for text in self.ask if "{n}" in text and "{he}" not in text]


def has_time(text: str) -> bool:
    """Say whether a phrase names a time or place that an opener would contradict."""
    return any(word in text for word in TIME_WORDS)


def noun_pool(name: str) -> list[Noun]:
    """Return the nouns of a pool, or the one noun that `name` itself is."""
    return NOUNS.get(name) or EXTRA_POOLS.get(name) or [parse_noun(name)]


def add_numbers(rng: random.Random, limit: int) -> tuple[int, int]:
    """Return two summands: mostly small, now and then of three digits where `limit` allows."""
    draw = rng.random()
    top = 20 if draw < 0.45 else 99 if draw < 0.93 else 450
    if limit:
        top = min(top, max(4, limit * 2 // 3))
    return rng.randint(2, top), rng.randint(2, top)


def subtract_numbers(rng: random.Random, situation: Situation) -> tuple[int, int]:
    """Return a minuend and a smaller subtrahend of at least 2."""
    if situation.range_a != (0, 0):
        low = situation.range_b[0]
        a = rng.randint(*situation.range_a)
        return a, rng.randint(low, a - 1)
    if situation.round_a:
        a = rng.choice((10, 20, 20, 50, 50, 100, 100, 200, 500))
        return a, rng.randint(2, a - 2)
    draw = rng.random()
    top = 20 if draw < 0.4 else 99 if draw < 0.92 else 500
    if situation.big:
        top = 99 if draw < 0.5 else 400
    if situation.max:
        top = min(top, situation.max)
    a = rng.randint(4, top)
    return a, rng.randint(2, a - 1)


def multiply_numbers(rng: random.Random, situation: Situation) -> tuple[int, int]:
    """Return two factors, mostly of the times table."""
    if not situation.table:
        return rng.randint(4, 24) * 5, rng.randint(2, 9)
    small = rng.random() < 0.75
    top = min(situation.max or 60, 12 if small else 60)
    return rng.randint(2, top), situation.fixed_b or rng.randint(2, 12 if small else 9)


def draw_numbers(rng: random.Random, situation: Situation) -> tuple[int, int]:
    """Return the two numbers a and b of a one-step problem."""
    op = situation.op
    if op in "+-" and situation.fixed_b:
        return rng.randint(2, rng.choice((12, 20, 100))), situation.fixed_b
    if situation.zero:
        return (rng.randint(2, situation.max),) * 2
    if op == "+":
        return add_numbers(rng, situation.max)
    if op == "-":
        return subtract_numbers(rng, situation)
    if op == "*":
        return multiply_numbers(rng, situation)
    b = situation.fixed_b or rng.randint(2, 12)
    quotient = rng.randint(2, 12) if rng.random() < 0.75 else rng.randint(2, 40)
    return b * quotient + (rng.randint(1, b - 1) if op == "%" else 0), b


def slots(rng: random.Random, situation: Situation) -> dict[str, str]:
    """Return the words of one story: people, nouns, container, currency."""
    person, other = two_people(rng)
    noun = rng.choice(situation.nouns)
    item = rng.choice(situation.second_nouns)
    while situation.also and item.many == noun.many and len(situation.second_nouns) > 1:
        item = rng.choice(situation.second_nouns)
    box = rng.choice(NOUNS["container"])
    one, one_item = with_article(noun.one), with_article(item.one)
    return {
        "N": capitalize(person.first),
        "n0": person.first,
        "n": person.later,
        "The": capitalize(person.later),
        "he": person.he,
        "He": capitalize(person.he),
        "him": person.him,
        "his": person.his,
        "His": capitalize(person.his),
        "m": other.later,
        "thing": noun.one,
        "things": noun.many,
        "one": one,
        "One": capitalize(one),
        "item": item.one,
        "items": item.many,
        "one_item": one_item,
        "One_item": capitalize(one_item),
        "box": box.one,
        "boxes": box.many,
        "boxes_q": box.many,
        "cur": rng.choice(CURRENCIES),
    }


def put_number(words: dict[str, str], key: str, number: int, in_words: bool = False) -> None:
    """Add the slots of one number: {a}, {a_things}, {a_are} and the others."""
    text = number_word(number) if in_words and number <= 20 else str(number)
    single = number == 1
    thing = words["thing"] if single else words["things"]
    words[key] = text
    words[key + "_things"] = f"{text} {thing}"
    words[key + "_Things"] = capitalize(f"{text} {thing}")
    words[key + "_noun"] = thing
    words[key + "_Items"] = capitalize(f"{text} {words['items']}")
    words[key + "_People"] = f"{text} {'person' if single else 'people'}"
    words[key + "_people"] = words[key + "_People"]
    words[key + "_are"] = "is" if single else "are"
    words[key + "_stay"] = "stays" if single else "stay"
    words[key + "_remain"] = "remains" if single else "remain"


def sentence_starts(text: str) -> str:
    """Return `text` with a capital at the start; problems begin with a number word now and then."""
    return capitalize(text).replace(". a ", ". A ").replace(". an ", ". An ").replace("? a ", "? A ")


def question_text(rng: random.Random, situation: Situation, words: dict[str, str]) -> str:
    """Return the problem as the user writes it."""
    draw = rng.random()
    if situation.whole and draw < 0.25:
        return capitalize(rng.choice(situation.whole).format_map(words))
    if situation.opener_facts and draw > 0.88:
        fact = f"{rng.choice(OPENERS)}, {{n0}}" + rng.choice(situation.opener_facts)[3:]
    else:
        fact = rng.choice(situation.facts)
    fact = sentence_starts(fact.format_map(words))
    if situation.ask_first and 0.25 < draw < 0.33:
        known = words | {"N": words["The"], "n0": words["n"]}
        fact = sentence_starts(rng.choice(situation.facts).format_map(known))
        return capitalize(rng.choice(situation.ask_first).format_map(words)) + " " + fact
    return fact + " " + capitalize(rng.choice(situation.ask).format_map(words))


def solution(rng: random.Random, situation: Situation, words: dict[str, str], a: int, b: int) -> str:
    """Return one sentence of reasoning with the equation, then the answer."""
    answer = capitalize(rng.choice(situation.answer).format_map(words))
    why = capitalize(rng.choice(situation.why).format_map(words))
    if situation.op == "%":
        return f"{why}, so {a} - {words['used']} = {words['c']}. {answer}"
    shown = equation(a, situation.op, b)
    draw = rng.random()
    if draw < 0.75:
        return f"{why}, so {shown}. {answer}"
    if draw < 0.9:
        return f"{why}: {shown}. {answer}"
    return f"{shown}. {answer}"


def put_result(words: dict[str, str], situation: Situation, a: int, b: int) -> int:
    """Add the digits of a, b and the result c for the answer, and return c."""
    c = OPERATIONS[situation.op](a, b)
    for key, number in (("a", a), ("b", b), ("c", c)):
        put_number(words, key, number)
    if situation.op == "%":
        words["q"] = str(a // b)
        words["used"] = str(a - c)
    return c


def one_step(rng: random.Random, situation: Situation) -> tuple[Turns, dict[str, str], tuple[int, int, int]]:
    """Return a problem with its answer, the words it used and its numbers (a, b, c)."""
    a, b = draw_numbers(rng, situation)
    words = slots(rng, situation)
    in_words = rng.random() < 0.08
    put_number(words, "a", a, in_words)
    put_number(words, "b", b, in_words)
    question = question_text(rng, situation, words)
    c = put_result(words, situation, a, b)
    return [(loosen(rng, question), solution(rng, situation, words, a, b))], words, (a, b, c)


SITUATIONS = [Situation(name, **entry) for name, entry in load_toml("word_problems.toml").items()]
STATES = [situation for situation in SITUATIONS if situation.state]
OPENERS: list[str] = load_toml("words.toml")["people"]["openers"]


def word_problem(rng: random.Random) -> Turns:
    """Return a one-step word problem."""
    return one_step(rng, rng.choice(SITUATIONS))[0]


GETS = [
    "And if {he} gets {d} more?",
    "What if {m} gives {him} {d} more {things}?",
    "And then {he} gets {d} more?",
    "Now {he} gets another {d}. How many is that?",
    "And with {d} more?",
    "And if {he} then finds {d} more?",
    "Then {n} gets {d} more. How many {things} now?",
    "What if {he} gets {d} more {things} after that?",
]
GIVES = [
    "And if {he} then gives {d} away?",
    "What if {he} loses {d} of them?",
    "And then {he} gives {d} to a friend?",
    "Now {d} of them are lost. How many are left?",
    "And if {m} takes {d} of them?",
    "And with {d} fewer?",
    "Then {n} gives away {d}. How many {things} now?",
    "What if {he} gives {d} {things} to {m} after that?",
]


FOLLOW_STARTS = ["Then ", "Then it is ", "", "", "Now "]


def word_problem_then_more(rng: random.Random) -> Turns:
    """Return a problem followed by one or two changes to the same heap ("and if he gives 3 more?")."""
    turns, words, (_, _, heap) = one_step(rng, rng.choice(STATES))
    for _ in range(1 if rng.random() < 0.7 else 2):
        op = "-" if heap > 3 and rng.random() < 0.5 else "+"
        change = rng.randint(2, heap - 1) if op == "-" else rng.randint(2, 20)
        change = min(change, 20)
        put_number(words, "d", change)
        question = capitalize(rng.choice(GETS if op == "+" else GIVES).format_map(words))
        shown = equation(heap, op, change)
        heap = OPERATIONS[op](heap, change)
        put_number(words, "e", heap)
        tail = rng.choice(("{The} has {e_things}.", "So {n} has {e_things}.", "That makes {e_things}."))
        turns.append((loosen(rng, question), f"{rng.choice(FOLLOW_STARTS)}{shown}. {tail.format_map(words)}"))
    return turns


INSTEAD = [
    "And if it were {d} instead of {b}?",
    "What if it is {d} and not {b}?",
    "And with {d} instead of {b}?",
    "Same question with {d} instead of {b}.",
    "What about {d} instead of {b}?",
    "And for {d} in place of {b}?",
]


def word_problem_instead(rng: random.Random) -> Turns:
    """Return a problem asked again with another second number."""
    situation = rng.choice(SITUATIONS)
    turns, words, (a, b, _) = one_step(rng, situation)
    if situation.fixed_b or situation.zero or situation.op == "%" or a == b:
        return turns
    other = other_number(rng, situation.op, a, b)
    if other in (a, b):
        return turns
    put_number(words, "d", other)
    question = rng.choice(INSTEAD).format_map(words)
    put_result(words, situation, a, other)
    answer = capitalize(rng.choice(situation.answer).format_map(words))
    turns.append((loosen(rng, question), f"Then {equation(a, situation.op, other)}. {answer}"))
    return turns


def other_number(rng: random.Random, op: str, a: int, b: int) -> int:
    """Return another second number that keeps the problem sensible, or b where there is none."""
    if op == "-":
        return rng.randint(2, a - 1)
    if op == "/":
        return rng.choice([number for number in range(2, 13) if a % number == 0 and a // number > 1] or [b])
    return rng.randint(2, 12 if op == "*" else 30)


SURE = [
    "Are you sure?",
    "Is that right?",
    "Really?",
    "Sure?",
    "Are you certain?",
    "Can you check that?",
    "Is that correct?",
]
HOW = ["How did you get that?", "Why?", "How do you know?", "Can you explain?", "How did you calculate that?"]
INVERSE = {"+": "-", "-": "+", "*": "/", "/": "*"}


def check_text(a: int, op: str, b: int, c: int) -> str:
    """Return the check of a result by the inverse operation, "7 + 5 = 12"."""
    return f"{c} {INVERSE[op]} {b} = {a}"


def sure_turn(rng: random.Random, a: int, op: str, b: int) -> tuple[str, str]:
    """Return a turn in which the user doubts or questions the result of a op b."""
    c = OPERATIONS[op](a, b)
    check = check_text(a, op, b, c)
    draw = rng.random()
    if draw < 0.45:
        answers = (
            f"Yes. {a} {op} {b} = {c}, and as a check, {check}.",
            f"Yes, I am sure: {a} {op} {b} = {c}.",
            f"Yes, the answer is {c}, because {check}.",
        )
        return loosen(rng, rng.choice(SURE)), rng.choice(answers)
    if draw < 0.8:
        wrong = c + rng.choice((-10, -2, -1, 1, 2, 3, 10))
        wrong = c + 1 if wrong < 0 else wrong
        asks = (
            f"Isn't it {wrong}?",
            f"I think it is {wrong}.",
            f"I got {wrong}.",
            f"Is it not {wrong}?",
            f"No, it is {wrong}.",
        )
        answers = (
            f"No, it is {c}. {a} {op} {b} = {c}, and as a check, {check}.",
            f"No. {a} {op} {b} = {c}, so {wrong} is not right.",
            f"It is {c}, not {wrong}, because {check}.",
        )
        return loosen(rng, rng.choice(asks)), rng.choice(answers)
    names = {"+": "I added", "-": "I subtracted", "*": "I multiplied", "/": "I divided"}
    link = {"+": f"{b} to {a}", "-": f"{b} from {a}", "*": f"{a} by {b}", "/": f"{a} by {b}"}
    return loosen(rng, rng.choice(HOW)), f"{names[op]} {link[op]}: {equation(a, op, b)}."


def word_problem_sure(rng: random.Random) -> Turns:
    """Return a problem after which the user asks whether the answer is right."""
    situation = rng.choice(SITUATIONS)
    turns, _, (a, b, _) = one_step(rng, situation)
    if situation.op != "%":
        turns.append(sure_turn(rng, a, situation.op, b))
    return turns


TWO_STEP = load_toml("two_step.toml")
TWO_STEP_NAMES = list(TWO_STEP)
SECOND = {"+": "+", "-": "-", "/": "/", "pay": "pay", "+a": "+"}


def two_step_numbers(rng: random.Random, ops: list[str], fixed_b: int) -> tuple[int, int, int]:
    """Return a, b and d so that both steps come out whole and positive."""
    first, second = ops
    if second == "/" and first in "+-":
        d, each = rng.randint(2, 6), rng.randint(2, 12)
        total = d * each
        part = rng.randint(1, total - 1) if first == "+" else rng.randint(2, 15)
        return (total - part, part, d) if first == "+" else (total + part, part, d)
    if first == "/":
        b = rng.randint(2, 9)
        return b * rng.randint(2, 10), b, rng.randint(2, 15)
    if first == "-":
        a = rng.randint(8, 60)
        b = rng.randint(2, a - 4)
        return a, b, rng.randint(2, a - b - 1 if second == "-" else 25)
    a, b = rng.randint(2, 10), fixed_b or rng.randint(2, 10)
    if first == "+":
        a, b = rng.randint(2, 40), rng.randint(2, 40)
    c = OPERATIONS[first](a, b)
    if second == "pay":
        return a, b, next(note for note in (10, 20, 50, 100, 200) if note > c + 1)
    if second == "/":
        return a, b, rng.choice([number for number in range(2, c) if c % number == 0] or [1])
    return a, b, (a if second == "+a" else rng.randint(2, c - 1 if second == "-" else 25))


def two_step_problem(rng: random.Random) -> Turns:
    """Return a word problem that takes two operations."""
    entry = TWO_STEP[rng.choice(TWO_STEP_NAMES)]
    a, b, d = two_step_numbers(rng, entry["ops"], entry.get("fixed_b", 0))
    if d == 1:
        return two_step_problem(rng)
    situation = Situation("", entry["ops"][0], entry["pool"], entry["facts"], entry["ask"], [], entry["answer"])
    words = slots(rng, situation)
    c = OPERATIONS[situation.op](a, b)
    second = entry["ops"][1][0] if entry["ops"][1] != "pay" else "-"
    left, right = (d, c) if entry["ops"][1] == "pay" else (c, d)
    for key, number in (("a", a), ("b", b), ("d", d), ("e", OPERATIONS[second](left, right))):
        put_number(words, key, number)
    question = question_text(rng, situation, words)
    first = capitalize(rng.choice(entry["first"]).format_map(words))
    then = capitalize(rng.choice(entry["then"]).format_map(words))
    answer = capitalize(rng.choice(entry["answer"]).format_map(words))
    steps = f"{first}: {equation(a, situation.op, b)}. {then}: {equation(left, second, right)}."
    return [(loosen(rng, question), f"{steps} {answer}")]


KINDS = {
    "word_problem": (40.0, word_problem),
    "word_problem_then_more": (4.0, word_problem_then_more),
    "word_problem_instead": (3.0, word_problem_instead),
    "word_problem_sure": (3.0, word_problem_sure),
    "two_step_problem": (6.0, two_step_problem),
}
