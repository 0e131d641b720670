"""Simple questions as a newcomer would ask them, written by hand and apart from the training data's generators.

`expect` lists texts of which one must be in a right answer, as whole words and without regard to case; None marks
questions that only a reader can judge.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    kind: str
    text: str
    expect: tuple[str, ...] | None = None

    def is_answered_by(self, answer: str) -> bool:
        """Whether the answer holds one of the expected texts; for arithmetic, as its last number."""
        if self.kind == "arithmetic":
            numbers = re.findall(r"\d[\d,]*(?:\.\d+)?", answer)
            return bool(numbers) and numbers[-1].replace(",", "") in (self.expect or ())
        return any(re.search(rf"(?<!\w){re.escape(text)}(?!\w)", answer, re.IGNORECASE) for text in self.expect or ())


def _all(kind: str, *pairs: tuple[str, str]) -> list[Question]:
    return [Question(kind, text, tuple(expect.split("|"))) for text, expect in pairs]


QUESTIONS: list[Question] = [
    *_all(
        "arithmetic",
        ("Tom has 12 apples. He gives 5 apples to Anna. How many apples does Tom have left?", "7"),
        ("There are 8 birds on a tree. 3 more birds come. How many birds are there now?", "11"),
        ("A box holds 6 eggs. How many eggs are in 4 boxes?", "24"),
        ("Maria has 20 candies and shares them equally among 5 children. How many does each child get?", "4"),
        ("A bus has 30 people. 12 get off. How many people are still on the bus?", "18"),
        ("I had 50 dollars and spent 18 on a book. How much money do I have left?", "32"),
        ("What is 23 + 45?", "68"),
        ("What is 7 times 8?", "56"),
        ("What is 100 minus 37?", "63"),
        ("How much is 144 divided by 12?", "12"),
        ("A pen costs 3 euros. How much do 7 pens cost?", "21"),
        ("John is 9 years old. His sister is 4 years older. How old is his sister?", "13"),
        ("A train leaves with 85 passengers and 15 more get on. How many passengers are on the train?", "100"),
        ("Lisa reads 10 pages every day. How many pages does she read in a week?", "70"),
        ("There are 15 red balls and 9 blue balls in a bag. How many balls are there in total?", "24"),
        ("Half of a class of 28 pupils are girls. How many girls are there?", "14"),
        ("A farmer has 36 cows and sells 16 of them. How many cows does he have now?", "20"),
        ("Each table has 4 legs. How many legs do 9 tables have?", "36"),
        ("what's 15 plus 27", "42"),
        ("Calculate 9 * 9.", "81"),
    ),
    *_all(
        "facts",
        ("What is the capital of France?", "Paris"),
        ("What is the capital of Japan?", "Tokyo"),
        ("Which country has Rome as its capital?", "Italy"),
        ("On which continent is Egypt?", "Africa"),
        ("What language is spoken in Brazil?", "Portuguese"),
        ("What currency is used in Japan?", "yen"),
        ("How many days are in a week?", "7|seven"),
        ("How many legs does a spider have?", "8|eight"),
        ("What color do you get when you mix blue and yellow?", "green"),
        ("Which planet is known as the red planet?", "Mars"),
        ("What do bees make?", "honey"),
        ("At what temperature does water boil?", "100|212"),
        ("What is the largest planet in our solar system?", "Jupiter"),
        ("Who wrote Romeo and Juliet?", "Shakespeare"),
        ("What is the opposite of hot?", "cold"),
        ("How many hours are in a day?", "24|twenty-four"),
        ("What do cows drink?", "water"),
        ("What gas do plants take in from the air?", "carbon dioxide"),
        ("What is a baby dog called?", "puppy"),
        ("Which month comes after April?", "May"),
        ("What is the largest ocean?", "Pacific"),
        ("What is the chemical formula of water?", "H2O"),
        ('What is the meaning of "happy"?', "joy|pleasure|glad|good|content"),
        ("What is the population growth rate of Canada?", "%"),
    ),
    *_all(
        "code",
        ("Write a Python function that returns the sum of a list of numbers.", "def"),
        ("Write a Python function that checks if a number is even.", "% 2"),
        ("Write a function in Python that reverses a string.", "[::-1]|reversed"),
        ("How do I print Hello World in Python?", "print"),
        ("Write a Python function to find the largest number in a list.", "max|largest|>"),
        ("Write a Python function that computes the factorial of n.", "def"),
        ("How can I count the words in a string in Python?", "split"),
        ("Write a Python function that converts Celsius to Fahrenheit.", "9 / 5|1.8|9/5"),
    ),
    *(
        Question("small talk", text)
        for text in (
            "Hi! How are you today?",
            "What is your name?",
            "Good morning!",
            "Thank you for your help!",
            "Tell me a joke.",
            "I am feeling a bit sad today.",
            "What can you do?",
            "My name is Julia. Nice to meet you.",
            "What is your favorite color?",
            "Do you like music?",
            "I have a cat named Milo.",
            "Good night!",
        )
    ),
    *(
        Question("writing", text)
        for text in (
            "Write a short story about a dog who finds a key.",
            "List five animals that live in the sea.",
            "Give me three tips for sleeping better.",
            "Why is the sky blue?",
            "Explain what a computer is in one sentence.",
            "Write a short poem about the moon.",
            "I would like to book a table for two at a restaurant tonight.",
            "Write a polite email to my boss saying that I am sick today.",
        )
    ),
]
