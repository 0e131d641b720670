"""Small talk from smalltalk.json: greetings, identity and limits, moods, memory of names, jokes and tips.

KINDS also holds the kinds of smalltalk_texts.
"""

import random
from collections.abc import Callable

from chat_makers import smalltalk_texts
from chat_makers.phrasing import capitalize, dress, lower_first
from chat_makers.smalltalk_texts import PEOPLE, PRONOUNS, SLOTS, TABLES

Turns = list[tuple[str, str]]
Maker = Callable[[random.Random], Turns]

INTENTS: dict[str, dict] = {intent["name"]: intent for intent in TABLES["intents"]}
TIPS: dict[str, list[str]] = TABLES["tips"]
JOKES: list[list[str]] = TABLES["jokes"]
RATHER: list[list[str]] = TABLES["rather"]
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
HELLOS = ["Hi", "Hello", "Hey", "Good morning", "Good evening", "Hi there", "Good afternoon"]
MARKS = ["", ".", "!", "."]
# Lines that may stand before or after a line of small talk without changing what it says.
BEFORE = [
    "Hi! ",
    "Hello! ",
    "Hey, ",
    "Hi, ",
    "Well, ",
    "So, ",
    "OK, ",
    "Good morning! ",
    "Good evening! ",
    "You know, ",
]
AFTER = [" What do you think?", " :)", " Just so you know.", " That is all.", " I wanted to tell you."]
QUESTION_INTENTS = {
    "identity",
    "abilities",
    "limits",
    "internet",
    "pictures",
    "today",
    "weather_now",
    "unanswerable",
    "made_by",
    "model_feelings",
    "model_likes",
    "language",
}
MOOD_INTENTS = [
    "user_sad",
    "user_stressed",
    "user_happy",
    "user_tired",
    "user_ill",
    "user_bored",
    "user_hobby",
    "user_food",
    "user_from",
    "user_weather",
    "user_plans",
]


def fill_slots(rng: random.Random, *texts: str) -> list[str]:
    """Return `texts` with one drawn value per slot, the same value in all of them."""
    values = {slot: rng.choice(words) for slot, words in SLOTS.items()}
    values |= {capitalize(slot): capitalize(values[slot]) for slot in SLOTS}
    return [text.format(**values) if "{" in text else text for text in texts]


def typed(rng: random.Random, line: str, with_name: bool = True) -> str:
    """Return a line of small talk as somebody might type it: with a mark, a name of the model, or in lower case."""
    if line[-1].isalnum():
        line += rng.choice(MARKS)
    draw = rng.random()
    if draw < 0.12 and with_name:
        return rng.choice(BEFORE) + lower_first(line)
    if draw < 0.22:
        return line.lower()
    if draw < 0.28 and line.endswith("?"):
        return line[:-1]
    return line


def intent_turn(rng: random.Random, name: str) -> tuple[str, str]:
    """Return one line of an intent and one of its replies."""
    intent = INTENTS[name]
    line, reply = fill_slots(rng, rng.choice(intent["says"]), rng.choice(intent["replies"]))
    if name in QUESTION_INTENTS:
        return dress(rng, line), reply
    line = typed(rng, line, with_name=name.startswith("user_"))
    if name.startswith("user_") and line[-1:] in ".!" and rng.random() < 0.1:
        line += rng.choice(AFTER)
    return line, reply


def intent_maker(name: str) -> Maker:
    """Return the maker of a single exchange of intent `name`."""
    return lambda rng: [intent_turn(rng, name)]


def make_named_greeting(rng: random.Random) -> Turns:
    """Greet with a name; the answer uses it."""
    name, _ = rng.choice(PEOPLE)
    line = rng.choice(
        [
            "{h}, I am {n}",
            "{h}, my name is {n}",
            "My name is {n}",
            "I'm {n}",
            "{h}! I'm {n}",
            "I am {n}, nice to meet you",
            "{h}, {n} here",
            "You can call me {n}",
            "People call me {n}",
            "{h}! My name is {n}, and who are you?",
        ]
    ).format(h=rng.choice(HELLOS), n=name)
    reply = rng.choice(
        [
            "Nice to meet you, {n}!",
            "Hello {n}! How can I help you?",
            "Hi {n}, nice to meet you. What can I do for you?",
            "Hello {n}! What would you like to talk about?",
            "Welcome, {n}! Ask me anything simple.",
        ]
    ).format(n=name)
    if "who are you" in line:
        reply = f"Nice to meet you, {name}! I am elmoe's tiny model, a very small language model on your machine."
    return [(typed(rng, line, with_name=False) if rng.random() < 0.6 else line, reply)]


def draw_memory(rng: random.Random) -> tuple[str, str, str, str]:
    """Return something the user tells, the reply, a later question on it and the answer."""
    name, pronoun = rng.choice(PEOPLE)
    [color, food, city, hobby, day] = fill_slots(rng, "{color}", "{food}", "{city}", "{hobby}", "{day}")
    age = rng.randint(7, 80)
    other = rng.choice(PEOPLE)[0]
    relative = rng.choice(["sister", "daughter", "mother"] if pronoun == "she" else ["brother", "son", "father"])
    pet = rng.choice(["dog", "cat", "rabbit", "hamster", "parrot"])
    return rng.choice(
        [
            (f"My name is {name}.", f"Nice to meet you, {name}!", "What is my name?", f"Your name is {name}."),
            (
                f"I am {name}.",
                f"Hello {name}! How can I help?",
                "Do you remember my name?",
                f"Yes, your name is {name}.",
            ),
            (
                f"My favorite color is {color}.",
                f"{capitalize(color)} is a nice color!",
                "What is my favorite color?",
                f"Your favorite color is {color}.",
            ),
            (
                f"I live in {city}.",
                f"How nice! What do you like about {city}?",
                "Where do I live?",
                f"You live in {city}.",
            ),
            (f"I am {age} years old.", "Thank you for telling me.", "How old am I?", f"You are {age} years old."),
            (
                f"I have a {pet} called {other}.",
                f"{other} is a lovely name for a {pet}!",
                f"What is my {pet} called?",
                f"Your {pet} is called {other}.",
            ),
            (
                f"My {relative} is called {name}.",
                f"{name} is a nice name.",
                f"What is the name of my {relative}?",
                f"Your {relative} is called {name}.",
            ),
            (
                f"I love {hobby}.",
                f"{capitalize(hobby)} sounds like fun!",
                "What do I love to do?",
                f"You love {hobby}.",
            ),
            (
                f"My favorite food is {food}.",
                "Yum, good choice!",
                "What is my favorite food?",
                f"Your favorite food is {food}.",
            ),
            (
                f"My birthday is on {day}.",
                "I hope you will have a lovely birthday!",
                "When is my birthday?",
                f"You said that your birthday is on {day}.",
            ),
            (
                f"My lucky number is {age}.",
                f"{age} is a good number!",
                "What is my lucky number?",
                f"Your lucky number is {age}.",
            ),
        ]
    )


def make_memory(rng: random.Random) -> Turns:
    """Tell something, talk about something else, and ask for what was told."""
    line, reply, question, answer = draw_memory(rng)
    if rng.random() < 0.3:
        line = f"{rng.choice(HELLOS)}! {line}"
    turns = [(line, reply)]
    for _ in range(rng.choice([0, 1, 1, 2])):
        if rng.random() < 0.5:
            turns.append(
                intent_turn(rng, rng.choice(["how_are_you", "abilities", "compliment", "thanks", "user_weather"]))
            )
        else:
            second = draw_memory(rng)
            if second[2].split()[-1] != question.split()[-1] and second[0].split()[1] != line.split()[1]:
                turns.append((second[0], second[1]))
    question = rng.choice(["", "", "", "So, ", "Now tell me: ", "By the way, "]) + question
    turns.append(
        (
            question
            if question[0].isupper() and "," not in question and ":" not in question
            else lowered_after(question),
            answer,
        )
    )
    return turns[-4:] if turns[-4:][0] == turns[0] else [turns[0], *turns[-3:]]


def lowered_after(question: str) -> str:
    """Return `question` with a small letter after its opener."""
    for mark in (", ", ": "):
        head, found, tail = question.partition(mark)
        if found:
            return head + mark + lower_first(tail)
    return question


def make_pet_talk(rng: random.Random) -> Turns:
    """Talk about a pet over three turns."""
    name, pronoun = rng.choice(PEOPLE)
    him, his, _ = PRONOUNS[pronoun]
    pet = rng.choice(["dog", "cat", "rabbit", "hamster", "parrot", "puppy", "kitten"])
    likes = rng.choice(["to sleep", "to play", "to eat", "to run around", "to look out of the window", "to hide"])
    age = rng.randint(2, 14)
    turns = [
        (
            rng.choice([f"I have a {pet}.", f"We have a {pet}.", f"I got a {pet} last year."]),
            rng.choice(["How nice! What is its name?", "Lovely! What is its name?"]),
        ),
        (
            rng.choice([f"{capitalize(his)} name is {name}.", f"{name}.", f"It is called {name}."]),
            f"{name} is a good name! What does {pronoun} like to do?"
            if rng.random() < 0.5
            else f"{name} is a nice name. How old is {pronoun}?",
        ),
    ]
    if "How old" in turns[1][1]:
        turns.append(
            (f"{capitalize(pronoun)} is {age} years old.", f"I hope {name} will have many more happy years with you!")
        )
    else:
        turns.append(
            (f"{capitalize(pronoun)} likes {likes}.", f"That sounds like a happy {pet}! Give {him} my greetings.")
        )
    if rng.random() < 0.4:
        turns.append((f"What is the name of my {pet}?", f"Your {pet} is called {name}."))
    return turns


def make_casual(rng: random.Random) -> Turns:
    """Chat over two to four turns: a greeting, a mood, perhaps thanks and goodbye."""
    turns = []
    if rng.random() < 0.7:
        turns += make_named_greeting(rng) if rng.random() < 0.4 else [intent_turn(rng, "greeting")]
    if rng.random() < 0.3 or not turns:
        turns.append(intent_turn(rng, "how_are_you"))
    turns.append(intent_turn(rng, rng.choice(MOOD_INTENTS)))
    if rng.random() < 0.5:
        turns.append(intent_turn(rng, rng.choice(["thanks", "goodbye", "identity", "abilities", "thanks"])))
    return turns[:4]


def make_interview(rng: random.Random) -> Turns:
    """Ask the model about itself over two to four turns."""
    names = rng.sample([*sorted(QUESTION_INTENTS), "how_are_you", "compliment", "criticism"], rng.randint(2, 3))
    turns = [intent_turn(rng, name) for name in names]
    if rng.random() < 0.3:
        turns.insert(0, intent_turn(rng, "greeting"))
    elif rng.random() < 0.3:
        turns.append(intent_turn(rng, rng.choice(["thanks", "goodbye"])))
    return turns


def make_joke(rng: random.Random) -> Turns:
    """Ask for a joke, or play a riddle over two turns."""
    question, answer = rng.choice(JOKES)
    is_riddle = (question.startswith("What ") and " has " in question) or "gets" in question
    ask = rng.choice(
        [
            "Tell me a joke",
            "Do you know a joke?",
            "Make me laugh",
            "Say something funny",
            "I want to hear a joke",
            "Can you tell me a joke?",
            "Tell me something funny",
            "Another joke, please",
        ]
    )
    if is_riddle and rng.random() < 0.7:
        ask = rng.choice(
            [
                "Tell me a riddle",
                "Give me a riddle",
                "Do you know a riddle?",
                "I want a riddle",
                "Can you give me a riddle?",
                "Ask me a riddle",
            ]
        )
    if rng.random() < 0.45:
        guess = rng.choice(["I don't know", "No idea", "Tell me", "What is it?" if is_riddle else "Why?", "I give up"])
        if not is_riddle and guess == "Why?" and not question.startswith("Why"):
            guess = "What?"
        return [(typed(rng, ask), question), (typed(rng, guess, with_name=False), answer)]
    if rng.random() < 0.25:
        return [(dress(rng, question), answer)]
    return [(typed(rng, ask), f"{question} {answer}")]


def make_rather(rng: random.Random) -> Turns:
    """Ask what the model would rather do; it names one of the two with a reason."""
    (first, reason), (second, _) = rng.sample(RATHER, 2)
    options = [first, second]
    rng.shuffle(options)
    question = rng.choice(
        ["Would you rather {a} or {b}?", "What would you rather do: {a} or {b}?", "Which is better: to {a} or to {b}?"]
    ).format(a=options[0], b=options[1])
    answer = rng.choice(
        [
            f"I am only a program, but I would say: {first}, because {reason}.",
            f"To {first} sounds better to me, because {reason}. What about you?",
            f"I would choose to {first}, because {reason}.",
            f"A hard choice! I would rather {first}, because {reason}.",
        ]
    )
    return [(dress(rng, question), answer)]


def make_tips(rng: random.Random) -> Turns:
    """Ask for tips on a topic."""
    topic = rng.choice(list(TIPS))
    number = rng.randint(2, 5)
    tips = rng.sample(TIPS[topic], number)
    word = NUMBERS[number]
    verb_topic = not topic.startswith(("cook for",))
    asks = [
        f"How can I {topic}?",
        f"How do I {topic}?",
        f"Give me some tips to {topic}.",
        f"I want to {topic}. Any tips?",
        f"What helps to {topic}?",
        f"Do you have advice on how to {topic}?",
        f"I would like to {topic}. What can I do?",
    ]
    counted = [
        f"Give me {word} tips to {topic}.",
        f"Name {word} ways to {topic}.",
        f"List {word} tips to {topic}.",
        f"What are {word} good tips to {topic}?",
    ]
    if not verb_topic:
        asks, counted = ["How do I start cooking?", "Any tips for cooking?"], [f"Give me {word} tips for new cooks."]
    if rng.random() < 0.4:
        numbered = "\n".join(f"{place}. {tip}." for place, tip in enumerate(tips, 1))
        return [(dress(rng, rng.choice(counted), brief=False), numbered)]
    shown = tips[: rng.randint(2, 3)]
    links = [rng.choice(["", "Also, ", "It also helps if you ", "You can also "]) for _ in shown]
    sentences = [shown[0] + "."]
    for link, tip in zip(links[1:], shown[1:], strict=True):
        negative = tip.startswith("Do not")
        text = tip[:1].lower() + tip[1:] if link else tip
        sentences.append(f"Also, {tip[:1].lower() + tip[1:]}." if negative else f"{link}{text}.")
    return [(dress(rng, rng.choice(asks), brief=False), " ".join(sentences))]


KINDS: dict[str, tuple[float, Maker]] = {
    **{f"talk_{name}": (intent["weight"], intent_maker(name)) for name, intent in INTENTS.items()},
    "talk_named_greeting": (2.5, make_named_greeting),
    "talk_memory": (5.0, make_memory),
    "talk_pet": (2.0, make_pet_talk),
    "talk_casual": (6.0, make_casual),
    "talk_interview": (6.0, make_interview),
    "talk_joke": (2.5, make_joke),
    "talk_rather": (2.0, make_rather),
    "talk_tips": (5.0, make_tips),
    **smalltalk_texts.KINDS,
}
