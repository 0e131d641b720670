"""Questions on countries from facts.json: capitals, continents, languages, currencies, neighbours, chains."""

import json
import random
from collections.abc import Callable
from pathlib import Path

from chat_makers.phrasing import capitalize, dress, join_words, lower_first

Turns = list[tuple[str, str]]
Country = dict

TABLES = json.loads((Path(__file__).parent / "facts.json").read_text(encoding="utf-8"))
COUNTRIES: list[Country] = TABLES["countries"]
WITH_CAPITAL = [country for country in COUNTRIES if country["capital"]]
WITH_CURRENCY = [country for country in COUNTRIES if country["currency"]]
WITH_NEIGHBOURS = [country for country in COUNTRIES if country["neighbours"]]
# Countries whose capital carries the same name: "Paris is the capital of which country?" is no question there.
REVERSIBLE = [country for country in WITH_CAPITAL if country["capital"] not in country["name"]]
CONTINENTS = ["Africa", "Asia", "Europe", "North America", "South America", "Oceania"]
# The countries that come up most often in talk are asked about more often.
WELL_KNOWN = {
    "France",
    "Germany",
    "Italy",
    "Spain",
    "Portugal",
    "the United Kingdom",
    "the United States",
    "Canada",
    "Mexico",
    "Brazil",
    "Argentina",
    "Chile",
    "Peru",
    "Colombia",
    "Japan",
    "China",
    "India",
    "South Korea",
    "Thailand",
    "Vietnam",
    "Indonesia",
    "Australia",
    "New Zealand",
    "Egypt",
    "Kenya",
    "Nigeria",
    "South Africa",
    "Morocco",
    "Ethiopia",
    "Ghana",
    "Russia",
    "Ukraine",
    "Poland",
    "the Netherlands",
    "Belgium",
    "Switzerland",
    "Austria",
    "Sweden",
    "Norway",
    "Denmark",
    "Finland",
    "Greece",
    "Turkey",
    "Ireland",
    "Hungary",
    "the Czech Republic",
    "Cuba",
    "Pakistan",
    "Iran",
    "Saudi Arabia",
    "the Philippines",
}
CAPITAL_NOTES = {
    "Bolivia": "The government sits in La Paz.",
    "South Africa": "Its parliament sits in Cape Town and its highest court of appeal in Bloemfontein.",
    "the Netherlands": "The government sits in The Hague.",
}

CAPITAL_QUESTIONS = [
    "What is the capital of {c}?",
    "What's the capital of {c}?",
    "Which city is the capital of {c}?",
    "Name the capital of {c}.",
    "What is the capital city of {c}?",
    "Do you know the capital of {c}?",
    "Can you tell me the capital of {c}?",
    "Tell me the capital of {c}.",
    "{C}: what is the capital?",
    "Capital of {c}?",
    "What city is the capital of {c}?",
    "What is the name of the capital of {c}?",
]
CAPITAL_ANSWERS = ["The capital of {c} is {k}.", "The capital of {c} is {k}.", "{k} is the capital of {c}."]
REVERSE_QUESTIONS = [
    "{k} is the capital of which country?",
    "Which country has {k} as its capital?",
    "Of which country is {k} the capital?",
    "What country is {k} the capital of?",
    "Whose capital is {k}?",
    "In which country is {k}?",
    "Where is {k}?",
    "Which country is {k} in?",
]
REVERSE_ANSWERS = ["{k} is the capital of {c}.", "{k} is in {c}. It is the capital.", "{k} is the capital city of {c}."]
CONTINENT_QUESTIONS = [
    "Which continent is {c} in?",
    "On which continent is {c}?",
    "What continent is {c} in?",
    "Where is {c}?",
    "On what continent does {c} lie?",
    "In which part of the world is {c}?",
    "Where in the world is {c}?",
    "Where would I find {c} on a map?",
]
LANGUAGE_QUESTIONS = [
    "What language do people speak in {c}?",
    "Which language is spoken in {c}?",
    "What language is spoken in {c}?",
    "What do people speak in {c}?",
    "What are the main languages of {c}?",
    "Which languages are spoken in {c}?",
    "What language should I learn for a trip to {c}?",
    "I am travelling to {c}. Which language do they speak there?",
]
CURRENCY_QUESTIONS = [
    "What is the currency of {c}?",
    "Which currency is used in {c}?",
    "What money do people use in {c}?",
    "What currency do they have in {c}?",
    "How do people pay in {c}, in which currency?",
    "Currency of {c}?",
    "I am travelling to {c}. Which currency do I need?",
    "What is the money of {c} called?",
]
NEIGHBOUR_QUESTIONS = [
    "Name a neighbour of {c}.",
    "Which country is next to {c}?",
    "What countries border {c}?",
    "Which countries are neighbours of {c}?",
    "Name a country that borders {c}.",
    "Who are the neighbours of {c}?",
]
ABOUT_QUESTIONS = [
    "Tell me about {c}.",
    "What do you know about {c}?",
    "Tell me something about {c}.",
    "Give me some facts about {c}.",
    "Describe {c} in a few words.",
    "What can you tell me about {c}?",
    "What is {c}?",
    "Where is {c}, and what is it like?",
    "I want to learn about {c}.",
    "Give me a short summary of {c}.",
]
THANKS = ["Thanks!", "Thank you.", "Great, thanks.", "OK, thank you!", "Thanks a lot."]
WELCOMES = ["You're welcome!", "You are welcome. Ask me anything else.", "Happy to help!", "My pleasure."]


def pick(rng: random.Random, countries: list[Country]) -> Country:
    """Return a country, a well-known one in more than half of the draws."""
    for _ in range(4):
        country = rng.choice(countries)
        if country["name"] in WELL_KNOWN or rng.random() < 0.25:
            break
    return country


def fill(template: str, country: Country) -> str:
    """Return `template` with {c} the name, {C} the name at a start, {k} the capital."""
    name = country["name"]
    return one_period(template.format(c=name, C=capitalize(name), k=country["capital"]))


def one_period(text: str) -> str:
    """Return `text` with one period where a sentence ends in "Washington, D.C."."""
    return text.replace("D.C..", "D.C.")


def capital_answer(rng: random.Random, country: Country) -> str:
    """Return the sentence that names the capital of `country`."""
    if country["capital"] == country["name"]:
        return f"{country['name']} is a city-state, so the country is its own capital."
    answer = fill(rng.choice(CAPITAL_ANSWERS), country)
    note = CAPITAL_NOTES.get(country["name"])
    return f"{answer} {note}" if note else answer


def continent_answer(country: Country) -> str:
    """Return the sentence that places `country`."""
    continent = country["continent"]
    if " and " in continent:
        return f"{capitalize(country['name'])} lies partly in {continent.replace(' and ', ' and partly in ')}."
    return f"{capitalize(country['name'])} is in {continent}."


def language_answer(rng: random.Random, country: Country) -> str:
    """Return the sentence on the languages of `country`."""
    languages = join_words(country["languages"])
    if len(country["languages"]) > 1:
        return f"The main languages of {country['name']} are {languages}."
    return rng.choice(
        [
            f"People in {country['name']} speak mainly {languages}.",
            f"The main language of {country['name']} is {languages}.",
        ]
    )


def currency_answer(country: Country) -> str:
    """Return the sentence on the currency of `country`."""
    return f"The currency of {country['name']} is {country['currency']}."


def neighbour_answer(country: Country) -> str:
    """Return the sentence on the neighbours of `country`."""
    neighbours = country["neighbours"]
    if len(neighbours) == 1:
        return f"{capitalize(country['name'])} borders {neighbours[0]}."
    return f"Among the neighbours of {country['name']} are {join_words(neighbours)}."


def make_capital(rng: random.Random) -> Turns:
    """Ask for the capital of a country."""
    country = pick(rng, WITH_CAPITAL)
    return [(dress(rng, fill(rng.choice(CAPITAL_QUESTIONS), country)), capital_answer(rng, country))]


def make_reverse_capital(rng: random.Random) -> Turns:
    """Ask which country a capital belongs to."""
    country = pick(rng, REVERSIBLE)
    return [(dress(rng, fill(rng.choice(REVERSE_QUESTIONS), country)), fill(rng.choice(REVERSE_ANSWERS), country))]


def make_yes_no(rng: random.Random) -> Turns:
    """Ask whether a city is the capital of a country."""
    country = pick(rng, REVERSIBLE)
    question = rng.choice(
        [
            "Is {city} the capital of {c}?",
            "Is the capital of {c} {city}?",
            "Is it true that {city} is the capital of {c}?",
            "{city} is the capital of {c}, right?",
        ]
    )
    if rng.random() < 0.5:
        city = country["capital"]
        answer = f"Yes, {city} is the capital of {country['name']}."
    else:
        other = pick(rng, [item for item in rng.sample(REVERSIBLE, 12) if item is not country])
        city = other["capital"]
        name, capital = country["name"], country["capital"]
        answer = rng.choice(
            [
                f"No, the capital of {name} is {capital}. {city} is the capital of {other['name']}.",
                f"No, {city} is the capital of {other['name']}. The capital of {name} is {capital}.",
                f"No, the capital of {name} is {capital}.",
            ]
        )
    return [(dress(rng, question.format(city=city, c=country["name"])), one_period(answer))]


def make_continent(rng: random.Random) -> Turns:
    """Ask on which continent a country lies, openly or as a yes/no question."""
    country = pick(rng, COUNTRIES)
    answer = continent_answer(country)
    if rng.random() < 0.6:
        return [(dress(rng, fill(rng.choice(CONTINENT_QUESTIONS), country)), answer)]
    continent = rng.choice(CONTINENTS)
    if rng.random() < 0.5 and country["continent"] in CONTINENTS:
        continent = country["continent"]
    question = rng.choice(["Is {c} in {x}?", "Is {c} a country in {x}?", "Does {c} lie in {x}?"])
    word = "Yes" if continent in country["continent"] else "No"
    return [(dress(rng, question.format(c=country["name"], x=continent)), f"{word}, {lower_first(answer)}")]


def make_language(rng: random.Random) -> Turns:
    """Ask for the languages of a country, or for countries with a language."""
    country = pick(rng, COUNTRIES)
    if rng.random() < 0.8:
        question = fill(rng.choice(LANGUAGE_QUESTIONS), country)
        return [(dress(rng, question), language_answer(rng, country))]
    language = rng.choice(country["languages"])
    speakers = [item["name"] for item in COUNTRIES if language in item["languages"]]
    chosen = rng.sample(speakers, min(len(speakers), rng.randint(1, 3)))
    question = rng.choice(
        [
            "Where do people speak {x}?",
            "In which country do people speak {x}?",
            "Where is {x} spoken?",
            "Name a country where people speak {x}.",
        ]
    )
    tail = ", for example" if len(speakers) > len(chosen) else ""
    return [(dress(rng, question.format(x=language)), f"People speak {language} in {join_words(chosen)}{tail}.")]


def make_currency(rng: random.Random) -> Turns:
    """Ask for the currency of a country."""
    country = pick(rng, WITH_CURRENCY)
    return [(dress(rng, fill(rng.choice(CURRENCY_QUESTIONS), country)), currency_answer(country))]


def make_neighbours(rng: random.Random) -> Turns:
    """Ask for the neighbours of a country."""
    country = pick(rng, WITH_NEIGHBOURS)
    return [(dress(rng, fill(rng.choice(NEIGHBOUR_QUESTIONS), country)), neighbour_answer(country))]


def make_about(rng: random.Random) -> Turns:
    """Ask for a short description of a country."""
    country = pick(rng, WITH_CAPITAL)
    sentences = [continent_answer(country)]
    if country["continent"] in CONTINENTS and rng.random() < 0.6:
        sentences = [f"{capitalize(country['name'])} is a country in {country['continent']}."]
    if country["capital"] != country["name"]:
        sentences.append(f"Its capital is {country['capital']}.")
    languages = join_words(country["languages"])
    more = [f"People there speak {'mainly ' if len(country['languages']) == 1 else ''}{languages}."]
    if country["currency"]:
        more.append(f"The currency is {country['currency']}.")
    if country["neighbours"]:
        borders = "It borders" if len(country["neighbours"]) == 1 else "Its neighbours include"
        more.append(f"{borders} {join_words(country['neighbours'])}.")
    rng.shuffle(more)
    question = fill(rng.choice(ABOUT_QUESTIONS), country)
    return [(dress(rng, question), one_period(" ".join(sentences + more[: rng.randint(1, len(more))])))]


def make_examples(rng: random.Random) -> Turns:
    """Ask for some countries of a continent, or which of three countries lies there."""
    continent = rng.choice(CONTINENTS)
    inside = [item["name"] for item in COUNTRIES if item["continent"] == continent]
    if rng.random() < 0.5:
        word, number = rng.choice([("two", 2), ("three", 3), ("four", 4), ("five", 5)])
        question = rng.choice(
            [
                "Name {n} countries in {x}.",
                "Give me {n} countries in {x}.",
                "List {n} countries in {x}.",
                "Can you name {n} countries in {x}?",
                "Which {n} countries in {x} do you know?",
            ]
        )
        answer = f"{word} countries in {continent} are {join_words(rng.sample(inside, number))}."
        return [(dress(rng, question.format(n=word, x=continent)), capitalize(answer))]
    right = rng.choice(inside)
    outside = [item["name"] for item in rng.sample(COUNTRIES, 20) if continent not in item["continent"]]
    options = [right, *outside[:2]]
    rng.shuffle(options)
    question = rng.choice(
        ["Which of these countries is in {x}: {o}?", "Which country is in {x}: {o}?", "{o}: which of them is in {x}?"]
    )
    text = capitalize(question.format(x=continent, o=join_words(options, "or")))
    return [(dress(rng, text), f"{capitalize(right)} is in {continent}.")]


def make_chain(rng: random.Random) -> Turns:
    """Talk over two to four turns about one or two countries; later questions say "there" or "and of Italy?"."""
    country = pick(rng, REVERSIBLE)
    turns = [(dress(rng, fill(rng.choice(CAPITAL_QUESTIONS), country)), fill(CAPITAL_ANSWERS[0], country))]
    asked_capital = True
    steps = rng.sample(["other", "language", "currency", "continent", "neighbours"], rng.randint(1, 3))
    for step in sorted(steps, key="other".__eq__, reverse=True) if rng.random() < 0.6 else steps:
        if step == "other" and asked_capital:
            country = pick(rng, REVERSIBLE)
            question = rng.choice(["And of {c}?", "And the capital of {c}?", "What about {c}?", "And {c}?"])
            turns.append((fill(question, country), fill(CAPITAL_ANSWERS[0], country)))
            continue
        asked_capital = False
        follow_up = follow_up_turn(rng, step, country)
        if follow_up:
            turns.append(follow_up)
    if rng.random() < 0.15:
        turns.append((rng.choice(THANKS), rng.choice(WELCOMES)))
    return turns[:4]


def follow_up_turn(rng: random.Random, step: str, country: Country) -> tuple[str, str] | None:
    """Return a question that needs the turn before it, with its answer; None if the table lacks the fact."""
    if step == "language":
        question = rng.choice(
            [
                "What language do they speak there?",
                "Which language do people speak there?",
                "And what do people speak there?",
                "What is the main language there?",
            ]
        )
        return question, language_answer(rng, country)
    if step == "currency" and country["currency"]:
        question = rng.choice(
            [
                "And the currency?",
                "What currency do they use there?",
                "What money do they use there?",
                "How do people pay there?",
            ]
        )
        return question, currency_answer(country)
    if step == "continent":
        question = rng.choice(
            ["Which continent is that in?", "On which continent is it?", "Where is that country?", "And the continent?"]
        )
        return question, continent_answer(country)
    if step == "neighbours" and country["neighbours"]:
        question = rng.choice(
            ["Which countries are next to it?", "Does it have neighbours?", "Name a neighbour of it."]
        )
        return question, neighbour_answer(country)
    return None


KINDS: dict[str, tuple[float, Callable[[random.Random], Turns]]] = {
    "country_capital": (3.0, make_capital),
    "country_of_capital": (2.0, make_reverse_capital),
    "country_capital_yes_no": (1.5, make_yes_no),
    "country_continent": (1.5, make_continent),
    "country_language": (1.5, make_language),
    "country_currency": (1.2, make_currency),
    "country_neighbours": (0.7, make_neighbours),
    "country_about": (1.5, make_about),
    "country_examples": (1.0, make_examples),
    "country_chain": (2.5, make_chain),
}
