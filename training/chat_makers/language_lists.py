"""Lists of words and numbers: sorting, reversing, counting, places, edits, continuing known series."""

import random

from chat_makers.language_words import CATEGORIES, WORDS
from chat_makers.words import NAMES, Turns, capitalize, join_words, loosen, number_word, order

DAYS = CATEGORIES["days of the week"]
MONTHS = CATEGORIES["months"]
SEPARATORS = [", ", ", ", ", ", " ", "; "]


def word_list(rng: random.Random, low: int = 3, high: int = 6) -> list[str]:
    """Return a few different words: of one category, mixed words, or names."""
    size = rng.randint(low, high)
    draw = rng.random()
    if draw < 0.5:
        members = CATEGORIES[rng.choice(list(CATEGORIES))]
        return rng.sample(members, min(size, len(members)))
    source = WORDS if draw < 0.8 else NAMES
    return rng.sample(source, min(size, len(source)))


def shown_list(rng: random.Random, items: list[str]) -> str:
    """Return a list as a user writes it."""
    return rng.choice(SEPARATORS).join(items)


def sort_words(rng: random.Random) -> Turns:
    """Return words sorted by the alphabet, forwards or backwards."""
    items = word_list(rng)
    back = rng.random() < 0.15
    how = (
        "in reverse alphabetical order"
        if back
        else rng.choice(("alphabetically", "in alphabetical order", "from A to Z"))
    )
    text = shown_list(rng, items)
    asks = (
        f"Sort these words {how}: {text}",
        f"Put these words {how}: {text}",
        f"Sort {how}: {text}",
        f"Order these words {how}: {text}",
        f"Arrange {how}: {text}",
        f"Sort the list {how}: {text}",
        f"Write these {how}: {text}",
        f"List these words {how}: {text}",
    )
    if "from" not in how and "in" not in how:
        asks = tuple(ask.replace("Put these words", "Sort these words") for ask in asks)
    result = sorted(items, key=str.lower, reverse=back)
    turns = [(order(rng, rng.choice(asks)), ", ".join(result))]
    if rng.random() < 0.25:
        ask = rng.choice(("Now reverse it.", "And backwards?", "Now in reverse order.", "Turn the list around."))
        turns.append((loosen(rng, ask), ", ".join(reversed(result))))
    elif rng.random() < 0.15:
        ask = rng.choice(("Which one is first?", "What is the first word?", "And which is the first?"))
        turns.append((loosen(rng, ask), f"The first word is {result[0]}."))
    return turns


def sort_numbers(rng: random.Random) -> Turns:
    """Return numbers sorted up or down."""
    numbers = rng.sample(range(1, rng.choice((20, 100, 100, 1000))), rng.randint(3, 7))
    down = rng.random() < 0.35
    up_words = ("from smallest to largest", "in ascending order", "from low to high", "from small to big")
    how = rng.choice(("from largest to smallest", "in descending order", "from high to low") if down else up_words)
    text = ", ".join(map(str, numbers))
    asks = (
        f"Sort these numbers {how}: {text}",
        f"Put these numbers {how}: {text}",
        f"Order {text} {how}.",
        f"Sort {text} {how}.",
        f"Arrange the numbers {text} {how}.",
    )
    if not down:
        asks += (f"Sort these numbers: {text}", f"Sort: {text}")
    result = ", ".join(map(str, sorted(numbers, reverse=down)))
    turns = [(order(rng, rng.choice(asks)), result)]
    if rng.random() < 0.25:
        pick, word = rng.choice(((max, "largest"), (min, "smallest")))
        ask = rng.choice((f"Which one is the {word}?", f"And the {word}?", f"What is the {word} of them?"))
        turns.append((loosen(rng, ask), f"The {word} number is {pick(numbers)}."))
    return turns


def reverse_list(rng: random.Random) -> Turns:
    """Return a list backwards."""
    items = (
        word_list(rng)
        if rng.random() < 0.6
        else [str(number) for number in rng.sample(range(1, 60), rng.randint(3, 6))]
    )
    text = ", ".join(items)
    asks = (
        f"Reverse this list: {text}",
        f"Write this list backwards: {text}",
        f"Reverse the order: {text}",
        f"Turn this list around: {text}",
        f"List these in reverse order: {text}",
        f"Reverse {text}.",
    )
    return [(order(rng, rng.choice(asks)), ", ".join(reversed(items)))]


def count_items(rng: random.Random) -> Turns:
    """Return how many items a list has, or how often one comes."""
    items = word_list(rng, 2, 8)
    if rng.random() < 0.6:
        text = ", ".join(items)
        number = len(items)
        asks = (
            f"How many words are in this list: {text}?",
            f"Count the items: {text}",
            f"How many items are there? {text}",
            f"How many words are these: {text}?",
            f"Count these words: {text}",
            f"How many things are in the list {text}?",
        )
        answers = (
            f"There are {number} items.",
            f"{number}.",
            f"The list has {number} items.",
            f"There are {number}: {join_words(items)}.",
        )
        return [(loosen(rng, rng.choice(asks)), rng.choice(answers))]
    word = items[0]
    times = rng.randint(1, 4)
    items += [word] * (times - 1)
    rng.shuffle(items)
    text = ", ".join(items)
    asks = (
        f"How often is {word} in this list: {text}?",
        f"How many times does {word} appear? {text}",
        f"Count the word {word} in: {text}",
    )
    amount = ("", "once", "twice", "three times", "four times")[times]
    return [(loosen(rng, rng.choice(asks)), f"{capitalize(word)} appears {amount}.")]


ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


def list_position(rng: random.Random) -> Turns:
    """Return one item of a list by place, length or membership."""
    items = word_list(rng)
    text = ", ".join(items)
    index = rng.randrange(len(items))
    place = "last" if index == len(items) - 1 and rng.random() < 0.7 else ORDINALS[index]
    draw = rng.random()
    if draw < 0.5:
        asks = (
            f"What is the {place} word in this list: {text}?",
            f"Which is the {place} item? {text}",
            f"Tell me the {place} word of: {text}",
            f"Give me the {place} item of this list: {text}",
        )
        answers = (f"The {place} word is {items[index]}.", f"{items[index]}", f"It is {items[index]}.")
        return [(loosen(rng, rng.choice(asks)), rng.choice(answers))]
    if draw < 0.75:
        other = items[index] if rng.random() < 0.5 else rng.choice(WORDS)
        asks = (
            f"Is {other} in this list: {text}?",
            f"Does this list contain {other}? {text}",
            f"Is the word {other} among these: {text}?",
        )
        answer = f"Yes, {other} is in the list." if other in items else f"No, {other} is not in the list."
        return [(loosen(rng, rng.choice(asks)), answer)]
    longest = rng.random() < 0.6
    items.sort(key=len)
    best = items[-1] if longest else items[0]
    if sum(len(item) == len(best) for item in items) > 1:
        return list_position(rng)
    rng.shuffle(items)
    word = "longest" if longest else "shortest"
    asks = (
        f"Which word is the {word}: {', '.join(items)}?",
        f"Find the {word} word: {', '.join(items)}",
        f"What is the {word} word in {', '.join(items)}?",
    )
    return [
        (
            loosen(rng, rng.choice(asks)),
            rng.choice((f"The {word} word is {best}.", f"{capitalize(best)}, with {len(best)} letters.")),
        )
    ]


def edit_list(rng: random.Random) -> Turns:
    """Return a list with a word added, taken out or replaced."""
    items = word_list(rng)
    text = ", ".join(items)
    new = rng.choice([word for word in rng.sample(WORDS, 8) if word not in items])
    old = rng.choice(items)
    without = ", ".join(item for item in items if item != old)
    cases = (
        (f"Add {new} to this list: {text}", f"{text}, {new}"),
        (f"Remove {old} from this list: {text}", without),
        (f"Take {old} out of the list {text}.", without),
        (f"Replace {old} with {new}: {text}", ", ".join(new if item == old else item for item in items)),
        (f"Make a numbered list: {text}", "\n".join(f"{place}. {item}" for place, item in enumerate(items, 1))),
        (f"Write this as a bullet list: {text}", "\n".join(f"- {item}" for item in items)),
        (f"Write these words in capital letters: {text}", text.upper()),
        (f"Put commas between these words: {' '.join(items)}", text),
    )
    question, answer = rng.choice(cases)
    return [(order(rng, question), answer)]


SERIES = [
    DAYS,
    MONTHS,
    list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    list("abcdefghijklmnopqrstuvwxyz"),
    ["spring", "summer", "autumn", "winter"],
    [number_word(number) for number in range(1, 30)],
    ["Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune"],
    [*ORDINALS, "ninth", "tenth"],
]


def continue_series(rng: random.Random) -> Turns:
    """Return a known series such as days or the alphabet, taken further."""
    series = rng.choice(SERIES)
    shown = rng.randint(2, min(5, len(series) - 2))
    start = rng.randint(0, len(series) - shown - 1)
    count = min(rng.choice((1, 1, 2, 3)), len(series) - start - shown)
    text = ", ".join(series[start : start + shown])
    following = series[start + shown : start + shown + count]
    if count == 1:
        asks = (
            f"What comes next: {text}?",
            f"{text}, ...?",
            f"Which comes next? {text}, ...",
            f"What comes after {text}?",
            f"Next one: {text}, ...",
        )
        answers = (
            f"{capitalize(following[0])}.",
            f"Next comes {following[0]}.",
            f"{capitalize(following[0])} comes next.",
        )
    else:
        number = number_word(count)
        asks = (
            f"Continue with {number} more: {text}",
            f"What are the next {number}: {text}?",
            f"Continue the list with {number} more: {text}, ...",
        )
        answers = (", ".join(following) + ".", f"The next {number} are {join_words(following)}.")
    turns = [(loosen(rng, rng.choice(asks)), rng.choice(answers))]
    after = start + shown + count
    if after < len(series) and rng.random() < 0.25:
        turns.append(
            (
                loosen(rng, rng.choice(("And then?", "And after that?", "What comes after that?"))),
                f"After that comes {series[after]}.",
            )
        )
    return turns


def whole_series(rng: random.Random) -> Turns:
    """Return a whole closed list: days, months, seasons, continents, planets."""
    names = {
        "days of the week": DAYS,
        "months of the year": MONTHS,
        "seasons": SERIES[4],
        "continents": None,
        "planets": SERIES[6],
    }
    name = rng.choice(list(names))
    items = names[name]
    if items is None:
        items = ["Africa", "Antarctica", "Asia", "Australia", "Europe", "North America", "South America"]
    asks = (
        f"Name the {name}.",
        f"What are the {name}?",
        f"List all the {name}.",
        f"Tell me the {name}.",
        f"Which {name} are there?",
        f"List the {name} in order.",
    )
    end = " in order" if name in ("days of the week", "months of the year", "planets") and rng.random() < 0.2 else ""
    answers = (f"{capitalize(join_words(items))}.", f"The {name}{end} are {join_words(items)}.")
    turns = [(order(rng, rng.choice(asks)), rng.choice(answers))]
    if rng.random() < 0.3:
        turns.append(
            (
                loosen(rng, rng.choice(("How many are there?", "How many are that?", "And how many is that?"))),
                f"There are {number_word(len(items))}.",
            )
        )
    return turns


KINDS = {
    "sort_words": (2.5, sort_words),
    "sort_numbers": (2.5, sort_numbers),
    "reverse_list": (1.5, reverse_list),
    "count_items": (1.5, count_items),
    "list_position": (2.0, list_position),
    "edit_list": (1.5, edit_list),
    "continue_series": (1.2, continue_series),
    "whole_series": (0.3, whole_series),
}
