"""Games with numbers: comparing, sequences, even and odd, fractions, percentages, names of numbers, counting, lists."""

import random

from chat_makers.arithmetic_bare import FRAMES
from chat_makers.word_problems import equation
from chat_makers.words import Turns, capitalize, join_words, loosen, number_word


def compare(rng: random.Random) -> Turns:
    """Return a comparison of two or three numbers."""
    top = rng.choice((20, 100, 100, 1000))
    numbers = rng.sample(range(top), 2 if rng.random() < 0.75 else 3)
    want_big = rng.random() < 0.6
    shown = join_words([str(number) for number in numbers], "or")
    word = rng.choice(("bigger", "larger", "greater", "more") if want_big else ("smaller", "less"))
    if len(numbers) == 3:
        word = rng.choice(("biggest", "largest") if want_big else ("smallest", "lowest"))
        word = f"the {word}"
    asks = (
        f"Which is {word}, {shown}?",
        f"Which number is {word}: {shown}?",
        f"What is {word}, {shown}?",
        f"Is {shown} {word}?",
        f"{shown}, which one is {word}?",
        f"Tell me which is {word}: {shown}.",
        f"Which of these is {word}: {shown}?",
    )
    best = max(numbers) if want_big else min(numbers)
    rest = join_words([str(number) for number in numbers if number != best])
    if len(numbers) == 3:
        answers = (f"{best} is {word}.", f"{capitalize(word)} is {best}.", f"It is {best}.")
    else:
        answers = (
            f"{best} is {word} than {rest}.",
            f"{best} is {word}.",
            f"{best}, because {best} is {word} than {rest}.",
        )
    return [(loosen(rng, rng.choice(asks)), rng.choice(answers))]


def is_bigger(rng: random.Random) -> Turns:
    """Return a yes-or-no comparison."""
    a, b = rng.sample(range(rng.choice((20, 100, 1000))), 2)
    bigger = rng.random() < 0.6
    word = rng.choice(
        ("bigger than", "greater than", "more than", "larger than") if bigger else ("less than", "smaller than")
    )
    true = (a > b) == bigger
    fact = f"{a} is {word} {b}" if true else f"{a} is {'less' if bigger else 'greater'} than {b}"
    asks = (f"Is {a} {word} {b}?", f"True or false: {a} is {word} {b}?", f"Would you say {a} is {word} {b}?")
    pick = rng.randrange(3)
    yes = ("True" if true else "False") if pick == 1 else ("Yes" if true else "No")
    return [(loosen(rng, asks[pick]), f"{yes}, {fact}.")]


def sequence(rng: random.Random) -> Turns:
    """Return a number sequence to continue."""
    draw = rng.random()
    step, start, length = rng.randint(1, 12), rng.randint(0, 40), rng.randint(3, 6)
    if draw < 0.65:
        rule, numbers = f"Each number is {step} more than the one before", [start + step * k for k in range(length + 2)]
    elif draw < 0.85:
        start += step * (length + 2)
        rule, numbers = f"Each number is {step} less than the one before", [start - step * k for k in range(length + 2)]
    else:
        factor, first = rng.choice((2, 2, 3, 10)), rng.randint(1, 5)
        length = min(length, 4)
        rule, numbers = f"Each number is {factor} times the one before", [first * factor**k for k in range(length + 2)]
    shown = ", ".join(map(str, numbers[:length]))
    asks = (
        f"What comes next: {shown}?",
        f"What is the next number: {shown}, ...?",
        f"Continue the sequence: {shown}",
        f"{shown}, ?",
        f"Which number comes next? {shown}",
        f"What number follows in {shown}?",
        f"Complete the pattern: {shown}, __",
        f"Find the next number in this sequence: {shown}",
    )
    answers = (f"{rule}, so the next number is {numbers[length]}.", f"The next number is {numbers[length]}. {rule}.")
    turns = [(loosen(rng, rng.choice(asks)), rng.choice(answers))]
    if rng.random() < 0.2:
        ask = rng.choice(("And the next one?", "And then?", "What comes after that?", "And after that?"))
        turns.append((loosen(rng, ask), f"After {numbers[length]} comes {numbers[length + 1]}."))
    return turns


def parity(rng: random.Random) -> Turns:
    """Return a question about even and odd."""
    number = rng.randint(0, rng.choice((20, 100, 1000)))
    even = number % 2 == 0
    word = "even" if even else "odd"
    able = "can" if even else "cannot"
    reason = f"it ends in {number % 10}" if number > 9 else f"it {able} be divided by 2 without a remainder"
    draw = rng.random()
    if draw < 0.4:
        asks = (
            f"Is {number} even or odd?",
            f"Is {number} odd or even?",
            f"Is the number {number} even or odd?",
            f"Tell me if {number} is even or odd.",
            f"Even or odd: {number}?",
            f"{number}: odd or even?",
        )
        return [
            (
                loosen(rng, rng.choice(asks)),
                rng.choice((f"{number} is {word}.", f"{number} is {word}, because {reason}.")),
            )
        ]
    asked = rng.choice(("even", "odd"))
    asks = (f"Is {number} {asked}?", f"Is {number} an {asked} number?", f"Can you tell me if {number} is {asked}?")
    start = "Yes" if asked == word else "No"
    return [
        (
            loosen(rng, rng.choice(asks)),
            rng.choice((f"{start}, {number} is {word}.", f"{start}, {number} is {word}, because {reason}.")),
        )
    ]


def divisible(rng: random.Random) -> Turns:
    """Return a question about divisibility."""
    b = rng.randint(2, 10)
    a = b * rng.randint(2, 20) + (0 if rng.random() < 0.5 else rng.randint(1, b - 1))
    asks = (
        f"Is {a} divisible by {b}?",
        f"Can {a} be divided by {b}?",
        f"Is {a} a multiple of {b}?",
        f"Does {b} divide {a}?",
    )
    if a % b == 0:
        return [(loosen(rng, rng.choice(asks)), f"Yes, {a} = {b} * {a // b}.")]
    return [(loosen(rng, rng.choice(asks)), f"No, {b} * {a // b} = {a - a % b}, so {a % b} is left over.")]


def percent(rng: random.Random) -> Turns:
    """Return a simple percentage."""
    rate, parts = rng.choice(((10, 10), (50, 2), (25, 4), (20, 5), (1, 100), (100, 1), (50, 2), (10, 10), (25, 4)))
    base = parts * rng.randint(1, 40 if parts < 50 else 9)
    result = base // parts
    sign = rng.choice(("%", " %", " percent"))
    asks = tuple(frame.format(x=f"{rate}{sign} of {base}") for frame in FRAMES)
    if rate == 100:
        return [(loosen(rng, rng.choice(asks)), f"100% is the whole, so it is {base}.")]
    answers = (
        f"{rate}% of {base} is {base} / {parts} = {result}.",
        f"{base} / {parts} = {result}, so {rate}% of {base} is {result}.",
    )
    return [(loosen(rng, rng.choice(asks)), rng.choice(answers))]


FRACTIONS = {
    2: ["half of", "one half of", "1/2 of"],
    3: ["a third of", "one third of", "1/3 of"],
    4: ["a quarter of", "one fourth of", "1/4 of", "one quarter of"],
    5: ["a fifth of", "one fifth of", "1/5 of"],
    10: ["a tenth of", "one tenth of", "1/10 of"],
}
MULTIPLES = {2: ["double", "twice", "two times"], 3: ["three times", "triple"], 4: ["four times"]}


def fraction(rng: random.Random) -> Turns:
    """Return a fraction or a multiple of a number, "half of 18", "double 7"."""
    if rng.random() < 0.65:
        parts = rng.choice((2, 2, 2, 3, 3, 4, 4, 5, 10))
        base = parts * rng.randint(1, 30)
        name = f"{rng.choice(FRACTIONS[parts])} {base}"
        shown, result = f"{base} / {parts} = {base // parts}", base // parts
    else:
        factor, base = rng.choice((2, 2, 3, 4)), rng.randint(1, 60)
        name = f"{rng.choice(MULTIPLES[factor])} {base}"
        shown, result = equation(base, "*", factor), factor * base
    answers = (f"{shown}.", f"{capitalize(name)} is {result}, because {shown}.", f"{shown}, so {name} is {result}.")
    return [(loosen(rng, rng.choice(FRAMES).format(x=name)), rng.choice(answers))]


def fraction_sum(rng: random.Random) -> Turns:
    """Return a sum or difference of two fractions with the same bottom number."""
    bottom = rng.randint(3, 12)
    a = rng.randint(1, bottom - 1)
    b = rng.randint(1, bottom - 1)
    if rng.random() < 0.6 or a == b:
        top, text = a + b, f"{a}/{bottom} + {b}/{bottom}"
        step = f"{a} + {b} = {top}"
    else:
        a, b = max(a, b), min(a, b)
        top, text = a - b, f"{a}/{bottom} - {b}/{bottom}"
        step = f"{a} - {b} = {top}"
    whole = f", which is {top // bottom}" if top % bottom == 0 else ""
    return [(loosen(rng, rng.choice(FRAMES).format(x=text)), f"{step}, so {text} = {top}/{bottom}{whole}.")]


def square(rng: random.Random) -> Turns:
    """Return a square or a square root."""
    number = rng.randint(1, 12)
    if rng.random() < 0.6:
        name = rng.choice(
            (f"{number} squared", f"the square of {number}", f"{number}^2", f"{number} to the power of 2")
        )
        return [(loosen(rng, rng.choice(FRAMES).format(x=name)), f"{number} * {number} = {number * number}.")]
    name = f"the square root of {number * number}"
    answer = f"It is {number}, because {number} * {number} = {number * number}."
    return [(loosen(rng, rng.choice(FRAMES).format(x=name)), answer)]


def number_names(rng: random.Random) -> Turns:
    """Return a number to write in words, or back in digits."""
    number = rng.randint(0, 100 if rng.random() < 0.6 else 999)
    name = number_word(number)
    if rng.random() < 0.5:
        asks = (
            f"Write {number} in words.",
            f"How do you write {number} in words?",
            f"Spell the number {number}.",
            f"What is {number} in words?",
            f"How do you say {number}?",
        )
        return [(loosen(rng, rng.choice(asks)), rng.choice((f"{capitalize(name)}.", f"{number} is {name}.")))]
    asks = (
        f"Write {name} in digits.",
        f"What is {name} as a number?",
        f"Write the number {name} with digits.",
        f"How do you write {name} in numbers?",
        f"Turn {name} into digits.",
    )
    return [(loosen(rng, rng.choice(asks)), rng.choice((f"{number}", f"It is {number}.")))]


def neighbors(rng: random.Random) -> Turns:
    """Return the number before, after or between, or a rounding."""
    number = rng.randint(1, rng.choice((30, 100, 999)))
    low = number // 10 * 10
    rounded = low + (10 if number % 10 >= 5 else 0)
    pairs = (
        (f"What number comes after {number}?", f"{number + 1} comes after {number}."),
        (f"Which number comes right before {number}?", f"{number - 1} comes before {number}."),
        (
            f"What number is between {number - 1} and {number + 1}?",
            f"{number} is between {number - 1} and {number + 1}.",
        ),
        (f"What comes after {number}?", f"After {number} comes {number + 1}."),
        (f"Round {number} to the nearest ten.", f"{number} rounds to {rounded}."),
        (f"What is {number} rounded to the nearest 10?", f"{number} is rounded to {rounded}."),
        (f"What is one more than {number}?", f"{number} + 1 = {number + 1}."),
        (f"What is 10 more than {number}?", f"{number} + 10 = {number + 10}."),
        (f"How many digits does {number} have?", f"{number} has {len(str(number))} digit{'s' * (number > 9)}."),
        (f"What is the last digit of {number}?", f"The last digit of {number} is {number % 10}."),
    )
    question, answer = rng.choice(pairs)
    return [(loosen(rng, question), answer)]


def counting(rng: random.Random) -> Turns:
    """Return counting up, down or in steps, and even or odd numbers of a range."""
    start, length, step = rng.randint(0, 40), rng.randint(4, 12), rng.choice((1, 1, 2, 3, 5, 10))
    numbers = [start + step * k for k in range(length)]
    last = numbers[-1]
    draw = rng.random()
    by = "" if step == 1 else f" in steps of {step}"
    if draw < 0.4:
        asks = (
            f"Count from {start} to {last}{by}.",
            f"Count up from {start} to {last}{by}.",
            f"Can you count from {start} to {last}{by}?",
        )
    elif draw < 0.65:
        numbers.reverse()
        asks = (f"Count backwards from {last} to {start}{by}.", f"Count down from {last} to {start}{by}.")
    else:
        odd = rng.randint(0, 1)
        numbers = [number for number in range(start, start + 16) if number % 2 == odd]
        word = ("even", "odd")[odd]
        asks = (
            f"List the {word} numbers from {start} to {start + 15}.",
            f"Which numbers between {start} and {start + 15} are {word}?",
            f"Name all {word} numbers from {start} to {start + 15}.",
        )
        if rng.random() < 0.3:
            numbers = numbers[:3]
            asks = (
                f"Name three {word} numbers from {start} up.",
                f"Give me three {word} numbers, starting from {start}.",
            )
    return [(loosen(rng, rng.choice(asks)), ", ".join(map(str, numbers)) + ".")]


def number_list(rng: random.Random) -> Turns:
    """Return the sum, largest, smallest or mean of a short list of numbers."""
    numbers = rng.sample(range(1, rng.choice((20, 60, 100))), rng.randint(3, 5))
    draw = rng.random()
    if draw < 0.3 and len(numbers) < 5:
        steps, total = [], numbers[0]
        for number in numbers[1:]:
            steps.append(f"{total} + {number} = {total + number}")
            total += number
        shown = ", ".join(map(str, numbers))
        asks = (
            f"Add these numbers: {shown}",
            f"What is the sum of {join_words([str(n) for n in numbers])}?",
            f"Add up {shown}.",
        )
        return [(loosen(rng, rng.choice(asks)), f"{', '.join(steps)}. The sum is {total}.")]
    if draw < 0.55:
        middle, gap = rng.randint(10, 50), rng.randint(1, 9)
        a, b = middle - gap, middle + gap
        asks = (
            f"What is the average of {a} and {b}?",
            f"What is the mean of {a} and {b}?",
            f"Find the average of {a} and {b}.",
        )
        return [
            (
                loosen(rng, rng.choice(asks)),
                f"{a} + {b} = {a + b}, and {a + b} / 2 = {middle}. The average is {middle}.",
            )
        ]
    largest = draw < 0.8
    word = rng.choice(("largest", "biggest", "highest")) if largest else rng.choice(("smallest", "lowest"))
    shown = ", ".join(map(str, numbers))
    best = max(numbers) if largest else min(numbers)
    asks = (
        f"What is the {word} number: {shown}?",
        f"Which of these numbers is the {word}? {shown}",
        f"Find the {word} number in {shown}.",
    )
    return [
        (
            loosen(rng, rng.choice(asks)),
            rng.choice((f"The {word} number is {best}.", f"{best} is the {word} number.", f"It is {best}.")),
        )
    ]


KINDS = {
    "compare_numbers": (2.0, compare),
    "is_bigger": (1.0, is_bigger),
    "sequence": (2.0, sequence),
    "parity": (1.2, parity),
    "divisible": (0.6, divisible),
    "percent": (1.5, percent),
    "fraction_of": (2.0, fraction),
    "fraction_sum": (0.4, fraction_sum),
    "square": (0.5, square),
    "number_names": (1.0, number_names),
    "number_neighbors": (1.0, neighbors),
    "counting": (1.0, counting),
    "number_list": (1.2, number_list),
}
