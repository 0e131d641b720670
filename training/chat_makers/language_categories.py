"""Categories: naming members, what kind of thing a word is, the odd one out, picking members of a mixed list."""

import random

from chat_makers.language_words import CATEGORIES, NEXT
from chat_makers.words import Turns, capitalize, join_words, loosen, number_word, order, with_article

# Names whose singular is not the plain cut of the final s.
SINGULAR = {
    "fish": "fish",
    "countries": "country",
    "capital cities": "capital city",
    "tools": "tool",
    "feelings": "feeling",
    "currencies": "currency",
    "family": "family member",
    "clothes": "piece of clothing",
    "days of the week": "day of the week",
    "kinds of furniture": "piece of furniture",
    "kinds of weather": "kind of weather",
    "parts of the body": "part of the body",
    "rooms of a house": "room of a house",
    "months": "month",
}
PLURAL = {
    "family": "family members",
    "clothes": "pieces of clothing",
    "kinds of furniture": "pieces of furniture",
}
# Categories that contain members of one another must not meet in an odd-one-out question.
OVERLAPS = [
    {"animals", "farm animals", "birds", "fish", "insects", "reptiles"},
    {"fruits", "vegetables", "desserts", "spices", "drinks", "flowers", "trees", "colors"},
    {
        "toys",
        "tools",
        "sports",
        "kitchen items",
        "vehicles",
        "musical instruments",
        "kinds of furniture",
        "metals",
        "shapes",
    },
    {"jobs", "family"},
    {"colors", "metals", "flowers", "fruits"},
    {"tools", "metals", "languages", "currencies", "countries", "planets"},
    {"months", "days of the week"},
    {"desserts", "drinks", "kitchen items"},
    {"rooms of a house", "school subjects"},
    {"fish", "tools", "sports"},
    {"kinds of weather", "feelings"},
    {"countries", "birds", "farm animals"},
    {"parts of the body", "shapes", "metals"},
]


# Members of these groups take an article ("a dog"), but for the words in BARE.
COUNTED = {
    "animals",
    "farm animals",
    "birds",
    "insects",
    "reptiles",
    "fruits",
    "trees",
    "flowers",
    "kinds of furniture",
    "tools",
    "vehicles",
    "toys",
    "jobs",
    "shapes",
    "musical instruments",
}
BARE = {"pliers", "blocks"}


def mention(category: str, word: str) -> str:
    """Return a member the way a sentence names it: "a dog", but "France" and "milk"."""
    return with_article(word) if category in COUNTED and word not in BARE else word


def singular(category: str) -> str:
    """Return the name of one member of a category."""
    return SINGULAR.get(category) or category.removesuffix("s")


def plural_name(category: str) -> str:
    """Return the name of several members of a category."""
    return PLURAL.get(category, category)


def name_members(rng: random.Random) -> Turns:
    """Return some members of a category, more in a second turn now and then."""
    category = rng.choice(list(CATEGORIES))
    members = CATEGORIES[category]
    count = rng.choice((1, 2, 3, 3, 3, 4, 5))
    many = plural_name(category)
    picked = rng.sample(members, min(count + 2, len(members)))
    extra, picked = picked[count:], picked[:count]
    if count == 1:
        one = with_article(singular(category))
        asks = (f"Name {one}.", f"Give me an example of {one}.", f"Tell me the name of {one}.", f"Can you name {one}?")
    else:
        number = rng.choice((number_word(count), str(count)))
        asks = (
            f"Name {number} {many}.",
            f"Give me {number} {many}.",
            f"List {number} {many}.",
            f"Tell me {number} {many}.",
            f"Can you name {number} {many}?",
            f"What are {number} {many}?",
            f"I need {number} {many}.",
            f"Write down {number} {many}.",
            f"Give me {number} examples of {many}.",
        )
    text = join_words(picked)
    turns = [
        (order(rng, rng.choice(asks)) if rng.random() < 0.4 else loosen(rng, rng.choice(asks)), f"{capitalize(text)}.")
    ]
    if extra and rng.random() < 0.25:
        turns.append(
            (
                loosen(rng, rng.choice(("One more?", "Another one?", "And one more?", "Give me one more."))),
                f"{capitalize(extra[0])}.",
            )
        )
    return turns


def category_of(rng: random.Random) -> Turns:
    """Return what kind of thing a word names, or whether it is one."""
    category = rng.choice(list(CATEGORIES))
    word = rng.choice(CATEGORIES[category])
    if word in BARE:
        return category_of(rng)
    word = mention(category, word)
    kind = with_article(singular(category))
    draw = rng.random()
    if draw < 0.35:
        question = f"Is {word} {choice_text(rng, category)}?"
        return [(loosen(rng, question), rng.choice((f"{capitalize(word)} is {kind}.", f"It is {kind}.")))]
    if draw < 0.6:
        asks = (f"Is {word} {kind}?", f"Does {word} count as {kind}?", f"Would you call {word} {kind}?")
        return [(loosen(rng, rng.choice(asks)), f"Yes, {word} is {kind}.")]
    if draw < 0.8:
        other = far_category(rng, category)
        asks = (
            f"Is {word} {with_article(singular(other))}?",
            f"Would you call {word} {with_article(singular(other))}?",
        )
        return [(loosen(rng, rng.choice(asks)), f"No, {word} is {kind}.")]
    members = rng.sample(CATEGORIES[category], 3)
    text = join_words(members)
    asks = (
        f"What do {text} have in common?",
        f"What are {text}?",
        f"To which group do {text} belong?",
        f"What are {text} called together?",
    )
    return [(loosen(rng, rng.choice(asks)), f"They are all {plural_name(category)}.")]


def choice_text(rng: random.Random, category: str) -> str:
    """Return "a fruit or a tool" with the category and a far one, in either order."""
    kinds = [with_article(singular(category)), with_article(singular(far_category(rng, category)))]
    rng.shuffle(kinds)
    return " or ".join(kinds)


def far_category(rng: random.Random, category: str) -> str:
    """Return a category that shares nothing with `category`."""
    near = set().union(*(group for group in OVERLAPS if category in group)) | {category}
    members = set(CATEGORIES[category])
    while True:
        other = rng.choice(list(CATEGORIES))
        if other not in near and not members & set(CATEGORIES[other]):
            return other


def odd_one_out(rng: random.Random) -> Turns:
    """Return the word that does not belong to the others."""
    category = rng.choice(list(CATEGORIES))
    other = far_category(rng, category)
    odd = rng.choice(CATEGORIES[other])
    items = [*rng.sample(CATEGORIES[category], rng.choice((3, 3, 4))), odd]
    rng.shuffle(items)
    text = ", ".join(items)
    asks = (
        f"Which word does not belong: {text}?",
        f"Find the odd one out: {text}",
        f"Odd one out: {text}",
        f"Which one is different: {text}?",
        f"What does not fit here: {text}?",
        f"Which of these does not fit: {text}?",
        f"Pick the word that does not belong: {text}",
        f"One word is wrong in this list. Which one? {text}",
    )
    kind, many = with_article(singular(other)), plural_name(category)
    answers = (
        f"{capitalize(odd)} does not belong, because the others are {many}.",
        f"{capitalize(odd)}. It is {kind}, and the others are {many}.",
        f"The odd one out is {odd}. The others are {many}.",
    )
    return [(loosen(rng, rng.choice(asks)), rng.choice(answers))]


def pick_members(rng: random.Random) -> Turns:
    """Return the members of one category out of a mixed list."""
    category = rng.choice(list(CATEGORIES))
    other = far_category(rng, category)
    good = rng.sample(CATEGORIES[category], rng.randint(1, 3))
    items = good + rng.sample(CATEGORIES[other], rng.randint(2, 3))
    rng.shuffle(items)
    good = [item for item in items if item in good]
    many, text = plural_name(category), ", ".join(items)
    asks = (
        f"Which of these are {many}: {text}?",
        f"Pick out the {many}: {text}",
        f"Find all {many} in this list: {text}",
        f"List only the {many}: {text}",
        f"Which words are {many}? {text}",
    )
    turns = [(loosen(rng, rng.choice(asks)), f"{capitalize(join_words(good))}.")]
    if rng.random() < 0.3:
        rest = [item for item in items if item not in good]
        ask = rng.choice(("And what are the others?", "What are the rest?", "And the other words?"))
        turns.append((loosen(rng, ask), f"{capitalize(join_words(rest))} are {plural_name(other)}."))
    return turns


def first_letter_word(rng: random.Random) -> Turns:
    """Return a word of a category that starts with a given letter, or any word with it."""
    category = rng.choice(list(CATEGORIES))
    word = rng.choice(CATEGORIES[category])
    letter, kind = word[0].upper(), with_article(singular(category))
    asks = (
        f"Name {kind} that starts with {letter}.",
        f"Which {singular(category)} starts with {letter}?",
        f"Give me {kind} beginning with {letter}.",
        f"Tell me {kind} with the first letter {letter}.",
    )
    turns = [
        (
            loosen(rng, rng.choice(asks)),
            rng.choice((f"{capitalize(word)}.", f"{capitalize(word)} starts with {letter}.")),
        )
    ]
    if rng.random() < 0.25:
        other = rng.choice(CATEGORIES[category])
        question = rng.choice(NEXT).format(x=f"with {other[0].upper()}")
        turns.append((loosen(rng, capitalize(question)), f"{capitalize(other)}."))
    return turns


KINDS = {
    "name_members": (3.0, name_members),
    "category_of": (2.5, category_of),
    "odd_one_out": (2.0, odd_one_out),
    "pick_members": (1.5, pick_members),
    "first_letter_word": (1.2, first_letter_word),
}
