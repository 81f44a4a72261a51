"""The order of demonstrations: as given, by distance, random, or by entropy on inputs that the model makes up itself.

GlobalE and LocalE (Lu et al. 2022, "Fantastically Ordered Prompts", arXiv 2104.08786) need no labelled data beyond the
demonstrations. Every rule takes the demonstrations most relevant first, as selection gives them, and answers with
permutations of their places, best first.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tutelage.core.errors import ConfigError, DataError
from tutelage.engine.requests import SamplingParams
from tutelage.icl.entropy import global_entropy, local_entropy
from tutelage.icl.examples import Example
from tutelage.icl.prompts import Format, Prompter, with_fields
from tutelage.icl.scoring import Scorer
from tutelage.icl.scoring import scorer as engine_scorer

PROBING = SamplingParams(max_tokens=128, temperature=2.0, top_k=20)
"""How the paper samples the probing inputs; ``n`` more samples of each order make a larger probing set."""
MIN_WORDS = 5
_WORD = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]|[^\s\u3400-\u4dbf\u4e00-\u9fff]+")  # a Chinese character is a word


@dataclass(frozen=True)
class Ordering:
    """One order of a demonstration set, and what the rule thinks of it."""

    order: tuple[int, ...]
    """Places in the set, the first one shown first."""
    score: float = math.nan
    """The entropy in nats, higher is better; nan where the rule has none."""

    def of(self, demonstrations: Sequence[Example]) -> list[Example]:
        """The demonstrations in this order."""
        return [demonstrations[i] for i in self.order]


@dataclass(frozen=True)
class OrderTools:
    """What a rule may need. Only the entropies use an engine, a format and a scorer."""

    seed: int = 0
    keep: int = 1
    """How many orders are wanted, best first: 1, or the paper's 4 (of 24) to average over."""
    permutations: int = 24
    """Most orders that are tried; all of them where there are no more."""
    engine: Any = None
    form: Format | None = None
    scorer: Scorer | None = None
    """If None, the engine scores labels directly, in the format's own text."""
    sampling: SamplingParams = PROBING

    def __post_init__(self) -> None:
        for name in ("keep", "permutations"):
            if getattr(self, name) < 1:
                raise ConfigError(f"order: {name} must be at least 1, got {getattr(self, name)}")


def permutations(count: int, most: int, seed: int = 0) -> list[tuple[int, ...]]:
    """All orders of ``count`` things where there are at most ``most``, else ``most`` different random ones."""
    if math.factorial(count) <= most:
        return list(itertools.permutations(range(count)))
    return _random_orders(count, most, seed)


def _random_orders(count: int, wanted: int, seed: int) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    found: dict[tuple[int, ...], None] = {}
    while len(found) < wanted:
        found[tuple(int(i) for i in rng.permutation(count))] = None
    return list(found)


def _given(demonstrations: Sequence[Example], tools: OrderTools) -> list[Ordering]:
    return [Ordering(tuple(range(len(demonstrations))))]


def _nearest_last(demonstrations: Sequence[Example], tools: OrderTools) -> list[Ordering]:
    return [Ordering(tuple(reversed(range(len(demonstrations)))))]


def _random(demonstrations: Sequence[Example], tools: OrderTools) -> list[Ordering]:
    wanted = min(tools.keep, math.factorial(len(demonstrations)))
    return [Ordering(order) for order in _random_orders(len(demonstrations), wanted, tools.seed)]


def probing_set(
    engine: Any,
    form: Format,
    demonstrations: Sequence[Example],
    orders: Sequence[Sequence[int]],
    sampling: SamplingParams = PROBING,
) -> list[Example]:
    """Inputs that the model writes after the demonstrations in each of ``orders``, pooled, without repetition.

    The continuations of all orders are sampled in one call and read back by ``form.parse``; inputs with a column of
    less than MIN_WORDS words are dropped, and so are the labels that came with them. Each prompt ends with what the
    template has before its first column. Prompts are plain text, whatever form the scorer gives them.

    The paper's script also forbids repeated 3- and 5-grams (label words excepted) and takes a label word wherever it is
    the likeliest token. The engine has no such ban, so both are left out here. ``sampling.repetition_penalty`` is
    there against loops, but it punishes the template's own words as well and is off unless asked for.

    DataError: a prompt is too long, or nothing usable was written.
    """
    before = form.input.partition("{")[0].rstrip(" ")  # a blank at the end would split off the first word's own
    prompter = Prompter(form)
    prompts = [prompter.prefix([demonstrations[i] for i in order]) + before for order in orders]
    texts = []
    for order, output in zip(orders, engine.generate(prompts, sampling), strict=True):
        if output.error:
            raise DataError(f"probing inputs, order {tuple(order)}: {output.error}; use fewer demonstrations")
        texts += [before + completion.text for completion in output.completions]
    found = {tuple(fields.items()): fields for text in texts for fields in form.parse(text)}
    kept = [fields for fields in found.values() if all(_words(value) >= MIN_WORDS for value in fields.values())]
    if not kept:
        raise DataError(
            f"probing inputs: {len(texts)} samples hold {len(found)} inputs, none of {MIN_WORDS} words or more; "
            "sample more (sampling.n), at a lower temperature, or use a model that keeps to the template"
        )
    blank = replace(demonstrations[0], answer="", gold=-1, rationale="")
    return [with_fields(blank, fields) for fields in kept]


def _words(text: str) -> int:
    return len(_WORD.findall(text))


def probe_orders(demonstrations: Sequence[Example], tools: OrderTools) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """The orders that are tried, and log P(label) [orders, probing inputs, labels]; both entropies can be read off it.

    One generate call, and one call of the scorer.
    """
    if tools.engine is None or tools.form is None:
        raise ConfigError("order by entropy samples and scores inputs: give OrderTools an engine and a form")
    scorer = tools.scorer or engine_scorer(tools.engine, Prompter(tools.form))
    orders = permutations(len(demonstrations), tools.permutations, tools.seed)
    sampling = tools.sampling if tools.sampling.seed is not None else replace(tools.sampling, seed=tools.seed)
    probes = probing_set(tools.engine, tools.form, demonstrations, orders, sampling)
    return orders, scorer([[demonstrations[i] for i in order] for order in orders], probes)


def rank_orders(orders: Sequence[tuple[int, ...]], values: np.ndarray) -> list[Ordering]:
    """``orders`` with their values, the highest first; equal ones as they came."""
    found = [Ordering(order, float(value)) for order, value in zip(orders, values, strict=True)]
    return sorted(found, key=lambda ordering: -ordering.score)


def _by_entropy(measure: Callable[[np.ndarray], np.ndarray]) -> OrderRule:
    def rule(demonstrations: Sequence[Example], tools: OrderTools) -> list[Ordering]:
        if len(demonstrations) < 2:
            return _given(demonstrations, tools)
        orders, logprobs = probe_orders(demonstrations, tools)
        return rank_orders(orders, measure(logprobs))[: tools.keep]

    return rule


OrderRule = Callable[[Sequence[Example], OrderTools], list[Ordering]]

ORDERS: Mapping[str, OrderRule] = {
    "given": _given,
    "nearest-first": _given,
    "nearest-last": _nearest_last,
    "random": _random,
    "global-entropy": _by_entropy(global_entropy),
    "local-entropy": _by_entropy(local_entropy),
}
"""Rule by name. Demonstrations arrive most relevant first, so that "given" and "nearest-first" are the same here."""


def order_rule(name: str) -> OrderRule:
    """The rule of that name ("global_entropy" is "global-entropy"); ConfigError names those that there are."""
    rule = ORDERS.get(name.replace("_", "-"))
    if rule is None:
        raise ConfigError(f"order={name!r}: expected one of {', '.join(ORDERS)}")
    return rule
