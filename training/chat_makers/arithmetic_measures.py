"""Units, clock, calendar, money and temperature: conversions and simple sums with them."""

import random

from chat_makers.words import NOUNS, Turns, capitalize, join_words, loosen, plural_of, two_names

# big unit, small unit, how many small units make one big one, largest number of big units asked for
UNITS = [
    ("meter", "centimeter", 100, 20),
    ("kilometer", "meter", 1000, 20),
    ("centimeter", "millimeter", 10, 60),
    ("kilogram", "gram", 1000, 20),
    ("liter", "milliliter", 1000, 20),
    ("ton", "kilogram", 1000, 12),
    ("hour", "minute", 60, 12),
    ("minute", "second", 60, 12),
    ("day", "hour", 24, 7),
    ("week", "day", 7, 20),
    ("year", "month", 12, 12),
    ("foot", "inch", 12, 12),
    ("yard", "foot", 3, 30),
    ("dollar", "cent", 100, 20),
    ("euro", "cent", 100, 20),
    ("century", "year", 100, 9),
    ("decade", "year", 10, 12),
    ("pound", "ounce", 16, 10),
]
IRREGULAR = {"foot": "feet", "century": "centuries"}
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def count_unit(number: int, unit: str) -> str:
    """Return "1 meter" or "3 meters"."""
    return f"{number} {unit}" if number == 1 else f"{number} {unit_plural(unit)}"


def unit_plural(unit: str) -> str:
    """Return the plural of a unit."""
    return IRREGULAR.get(unit) or plural_of(unit)


def unit_conversion(rng: random.Random) -> Turns:
    """Return a conversion between two units, up or down."""
    big, small, factor, top = rng.choice(UNITS)
    number = 1 if rng.random() < 0.15 else rng.randint(2, top)
    bigs, smalls = count_unit(number, big), count_unit(number * factor, small)
    one = f"1 {big} {'has' if small in ('day', 'month') else 'is'} {factor} {unit_plural(small)}"
    if rng.random() < 0.65:
        asks = (
            f"How many {unit_plural(small)} are in {bigs}?",
            f"Convert {bigs} to {unit_plural(small)}.",
            f"How many {unit_plural(small)} are {bigs}?",
            f"What is {bigs} in {unit_plural(small)}?",
            f"How many {unit_plural(small)} make {bigs}?",
            f"{bigs} in {unit_plural(small)}?",
        )
        if number == 1:
            return [(loosen(rng, rng.choice(asks)), f"{capitalize(one)}.")]
        link = f"{number} * {factor} = {number * factor}"
        answers = (
            f"{one}, so {link}. {bigs} are {smalls}.",
            f"{link}, so {bigs} are {smalls}.",
            f"{bigs} are {smalls}.",
        )
        return [(loosen(rng, rng.choice(asks)), rng.choice(answers))]
    asks = (
        f"How many {unit_plural(big)} are {smalls}?",
        f"Convert {smalls} to {unit_plural(big)}.",
        f"What is {smalls} in {unit_plural(big)}?",
        f"{smalls} in {unit_plural(big)}?",
    )
    link = f"{number * factor} / {factor} = {number}"
    answers = (f"{one}, so {link}. {smalls} are {bigs}.", f"{link}, so {smalls} are {bigs}.")
    return [(loosen(rng, rng.choice(asks)), rng.choice(answers))]


def clock_text(minutes: int) -> str:
    """Return minutes after midnight as a 24-hour clock time, "9:05"."""
    hour, minute = divmod(minutes % 1440, 60)
    return f"{hour}:{minute:02}"


def duration_text(minutes: int) -> str:
    """Return a duration as hours and minutes."""
    hours, rest = divmod(minutes, 60)
    parts = [count_unit(hours, "hour")] * bool(hours) + [count_unit(rest, "minute")] * bool(rest)
    return " and ".join(parts)


EVENTS = [
    event.replace("_", " ")
    for event in [
        "movie",
        "lesson",
        "concert",
        "meeting",
        "game",
        "class",
        "party",
        "train_ride",
        "bus_ride",
        "flight",
        "walk",
        "show",
        "test",
        "race",
        "picnic",
        "tour",
        "visit",
        "workout",
        "dinner",
        "training",
    ]
]


def clock_end(rng: random.Random) -> Turns:
    """Return a question for the end, the start or the length of something on the clock."""
    start = rng.randint(6, 19) * 60 + rng.choice((0, 0, 0, 5, 10, 15, 20, 30, 30, 40, 45, 50))
    length = rng.choice((60, 120, 180, 30, 45, 90, 20, 15, 10, 40, 50, 25, 75, 105, 240))
    begin, end, long = clock_text(start), clock_text(start + length), duration_text(length)
    event, name = rng.choice(EVENTS), two_names(rng)[0]
    draw = rng.random()
    if draw < 0.5:
        asks = (
            f"A {event} starts at {begin} and takes {long}. When does it end?",
            f"It is {begin} now. What time will it be in {long}?",
            f"What time is it {long} after {begin}?",
            f"{name} leaves home at {begin} and needs {long}. When does {name} arrive?",
            f"If a {event} begins at {begin} and lasts {long}, at what time is it over?",
            f"{name}'s {event} starts at {begin}. It lasts {long}. What time does it end?",
        )
        answers = (
            f"{capitalize(long)} after {begin} is {end}.",
            f"{begin} plus {long} is {end}.",
            f"At {end}, because {begin} plus {long} is {end}.",
        )
    elif draw < 0.8:
        asks = (
            f"A {event} goes from {begin} to {end}. How long is it?",
            f"How much time is it from {begin} to {end}?",
            f"{name} works from {begin} to {end}. How long is that?",
            f"How long is it from {begin} until {end}?",
            f"{name}'s {event} starts at {begin} and ends at {end}. How long does it take?",
        )
        answers = (f"From {begin} to {end} it is {long}.", f"That is {long}.")
    else:
        asks = (
            f"A {event} ended at {end} and took {long}. When did it start?",
            f"What time was it {long} before {end}?",
            f"{name} arrives at {end} after {long} on the way. When did {name} leave?",
        )
        answers = (f"{capitalize(long)} before {end} is {begin}.", f"At {begin}, because {begin} plus {long} is {end}.")
    return [(loosen(rng, rng.choice(asks)), rng.choice(answers))]


def weekday(rng: random.Random) -> Turns:
    """Return a question about days of the week."""
    index = rng.randrange(7)
    today = DAYS[index]
    shift = rng.randint(1, 12)
    after, before = DAYS[(index + shift) % 7], DAYS[(index - shift) % 7]
    days = count_unit(shift, "day")
    week = f" {shift} days are one week and {count_unit(shift - 7, 'day')}." if shift > 7 else ""
    week = " 7 days are exactly one week." if shift == 7 else week
    cases = (
        (f"Today is {today}. What day is it in {days}?", f"In {days} it is {after}.{week}"),
        (f"If today is {today}, what day will it be in {days}?", f"It will be {after}.{week}"),
        (f"What day comes after {today}?", f"{DAYS[(index + 1) % 7]} comes after {today}."),
        (f"What day is before {today}?", f"{DAYS[(index - 1) % 7]} is before {today}."),
        (f"Today is {today}. What day was it {days} ago?", f"{capitalize(days)} ago it was {before}.{week}"),
        (f"If today is {today}, what day is tomorrow?", f"Tomorrow is {DAYS[(index + 1) % 7]}."),
        (f"Yesterday was {today}. What day is today?", f"Today is {DAYS[(index + 1) % 7]}."),
        (f"Today is {today}. What day was yesterday?", f"Yesterday was {DAYS[(index - 1) % 7]}."),
        (f"Tomorrow is {today}. Which day is today?", f"Today is {DAYS[(index - 1) % 7]}."),
        (f"Which day is two days after {today}?", f"Two days after {today} is {DAYS[(index + 2) % 7]}."),
        (f"Is {today} a weekday or on the weekend?", f"{today} is {'on the weekend' if index > 4 else 'a weekday'}."),
    )
    question, answer = rng.choice(cases)
    return [(loosen(rng, question), answer)]


def month(rng: random.Random) -> Turns:
    """Return a question about months."""
    index, shift = rng.randrange(12), rng.randint(1, 9)
    now, after = MONTHS[index], MONTHS[(index + 1) % 12]
    length = f"{now} has {MONTH_DAYS[index]} days"
    ordinal = [
        "first",
        "second",
        "third",
        "fourth",
        "fifth",
        "sixth",
        "seventh",
        "eighth",
        "ninth",
        "tenth",
        "eleventh",
        "twelfth",
    ][index]
    cases = (
        (f"What month comes after {now}?", f"{after} comes after {now}."),
        (f"Which month is before {now}?", f"{MONTHS[index - 1]} is before {now}."),
        (f"How many days does {now} have?", length + (", or 29 in a leap year." if index == 1 else ".")),
        (f"What is the {ordinal} month of the year?", f"The {ordinal} month is {now}."),
        (f"Which month number is {now}?", f"{now} is month number {index + 1}."),
        (
            f"It is {now}. Which month is it in {count_unit(shift, 'month')}?",
            f"In {count_unit(shift, 'month')} it is {MONTHS[(index + shift) % 12]}.",
        ),
        (
            f"What month is between {MONTHS[index - 1]} and {after}?",
            f"{now} is between {MONTHS[index - 1]} and {after}.",
        ),
        (
            f"What are the months after {now}?",
            "After that come " + join_words(MONTHS[index + 1 :]) + "." if index < 11 else "None, December is the last.",
        ),
    )
    question, answer = rng.choice(cases)
    return [(loosen(rng, question), answer)]


def year_age(rng: random.Random) -> Turns:
    """Return a question about years of birth and ages."""
    name, other = two_names(rng)
    born = rng.randint(1940, 2015)
    age = rng.randint(3, min(60, 2028 - born))
    year = born + age
    cases = (
        (
            f"{name} was born in {born}. How old is {name} in {year}?",
            f"{year} - {born} = {age}, so {name} is {age} years old in {year}.",
        ),
        (
            f"{name} was born in {born}. In which year does {name} turn {age}?",
            f"{born} + {age} = {year}, so it is in {year}.",
        ),
        (
            f"{name} turns {age} in {year}. When was {name} born?",
            f"{year} - {age} = {born}, so {name} was born in {born}.",
        ),
        (
            f"How many years are there between {born} and {year}?",
            f"{year} - {born} = {age}, so there are {age} years between them.",
        ),
        (
            f"{name} was born in {born} and {other} in {year}. Who is older?",
            f"{name} is older, because {born} is before {year}.",
        ),
        (
            f"{name} was born in {born} and {other} in {year}. Who is younger?",
            f"{other} is younger, because {year} is after {born}.",
        ),
    )
    question, answer = rng.choice(cases)
    return [(loosen(rng, question), answer)]


def age_compare(rng: random.Random) -> Turns:
    """Return who is older or younger of two, with the difference in a second turn now and then."""
    name, other = two_names(rng)
    a, b = rng.sample(range(3, 80), 2)
    old, young = (name, other) if a > b else (other, name)
    high, low = max(a, b), min(a, b)
    fact = rng.choice(
        (
            f"{name} is {a} years old and {other} is {b}.",
            f"{name} is {a}. {other} is {b}.",
            f"{name} is {a} and {other} is {b} years old.",
        )
    )
    if rng.random() < 0.5:
        turns = [(f"{fact} Who is older?", f"{old} is older, because {high} is more than {low}.")]
    else:
        turns = [(f"{fact} Who is younger?", f"{young} is younger, because {low} is less than {high}.")]
    if rng.random() < 0.35:
        years = count_unit(high - low, "year")
        ask = rng.choice(("By how many years?", "What is the difference?", "How many years is that?"))
        turns.append((loosen(rng, ask), f"{high} - {low} = {high - low}, so it is {years}."))
    return turns


def cents(rng: random.Random) -> Turns:
    """Return a sum or difference of prices with cents."""
    a, b = rng.randint(2, 40) * 25, rng.randint(2, 40) * 25
    if rng.random() < 0.5:
        a, b = rng.randint(5, 99) * 10, rng.randint(5, 99) * 10
    a, b = max(a, b), min(a, b)
    noun, sign = rng.choice(NOUNS["shop"]), rng.choice("$€")
    one, two = f"{sign}{a / 100:.2f}", f"{sign}{b / 100:.2f}"
    if rng.random() < 0.5:
        total = f"{sign}{(a + b) / 100:.2f}"
        asks = (
            f"What is {one} plus {two}?",
            f"How much is {one} + {two}?",
            f"A box of {noun.many} costs {one} and a drink costs {two}. How much is that together?",
        )
        return [(loosen(rng, rng.choice(asks)), f"{one} + {two} = {total}.")]
    rest = f"{sign}{(a - b) / 100:.2f}"
    asks = (
        f"What is {one} minus {two}?",
        f"I have {one} and spend {two}. How much is left?",
        f"How much change do I get from {one} if I pay {two}?",
    )
    return [(loosen(rng, rng.choice(asks)), f"{one} - {two} = {rest}.")]


SHAPES = {"triangle": 3, "square": 4, "rectangle": 4, "pentagon": 5, "hexagon": 6, "octagon": 8}


def geometry(rng: random.Random) -> Turns:
    """Return a perimeter, an area or the sides of a shape."""
    a, b = rng.randint(2, 20), rng.randint(2, 12)
    unit = rng.choice(("cm", "m"))
    shape, sides = rng.choice(list(SHAPES.items()))
    count = rng.randint(2, 9)
    article = "an" if shape == "octagon" else "a"
    cases = (
        (
            f"What is the perimeter of a square with sides of {a} {unit}?",
            f"A square has 4 equal sides, so 4 * {a} = {4 * a}. The perimeter is {4 * a} {unit}.",
        ),
        (
            f"A rectangle is {a} {unit} long and {b} {unit} wide. What is its perimeter?",
            f"{a} + {b} = {a + b}, and 2 * {a + b} = {2 * (a + b)}. The perimeter is {2 * (a + b)} {unit}.",
        ),
        (
            f"A rectangle is {a} {unit} long and {b} {unit} wide. What is its area?",
            f"Area is length times width: {a} * {b} = {a * b}. The area is {a * b} square {unit}.",
        ),
        (
            f"What is the area of a square with sides of {b} {unit}?",
            f"{b} * {b} = {b * b}. The area is {b * b} square {unit}.",
        ),
        (f"How many sides does {article} {shape} have?", f"{capitalize(article)} {shape} has {sides} sides."),
        (
            f"How many sides do {count} {shape}s have in total?",
            f"Each {shape} has {sides} sides, so {count} * {sides} = {count * sides}. They have {count * sides} sides.",
        ),
    )
    question, answer = rng.choice(cases)
    return [(loosen(rng, question), answer)]


KINDS = {
    "unit_conversion": (3.0, unit_conversion),
    "clock": (2.5, clock_end),
    "weekday": (0.9, weekday),
    "month": (0.4, month),
    "year_age": (1.5, year_age),
    "age_compare": (1.5, age_compare),
    "cents": (0.8, cents),
    "geometry": (0.8, geometry),
}
