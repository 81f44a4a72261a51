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
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.core.errors import ConfigError, DataError
from tutelage.engine.requests import SamplingParams
from tutelage.icl.entropy import global_entropy, local_entropy
from tutelage.icl.examples import Example

if TYPE_CHECKING:
    from tutelage.icl.prompts import Format
    from tutelage.icl.scoring import Scorer

PROBING = SamplingParams(max_tokens=128, temperature=2.0, top_k=20)
"""How the paper samples the probing inputs; ``n`` more samples of each order make a larger probing set."""
MIN_WORDS = 5
_MARK = "\ufffc"  # stands where a query's input goes; no data has it (U+FFFC, object replacement character)
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
    sampling: SamplingParams = PROBING
    probe: Callable[[str], Example] | None = None
    """Makes an example of an input's text; needed where the templates name several columns."""

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
    probe: Callable[[str], Example] | None = None,
) -> list[Example]:
    """Inputs that the model writes after the demonstrations in each of ``orders``, pooled, without repetition.

    The continuations of all orders are sampled in one call and read back by ``form.parse``; inputs of less than
    MIN_WORDS words are dropped, and so are the labels that came with them. Each prompt ends with what the template has
    before an input.

    The paper's script also forbids repeated 3- and 5-grams (label words excepted) and takes a label word wherever it is
    the likeliest token. The engine has no such ban, so both are left out here. ``sampling.repetition_penalty`` is
    there against loops, but it punishes the template's own words as well and is off unless asked for.

    DataError: a prompt is too long, or nothing usable was written.
    """
    made = probe or _single_column(demonstrations[0])
    opening = form.query(made(_MARK)).partition(_MARK)
    before = opening[0].rstrip(" ") if opening[1] else ""  # a blank at the end would split off the first word's own
    shown = [form.separator.join(form.demonstration(demonstrations[i]) for i in order) for order in orders]
    head = [form.instruction] if form.instruction else []
    prompts = [form.separator.join([*head, text, before]) for text in shown]
    texts = []
    for order, output in zip(orders, engine.generate(prompts, sampling), strict=True):
        if output.error:
            raise DataError(f"probing inputs, order {tuple(order)}: {output.error}; use fewer demonstrations")
        texts += [before + completion.text for completion in output.completions]
    inputs = dict.fromkeys(found.strip() for text in texts for found in form.parse(text))
    kept = [text for text in inputs if len(_WORD.findall(text)) >= MIN_WORDS]
    if not kept:
        raise DataError(
            f"probing inputs: {len(texts)} samples hold {len(inputs)} inputs, none of {MIN_WORDS} words or more; "
            "sample more (sampling.n), at a lower temperature, or use a model that keeps to the template"
        )
    return [made(text) for text in kept]


def _single_column(like: Example) -> Callable[[str], Example]:
    """Makes examples whose one input column is that of ``like``."""
    columns = [name for name, value in like.fields.items() if value == like.text]
    if len(columns) != 1:
        raise ConfigError(
            f"order by entropy: of the columns {', '.join(like.fields) or 'none'} not exactly one is the whole input; "
            "give OrderTools.probe, which makes an example of a text"
        )
    return lambda text: Example({**like.fields, columns[0]: text}, text, like.options)


def rank_by_entropy(
    measure: Callable[[np.ndarray], np.ndarray],
    demonstrations: Sequence[Example],
    orders: Sequence[tuple[int, ...]],
    probes: Sequence[Example],
    scorer: Scorer,
) -> list[Ordering]:
    """``orders``, the highest entropy first (equal ones as they came), from one call of the scorer."""
    logprobs = scorer([[demonstrations[i] for i in order] for order in orders], probes)
    found = [Ordering(order, float(value)) for order, value in zip(orders, measure(logprobs), strict=True)]
    return sorted(found, key=lambda ordering: -ordering.score)


def _by_entropy(measure: Callable[[np.ndarray], np.ndarray]) -> OrderRule:
    def rule(demonstrations: Sequence[Example], tools: OrderTools) -> list[Ordering]:
        if tools.engine is None or tools.form is None or tools.scorer is None:
            raise ConfigError("order by entropy samples and scores inputs: give engine, form and scorer")
        orders = permutations(len(demonstrations), tools.permutations, tools.seed)
        if len(orders) == 1:
            return [Ordering(orders[0])]
        sampling = tools.sampling if tools.sampling.seed is not None else replace(tools.sampling, seed=tools.seed)
        probes = probing_set(tools.engine, tools.form, demonstrations, orders, sampling, tools.probe)
        return rank_by_entropy(measure, demonstrations, orders, probes, tools.scorer)[: tools.keep]

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
