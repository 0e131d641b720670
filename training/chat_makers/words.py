"""Shared word tables (words.toml) and helpers: names, nouns with plurals, articles, number words, loose typing."""

import random
import tomllib
from dataclasses import dataclass
from pathlib import Path

Turns = list[tuple[str, str]]

FOLDER = Path(__file__).parent
ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
# Words whose article does not follow the first letter.
CONSONANT_SOUND = ("uni", "use", "eu", "one", "ukulele")
VOWEL_SOUND = ("hour", "honest", "heir", "honor")


def load_toml(name: str) -> dict:
    """Return the table file `name` that lies beside this module."""
    with (FOLDER / name).open("rb") as file:
        return tomllib.load(file)


def plural_of(word: str) -> str:
    """Return the regular English plural of `word`."""
    if word.endswith(("s", "x", "ch", "sh", "z")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def article(word: str) -> str:
    """Return "a" or "an", whichever goes before `word`."""
    lower = word.lower()
    if lower.startswith(VOWEL_SOUND):
        return "an"
    return "an" if lower[0] in "aeiou" and not lower.startswith(CONSONANT_SOUND) else "a"


def with_article(word: str) -> str:
    """Return `word` after its indefinite article."""
    return f"{article(word)} {word}"


def capitalize(text: str) -> str:
    """Return `text` with a capital first letter and the rest untouched."""
    return text[:1].upper() + text[1:]


def number_word(number: int) -> str:
    """Return a number from 0 to 999 in words."""
    if number < 20:
        return ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return TENS[tens] + (f"-{ONES[ones]}" if ones else "")
    hundreds, rest = divmod(number, 100)
    return f"{ONES[hundreds]} hundred" + (f" and {number_word(rest)}" if rest else "")


def join_words(items: list[str], last: str = "and") -> str:
    """Return "a", "a and b" or "a, b and c"."""
    if len(items) == 1:
        return items[0]
    return ", ".join(items[:-1]) + f" {last} {items[-1]}"


@dataclass(frozen=True)
class Noun:
    """A countable noun."""

    one: str
    many: str

    def count(self, number: int, text: str | None = None) -> str:
        """Return "1 apple" or "5 apples"; `text` replaces the digits."""
        return f"{text or number} {self.one if number == 1 else self.many}"


@dataclass(frozen=True)
class Person:
    """Someone in a story: a name, or a role such as "farmer" that takes an article."""

    first: str  # first mention: "Tom", "a farmer"
    later: str  # later mentions: "Tom", "the farmer"
    he: str
    him: str
    his: str


def parse_noun(entry: str) -> Noun:
    """Return the noun of a table entry, "apple" or "mouse|mice"."""
    one, _, many = entry.strip().partition("|")
    return Noun(one, many or plural_of(one))


TABLES = load_toml("words.toml")
NOUNS: dict[str, list[Noun]] = {
    pool: [parse_noun(entry) for entry in text.replace("\n", " ").split(",")] for pool, text in TABLES["nouns"].items()
}
NOUNS["any"] = [noun for pool in ("toy", "fruit", "food", "school", "house") for noun in NOUNS[pool]]
NOUNS["shop"] = NOUNS["any"]
NOUNS["snack"] = NOUNS["fruit"] + NOUNS["food"]

HE_NAMES: list[str] = TABLES["people"]["he"].split()
SHE_NAMES: list[str] = TABLES["people"]["she"].split()
NAMES = HE_NAMES + SHE_NAMES
SURNAMES: list[str] = TABLES["people"]["surnames"].split()
CITIES: list[str] = TABLES["people"]["cities"].split()
JOBS: list[str] = TABLES["people"]["jobs"].split()
OPENERS: list[str] = TABLES["people"]["openers"]

NAMED = [Person(name, name, "he", "him", "his") for name in HE_NAMES]
NAMED += [Person(name, name, "she", "her", "her") for name in SHE_NAMES]
ROLES = [Person(with_article(role), f"the {role}", "he", "him", "his") for role in TABLES["people"]["roles_he"].split()]
ROLES += [
    Person(with_article(role), f"the {role}", "she", "her", "her") for role in TABLES["people"]["roles_she"].split()
]


def two_people(rng: random.Random) -> tuple[Person, Person]:
    """Return two people with different names; the first is sometimes a role ("a farmer")."""
    first = rng.choice(ROLES) if rng.random() < 0.12 else rng.choice(NAMED)
    second = rng.choice(NAMED)
    while second is first:
        second = rng.choice(NAMED)
    return first, second


def two_names(rng: random.Random) -> tuple[str, str]:
    """Return two different names."""
    first, second = rng.sample(NAMES, 2)
    return first, second


PREFIXES = [
    "Please ",
    "Can you ",
    "Could you ",
    "Could you please ",
    "Can you please ",
    "I need you to ",
    "I want you to ",
]


# Requests that are questions already take no "could you" in front.
NOT_COMMANDS = ("Can ", "What", "Which", "How", "I need", "Is ", "Are ", "Who", "Odd")


def order(rng: random.Random, command: str) -> str:
    """Return a command ("Sort these words: ...", "Spell cat.") in one of many tones, plain half the time."""
    draw = rng.random()
    if draw < 0.55 or command.startswith(NOT_COMMANDS):
        return loosen(rng, command)
    if draw < 0.65:
        return loosen(
            rng,
            command.rstrip("." if ":" not in command else "") + (", please." if ":" not in command else ""),
        )
    prefix = rng.choice(PREFIXES)
    text = prefix + command[0].lower() + command[1:]
    if prefix.startswith(("Can", "Could")) and text.endswith("."):
        text = text[:-1] + "?"
    return loosen(rng, text)


def loosen(rng: random.Random, text: str) -> str:
    """Return `text` as people type it: now and then without the capital or without the last mark."""
    draw = rng.random()
    if draw < 0.82:
        return text
    if draw < 0.94 and text[-1] in "?." and not text.endswith(("...", "...?")):
        text = text[:-1]
    return text[0].lower() + text[1:] if draw > 0.88 else text
