"""Demonstrations written for this package, for each kind of answer and each method; none is a paper's.

Give your own with ``ReasonSettings(exemplars=read_problems("mine.jsonl"))``; that reads the papers' text files too.
"""

from __future__ import annotations

from dataclasses import dataclass

from tutelage.icl.reasoning.problems import Problem
from tutelage.text.answers import AnswerKind


def _number(question: str, rationale: str, answer: str) -> Problem:
    return Problem(question, answer, (), "number", rationale)


NUMBER = (
    _number(
        "A baker fills 4 trays with 9 rolls each. He then eats 2 rolls. How many rolls are left?",
        "4 trays of 9 rolls are 4 * 9 = 36 rolls. After he eats 2, there are 36 - 2 = 34.",
        "34",
    ),
    _number(
        "Nadia has 15 stamps. Her uncle sends her 8 more, and she gives 5 to a friend. How many stamps does she have?",
        "She starts with 15 and gets 8, which makes 15 + 8 = 23. Giving away 5 leaves 23 - 5 = 18.",
        "18",
    ),
    _number(
        "A bus has 40 seats. At the first stop 17 people get on, at the second 12 more. How many seats stay empty?",
        "In all 17 + 12 = 29 people got on. Of 40 seats, 40 - 29 = 11 stay empty.",
        "11",
    ),
    _number(
        "Omar runs 3 kilometers on each weekday and 5 kilometers on each day of the weekend. How far does he run in a "
        "week?",
        "There are 5 weekdays, so 5 * 3 = 15 kilometers. The weekend has 2 days, so 2 * 5 = 10. Together 15 + 10 = 25.",
        "25",
    ),
    _number(
        "A rope of 48 meters is cut into pieces of 6 meters. Half of the pieces are sold. How many pieces are left?",
        "The rope gives 48 / 6 = 8 pieces. Half of them, 8 / 2 = 4, are sold, so 8 - 4 = 4 are left.",
        "4",
    ),
    _number(
        "A notebook costs $3 and a pen costs $2. Ines buys 4 notebooks and 3 pens. How many dollars does she pay?",
        "The notebooks cost 4 * 3 = 12 dollars and the pens 3 * 2 = 6 dollars. She pays 12 + 6 = 18.",
        "18",
    ),
    _number(
        "There were 21 birds on a wire. Some flew off, and now there are 13. How many birds flew off?",
        "The birds that flew off are those at first minus those now: 21 - 13 = 8.",
        "8",
    ),
    _number(
        "Grandmother is three times as old as Ben, who is 22. How old will she be in 4 years?",
        "Now she is 3 * 22 = 66. In 4 years she will be 66 + 4 = 70.",
        "70",
    ),
)
"""Eight word problems."""

CHOICE = (
    Problem(
        "Where would you most likely keep milk so that it stays fresh?", "C", ("attic", "oven", "refrigerator", "desk"),
        "choice", "Milk stays fresh where it is cold. Of these places only a refrigerator is cold.",
    ),
    Problem(
        "A train goes 120 kilometers in 2 hours. How many kilometers does it go in 5 hours?", "B",
        ("240", "300", "360", "600"), "choice", "In one hour it goes 120 / 2 = 60. In 5 hours it goes 5 * 60 = 300.",
    ),
    Problem(
        "What do people open when it starts to rain?", "A", ("umbrella", "letter", "window", "bottle"), "choice",
        "When it rains people want to stay dry. An umbrella keeps them dry.",
    ),
    Problem(
        "The price of a coat of $80 falls by a quarter. What does it cost now?", "D", ("$20", "$40", "$55", "$60"),
        "choice", "A quarter of 80 is 80 / 4 = 20. The coat now costs 80 - 20 = 60 dollars.",
    ),
)  # fmt: skip
"""Four questions with options."""

YES_NO = (
    Problem(
        "A lamp is off. Ruth presses the switch. Paul does not press the switch. Is the lamp on?", "yes", (), "yes_no",
        "The switch was pressed once, by Ruth. One press turns a lamp that is off on.",
    ),
    Problem(
        "Could a person carry a grand piano up the stairs alone?", "no", (), "yes_no",
        "A grand piano weighs some hundred kilograms. A person cannot lift that much.",
    ),
    Problem(
        "A card lies face up. Sam turns the card over. Kim turns the card over. Does the card lie face up?", "yes", (),
        "yes_no", "The card was turned twice, by Sam and by Kim. Two turns bring it back to face up.",
    ),
    Problem(
        "Would ice cream be solid after a day in the sun?", "no", (), "yes_no",
        "Ice cream melts above freezing. A day in the sun is far warmer, so it melts.",
    ),
)  # fmt: skip
"""Four questions of yes and no."""

TEXT = (
    Problem(
        'Take the last letters of each words in "Marta Boris" and concatenate them.', "as", (), "text",
        'The last letter of "Marta" is "a". The last letter of "Boris" is "s". Concatenating them is "as".',
    ),
    Problem(
        'Take the last letters of each words in "Piet Olga Ruben" and concatenate them.', "tan", (), "text",
        'The last letter of "Piet" is "t". The last letter of "Olga" is "a". The last letter of "Ruben" is "n". '
        'Concatenating them is "tan".',
    ),
    Problem(
        'Take the last letters of each words in "Hugo Ellen" and concatenate them.', "on", (), "text",
        'The last letter of "Hugo" is "o". The last letter of "Ellen" is "n". Concatenating them is "on".',
    ),
    Problem(
        'Take the last letters of each words in "Iris Karl Dora Emil" and concatenate them.', "slal", (), "text",
        'The last letter of "Iris" is "s". The last letter of "Karl" is "l". The last letter of "Dora" is "a". The '
        'last letter of "Emil" is "l". Concatenating them is "slal".',
    ),
)  # fmt: skip
"""Four words to be made of last letters (the task's own wording is that of its data)."""

CHAINS: dict[AnswerKind, tuple[Problem, ...]] = {"number": NUMBER, "choice": CHOICE, "yes_no": YES_NO, "text": TEXT}
"""Chain-of-thought demonstrations of each kind of answer."""


@dataclass(frozen=True)
class Steps:
    """A problem taken apart: sub-questions with their answers; the last one is the problem itself."""

    question: str
    subquestions: tuple[tuple[str, str], ...]
    answer: str


STEPS_NUMBER = (
    Steps(
        "Lena picks 6 baskets of 7 apples. A cake takes 5 apples, and she bakes 8 cakes. How many apples are left?",
        (("How many apples does she pick?", "She picks 6 * 7 = 42 apples. The answer is 42."),
         ("How many apples do the cakes take?", "8 cakes of 5 apples take 8 * 5 = 40 apples. The answer is 40.")),
        "She picks 42 apples and the cakes take 40, so 42 - 40 = 2 are left. The answer is 2.",
    ),
    Steps(
        "Tom is 4 years older than Eva, and Eva is twice as old as Jo. Jo is 6. How old is Tom?",
        (("How old is Eva?", "Eva is 2 * 6 = 12. The answer is 12."),),
        "Tom is 12 + 4 = 16. The answer is 16.",
    ),
)  # fmt: skip
STEPS_TEXT = (
    Steps(
        'Take the last letters of each words in "Hugo Ellen Iris" and concatenate them.',
        (("What do the last letters of \"Hugo\" give?", 'The last letter of "Hugo" is "o". The answer is o.'),
         ("What do the last letters of \"Hugo Ellen\" give?",
          '"Hugo" gives "o". The last letter of "Ellen" is "n". "o" and "n" give "on". The answer is on.')),
        '"Hugo Ellen" gives "on". The last letter of "Iris" is "s". "on" and "s" give "ons". The answer is ons.',
    ),
)  # fmt: skip
STEPS_YES_NO = (
    Steps(
        "A lamp is off. Ruth presses the switch. Paul presses the switch. Is the lamp on?",
        (("Is the lamp on after Ruth?", "It was off and Ruth presses the switch, so it is on. The answer is yes."),),
        "After Ruth the lamp is on. Paul presses the switch, so it is off. The answer is no.",
    ),
)
STEPS_CHOICE = (
    Steps(
        "A shop sells 12 eggs for $3. What do 20 eggs cost? Answer Choices: (A) $4 (B) $5 (C) $6",
        (("What does one egg cost?", "One egg costs 3 / 12 = 0.25 dollars. The answer is 0.25."),),
        "20 eggs cost 20 * 0.25 = 5 dollars, which is option B. The answer is (B).",
    ),
)
STEPS: dict[AnswerKind, tuple[Steps, ...]] = {
    "number": STEPS_NUMBER, "choice": STEPS_CHOICE, "yes_no": STEPS_YES_NO, "text": STEPS_TEXT,
}  # fmt: skip
"""Least-to-most demonstrations of each kind of answer."""


@dataclass(frozen=True)
class FollowUps:
    """A question answered by follow-up questions: (follow-up, intermediate answer), and the final answer."""

    question: str
    follow_ups: tuple[tuple[str, str], ...]
    answer: str


SELF_ASK = (
    FollowUps(
        "What is the capital of the country in which Mount Fuji stands?",
        (("In which country does Mount Fuji stand?", "Mount Fuji stands in Japan."),
         ("What is the capital of Japan?", "The capital of Japan is Tokyo.")),
        "Tokyo",
    ),
    FollowUps(
        "In which year was the author of Frankenstein born?",
        (("Who wrote Frankenstein?", "Frankenstein was written by Mary Shelley."),
         ("In which year was Mary Shelley born?", "Mary Shelley was born in 1797.")),
        "1797",
    ),
    FollowUps(
        "A crate holds 12 bottles. How many bottles do 7 crates hold if 5 bottles are broken?",
        (("How many bottles do 7 crates hold?", "7 crates hold 7 * 12 = 84 bottles."),
         ("How many bottles are left if 5 of 84 are broken?", "84 - 5 = 79 bottles are left.")),
        "79",
    ),
    FollowUps(
        "Did the inventor of the telephone and the author of Treasure Island come from the same city?",
        (("Who invented the telephone?", "The telephone was invented by Alexander Graham Bell."),
         ("In which city was Alexander Graham Bell born?", "Alexander Graham Bell was born in Edinburgh."),
         ("Who wrote Treasure Island?", "Treasure Island was written by Robert Louis Stevenson."),
         ("In which city was Robert Louis Stevenson born?", "Robert Louis Stevenson was born in Edinburgh.")),
        "yes",
    ),
)  # fmt: skip
"""Four questions that need other questions first."""
