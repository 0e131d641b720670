"""How people ask: openers, missing question marks, lower case, other wordings; and small grammar helpers."""

import random

# Openers that go with anything, and openers that go only with a question.
PREFIXES = [
    "Hi! ",
    "Hello! ",
    "Hey, ",
    "Hi, ",
    "Good morning! ",
    "Good evening! ",
    "Good afternoon! ",
    "OK, ",
    "So, ",
    "Hey! ",
    "Hello, ",
    "Hi there! ",
    "Help me out: ",
    "For my homework: ",
    "Another one: ",
    "Next: ",
]
QUESTION_PREFIXES = [
    "Please tell me: ",
    "Quick question: ",
    "I have a question: ",
    "Tell me, ",
    "Tell me: ",
    "One question: ",
    "My question is: ",
    "I was wondering, ",
    "Simple question: ",
    "My son wants to know: ",
    "My daughter asks: ",
    "Just curious: ",
    "Another question: ",
    "For a quiz: ",
    "Well, ",
    "Remind me, ",
    "Answer this: ",
    "Question: ",
    "A friend asked me: ",
    "Hi! I have a question: ",
    "Hello! ",
    "Hi! ",
    "Hey, ",
    "Sorry, but ",
    "Please, ",
]
SUFFIXES = [" Thanks!", " Thank you.", " Please help me.", " Thanks in advance!", " Please.", " Thank you!"]
QUESTION_SUFFIXES = [
    *SUFFIXES,
    " A short answer is fine.",
    " I would like to know.",
    " Keep it short, please.",
    " I am curious.",
    " Please answer briefly.",
]
KEEP_CAPITAL = ("I ", "I'm", "I'd", "I've")
IRREGULAR_PLURALS = {
    "mouse": "mice",
    "goose": "geese",
    "sheep": "sheep",
    "fish": "fish",
    "wolf": "wolves",
    "human": "humans",
    "fisherman": "fishermen",
    "deer": "deer",
    "fly": "flies",
}
VOWEL_SOUND = ("hour", "honest", "heir")
CONSONANT_SOUND = ("uni", "use", "eu", "one", "ukulele")
COMMON_FIRST_WORDS = {
    "A",
    "Add",
    "Among",
    "An",
    "Any",
    "Are",
    "At",
    "Can",
    "Code",
    "Could",
    "Create",
    "Define",
    "Describe",
    "Did",
    "Do",
    "Does",
    "Explain",
    "Find",
    "Fruit",
    "Give",
    "Has",
    "Help",
    "How",
    "If",
    "Implement",
    "In",
    "Introduce",
    "Is",
    "It",
    "List",
    "Make",
    "Motivate",
    "My",
    "Name",
    "Nothing",
    "Now",
    "Odd",
    "Of",
    "On",
    "One",
    "People",
    "Please",
    "Should",
    "Show",
    "Some",
    "Tell",
    "That",
    "The",
    "There",
    "This",
    "Today",
    "Translate",
    "We",
    "What",
    "What's",
    "When",
    "Where",
    "Which",
    "Who",
    "Why",
    "With",
    "Would",
    "Write",
    "You",
}
# "What is X?" is asked indirectly as well, but not where X ends in a verb ("What is bread made of?").
NOT_INDIRECT = (" called", " made ", " used ", " for?", " or ")


def capitalize(text: str) -> str:
    """Return `text` with its first letter in upper case and the rest untouched."""
    return text[:1].upper() + text[1:]


def lower_first(text: str) -> str:
    """Return `text` with a lower-case start if its first word is a common word, so that names keep their capital."""
    if text.startswith(KEEP_CAPITAL) or text.split(" ", 1)[0] not in COMMON_FIRST_WORDS:
        return text
    return text[:1].lower() + text[1:]


def article(word: str) -> str:
    """Return "a" or "an", whichever goes before `word`."""
    lowered = word.lower()
    if lowered.startswith(VOWEL_SOUND):
        return "an"
    if lowered.startswith(CONSONANT_SOUND):
        return "a"
    return "an" if lowered[:1] in "aeiou" else "a"


def with_article(word: str) -> str:
    """Return `word` with its indefinite article."""
    return f"{article(word)} {word}"


def plural_of(phrase: str) -> str:
    """Return the plural of a noun phrase whose last word is the noun."""
    head, _, word = phrase.rpartition(" ")
    start = head + " " if head else ""
    if word in IRREGULAR_PLURALS:
        return start + IRREGULAR_PLURALS[word]
    if word.endswith(("s", "x", "ch", "sh", "z")):
        return start + word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return start + word[:-1] + "ies"
    return start + word + "s"


def join_words(words: list[str], last: str = "and") -> str:
    """Return "a, b and c"."""
    if len(words) == 1:
        return words[0]
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def dress(rng: random.Random, question: str, brief: bool = True) -> str:
    """Return `question` as somebody might type it: with an opener or a closing, in lower case, without its mark.

    `brief` says whether a wish for a short answer fits.
    """
    draw = rng.random()
    is_question = question.endswith("?")
    if draw < 0.22:
        fits_any = is_question and not question.startswith("I ")
        question = opened(question, rng.choice(QUESTION_PREFIXES if fits_any else PREFIXES))
    elif draw < 0.30:
        question = question + rng.choice(QUESTION_SUFFIXES if is_question and brief else SUFFIXES)
    elif draw < 0.39:
        question = lower_first(question)
    if rng.random() < 0.12 and question.endswith(("?", ".")):
        question = question[:-1]
    return question


def opened(question: str, prefix: str) -> str:
    """Return `prefix` and `question` as one text, in lower case after a comma or a colon."""
    if prefix.endswith("! "):
        return prefix + question
    return prefix + lower_first(question)


def paraphrases(question: str) -> list[str]:
    """Return further ways to ask `question`, if it has one of the common forms."""
    if question.startswith("What is ") and not any(part in question for part in NOT_INDIRECT):
        return of_what_is(question[:-1].removeprefix("What is "))
    if question.startswith(("Name ", "List ", "Give me ")):
        wish = lower_first(question[:-1])
        return [f"Can you {wish}?", f"Please {wish}."]
    return of_how(question) or of_what_does(question)


def of_what_is(thing: str) -> list[str]:
    """Return other ways to ask "What is `thing`?"."""
    found = [
        f"Can you tell me what {thing} is?",
        f"I would like to know what {thing} is.",
        f"What exactly is {thing}?",
        f"Do you know what {thing} is?",
        f"What's {thing}?",
    ]
    if thing.startswith(("a ", "an ")) or " " not in thing:
        found += [
            f"Explain what {thing} is.",
            f"Explain {thing} in simple words.",
            f"Please explain {thing}.",
            f"Can you explain {thing} to me?",
            f"What is meant by {thing}?",
            f"Tell me about {thing}.",
        ]
    return found


def of_how(question: str) -> list[str]:
    """Return other ways to ask "How do I ...?", "How does ... work?", "Why do ...?"."""
    rest = question[:-1]
    if question.startswith(("How do I ", "How can I ")):
        action = rest.split(" I ", 1)[1]
        return [
            f"I want to {action}. How?",
            f"Can you tell me how to {action}?",
            f"What is a good way to {action}?",
            f"Explain how to {action}.",
            f"Please tell me how to {action}.",
        ]
    clause = ""
    if question.startswith("How does ") and rest.endswith(" work"):
        clause = f"how {rest.removeprefix('How does ')}s"
    elif question.startswith(("Why do ", "How do ")):
        clause = rest[:3].lower() + rest[6:]
    if not clause:
        return []
    return [f"Can you explain {clause}?", f"Do you know {clause}?", f"Explain {clause}.", f"Please explain {clause}."]


def of_what_does(question: str) -> list[str]:
    """Return other ways to ask "What does ... do?" and "What does ... mean?", also with "in Python"."""
    rest = question[:-1].removeprefix("What does ")
    for ending in (" do", " do in Python", " mean", " mean in Python"):
        if question.startswith("What does ") and rest.endswith(ending):
            verb = ending.replace(" do", " does").replace(" mean", " means")
            clause = rest.removesuffix(ending) + verb
            return [f"Can you tell me what {clause}?", f"Explain what {clause}.", f"Do you know what {clause}?"]
    return []


def with_paraphrases(questions: list[str]) -> list[str]:
    """Return all ways to ask for one thing: the written `questions`, twice, and the derived ones."""
    derived = [text for question in questions for text in paraphrases(question)]
    return questions * 2 + derived
