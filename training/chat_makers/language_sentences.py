"""Whole sentences: rewriting, grammar, polite requests, blanks, using a word, who did what."""

import random
from dataclasses import dataclass

from chat_makers.language_words import PAST_OF, TABLES
from chat_makers.words import (
    NAMES,
    Turns,
    capitalize,
    load_toml,
    loosen,
    order,
    plural_of,
)

PARTS = load_toml("sentences.toml")
ACTIONS = [tuple(entry.strip().split("|")) for entry in PARTS["actions"].replace("\n", " ").split(",")]
DOUBLED = {"swim", "run", "win", "cut", "forget", "get", "sit", "stop", "plan", "shop"}


def part(rng: random.Random, name: str) -> str:
    """Return one entry of a comma-separated table of parts."""
    return rng.choice(LISTS[name])


LISTS = {name: [entry.strip() for entry in text.split(",")] for name, text in PARTS.items() if isinstance(text, str)}


def split_pairs(name: str) -> list[tuple[str, str]]:
    """Return the pairs "left=right" of a table of sentences."""
    return [(left, right) for left, _, right in (entry.rpartition("=") for entry in TABLES["sentences"][name])]


def third(verb: str) -> str:
    """Return the he-she-it form of a verb."""
    return "goes" if verb == "go" else plural_of(verb)


def ing(verb: str) -> str:
    """Return the -ing form of a verb."""
    if verb in DOUBLED:
        return verb + verb[-1] + "ing"
    return verb[:-1] + "ing" if verb.endswith("e") and not verb.endswith("ee") else verb + "ing"


def past(verb: str) -> str:
    """Return the past form of a verb."""
    return PAST_OF.get(verb) or {"water": "watered"}.get(verb) or verb + "ed"


SUBJECTS = ["I", "You", "We", "They", "The children", "My parents", "My friends", "The students", "The boys"]


@dataclass
class Clause:
    """A sentence in the present and how to turn it: "Tom reads a book"."""

    subject: str
    verb: str
    rest: str
    single: bool

    def inner(self) -> str:
        """Return the subject as it stands inside a sentence."""
        if self.subject in NAMES or self.subject == "I":
            return self.subject
        return self.subject[0].lower() + self.subject[1:]

    def present(self) -> str:
        """Return the verb in the present."""
        return third(self.verb) if self.single else self.verb

    def be(self) -> str:
        """Return the form of "be" for the subject."""
        return "is" if self.single else "am" if self.subject == "I" else "are"

    def forms(self) -> dict[str, str]:
        """Return the sentence in every form that the rewriting kinds ask for."""
        do, subject, verb, rest = "Does" if self.single else "Do", self.subject, self.verb, self.rest
        return {
            "plain": f"{subject} {self.present()} {rest}.",
            "past": f"{subject} {past(verb)} {rest}.",
            "future": f"{subject} will {verb} {rest}.",
            "question": f"{do} {self.inner()} {verb} {rest}?",
            "negative": f"{subject} {do.lower()} not {verb} {rest}.",
            "now": f"{subject} {self.be()} {ing(verb)} {rest}.",
            "wrong": f"{subject} {verb if self.single else third(verb)} {rest}.",
            "wrong negative": f"{subject} {'do' if self.single else 'does'} not {verb} {rest}.",
            "wrong past": f"{subject} did not {past(verb)} {rest}.",
            "right past": f"{subject} did not {verb} {rest}.",
            "wrong now": f"{subject} {'are' if self.single else 'is'} {ing(verb)} {rest}.",
        }


def clause(rng: random.Random) -> Clause:
    """Return a random simple sentence."""
    verb, rest = rng.choice(ACTIONS)
    draw = rng.random()
    if draw < 0.3:
        rest += " " + part(rng, "places") if not set(rest.split()) & {"in", "at", "on", "to", "door", "window"} else ""
    if draw < 0.65:
        return Clause(rng.choice(NAMES), verb, rest, True)
    if draw < 0.8:
        return Clause(
            rng.choice(("He", "She", "My brother", "My sister", "The teacher", "My mother", "The girl")),
            verb,
            rest,
            True,
        )
    return Clause(rng.choice(SUBJECTS), verb, rest, False)


REWRITES = {
    "past": ["in the past tense", "in the past", "into the past tense"],
    "future": ["in the future", "in the future tense", "with will"],
    "question": ["as a question", "into a question"],
    "negative": ["in the negative", "as a negative sentence"],
    "now": ["in the present continuous", "in the -ing form"],
}


def rewrite(rng: random.Random) -> Turns:
    """Return a sentence put into the past, the future, a question or the negative."""
    forms = clause(rng).forms()
    targets = rng.sample(list(REWRITES), 2)
    how = rng.choice(REWRITES[targets[0]])
    verb = (
        rng.choice(("Turn this", "Change this sentence", "Put this sentence"))
        if how.startswith("into")
        else rng.choice(("Write this sentence", "Rewrite this", "Put this sentence", "Rewrite", "Say this"))
    )
    marks = rng.choice((": {}", ': "{}"', ":\n{}"))
    turns = [(order(rng, f"{verb} {how}" + marks.format(forms["plain"])), forms[targets[0]])]
    if rng.random() < 0.3:
        how = rng.choice(REWRITES[targets[1]])
        turns.append(
            (
                loosen(
                    rng,
                    rng.choice(
                        (
                            "And the first sentence {}?",
                            "Now the first sentence {}.",
                            "And the original {}?",
                            "Take the first sentence again and put it {}.",
                        )
                    ).format(how),
                ),
                forms[targets[1]],
            )
        )
    return turns


FIX = [
    "Correct the grammar: {}",
    "Fix this sentence: {}",
    "Correct this sentence: {}",
    "Is this correct? {}",
    "Fix the mistake: {}",
    'What is wrong with "{}"',
    "Correct my English: {}",
    "Find the mistake: {}",
    "Fix the grammar in this sentence: {}",
    "Please check this sentence: {}",
    "Make this sentence correct: {}",
    "Is this sentence right? {}",
]
GRAMMAR = split_pairs("grammar")


def fix_grammar(rng: random.Random) -> Turns:
    """Return a wrong sentence with its correction, and now and then a right one."""
    if rng.random() < 0.2:
        wrong, right = rng.choice(GRAMMAR)
    else:
        forms = clause(rng).forms()
        wrong, right = rng.choice(
            (("wrong", "plain"), ("wrong negative", "negative"), ("wrong past", "right past"), ("wrong now", "now"))
        )
        wrong, right = forms[wrong], forms[right]
    frame = rng.choice(FIX)
    if rng.random() < 0.12 or wrong == right:
        return [
            (
                frame.format(right) if "wrong" not in frame and "mistake" not in frame else f"Is this correct? {right}",
                "Yes, the sentence is correct.",
            )
        ]
    start = (
        "No. The correct sentence is: "
        if frame.startswith("Is")
        else rng.choice(("", "", "It should be: ", "Correct: "))
    )
    return [(frame.format(wrong), start + right)]


def polite(rng: random.Random) -> Turns:
    """Return a direct request made polite."""
    direct, kind = rng.choice(POLITE)
    if rng.random() < 0.5:
        verb, rest = rng.choice(ASKABLE)
        direct = f"{capitalize(verb)} {rest}."
        kind = rng.choice(
            (
                f"Could you please {verb} {rest}?",
                f"Would you please {verb} {rest}?",
                f"Would you mind {ing(verb)} {rest}?",
            )
        )
    asks = (
        "Rewrite this politely: {}",
        "Make this more polite: {}",
        'Say "{}" politely.',
        'How can I say "{}" in a polite way?',
        "Write this in a friendlier way: {}",
        'What is a polite way to say "{}"?',
        "Turn this into a polite request: {}",
    )
    question = rng.choice(asks)
    return [(question.format(direct.rstrip(".") if "say" in question.lower() else direct), kind)]


ASKED_VERBS = {
    "wash",
    "clean",
    "walk",
    "buy",
    "feed",
    "make",
    "take",
    "call",
    "fix",
    "open",
    "close",
    "help",
    "carry",
    "send",
    "tell",
    "cut",
    "water",
    "pay",
    "wait",
    "plant",
    "cook",
}
ASKABLE = [action for action in ACTIONS if action[0] in ASKED_VERBS]
POLITE = split_pairs("polite")
BLANKS = split_pairs("blanks")
WORD_SENTENCES = split_pairs("words")


def fill_blank(rng: random.Random) -> Turns:
    """Return a sentence with its missing word."""
    asks = (
        "Fill in the blank: {}",
        "Complete the sentence: {}",
        "What is the missing word? {}",
        "Which word is missing: {}",
        "Fill the gap: {}",
        "{}",
        "Complete: {}",
        "Fill in the missing word: {}",
        "What word goes here? {}",
    )
    if rng.random() < 0.35:
        sentence, word = rng.choice(BLANKS)
    else:
        made, kind = clause(rng), rng.randrange(4)
        time = part(rng, "past_times" if kind == 1 else "times")
        word = (made.present(), past(made.verb), made.verb, ing(made.verb))[kind]
        start = (made.subject, made.subject, f"{made.subject} will", f"{made.subject} {made.be()}")[kind]
        when = ("", f" {time}", " tomorrow", " now")[kind]
        sentence = f"{start} ___ ({made.verb}) {made.rest}{when}."
    question = rng.choice(asks).format(sentence.replace("___", rng.choice(("___", "___", "____", "_", "..."))))
    full = sentence.replace("___", word).replace(f" ({word_base(sentence)})", "")
    return [(question, rng.choice((f"{capitalize(word)}.", full, full, f"The missing word is {word}.")))]


def word_base(sentence: str) -> str:
    """Return the verb in brackets of a gap sentence, or an empty string."""
    return sentence.partition("(")[2].partition(")")[0]


def use_word(rng: random.Random) -> Turns:
    """Return a sentence that contains a given word."""
    if rng.random() < 0.5:
        word, sentence = rng.choice(WORD_SENTENCES)
    else:
        made = clause(rng)
        word = rng.choice(
            [
                piece
                for piece in [
                    made.verb if not made.single else made.present(),
                    *made.rest.split(),
                ]
                if len(piece) > 3
            ]
        )
        sentence = made.forms()["plain"]
    asks = (
        f"Make a sentence with the word {word}.",
        f"Use {word} in a sentence.",
        f'Write a sentence with "{word}".',
        f'Use the word "{word}" in a sentence.',
        f"Give me a sentence with {word}.",
        f"Write a short sentence that contains {word}.",
        f"Form a sentence with {word}.",
    )
    return [(order(rng, rng.choice(asks)), sentence)]


def who_did_what(rng: random.Random) -> Turns:
    """Return who, what and when questions on one sentence."""
    verb, rest = rng.choice(ACTIONS)
    name, time = rng.choice(NAMES), part(rng, "past_times")
    did = f"{name} {past(verb)} {rest}"
    sentence = f"{capitalize(time)}, {did}." if rng.random() < 0.4 else f"{did} {time}."
    cases = [
        (f"Who {past(verb)} {rest}?", f"{name} {past(verb)} {rest}."),
        (f"When did {name} {verb} {rest}?", f"{capitalize(time)}."),
        (f"What did {name} do {time}?", f"{name} {past(verb)} {rest}."),
        ("Who is the sentence about?", f"It is about {name}."),
        ("What is the verb in this sentence?", f"The verb is {past(verb)}."),
        (f"Did {name} {verb} {rest}?", f"Yes, {name} {past(verb)} {rest} {time}."),
        ("How many words does this sentence have?", f"It has {len(sentence.split())} words."),
        ("What is the first word?", f"The first word is {sentence.split(maxsplit=1)[0].strip(',')}."),
    ]
    picked = rng.sample(cases, rng.choice((1, 1, 2)))
    frame = rng.choice(("{s} {q}", '"{s}" {q}', "{s}\n{q}", "Sentence: {s} {q}"))
    return [(frame.format(s=sentence, q=picked[0][0]), picked[0][1]), *picked[1:]]


KINDS = {
    "rewrite": (2.5, rewrite),
    "fix_grammar": (2.0, fix_grammar),
    "polite": (0.5, polite),
    "fill_blank": (2.0, fill_blank),
    "use_word": (1.5, use_word),
    "who_did_what": (2.0, who_did_what),
}
