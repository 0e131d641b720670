"""Single words: spelling, letters, opposites, synonyms, plurals, past tense, comparison, rhymes."""

import random
from collections.abc import Callable

from chat_makers.words import NAMES, NOUNS, Turns, capitalize, join_words, load_toml, loosen, order, parse_noun

TABLES = load_toml("language.toml")


def pairs(name: str) -> list[tuple[str, str]]:
    """Return the entries "a:b" of a table."""
    return [(first, second) for first, _, second in (entry.partition(":") for entry in TABLES[name].split())]


OPPOSITES = dict(pairs("opposites"))
SYNONYMS = [tuple(entry.split("/")) for entry in TABLES["synonyms"].split()]
PLURALS = pairs("irregular_plurals")
for regular in TABLES["regular_nouns"].split():
    noun = parse_noun(regular if regular != "quiz" else "quiz|quizzes")
    PLURALS.append((noun.one, noun.many))
PAST = pairs("past_tense")
COMPARATIVES = [tuple(entry.split(":")) for entry in TABLES["comparatives"].split()]
RHYMES = [line.split() for line in TABLES["rhymes"].strip().splitlines()]
CATEGORIES: dict[str, list[str]] = {name: text.split() for name, text in TABLES["categories"].items()}


def collect_words() -> list[str]:
    """Return all lower-case words of the tables, each once, for spelling and letter games."""
    found = {word for line in RHYMES for word in line} | set(OPPOSITES) | set(OPPOSITES.values())
    found |= {word for members in CATEGORIES.values() for word in members}
    found |= {noun.one for pool in NOUNS.values() for noun in pool} | {one for one, _ in PLURALS}
    return sorted(word for word in found if word.isalpha() and word.islower() and len(word) > 1)


WORDS = collect_words()
QUOTES = ['"{}"', "'{}'", "{}", "{}", '"{}"']
NEXT = [
    "And {x}?",
    "What about {x}?",
    "How about {x}?",
    "And for {x}?",
    "{x}?",
    "Ok, and {x}?",
    "And what about {x}?",
    "Now {x}.",
]


def quote(rng: random.Random, word: str) -> str:
    """Return the word with or without quotes."""
    return rng.choice(QUOTES).format(word)


def with_more(rng: random.Random, first: str, one: Callable[[str], tuple[str, str]], others: list[str]) -> Turns:
    """Return the turn `one(first)`, in a third of the cases with "and x?" turns about other words."""
    turns = [one(first)]
    if rng.random() < 0.3:
        for other in rng.sample(others, rng.choice((1, 1, 2))):
            if other != first:
                question = rng.choice(NEXT).format(x=quote(rng, other))
                turns.append((loosen(rng, question), one(other)[1]))
    return turns


def spell(rng: random.Random) -> Turns:
    """Return a word spelled letter by letter."""

    def one(word: str) -> tuple[str, str]:
        shown = quote(rng, word)
        asks = (
            f"Spell {shown}.",
            f"How do you spell {shown}?",
            f"Spell the word {shown}.",
            f"How is {shown} spelled?",
            f"Spell {shown} letter by letter.",
            f"What is the spelling of {shown}?",
            f"How would you spell {shown}?",
        )
        letters = ("-" if joined else ", ").join(word.upper() if upper else word)
        return order(rng, rng.choice(asks[:5])) if rng.random() < 0.5 else loosen(rng, rng.choice(asks)), f"{letters}."

    joined, upper = rng.random() < 0.6, rng.random() < 0.6
    return with_more(rng, rng.choice(WORDS + NAMES), one, WORDS)


def letter_position(rng: random.Random) -> Turns:
    """Return the first, last, second or third letter of a word."""
    place, index = rng.choice((("first", 0), ("last", -1), ("first", 0), ("last", -1), ("second", 1), ("third", 2)))

    def one(word: str) -> tuple[str, str]:
        shown = quote(rng, word)
        asks = (
            f"What is the {place} letter of {shown}?",
            f"What's the {place} letter in {shown}?",
            f"Which letter is the {place} one in {shown}?",
            f"Tell me the {place} letter of the word {shown}.",
            f"What is the {place} letter of the word {shown}?",
            f"Give me the {place} letter of {shown}.",
        )
        letter = word[index].upper()
        answers = (
            f"The {place} letter of {word} is {letter}.",
            f"It is {letter}.",
            f"{letter}.",
            f"The {place} letter is {letter}.",
        )
        return loosen(rng, rng.choice(asks)), rng.choice(answers)

    long_words = [word for word in rng.sample(WORDS, 12) if len(word) > 2]
    return with_more(rng, long_words[0], one, long_words[1:])


def count_letters(rng: random.Random) -> Turns:
    """Return how many letters, or how many of one letter, a word has."""
    word = rng.choice(WORDS + NAMES)
    shown = quote(rng, word)
    if rng.random() < 0.6:
        asks = (
            f"How many letters are in {shown}?",
            f"How many letters does {shown} have?",
            f"Count the letters in {shown}.",
            f"How long is the word {shown}?",
            f"How many letters has the word {shown}?",
            f"Number of letters in {shown}?",
        )
        spelled = "-".join(word.lower())
        answers = (
            f"{spelled}: that is {len(word)} letters.",
            f"{capitalize(word)} has {len(word)} letters: {spelled}.",
        )
        return [(loosen(rng, rng.choice(asks)), rng.choice(answers))]
    letter = rng.choice(word.lower() if rng.random() < 0.85 else "aeiorst")
    number = word.lower().count(letter)
    asks = (
        f"How many times does the letter {letter} appear in {shown}?",
        f"How many {letter}'s are in {shown}?",
        f"Count the letter {letter} in {shown}.",
        f"How often is the letter {letter} in {shown}?",
    )
    times = "once" if number == 1 else "twice" if number == 2 else f"{number} times"
    spelled = "-".join(word.lower())
    answer = f"{spelled}: the letter {letter} appears {times}." if number else f"{spelled}: there is no {letter}."
    return [(loosen(rng, rng.choice(asks)), answer)]


def letter_facts(rng: random.Random) -> Turns:
    """Return a word backwards, its vowels, its case, or whether it starts with a letter."""
    word = rng.choice(WORDS)
    shown = quote(rng, word)
    vowels = [letter for letter in "aeiou" if letter in word]
    letter = word[0] if rng.random() < 0.5 else rng.choice("abcdfgmprst")
    starts = word.startswith(letter)
    cases = [
        (f"Write {shown} backwards.", f"{word[::-1]}"),
        (f"Reverse the word {shown}.", f"{word[::-1]}"),
        (f"Write {shown} in capital letters.", word.upper()),
        (f"Make {shown} uppercase.", word.upper()),
        (f"Write {word.upper()} in small letters.", word),
        (
            f"Which vowels are in {shown}?",
            f"{join_words(vowels).capitalize()}." if vowels else "There are no vowels in it.",
        ),
        (f"Does {shown} start with {letter}?", f"{'Yes' if starts else 'No'}, {word} starts with {word[0]}."),
        (
            f"Does {shown} end with {letter}?",
            f"{'Yes' if word.endswith(letter) else 'No'}, {word} ends with {word[-1]}.",
        ),
        (
            f"Is there the letter {letter} in {shown}?",
            f"{'Yes' if letter in word else 'No'}, {'-'.join(word)}{' has' if letter in word else ' has no'} {letter}.",
        ),
    ]
    question, answer = rng.choice(cases)
    return [(order(rng, question) if question.endswith(".") else loosen(rng, question), answer)]


def alphabet(rng: random.Random) -> Turns:
    """Return the neighbor of a letter, or a stretch of the alphabet."""
    index = rng.randint(1, 24)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    here, after, before = letters[index], letters[index + 1], letters[index - 1]
    end = min(25, index + rng.randint(3, 8))
    kind = "vowel" if here in "AEIOU" else "consonant"
    (other,) = rng.sample([letter for letter in letters if letter != here], 1)
    first = min(here, other)
    cases = (
        (f"Which letter comes after {here}?", f"{after} comes after {here}."),
        (f"What letter is before {here}?", f"{before} is before {here}."),
        (
            f"Continue: {', '.join(letters[index - 1 : index + 2])}",
            ", ".join(letters[index + 2 : index + 5]) + "." if index < 22 else "X, Y, Z.",
        ),
        (f"Say the alphabet from {here} to {letters[end]}.", ", ".join(letters[index : end + 1]) + "."),
        (f"Is {here} a vowel?", f"{'Yes' if kind == 'vowel' else 'No'}, {here} is a {kind}."),
        (f"Is {here} a vowel or a consonant?", f"{here} is a {kind}."),
        (f"What is letter number {index + 1} of the alphabet?", f"Letter number {index + 1} is {here}."),
        (f"Which comes first in the alphabet, {here} or {other}?", f"{first} comes first."),
        (f"Which letter is between {before} and {after}?", f"{here} is between {before} and {after}."),
    )
    question, answer = cases[rng.randrange(9)]
    if question.startswith("Continue") and index >= 22:
        question, answer = cases[0]
    return [(loosen(rng, question), answer)]


def opposite(rng: random.Random) -> Turns:
    """Return the opposite of a word."""

    def one(word: str) -> tuple[str, str]:
        shown = quote(rng, word)
        asks = (
            f"What is the opposite of {shown}?",
            f"What's the opposite of {shown}?",
            f"Give me the opposite of {shown}.",
            f"Name the opposite of {shown}.",
            f"Give an antonym for {shown}.",
            f"What is an antonym of {shown}?",
            f"Which word is the opposite of {shown}?",
            f"{capitalize(word)} is the opposite of what?",
            f"Tell me the opposite of the word {shown}.",
            f"What word means the opposite of {shown}?",
            f"opposite of {word}",
        )
        result = OPPOSITES[word]
        answers = (
            f"The opposite of {word} is {result}.",
            f"{capitalize(result)}.",
            f"It is {result}.",
            f"The opposite is {result}.",
        )
        return loosen(rng, rng.choice(asks)), rng.choice(answers)

    return with_more(rng, rng.choice(list(OPPOSITES)), one, list(OPPOSITES))


def synonym(rng: random.Random) -> Turns:
    """Return a word with the same meaning."""
    word, result = rng.choice(SYNONYMS)
    shown = quote(rng, word)
    if rng.random() < 0.25:
        other = result if rng.random() < 0.5 else rng.choice(SYNONYMS)[1]
        same = (word, other) in SYNONYMS
        opposite_of = OPPOSITES.get(word)
        if not same and opposite_of and rng.random() < 0.5:
            other = opposite_of
        asks = (
            f"Do {word} and {other} mean the same?",
            f"Is {other} a synonym of {word}?",
            f"Are {word} and {other} synonyms?",
        )
        answer = f"Yes, {word} and {other} mean nearly the same." if same else f"No. A synonym of {word} is {result}."
        return [(loosen(rng, rng.choice(asks)), answer)]
    asks = (
        f"What is a synonym for {shown}?",
        f"Give me another word for {shown}.",
        f"What is another word for {shown}?",
        f"Name a synonym of {shown}.",
        f"Which word means the same as {shown}?",
        f"What's a synonym of {shown}?",
        f"Can you give me a word like {shown}?",
        f"Find a word that means {shown}.",
        f"another word for {word}",
    )
    answers = (
        f"Another word for {word} is {result}.",
        f"{capitalize(result)}.",
        f"A synonym of {word} is {result}.",
        f"You can say {result}.",
    )
    return [(loosen(rng, rng.choice(asks)), rng.choice(answers))]


ALL_PLURALS = dict(PLURALS) | {
    noun.one: noun.many for pool in ("any", "animal", "container", "plant") for noun in NOUNS[pool]
}


def plural(rng: random.Random) -> Turns:
    """Return the plural of a noun, or the singular back."""
    if rng.random() < 0.2:
        word, many = rng.choice(PLURALS)
        asks = (
            f"What is the singular of {quote(rng, many)}?",
            f"Give me the singular form of {many}.",
            f"Singular of {many}?",
        )
        return [(loosen(rng, rng.choice(asks)), rng.choice((f"The singular of {many} is {word}.", f"It is {word}.")))]

    def one(word: str) -> tuple[str, str]:
        shown = quote(rng, word)
        many = ALL_PLURALS[word]
        asks = (
            f"What is the plural of {shown}?",
            f"What's the plural of {shown}?",
            f"Give me the plural of {shown}.",
            f"Write the plural of {shown}.",
            f"One {word}, two ...?",
            f"How do you say more than one {word}?",
            f"Which is the plural form of {shown}?",
            f"Plural of {word}?",
            f"Make {shown} plural.",
        )
        answers = (
            f"The plural of {word} is {many}.",
            f"{capitalize(many)}.",
            f"It is {many}.",
            f"One {word}, two {many}.",
        )
        return loosen(rng, rng.choice(asks)), rng.choice(answers)

    return with_more(rng, rng.choice(list(ALL_PLURALS)), one, list(ALL_PLURALS))


PAST_OF = dict(PAST)


def past_tense(rng: random.Random) -> Turns:
    """Return the past tense of a verb."""

    def one(word: str) -> tuple[str, str]:
        shown = quote(rng, word)
        past = PAST_OF[word]
        asks = (
            f"What is the past tense of {shown}?",
            f"What's the past tense of {shown}?",
            f"Give me the past tense of {shown}.",
            f"Put {shown} in the past.",
            f"What is the simple past of {shown}?",
            f"Past tense of {word}?",
            f"How do you say {shown} in the past tense?",
            f"Write the past form of {shown}.",
            f"Today I {word}. Yesterday I ...?",
        )
        asks = asks[:-1] if word == "be" else asks
        answers = (
            f"The past tense of {word} is {past}.",
            f"{capitalize(past)}.",
            f"It is {past}.",
            f"The past of {word} is {past}.",
        )
        return loosen(rng, rng.choice(asks)), rng.choice(answers)

    return with_more(rng, rng.choice(list(PAST_OF)), one, list(PAST_OF))


def comparative(rng: random.Random) -> Turns:
    """Return the comparative or superlative of an adjective."""
    base, more, most = rng.choice(COMPARATIVES)
    name, form = rng.choice((("comparative", more), ("superlative", most)))
    asks = (
        f"What is the {name} of {quote(rng, base)}?",
        f"Give me the {name} form of {quote(rng, base)}.",
        f"Give me the {name} of {quote(rng, base)}.",
        f"Which is the {name} form of {base}?",
    )
    answers = (f"The {name} of {base} is {form}.", f"It is {form}: {base}, {more}, {most}.", f"{capitalize(form)}.")
    if rng.random() < 0.3:
        asks = (f"{base}, {more}, ...?", f"Complete: {base}, {more}, ...", f"What comes next: {base}, {more}, ...?")
        answers = (f"{capitalize(most)}.", f"{base}, {more}, {most}.")
    return [(loosen(rng, rng.choice(asks)), rng.choice(answers))]


def rhyme(rng: random.Random) -> Turns:
    """Return words that rhyme, or whether two words rhyme."""
    group = rng.choice(RHYMES)
    word = rng.choice(group)
    others = [other for other in group if other != word]
    if rng.random() < 0.3:
        match = rng.random() < 0.5
        other = rng.choice(others) if match else rng.choice(rng.choice(RHYMES))
        match = other in group
        asks = (f"Do {word} and {other} rhyme?", f"Does {word} rhyme with {other}?", f"Is {other} a rhyme for {word}?")
        end = "rhyme" if match else f"do not rhyme, but {word} and {rng.choice(others)} do"
        return [(loosen(rng, rng.choice(asks)), f"{'Yes' if match else 'No'}, {word} and {other} {end}.")]
    shown = quote(rng, word)
    count = rng.choice((1, 1, 2, 3))
    picked = rng.sample(others, min(count, len(others)))
    if len(picked) == 1:
        asks = (
            f"What rhymes with {shown}?",
            f"Give me a word that rhymes with {shown}.",
            f"Which word rhymes with {shown}?",
            f"Find a rhyme for {shown}.",
            f"Name a word that rhymes with {shown}.",
            f"What is a rhyme for {shown}?",
        )
        verb = "rhymes"
    else:
        number = ("", "", "two", "three")[len(picked)]
        asks = (
            f"Give me {number} words that rhyme with {shown}.",
            f"Name {number} rhymes for {shown}.",
            f"What are {number} words that rhyme with {shown}?",
            f"Find {number} words rhyming with {shown}.",
        )
        verb = "rhyme"
    text = join_words(picked)
    return [
        (loosen(rng, rng.choice(asks)), rng.choice((f"{capitalize(text)} {verb} with {word}.", f"{capitalize(text)}.")))
    ]


KINDS = {
    "spell": (2.0, spell),
    "letter_position": (1.5, letter_position),
    "count_letters": (2.0, count_letters),
    "letter_facts": (1.2, letter_facts),
    "alphabet": (0.5, alphabet),
    "opposite": (3.0, opposite),
    "synonym": (1.5, synonym),
    "plural": (2.5, plural),
    "past_tense": (2.5, past_tense),
    "comparative": (0.6, comparative),
    "rhyme": (2.0, rhyme),
}
