"""Short texts on request from smalltalk.json: stories composed of the steps of a plot, rhymes, polite messages."""

import json
import random
from collections.abc import Callable
from pathlib import Path

from chat_makers.phrasing import capitalize, dress, with_article

Turns = list[tuple[str, str]]

TABLES = json.loads((Path(__file__).parent / "smalltalk.json").read_text(encoding="utf-8"))
SLOTS: dict[str, list[str]] = TABLES["slots"]
PEOPLE: list[list[str]] = TABLES["people"]
COUPLETS: dict[str, list[list[str]]] = TABLES["couplets"]
STORY: dict[str, list] = TABLES["story"]
PRONOUNS = {"he": ("him", "his", "himself"), "she": ("her", "her", "herself")}


def make_poem(rng: random.Random) -> Turns:
    """Ask for a short poem; the answer is two or three couplets on one theme."""
    theme = rng.choice(list(COUPLETS))
    ordered = sorted(rng.sample(range(len(COUPLETS[theme])), rng.randint(1, 3)))
    lines = [line for place in ordered for line in COUPLETS[theme][place]]
    subject = {"sea": "the sea", "rain": "the rain", "sun": "the sun", "night": "the night"}.get(theme, theme)
    if subject in ("cat", "dog", "friend", "tree", "book", "computer", "garden", "star"):
        subject = with_article(subject)
    ask = rng.choice(
        [
            "Write a poem about {s}.",
            "Write a short poem about {s}.",
            "Can you write a poem about {s}?",
            "Give me a rhyme about {s}.",
            "A poem about {s}, please.",
            "I would like a short poem about {s}.",
            "Please write a little rhyme about {s}.",
            "Make a poem about {s}.",
        ]
    ).format(s=subject)
    return [(dress(rng, ask, brief=False), "\n".join(lines))]


def make_story(rng: random.Random) -> Turns:
    """Ask for a short story; it is composed of an opening and the four steps of one plot."""
    (name, pronoun), (friend, _) = rng.sample(PEOPLE, 2)
    him, his, himself = PRONOUNS[pronoun]
    kind, friend_kind = rng.sample([kind for kind in STORY["kinds"] if kind not in ("girl", "boy")], 2)
    if rng.random() < 0.25:
        kind = "girl" if pronoun == "she" else "boy"
    plot = rng.choice(STORY["plots"])
    words = {
        "n": name,
        "n_he": pronoun,
        "N_he": capitalize(pronoun),
        "n_him": him,
        "n_his": his,
        "n_himself": himself,
        "f": friend,
        "f_a": f"{with_article(rng.choice(STORY['adjectives']))} {friend_kind}",
    }
    steps = [rng.choice(plot[step]).format(**words) for step in ("start", "middle", "turn", "end")]
    adjective, place, time = (rng.choice(STORY[key]) for key in ("adjectives", "places", "times"))
    opening = rng.choice(
        [
            f"Once upon a time, there was {with_article(adjective)} {kind} named {name} who lived {place}.",
            f"There once was {with_article(adjective)} {kind} called {name}. {capitalize(pronoun)} lived {place}.",
            f"{name} was {with_article(adjective)} {kind} who lived {place}.",
        ]
    )
    story = f"{opening} {time}, {steps[0]} {' '.join(capitalize(step) for step in steps[1:])}"
    ask = rng.choice(
        [
            "Tell me a story.",
            "Tell me a short story.",
            f"Tell me a story about {with_article(kind)}.",
            f"Write a short story about {with_article(kind)}.",
            f"A bedtime story about {with_article(kind)}, please.",
            f"Can you tell me a story about {with_article(kind)} named {name}?",
            "Tell me a bedtime story.",
            f"Write a story about {with_article(kind)} called {name}.",
            f"I want a story about {name} the {kind}.",
            f"Make up a story with {with_article(kind)} and {with_article(friend_kind)}.",
        ]
    )
    return [(dress(rng, ask, brief=False), story)]


def draw_message(rng: random.Random, other: str) -> tuple[str, str]:
    """Return what a message to `other` is about, and its text."""
    [day, second_day, food] = [*rng.sample(SLOTS["day"], 2), rng.choice(["cake", "dinner", "tea", "lunch", "coffee"])]
    hour = rng.randint(1, 11)
    minutes = rng.choice([5, 10, 15, 20, 30])
    gift = rng.choice(["book", "scarf", "plant", "picture", "letter", "cake"])
    task = rng.choice(["the report", "the presentation", "my homework", "the garden", "the new computer", "the plan"])
    place = rng.choice(["my house", "our garden", "the park", "our office", "the small cafe"])
    return rng.choice(
        [
            ("that says I am sick", "I am sick and cannot come in today. I hope to be back soon."),
            (f"to thank {other} for the {gift}", f"thank you very much for the {gift}. I like it a lot."),
            (
                f"to invite {other} for {food} on {day}",
                f"would you like to come to {place} for {food} on {day} at {hour} o'clock? I would be glad.",
            ),
            (
                f"that says I will be {minutes} minutes late",
                f"I will be about {minutes} minutes late. I am sorry for the wait.",
            ),
            (
                f"to move our meeting from {day} to {second_day}",
                f"I am sorry, but I cannot meet on {day}. Would {second_day} at {hour} o'clock be fine for you?",
            ),
            (
                "to wish a happy birthday",
                "happy birthday! I wish you a wonderful day and all the best.",
            ),
            (
                f"to ask {other} for help with {task}",
                f"could you please help me with {task}? I would be free on {day}.",
            ),
            ("to say sorry for a mistake", "I am sorry for my mistake. I will be more careful next time."),
            (f"to say that I can come on {day}", f"thank you for the invitation. I will be glad to come on {day}."),
            (
                f"to say that I cannot come on {day}",
                f"thank you for the invitation. Sadly I cannot come on {day}, but I hope to see you soon.",
            ),
            ("to congratulate on a new job", "congratulations on your new job! I wish you a good start."),
            (f"to ask for a day off on {day}", f"may I take a day off on {day}? I will finish my work before that."),
        ]
    )


def make_message(rng: random.Random) -> Turns:
    """Ask for a short polite message or email."""
    (other, _), (sender, _) = rng.sample(PEOPLE, 2)
    purpose, body = draw_message(rng, other)
    kind = rng.choice(["message", "email", "note", "short email", "short message", "polite email", "text message"])
    to_whom = "" if other in purpose else f" to {other}"
    question = f"Write {with_article(kind)}{to_whom} {purpose}."
    question = rng.choice([question, "Please w" + question[1:], "Can you w" + question[1:-1] + "?"])
    if rng.random() < 0.6:
        question += f" My name is {sender}."
        signature = sender
    else:
        signature = "[your name]"
    greeting = rng.choice(["Dear", "Hi", "Hello"])
    closing = rng.choice(["Best wishes", "Kind regards", "Best regards", "Many greetings", "Yours"])
    return [(question, f"{greeting} {other},\n\n{capitalize(body)}\n\n{closing},\n{signature}")]


KINDS: dict[str, tuple[float, Callable[[random.Random], Turns]]] = {
    "talk_poem": (2.0, make_poem),
    "talk_story": (5.0, make_story),
    "talk_message": (4.0, make_message),
}
