"""Critique and revision (Bai et al. 2022, sec. 3): a model finds fault with its own answer by a sampled principle and
writes it again, several times over."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.core.runtime import stream_seed
from tutelage.engine import Output, SamplingParams
from tutelage.feedback.asking import Asker
from tutelage.feedback.constitution import Constitution, Principle, example_text, fill, transcript
from tutelage.text.chat import as_messages

Row = dict[str, Any]


@dataclass(frozen=True)
class Revising:
    """How rounds are made. `temperature` is 1 in the paper; tokens are those of the longest answer or revision, and of
    the longest critique."""

    rounds: int = 4
    temperature: float = 1.0
    max_tokens: int = 64
    critique_tokens: int = 64
    examples: int = 100
    seed: int = 0


def revise_rows(
    asker: Asker, constitution: Constitution, rows: Sequence[Row], settings: Revising, first: int = 0, name: str = ""
) -> list[Row]:
    """The rows with "answer" and "rounds": [{"principle", "critique_request", "critique", "revision_request",
    "revision"}, ...]; or with "error", where the model cannot take what grew too long.

    A principle is drawn for each row and round by itself, and so are the samples: both are functions of (settings.seed,
    `name`, the row's number, the round) alone. Rows are numbered from `first`.
    """
    form = constitution.format
    numbers = range(first, first + len(rows))
    out: list[Row] = [{**row, "answer": "", "rounds": []} for row in rows]
    asked = [as_messages({"prompt": row["prompt"]}) for row in rows]
    params = [_params(asker, settings, settings.max_tokens, name, "answer", number, 0) for number in numbers]
    latest = _texts(asker.answers(asked, params), out, range(len(out)))
    for row, text in zip(out, latest):
        row["answer"] = text
    for turn in range(1, settings.rounds + 1):
        here = [i for i, row in enumerate(out) if "error" not in row]
        drawn = [_drawn(constitution, settings, name, numbers[i], turn) for i in here]
        said = [
            transcript(form, asked[i], latest[i]) + fill(form.critique, request=p.critique)
            for i, p in zip(here, drawn)
        ]
        critiques = _ask(asker, constitution, settings, said, here, numbers, (name, "critique", turn), out)
        said = [
            text + f" {critique}" + fill(form.revision, request=p.revision)
            for text, critique, p in zip(said, critiques, drawn)
        ]
        revisions = _ask(asker, constitution, settings, said, here, numbers, (name, "revision", turn), out)
        for i, p, critique, revision in zip(here, drawn, critiques, revisions):
            if "error" in out[i]:
                continue
            latest[i] = revision
            out[i]["rounds"].append({
                "principle": p.name, "critique_request": p.critique, "critique": critique,
                "revision_request": p.revision, "revision": revision,
            })  # fmt: skip
    return out


def _drawn(constitution: Constitution, settings: Revising, name: str, number: int, turn: int) -> Principle:
    return constitution.principle(random.Random(stream_seed(settings.seed, "principle", name, number, turn)))


def _params(asker: Asker, settings: Revising, tokens: int, *where: Any) -> SamplingParams:
    seed = stream_seed(settings.seed, "constitution", *where) % 2**31
    return SamplingParams(max_tokens=tokens, temperature=settings.temperature, stop=asker.stops(), seed=seed)


def _ask(
    asker: Asker, constitution: Constitution, settings: Revising, said: Sequence[str], here: Sequence[int],
    numbers: Sequence[int], where: tuple[str, str, int], out: list[Row],
) -> list[str]:  # fmt: skip
    """Replies to the transcripts of the rows `here`; what cannot be asked becomes the row's error."""
    name, what, turn = where
    tokens = settings.critique_tokens if what == "critique" else settings.max_tokens
    examples = [example_text(constitution.format, e) for e in constitution.examples[: settings.examples]]
    texts = [asker.with_examples(examples, text, tokens) for text in said]
    params = [_params(asker, settings, tokens, name, what, numbers[i], turn) for i in here]
    return _texts(asker.replies(texts, params), out, here)


def _texts(outputs: Sequence[Output], out: list[Row], here: Sequence[int]) -> list[str]:
    for i, output in zip(here, outputs, strict=True):
        if output.error:
            out[i].setdefault("error", output.error)
    return [output.text.strip() for output in outputs]


def texts_of_round(row: Row, turn: int) -> str:
    """The answer as it stands after round `turn`; 0 is the first answer, and of a broken row the last there is."""
    rounds = row["rounds"][:turn]
    return str(rounds[-1]["revision"] if rounds else row["answer"])


def sft_rows(rows: Sequence[Row], keep: str) -> list[Row]:
    """{"prompt", "completion", "round", "principle"} of each row without an error: of all rounds, or the last alone.
    Empty revisions are left out."""
    out = []
    for row in rows:
        rounds = list(enumerate(row["rounds"], 1)) if "error" not in row else []
        for turn, made in rounds if keep == "all" else rounds[-1:]:
            if made["revision"]:
                out.append({"prompt": row["prompt"], "completion": made["revision"], "round": turn,
                            "principle": made["principle"]})
    return out
