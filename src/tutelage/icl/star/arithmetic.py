r"""Addition with a scratchpad: the problems, the rationale in the papers' notation, and the reader of answers.

Nye et al. 2021 and Zelikman et al. 2022 write digits apart, the least significant pair first, with the running sum and
the carry on every line:

    Input:
    6 2 4 + 2 5 9
    Target:
    <scratch>
    6 2 4 + 2 5 9 , C: 0
    6 2 + 2 5 , 3 C: 1
    6 + 2 , 8 3 C: 0
    , 8 8 3 C: 0
    0 8 8 3
    </scratch>
    8 8 3

`layout="remaining"` (Nye et al.) carries all digits still to be added from line to line, as above, so that a line
follows from the one before it. `layout="pairs"` (STaR's generator) shows only the next pair: "2 + 5 , 3 C: 1".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from tutelage.core.errors import ConfigError, DataError
from tutelage.core.runtime import stream_seed

Layout = Literal["remaining", "pairs"]
Pair = tuple[int, int]
OPEN, CLOSE = "<scratch>", "</scratch>"
WORDS = (*"0123456789", "+", ",", "C:", "Input:", "Target:", OPEN, CLOSE, "\n")
"""Every word of the notation, for a tokenizer with one token each."""
MOST_DIGITS = 18
HELD_SHARE = 10
"""At most one in so many of all sums of a length is held out for each purpose (there are 100 of one digit)."""


def spaced(number: int) -> str:
    """"624" as "6 2 4"."""
    return " ".join(str(number))


def question(pair: Pair) -> str:
    """The sum that is asked for: "6 2 4 + 2 5 9"."""
    return f"{spaced(pair[0])} + {spaced(pair[1])}"


def prompt(asked: str, hint: str = "") -> str:
    """What comes before the scratchpad; `hint`: the answer, which STaR puts behind "Target:"."""
    return f"Input:\n{asked}\nTarget:{' ' + hint if hint else ''}\n"


def scratchpad(pair: Pair, layout: Layout = "remaining") -> str:
    """The right rationale and answer of a sum of two numbers with as many digits."""
    first, second = (str(number) for number in pair)
    if len(first) != len(second):
        raise DataError(f"{first} + {second}: the scratchpad adds numbers of as many digits")
    lines, carry, done = [f"{question(pair)} , C: 0"], 0, ""
    for left in range(len(first) - 1, -1, -1):
        carry, digit = divmod(int(first[left]) + int(second[left]) + carry, 10)
        done = f"{digit} {done}".strip()
        start = 0 if layout == "remaining" else left - 1
        rest = " + ".join(" ".join(number[start:left]) for number in (first, second)) + " " if left else ""
        lines.append(f"{rest}, {done} C: {carry}")
    return "\n".join((OPEN, *lines, f"{carry} {done}", CLOSE, spaced(sum(pair))))


def read_answer(text: str) -> str | None:
    """The digits on the line behind the scratchpad ("8 8 3"), or None where there are none or something else."""
    _, mark, rest = text.partition(CLOSE)
    found = rest.strip("\n ")
    return found if mark and re.fullmatch(r"\d( \d)*", found) else None


def digits_of(data: str) -> range:
    """The numbers of digits of "arithmetic:1-5" or "arithmetic:3"."""
    found = re.fullmatch(r"arithmetic:(\d+)(?:-(\d+))?", data)
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= low <= high <= MOST_DIGITS:
        raise ConfigError(f"data={data!r}: expected arithmetic:1-5, of 1 to {MOST_DIGITS} digits")
    return range(low, high + 1)


def draw(digits: int, count: int, seed: int, without: frozenset[Pair] | set[Pair] = frozenset()) -> list[Pair]:
    """`count` pairs of numbers of that many digits (0 is one of one digit), none of `without`; some may be equal."""
    low, high = (10 ** (digits - 1) if digits > 1 else 0), 10**digits
    if (high - low) ** 2 <= sum(low <= a < high and low <= b < high for a, b in without):
        raise DataError(f"all sums of {digits} digits are held out; none is left to train on")
    random = np.random.default_rng(stream_seed(seed, "sums", digits))
    found: list[Pair] = []
    while len(found) < count:
        pairs = random.integers(low, high, size=(count, 2))
        found += [(int(a), int(b)) for a, b in pairs if (int(a), int(b)) not in without]
    return found[:count]


def held_sums(digits: Sequence[int], count: int, seed: int, name: str, without: set[Pair]) -> list[Pair]:
    """About `count` different sums for measuring, as many of each number of digits, none of `without`."""
    each = -(-count // len(digits))
    out: list[Pair] = []
    for d in digits:
        low, high = (10 ** (d - 1) if d > 1 else 0), 10**d
        most = min(each, (high - low) ** 2 // HELD_SHARE)
        drawn = dict.fromkeys(draw(d, 2 * most + 8, stream_seed(seed, name), without))
        out += list(drawn)[:most]
    return out


def training_sums(digits: Sequence[int], count: int, seed: int, name: str, without: set[Pair]) -> list[Pair]:
    """`count` sums for training, their number of digits uniform, in random order, none of `without`."""
    each = -(-count // len(digits))
    every = [pair for d in digits for pair in draw(d, each, stream_seed(seed, name), without)]
    order = np.random.default_rng(stream_seed(seed, name, "order")).permutation(len(every))
    return [every[i] for i in order[:count]]
