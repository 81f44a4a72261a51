"""Preferences as they are published, brought to one shape: {"prompt", "responses", "ranking"[, "p_better"]}.

`p_better[i][j]` is the share of people who prefer response i to response j, null where no one compared the two; a row
without it is an order that no one doubts. What makes a row of that shape valid is core.records.RankingRow.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from os.path import commonprefix
from typing import Any

from tutelage.core.agreement import Ranked
from tutelage.core.errors import DataError
from tutelage.core.records import EXPECTED, PairRow, RankingRow, check_row
from tutelage.text.chat import Message, as_messages

Row = dict[str, Any]
Shares = list[list[float | None]]

_HH_ANSWER = "\n\nAssistant:"
_PROMPT_KEYS = ("messages", "conversations", "instruction")
_HIGHER_IS_BETTER = ("score", "winrate_vs_base")
_LOWER_IS_BETTER = ("rank",)
_CONSUMED = {*_PROMPT_KEYS, "chosen", "rejected", "p_chosen", "candidates", "scores"}
_CANDIDATES = '{"instruction": "...", "candidates": [{"output": "...", "score": 0.5}, ...]}'


def as_ranking(row: Mapping[str, Any], where: str) -> Row:
    r"""The row as {"prompt", "responses", "ranking"[, "p_better"]} and its further columns; DataError begins `where`.

    Understood, besides that shape itself (a response may also be a message):
    {"prompt", "responses", "scores"}: the higher score is better, equal scores tie;
    {"instruction" or "prompt", "candidates": [{"output", ...}]} (alpaca_eval), ordered by "score", "winrate_vs_base" or
    "rank" (1 is best);
    {"prompt", "chosen", "rejected"[, "p_chosen"]}, each a string or messages; the prompt may also stand in
    "conversations", "messages" or "instruction"/"input" (LLaMA-Factory), or be the messages or the
    "\n\nHuman: ..\n\nAssistant: .." text that both sides begin with (TRL's implicit prompt; Anthropic's HH).
    """
    row = {key: value for key, value in row.items() if value is not None}  # parquet's way of leaving a key out
    pair = None
    try:
        if "responses" in row:
            found = _responses(row)
        elif "candidates" in row:
            found = _candidates(row)
        elif "chosen" in row or "rejected" in row:
            pair = _pair(row)
        else:
            shapes = f"{EXPECTED[RankingRow]}, {EXPECTED[PairRow]} or {_CANDIDATES}"
            raise DataError(f"keys {', '.join(map(str, row)) or 'none'}; expected {shapes}")
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    if pair is not None:
        check_row(pair, PairRow, where)
        found = _ordered(pair)
    out = {**found, **{key: value for key, value in row.items() if key not in _CONSUMED and key not in found}}
    check_row(out, RankingRow, where)
    if not any(message["content"].strip() for message in _messages(out["prompt"])):
        raise DataError(f"{where}: the prompt is empty; expected what was asked (remove the row)")
    return out


def ranking_from_scores(scores: Sequence[float]) -> list[list[int]]:
    """Groups of indices, highest score first; equal scores are a tie."""
    levels = sorted(set(scores), reverse=True)
    return [[i for i, score in enumerate(scores) if score == level] for level in levels]


def _messages(prompt: str | list[Message]) -> list[Message]:
    return as_messages({"prompt": prompt})


def _prompt(row: Mapping[str, Any]) -> str | list[Message] | None:
    """The prompt that stands in a key of its own; None if there is none."""
    if "prompt" in row:
        prompt = row["prompt"]
        return _messages(prompt) if isinstance(prompt, list) and prompt else prompt
    for key in _PROMPT_KEYS:
        if key in row:
            return as_messages({k: row[k] for k in (key, "system", "input") if k in row})
    return None


def _answer(value: Any, key: str, prompt: Any) -> Any:
    """The text of one response: a string as it is, or the one assistant's message behind the prompt (if it repeats
    that). Anything else is returned for the row's model to complain of."""
    if not isinstance(value, dict | list) or not value:
        return value
    messages = as_messages([value] if isinstance(value, dict) else value)
    asked = _messages(prompt) if isinstance(prompt, str | list) and prompt else []
    if len(messages) > 1 and messages[: len(asked)] == asked:
        messages = messages[len(asked) :]
    if [m["role"] for m in messages] != ["assistant"]:
        roles = ", ".join(m["role"] for m in messages) or "none"
        raise DataError(f"{key!r} holds messages of {roles} behind the prompt; expected one assistant's message")
    return messages[0]["content"]


def _responses(row: Mapping[str, Any]) -> Row:
    prompt = _prompt(row)
    out: Row = {} if prompt is None else {"prompt": prompt}
    responses = row["responses"]
    if not isinstance(responses, list):
        raise DataError(f"'responses' is a {type(responses).__name__}; expected {EXPECTED[RankingRow]}")
    out["responses"] = [_answer(value, f"responses.{i}", prompt) for i, value in enumerate(responses)]
    if "ranking" not in row and "scores" in row:
        scores = row["scores"]
        if not isinstance(scores, list) or not all(map(_number, scores)) or len(scores) != len(responses):
            raise DataError(f"'scores' is {scores!r}; expected a finite number for each of {len(responses)} responses")
        out["ranking"] = ranking_from_scores(scores)
    return out


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _candidates(row: Mapping[str, Any]) -> Row:
    """alpaca_eval's K-way rows: what orders the candidates is the judge's win rate against the common baseline."""
    prompt, candidates = _prompt(row), row["candidates"]
    if not isinstance(candidates, list) or not all(isinstance(c, dict) and "output" in c for c in candidates):
        raise DataError("'candidates' is not a list of objects with an 'output'")
    for key in (*_HIGHER_IS_BETTER, *_LOWER_IS_BETTER):
        values = [c.get(key) for c in candidates]
        if all(map(_number, values)):
            sign = -1 if key in _LOWER_IS_BETTER else 1
            ranking = ranking_from_scores([sign * value for value in values])
            break
    else:
        wanted = ", ".join((*_HIGHER_IS_BETTER, *_LOWER_IS_BETTER))
        raise DataError(f"nothing orders the candidates; expected a number in every one under one of {wanted}")
    out: Row = {} if prompt is None else {"prompt": prompt}
    return {**out, "responses": [c["output"] for c in candidates], "ranking": ranking}


def _pair(row: Mapping[str, Any]) -> Row:
    """The row's prompt, "chosen" and "rejected" as texts, and p_chosen if given; what PairRow then checks."""
    for key in ("chosen", "rejected"):
        if key not in row:
            raise DataError(f"no {key!r} (keys: {', '.join(map(str, row))}); expected {EXPECTED[PairRow]}")
    prompt, sides = _prompt(row), [row["chosen"], row["rejected"]]
    if prompt is None:
        prompt, sides = _shared_beginning(*sides)
    texts = {key: _answer(side, key, prompt) for key, side in zip(("chosen", "rejected"), sides)}
    return {"prompt": prompt, **texts, **({"p_chosen": row["p_chosen"]} if "p_chosen" in row else {})}


def _ordered(pair: Row) -> Row:
    p = pair.get("p_chosen", 1.0)
    out = {"prompt": pair["prompt"], "responses": [pair["chosen"], pair["rejected"]]}
    out["ranking"] = ranking_from_scores([p, 1 - p])
    return out if p in (0, 1) else {**out, "p_better": [[None, p], [1 - p, None]]}


def _shared_beginning(chosen: Any, rejected: Any) -> tuple[list[Message], list[Any]]:
    """(prompt, the two answers) of sides that each hold the whole conversation."""
    if chosen == rejected:
        raise DataError("'chosen' and 'rejected' are the same, which says nothing; remove the row")
    if isinstance(chosen, list) and isinstance(rejected, list):
        sides = [as_messages(chosen), as_messages(rejected)]
        count = 0
        while count < min(map(len, sides)) and sides[0][count] == sides[1][count]:
            count += 1
        if not count:
            raise DataError("'chosen' and 'rejected' begin differently; expected the same prompt, or a 'prompt'")
        return sides[0][:count], [side[count:] for side in sides]
    if isinstance(chosen, str) and isinstance(rejected, str):
        # The last turn that both share, found in the text itself: an answer in which "Human:" occurs stays whole.
        shared = commonprefix([chosen, rejected])
        at = shared.rfind(_HH_ANSWER)
        if at < 0:
            raise DataError(
                "no 'prompt', and 'chosen' and 'rejected' do not begin with one conversation; expected "
                f"{EXPECTED[PairRow]}, or both as '\\n\\nHuman: ...\\n\\nAssistant: ...'"
            )
        return as_messages(shared[:at]), [side[at + len(_HH_ANSWER) :].strip() for side in (chosen, rejected)]
    raise DataError(f"no 'prompt' (keys: chosen, rejected); expected {EXPECTED[PairRow]}, or messages on both sides")


def _votes(row: Row) -> Shares:
    """One row's votes: its own shares, or 1, 0 and, for a tie, 1/2 from its order."""
    if row.get("p_better") is not None:
        return row["p_better"]
    group_of = {i: number for number, group in enumerate(row["ranking"]) for i in group}
    k = len(group_of)
    return [[0.5 * ((group_of[i] < group_of[j]) + (group_of[i] <= group_of[j])) for j in range(k)] for i in range(k)]


def _joint(rows: Sequence[Row]) -> Row:
    """Rankings of the same prompt and responses as one row; the first one's columns stay."""
    texts = rows[0]["responses"]
    k = len(texts)
    people = [row["annotator"] for row in rows]
    places = [[row["responses"].index(text) for text in texts] for row in rows]
    votes = [_votes(row) for row in rows]

    def share(i: int, j: int) -> float | None:
        given = [(v[at[i]][at[j]], 1 / people.count(who)) for v, at, who in zip(votes, places, people)]
        cast = [(vote, weight) for vote, weight in given if vote is not None]
        # a pair that no one orders is a tie for all of them, and makes no pair, as in a single ranking
        if all(vote == 0.5 for vote, _ in cast):
            return None
        return sum(vote * weight for vote, weight in cast) / sum(weight for _, weight in cast)

    shares: Shares = [[share(i, j) if i != j else None for j in range(k)] for i in range(k)]
    # Borda's order: by how often a response is preferred to the others
    points = [round(sum(0.5 if p is None else p for p in line), 9) for line in shares]
    out = {**rows[0], "ranking": ranking_from_scores(points), "annotator": people}
    out.pop("p_better", None)
    plain = [[vote if vote != 0.5 else None for vote in line] for line in _votes(out)]
    if shares != plain:
        out["p_better"] = shares
    return out


def ranking_key(row: Row) -> tuple[str, frozenset[str]]:
    """What rankings of the same responses to the same prompt have in common, in whatever order they stand."""
    return json.dumps(_messages(row["prompt"]), sort_keys=True, ensure_ascii=False), frozenset(row["responses"])


def ranked(row: Row, annotator: Hashable) -> Ranked:
    """The row's order as one judgement, its responses named by their texts."""
    return Ranked(ranking_key(row), annotator, [[row["responses"][i] for i in group] for group in row["ranking"]])


def judgements(rows: Iterable[Row]) -> list[Ranked]:
    """What each "annotator" said, of rows not yet joined; those without one are left out: equal rows may be copies."""
    return [ranked(row, row["annotator"]) for row in rows if isinstance(row.get("annotator"), str | int)]


def join_annotators(rows: Iterable[Row]) -> list[Row]:
    """The rows, those of several annotators on the same prompt and responses (in any order) joined to one.

    The share of them who prefer i to j becomes p_better[i][j], a tie counting one half for either side; where they all
    agree the row keeps a plain order. Someone who ranked twice counts once, by the mean of both. Only rows with an
    "annotator" are joined: equal rows without one may be copies.
    """
    groups: dict[Any, list[Row]] = {}
    for number, row in enumerate(rows):
        key: Any = number
        if row.get("annotator") is not None and len(set(row["responses"])) == len(row["responses"]):
            key = ranking_key(row)
        groups.setdefault(key, []).append(row)
    return [_joint(group) if len(group) > 1 else group[0] for group in groups.values()]
