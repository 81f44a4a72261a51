"""What a loop does with its rationales: rows without hint, fine-tuning, accuracy on questions that were held out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tutelage.core.errors import DataError
from tutelage.core.progress import Progress
from tutelage.core.rowfile import Row
from tutelage.core.stats import wilson
from tutelage.engine.requests import is_chat
from tutelage.icl.star.rationales import Asker, Method, taught
from tutelage.icl.star.tasks import Item, Task
from tutelage.text.chat import encode_chats


def training_texts(rows: Sequence[Row], items: Sequence[Item], task: Task, method: Method) -> list[tuple[Any, str]]:
    """(prompt, rationale) of everything that is learned: no demonstrations, and never the hint."""
    return [(task.prompt(items[row["number"]], [], False), text) for row in rows for text, _ in taught(row, method)]


def encode_texts(pairs: Sequence[tuple[Any, str]], tokenizer: Any, longest: int) -> list[dict[str, list[int]]]:
    """Token ids and labels; the prompt is no label, the end of the text is one. Longer rows are left out."""
    out = []
    for prompt, text in pairs:
        if is_chat(prompt):
            (ids, mask), = encode_chats(tokenizer, [[*prompt, {"role": "assistant", "content": text}]], longest)
            labels = [token if own else -100 for token, own in zip(ids, mask)]
            if any(mask):
                out.append({"input_ids": ids, "labels": labels})
            continue
        before = list(tokenizer(prompt)["input_ids"])
        whole = list(tokenizer(prompt + text)["input_ids"])
        if whole[: len(before)] != before:  # a token spans the border; generation went on from `before`
            whole = [*before, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        ids = [*whole, tokenizer.eos_token_id]
        if len(ids) <= longest:
            out.append({"input_ids": ids, "labels": [-100] * len(before) + ids[len(before) :]})
    return out


def steps_of(loop: int, start: int, grow: float, steady: int | None) -> int:
    """Optimiser steps of loop 1, 2, ...: start * grow^(loop-1) rounded, or with `steady` start + steady * (loop-1)."""
    return start + steady * (loop - 1) if steady is not None else round(start * grow ** (loop - 1))


def accuracy(asker: Asker, items: Sequence[Item], name: str, prefix: str = "accuracy") -> dict[str, Any]:
    """The share of greedy rationales that end with the right answer, with Wilson's interval, and of each group."""
    right: list[bool] = []
    batch = asker.asking.batch
    with Progress(name, "questions", len(items)) as progress:
        for start in range(0, len(items), batch):
            some = items[start : start + batch]
            found = asker.judged(some, asker.ask(some, greedy=True))
            right += [any(sample["right"] for sample in samples[:1]) for samples in found]
            progress.add(len(some))
    out: dict[str, Any] = {prefix: sum(right) / len(right)}
    out[f"{prefix}_low"], out[f"{prefix}_high"] = wilson(sum(right), len(right))
    for group in sorted({item.group for item in items} - {""}):
        mine = [fine for fine, item in zip(right, items, strict=True) if item.group == group]
        out[f"{prefix}/{group}"] = sum(mine) / len(mine)
    return out


def saturated(scores: Sequence[float], patience: int, gain: float) -> bool:
    """Whether the last `patience` scores brought no gain over the best before them; never where patience is 0."""
    if not patience or len(scores) <= patience:
        return False
    return max(scores[-patience:]) < max(scores[:-patience]) + gain


def nothing_learned(rows: Sequence[Row], what: str) -> DataError:
    """The error of a loop whose filter left nothing."""
    example = next((row["samples"][0]["text"] for row in rows if row["samples"]), "")
    return DataError(
        f"{what}: none of {len(rows)} questions was solved, so there is nothing to learn; give a model that solves "
        f"some, demonstrations (shots=, exemplars=), or rationalise=true (one rationale was {example[:80]!r})"
    )
