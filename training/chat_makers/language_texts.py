"""Short texts: extraction, passages with questions, summaries, sentiment, comparisons of people."""

import json
import random

from chat_makers.language_sentences import ACTIONS, LISTS, PARTS, part, past
from chat_makers.language_words import COMPARATIVES, TABLES
from chat_makers.words import CITIES, JOBS, NAMED, NAMES, NOUNS, SURNAMES, Turns, capitalize, with_article

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]

# From 19 to 79 every number takes "a" ("a 34-year-old"), unlike 18 and 80.
AGES = range(19, 80)


def extract(rng: random.Random) -> Turns:
    """Return name, age, city or job taken out of a sentence, as text or JSON."""
    name = rng.choice(NAMES) + (f" {rng.choice(SURNAMES)}" if rng.random() < 0.5 else "")
    age, city, job = rng.choice(AGES), rng.choice(CITIES), rng.choice(JOBS)
    text = rng.choice(
        (
            f"{name} is a {age}-year-old {job} from {city}.",
            f"{name} is {age} years old, lives in {city} and works as {with_article(job)}.",
            f"My name is {name}. I am {age} years old and I work as {with_article(job)} in {city}.",
            f"{name}, {age}, works as {with_article(job)} in {city}.",
            f"Hello, I am {name}, {with_article(job)} from {city}, and I am {age}.",
            f"In {city} lives {name}, {with_article(job)} who is {age} years old.",
        )
    )
    values = {"name": name, "age": age, "city": city, "job": job}
    keys = rng.sample(list(values), rng.choice((1, 2, 3, 4)))
    if rng.random() < 0.4:
        data = json.dumps({key: values[key] for key in keys})
        names = ", ".join(keys[:-1]) + (" and " if len(keys) > 1 else "") + keys[-1]
        asks = (
            f"Extract the {names} as JSON: {text}",
            f"Write the {names} as JSON: {text}",
            f"{text}\nGive me the {names} as JSON.",
            f"Turn this into JSON with {names}: {text}",
            f"{text} Return {names} as JSON.",
        )
        return [(rng.choice(asks), rng.choice((f"```json\n{data}\n```", data)))]
    return extract_text(rng, text, values, keys)


def extract_text(rng: random.Random, text: str, values: dict, keys: list[str]) -> Turns:
    """Return one value as the first turn and the others as follow-ups."""
    ask = {
        "name": ["What is the name of the person?", "What is the person's name?", "Extract the name."],
        "age": ["How old is this person?", "What is the age?", "Extract the age."],
        "city": ["Which city is named?", "What city is it?", "Extract the city."],
        "job": ["What is the job of this person?", "What is the job?", "Extract the job."],
    }
    say = {"name": "The name is {}.", "age": "The age is {}.", "city": "The city is {}.", "job": "The job is {}."}
    turns = []
    for key in keys[:3]:
        question = rng.choice(ask[key])
        if not turns:
            question = f"{text} {question}" if rng.random() < 0.7 else f"{question} {text}"
        turns.append((question, rng.choice((say[key].format(values[key]), f"{capitalize(str(values[key]))}."))))
    return turns


ASKS = {entry["text"]: [tuple(ask.split("=")) for ask in entry["asks"]] for entry in PARTS["passages"]}


def passage_words(rng: random.Random) -> dict[str, str]:
    """Return the slots of a short text about one person."""
    who, friend = rng.sample(NAMED, 2)
    pet, other_pet = rng.sample(LISTS["pets"], 2)
    job, other_job = rng.sample(JOBS, 2)
    city, city2 = rng.sample(CITIES, 2)
    age, age2 = rng.sample(range(20, 80), 2)
    color, time = part(rng, "colors"), part(rng, "past_times")
    verb, rest = rng.choice(ACTIONS)
    return {
        "n": who.first,
        "he": who.he,
        "He": capitalize(who.he),
        "his": who.his,
        "His": capitalize(who.his),
        "m": friend.first,
        "city": city,
        "city2": city2,
        "age": str(age),
        "age2": str(age2),
        "a_job": with_article(job),
        "a_job2": with_article(other_job),
        "pet": pet,
        "a_pet": with_article(pet),
        "a_pet2": with_article(other_pet),
        "pet_name": part(rng, "pet_names"),
        "color": color,
        "a_color": with_article(color),
        "food": part(rng, "foods"),
        "hobby": part(rng, "hobbies"),
        "subject": part(rng, "subjects"),
        "day": rng.choice(DAYS),
        "verb": verb,
        "rest": rest,
        "past": past(verb),
        "time": time,
        "Time": capitalize(time),
        "number": rng.choice(("two", "three", "four", "five")),
    }


def passage(rng: random.Random) -> tuple[str, list[tuple[str, str]]]:
    """Return a short text about one person, with questions and answers on it."""
    words = passage_words(rng)
    texts = rng.sample(list(ASKS), rng.choice((2, 3, 3, 4)))
    if all("{His}" in text for text in texts):
        texts.append("{S} lives in {city}.")
    texts.sort(key=lambda text: "{His}" in text)
    sentences, asked = [], []
    for place, text in enumerate(texts):
        names = {"S": words["n"], "s": words["n"]} if place == 0 else {"S": words["He"], "s": words["he"]}
        sentences.append(text.format_map(words | names))
        asked += ASKS[text]
    return " ".join(sentences), [(ask.format_map(words), say.format_map(words)) for ask, say in asked]


UNKNOWN = [
    "How tall is this person?",
    "What is the name of the mother?",
    "What is the phone number?",
    "What is the shoe size?",
    "What does the house look like?",
    "Which car does this person drive?",
]
PASSAGE_FRAMES = [
    "{t} {q}",
    "{t}\n{q}",
    "{t}\n\n{q}",
    "Text: {t} Question: {q}",
    "Read this: {t} {q}",
    "{q} {t}",
    "Here is a text: {t} {q}",
    "Answer from this text. {t} {q}",
]


def passage_question(rng: random.Random) -> Turns:
    """Return a short text with one to three questions on it, some of which it does not answer."""
    text, asked = passage(rng)
    questions = rng.sample(asked, rng.choice((1, 1, 2, 3)) if len(asked) > 2 else 1)
    if rng.random() < 0.1:
        questions.append((rng.choice(UNKNOWN), rng.choice(("The text does not say.", "That is not in the text."))))
    first = questions[0]
    frame = rng.choice(PASSAGE_FRAMES)
    return [(frame.format(t=text, q=first[0]), first[1]), *questions[1:]]


OUTDOOR_VERBS = ("play", "ride", "walk", "swim", "run", "fly", "plant", "climb", "cut")
OUTDOORS = [action for action in ACTIONS if action[0] in OUTDOOR_VERBS and action[1] != "the piano"]
A_JOBS = [job for job in JOBS if with_article(job).startswith("a ")]


def summary(rng: random.Random) -> Turns:
    """Return a two-sentence text with its one-sentence summary."""
    entry = rng.choice(PARTS["summaries"])
    who, other = rng.sample(NAMED, 2)
    city, city2 = rng.sample(CITIES, 2)
    verb, rest = rng.choice(OUTDOORS)
    job = rng.choice(A_JOBS)
    words = {
        "N": who.first,
        "he": who.he,
        "He": capitalize(who.he),
        "his": who.his,
        "him": who.him,
        "m": other.first,
        "his2": other.his,
        "city": city,
        "city2": city2,
        "thing": rng.choice(NOUNS["house"] + NOUNS["school"]).one,
        "pet": part(rng, "pets"),
        "day": rng.choice(DAYS),
        "subject": part(rng, "subjects"),
        "hobby": part(rng, "hobbies"),
        "food": part(rng, "foods"),
        "job": job,
        "act": f"{verb} {rest}",
    }
    text = entry["text"].format_map(words)
    asks = (
        "Summarize this in one sentence: {}",
        "Summarize: {}",
        "Make this shorter: {}",
        "Give me a short summary: {}",
        "{}\nSummarize this.",
        "Say this in one sentence: {}",
        "What is this text about? {}",
        "Shorten this text: {}",
        "Write a one-sentence summary: {}",
    )
    return [(rng.choice(asks).format(text), rng.choice(entry["short"]).format_map(words))]


TOPICS = TABLES["sentiment"]["topics"].split()


def sentiment(rng: random.Random) -> Turns:
    """Return whether a sentence is positive, negative or neutral."""
    mood = rng.choice(("positive", "negative", "positive", "negative", "neutral"))
    texts = rng.sample(TABLES["sentiment"][mood], 2)
    topic = rng.choice(TOPICS)
    text = texts[0].format(x=topic)
    if rng.random() < 0.25 and mood != "neutral":
        text += " " + texts[1].format(x=topic)
    kinds = "positive, negative or neutral" if mood == "neutral" or rng.random() < 0.3 else "positive or negative"
    asks = (
        f"Is this {kinds}? {text}",
        f'Is "{text}" {kinds}?',
        f"What is the sentiment of this sentence? {text}",
        f"Classify as {kinds}: {text}",
        f"Is this review {kinds}: {text}",
        f"Sentiment: {text}",
        f"Tell me if this is {kinds}: {text}",
        f"How does the writer feel? {text}",
    )
    answers = (f"{capitalize(mood)}.", f"It is {mood}.", f"The sentence is {mood}.", f"This is {mood}.")
    question = rng.choice(asks)
    if question.startswith("How"):
        feeling = {"positive": "is pleased", "negative": "is not pleased", "neutral": "shows no feeling"}[mood]
        return [(question, f"The writer {feeling}. The sentence is {mood}.")]
    return [(question, rng.choice(answers))]


REVERSED = {
    "tall": "short",
    "short": "tall",
    "old": "young",
    "young": "old",
    "fast": "slow",
    "slow": "fast",
    "strong": "weak",
    "heavy": "light",
    "small": "big",
    "rich": "poor",
}
ORDER_WORDS = [word for word in COMPARATIVES if word[0] in REVERSED]


def who_is_taller(rng: random.Random) -> Turns:
    """Return a comparison of two or three people to conclude from."""
    base, more, most = rng.choice(ORDER_WORDS)
    opposite = REVERSED[base]
    less, least = next((entry[1], entry[2]) for entry in COMPARATIVES if entry[0] == opposite)
    a, b, c = rng.sample(NAMES, 3)
    first, second = f"{a} is {more} than {b}.", f"{b} is {more} than {c}."
    if rng.random() < 0.25:
        second = f"{c} is {less} than {b}."
    if rng.random() < 0.4:
        cases = [
            (f"{first} Who is {more}?", f"{a} is {more}."),
            (f"{first} Who is {less}?", f"{b} is {less}, because {a} is {more}."),
            (f"{first} Is {b} {more} than {a}?", f"No, {a} is {more} than {b}."),
            (f"{first} Is {b} {less} than {a}?", f"Yes, {a} is {more}, so {b} is {less}."),
        ]
        return [rng.choice(cases)]
    both = f"{first} {second}" if rng.random() < 0.6 else f"{second} {first}"
    chain = f"{a} is {more} than {b}, and {b} is {more} than {c}"
    turns = [
        (f"Who is the {most}?", f"{chain}, so {a} is the {most}."),
        (f"Who is the {least}?", f"{chain}, so {c} is the {least}."),
        (f"Is {a} {more} than {c}?", f"Yes. {chain}."),
        (f"Is {c} {more} than {a}?", f"No. {chain}, so {a} is {more} than {c}."),
        ("Who is in the middle?", f"{b} is in the middle: {chain}."),
    ]
    picked = rng.sample(turns, rng.choice((1, 1, 2)))
    return [(f"{both} {picked[0][0]}", picked[0][1]), *picked[1:]]


KINDS = {
    "extract": (3.0, extract),
    "passage_question": (4.0, passage_question),
    "summary": (1.5, summary),
    "sentiment": (1.5, sentiment),
    "who_is_taller": (2.0, who_is_taller),
}
