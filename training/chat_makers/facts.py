"""General knowledge from facts.json: relations asked in both directions, single facts, lists, comparisons, chains.

KINDS also holds the kinds of facts_countries, so that the driver needs only this module.
"""

import random
from collections.abc import Callable

from chat_makers import facts_countries
from chat_makers.facts_countries import TABLES, THANKS, WELCOMES
from chat_makers.phrasing import capitalize, dress, join_words, lower_first, plural_of, with_article, with_paraphrases

Turns = list[tuple[str, str]]

RELATIONS: list[dict] = TABLES["relations"]
QA: list[dict] = TABLES["qa"]
CATEGORIES: dict[str, list[str]] = TABLES["categories"]
SCALES: list[dict] = TABLES["scales"]
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
# Categories whose members take no article: "red is a color".
UNCOUNTED = ("color", "metal", "sport", "drink", "season", "planet", "programming language")
OVERLAPPING = (
    {"animal", "bird", "insect"},
    {"flower", "color", "fruit", "tree", "metal"},
    {"shape", "musical instrument"},
    {"fruit", "vegetable"},
    {"fruit", "drink"},
    {"toy", "animal"},
    {"planet", "metal"},
    {"sport", "job"},
)
# A follow-up on a word itself puts it in quotes: "And "mouse"?"
QUOTED_SUBJECT = ("ast tense", "simple past", "lural", "more than one", "pposite", "ntonym")
RELATION_WEIGHTS = [len(relation["rows"]) ** 0.8 for relation in RELATIONS]
REVERSIBLE = [relation for relation in RELATIONS if relation["reverse_questions"]]
REVERSIBLE_WEIGHTS = [len(relation["rows"]) ** 0.8 for relation in REVERSIBLE]
YES_NO = [relation for relation in RELATIONS if relation["yes_no"]]
YES_NO_WEIGHTS = [len(relation["rows"]) ** 0.8 for relation in YES_NO]
TOPICS = sorted({item["topic"] for item in QA})
SINGLES = [(with_paraphrases(item["questions"]), item["answer"]) for item in QA]
QA_OF_TOPIC = {topic: [item for item in QA if item["topic"] == topic] for topic in TOPICS}


def forms(row: dict[str, str], wrong: str = "") -> dict[str, str]:
    """Return the forms a template may ask for: a_ with article, p_ plural, upper-case names at a sentence start."""
    subject, value = row["s"], row["o"]
    plural = plural_of(subject)
    past = row.get("v", "")
    return {
        "s": subject,
        "U_s": capitalize(subject),
        "a_s": with_article(subject),
        "A_s": capitalize(with_article(subject)),
        "p_s": plural,
        "P_s": capitalize(plural),
        "o": value,
        "a_o": with_article(value),
        "w": wrong,
        "a_w": with_article(wrong) if wrong else "",
        "V_s": past,
        "s2": lower_first(past),
    }


def ask(rng: random.Random, questions: list[str], answers: list[str], row: dict[str, str]) -> tuple[str, str]:
    """Return one question and one answer on `row`, both begun in upper case."""
    words = forms(row)
    question = capitalize(rng.choice(questions).format(**words))
    return dress(rng, question), capitalize(rng.choice(answers).format(**words))


def make_relation(rng: random.Random) -> Turns:
    """Ask for the value of one row of a relation."""
    relation = rng.choices(RELATIONS, RELATION_WEIGHTS)[0]
    question, answer = ask(rng, relation["questions"], relation["answers"], rng.choice(relation["rows"]))
    return [(question, facts_countries.one_period(answer))]


def make_reverse(rng: random.Random) -> Turns:
    """Ask a relation backwards, for the subject with a given value."""
    relation = rng.choices(REVERSIBLE, REVERSIBLE_WEIGHTS)[0]
    return [ask(rng, relation["reverse_questions"], relation["reverse_answers"], rng.choice(relation["rows"]))]


def make_yes_no(rng: random.Random) -> Turns:
    """Ask whether a row holds, with its own value or with one of another row."""
    relation = rng.choices(YES_NO, YES_NO_WEIGHTS)[0]
    row = rng.choice(relation["rows"])
    avoided = relation.get("avoid_wrong", [])
    wrong = row["o"]
    if rng.random() < 0.55:
        drawn = rng.choice(relation["rows"])["o"]
        wrong = drawn if drawn not in avoided else wrong
    true_values = [other["o"] for other in relation["rows"] if other["s"] == row["s"]]
    word = "Yes" if wrong in true_values else "No"
    words = forms(row, wrong)
    if word == "Yes":
        words = forms({**row, "o": wrong}, wrong)
    question = capitalize(rng.choice(relation["yes_no"]).format(**words))
    answer = capitalize(relation["answers"][0].format(**words))
    return [(dress(rng, question), f"{word}, {lower_first(answer)}")]


def make_relation_chain(rng: random.Random) -> Turns:
    """Ask a relation, then "And a dog?" for one or two more rows."""
    relation = rng.choices(RELATIONS, RELATION_WEIGHTS)[0]
    while "{s2}" in relation["questions"][-1] or "{o}" in relation["questions"][0]:
        relation = rng.choices(RELATIONS, RELATION_WEIGHTS)[0]
    rows = rng.sample(relation["rows"], rng.randint(2, 3))
    question = rng.choice(relation["questions"])
    turns = [ask(rng, [question], relation["answers"], rows[0])]
    for row in rows[1:]:
        words = forms(row)
        form = next((name for name in ("a_s", "p_s") if "{" + name + "}" in question), "s")
        subject = f'"{words[form]}"' if '"{s}"' in question else words[form]
        if "baby {s}" in question or "young {s}" in question:
            subject = words["a_s"]
        if any(part in question for part in QUOTED_SUBJECT):
            subject = f'"{words["s"]}"'
        if " the {s}" in question:
            subject = "the " + words["s"]
        if question.lower().startswith("how many {s}") or "how many {s}" in question:
            subject = "how many " + words["s"]
        follow_up = rng.choice(["And {}?", "And {}?", "What about {}?", "OK, and {}?"])
        if subject.startswith("how many"):
            follow_up = "And {}?"
        turns.append((follow_up.format(subject), capitalize(rng.choice(relation["answers"]).format(**words))))
    if rng.random() < 0.15:
        turns.append((rng.choice(THANKS), rng.choice(WELCOMES)))
    return turns


def make_single(rng: random.Random) -> Turns:
    """Ask one of the single facts and explanations."""
    questions, answer = rng.choice(SINGLES)
    return [(dress(rng, rng.choice(questions)), answer)]


def make_single_chain(rng: random.Random) -> Turns:
    """Ask two or three single facts of one topic, one after the other."""
    items = rng.sample(QA_OF_TOPIC[rng.choice(TOPICS)], rng.randint(2, 3))
    turns = [(dress(rng, rng.choice(items[0]["questions"])), items[0]["answer"])]
    for item in items[1:]:
        link = rng.choice(["", "", "And ", "Thanks. ", "OK. ", "I see. ", "Interesting! ", "One more: "])
        question = rng.choice(item["questions"])
        if link in ("And ", "One more: "):
            question = lower_first(question)
        turns.append((link + question, item["answer"]))
    return turns


def make_list(rng: random.Random) -> Turns:
    """Ask for two to five examples of a category."""
    category = rng.choice(list(CATEGORIES))
    members = CATEGORIES[category]
    number = rng.choice([n for n in NUMBERS if n < len(members)])
    name = category_plural(category)
    question = rng.choice(
        [
            "Name {n} {c}.",
            "Give me {n} {c}.",
            "List {n} {c}.",
            "Can you name {n} {c}?",
            "Tell me {n} {c}.",
            "What are {n} examples of {c}?",
            "I need {n} {c}.",
            "Give me {n} examples of {c}.",
            "Which {n} {c} do you know?",
        ]
    ).format(n=NUMBERS[number], c=name)
    chosen = rng.sample(members, number)
    if rng.random() < 0.3:
        answer = "\n".join(f"{place}. {capitalize(item)}" for place, item in enumerate(chosen, 1))
    elif rng.random() < 0.5:
        shown = chosen if category in UNCOUNTED else [f"the {item}" for item in chosen]
        answer = f"{capitalize(NUMBERS[number])} {name} are {join_words(shown)}."
    else:
        answer = f"{capitalize(join_words(chosen))}."
    return [(dress(rng, question), answer)]


def category_plural(category: str) -> str:
    """Return the plural of a category name such as "piece of furniture"."""
    head, of, tail = category.partition(" of ")
    return plural_of(head) + of + tail if of else plural_of(category)


def overlap(first: str, second: str) -> bool:
    """Tell whether some word could belong to both categories, such as "orange" or "triangle"."""
    return any({first, second} <= group for group in OVERLAPPING)


def make_kind_of(rng: random.Random) -> Turns:
    """Ask what kind of thing a member of a category is, openly or as a choice."""
    category, other = rng.sample(list(CATEGORIES), 2)
    member = rng.choice(CATEGORIES[category])
    if member in CATEGORIES[other] or overlap(category, other):
        return make_list(rng)
    answer = f"{capitalize(member)} is {with_article(category)}."
    if member[0].islower() and category not in UNCOUNTED:
        answer = f"{capitalize(with_article(member))} is {with_article(category)}."
    named = answer.split(" is ")[0]
    named = lower_first(named)
    if category in UNCOUNTED:
        named = member
    first, second = rng.sample([category, other], 2)
    question = rng.choice(
        [
            f"What kind of thing is {named}?",
            f"Is {named} {with_article(first)} or {with_article(second)}?",
            f"Is {named} {with_article(first)} or {with_article(second)}?",
            f"Is {named} {with_article(first)}?",
        ]
    )
    if question.endswith(f"Is {named} {with_article(first)}?"):
        word = "Yes" if first == category else "No"
        answer = f"{word}, {lower_first(answer) if answer[0] == 'A' else named + answer[len(named) :]}"
    return [(dress(rng, question), answer)]


def make_odd_one_out(rng: random.Random) -> Turns:
    """Ask which of four words does not belong to the others."""
    category, other = rng.sample(list(CATEGORIES), 2)
    if overlap(category, other):
        return make_list(rng)
    odd = rng.choice([item for item in CATEGORIES[other] if item not in CATEGORIES[category]])
    words = [*rng.sample(CATEGORIES[category], 3), odd]
    rng.shuffle(words)
    question = rng.choice(
        [
            "Which word does not belong: {w}?",
            "Find the odd one out: {w}.",
            "Which one is different: {w}?",
            "Odd one out: {w}?",
            "Which of these does not fit: {w}?",
            "One of these words does not belong: {w}. Which one?",
        ]
    ).format(w=", ".join(words))
    answer = f"{capitalize(odd)} does not belong, because the others are {category_plural(category)}."
    return [(dress(rng, question), answer)]


def make_comparison(rng: random.Random) -> Turns:
    """Compare two or three things on a scale."""
    scale = rng.choice(SCALES)
    places = rng.sample(range(len(scale["items"])), rng.choice([2, 2, 3]))
    upward = rng.random() < 0.6
    winner_place = max(places) if upward else min(places)
    words = [scale["items"][place] for place in places]
    winner = scale["items"][winner_place]
    if len(words) == 3:
        degree = scale["most" if upward else "least"]
        question = rng.choice(["Which is {d}: {w}?", "What is {d}: {w}?", "{w}: which one is {d}?"])
        text = question.format(d=degree, w=join_words(words, "or"))
        return [(dress(rng, capitalize(text)), f"{capitalize(winner)} is {degree} of the three.")]
    degree = scale["more" if upward else "less"]
    loser = words[0] if words[1] == winner else words[1]
    answer = f"{capitalize(winner)} is {degree} than {loser}."
    if rng.random() < 0.35:
        word = "Yes" if words[0] == winner else "No"
        question = f"Is {words[0]} {degree} than {words[1]}?"
        answer = f"{word}, {winner} is {degree} than {loser}."
    else:
        question = rng.choice(["Which is {d}, {w}?", "What is {d}, {w}?", "Which one is {d}: {w}?"])
        question = question.format(d=degree, w=join_words(words, "or"))
    return [(dress(rng, question), answer)]


KINDS: dict[str, tuple[float, Callable[[random.Random], Turns]]] = {
    **facts_countries.KINDS,
    "fact_relation": (8.0, make_relation),
    "fact_reverse": (3.0, make_reverse),
    "fact_yes_no": (2.5, make_yes_no),
    "fact_relation_chain": (2.5, make_relation_chain),
    "fact_single": (9.0, make_single),
    "fact_single_chain": (4.0, make_single_chain),
    "fact_list": (2.0, make_list),
    "fact_kind_of": (1.5, make_kind_of),
    "fact_odd_one_out": (1.5, make_odd_one_out),
    "fact_comparison": (2.0, make_comparison),
}
