"""One loop's rationales: asked for, filtered by their answers, made again with a hint where they failed; all are kept.

A row of rationales.jsonl is one question: {"number" (of the item), "question", "answer", "group", "samples": [{"text",
"read", "right", "finished"}], "hinted": the same of the rationalisation or null, "label" (the answer that the filter
went by), "error"}. `taught` says what is learned of it, and always without the hint.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tutelage.core.errors import DataError, RunError
from tutelage.core.progress import Progress
from tutelage.core.rowfile import Row, RowFile
from tutelage.core.rundir import read_jsonl_tolerant
from tutelage.engine.requests import Completion, Output, Prompt, SamplingParams
from tutelage.icl.reasoning.asking import Engine
from tutelage.icl.reasoning.votes import vote
from tutelage.icl.star.tasks import Item, Task

Method = Literal["star", "rft", "self_consistency"]
FILE = "rationales.jsonl"


@dataclass(frozen=True)
class Asking:
    """How rationales are made and kept."""

    method: Method
    """star: one rationale, kept where the gold answer comes out, else one with the hint. rft: every different right
    one of several (Yuan et al. 2023). self_consistency: those of the majority's answer; no gold answer is looked at
    (Huang et al. 2022)."""
    rationalise: bool
    samples: int
    temperature: float
    top_p: float
    agreement: float
    """self_consistency: least share of the samples that the majority must have."""
    max_tokens: int
    seed: int
    batch: int
    """Questions asked together; what an interrupted run goes on behind."""


class Asker:
    """Asks an engine about a task's questions with demonstrations before each."""

    def __init__(self, engine: Engine, task: Task, shown: Sequence[Item], asking: Asking) -> None:
        self.engine, self.task, self.shown, self.asking = engine, task, list(shown), asking

    def ask(self, items: Sequence[Item], hint: bool = False, greedy: bool = False) -> list[Output]:
        """One Output an item. RunError where the engine's server could not serve."""
        if not items:
            return []
        how = self.asking
        alone = hint or greedy or how.method == "star"
        params = SamplingParams(
            max_tokens=how.max_tokens, temperature=0.0 if greedy else how.temperature, top_p=how.top_p,
            n=1 if alone else how.samples, stop=self.task.stop, seed=how.seed,
        )  # fmt: skip
        outputs = self.engine.generate(self.prompts(items, hint), params)
        for output in outputs:
            if output.unserved:
                raise RunError(f"{output.error}; the same command asks again from here")
        if failed := [output.error for output in outputs if output.error]:
            if len(failed) == len(outputs):
                raise DataError(f"all {len(failed)} questions of a batch failed, the first: {failed[0]}")
        return outputs

    def prompts(self, items: Sequence[Item], hint: bool) -> list[Prompt]:
        """Prompts that leave room for the rationale: too long ones go with fewer demonstrations."""
        return [self._fitting(item, hint) for item in items]

    def _fitting(self, item: Item, hint: bool) -> Prompt:
        context, encode = getattr(self.engine, "context_length", None), getattr(self.engine, "encode", None)
        shown = self.shown
        while True:
            prompt = self.task.prompt(item, shown, hint)
            if not shown or context is None or encode is None:
                return prompt
            if len(encode(prompt)) + self.asking.max_tokens <= context:
                return prompt
            shown = shown[:-1]

    def judged(self, items: Sequence[Item], outputs: Sequence[Output]) -> list[list[Row]]:
        """The completions of each item with the answer read and whether it is right."""
        flat = [(i, *self._ended(c)) for i, output in enumerate(outputs) for c in output.completions]
        right = self.task.right([items[i] for i, _, _ in flat], [text for _, text, _ in flat])
        out: list[list[Row]] = [[] for _ in items]
        for (i, text, finished), fine in zip(flat, right, strict=True):
            read = self.task.read(items[i], text)
            # a rationale that was cut off may only look as if it ended with an answer
            out[i].append({"text": text, "read": read, "right": fine and finished, "finished": finished})
        return out


    def _ended(self, completion: Completion) -> tuple[str, bool]:
        """The text, and whether it came to an end; what follows the answer of one that did not is cut off."""
        if completion.finish_reason != "length":
            return completion.text, True
        cut = self.task.whole(completion.text)
        return (completion.text, False) if cut is None else (cut, True)


def write_rationales(
    folder: Path, asker: Asker, items: Sequence[Item], numbers: Sequence[int], identity: dict[str, Any], name: str
) -> Path:
    """The loop's rows for the items of these numbers, from where the file stands. Returns the file."""
    how = asker.asking
    file = RowFile(folder / FILE, "rationales", identity)
    done = file.open(len(numbers), how.batch)
    try:
        if not done:
            file.begin()
            with Progress(name, "questions", len(numbers)) as progress:
                progress.at(file.rows)
                for start in range(file.rows, len(numbers), how.batch):
                    some = list(numbers[start : start + how.batch])
                    rows = _rows(asker, [items[n] for n in some])
                    file.append([{"number": n, **row} for n, row in zip(some, rows, strict=True)])
                    progress.add(len(some))
            file.finish()
    finally:
        file.close()
    return file.path


def _rows(asker: Asker, items: Sequence[Item]) -> list[Row]:
    how = asker.asking
    outputs = asker.ask(items)
    samples = asker.judged(items, outputs)
    labels = [_label(item, found, how) for item, found in zip(items, samples, strict=True)]
    hinted: list[Row | None] = [None] * len(items)
    if how.method == "star" and how.rationalise:
        failed = [i for i, found in enumerate(samples) if items[i].answer and not any(s["right"] for s in found)]
        again = asker.ask([items[i] for i in failed], hint=True)
        for i, found in zip(failed, asker.judged([items[i] for i in failed], again), strict=True):
            hinted[i] = found[0] if found else None
    return [
        {"question": item.question, "answer": item.answer, "group": item.group, "samples": found, "hinted": second,
         "label": label, "error": output.error}
        for item, found, second, label, output in zip(items, samples, hinted, labels, outputs, strict=True)
    ]  # fmt: skip


def _label(item: Item, samples: Sequence[Row], how: Asking) -> str | None:
    """The answer that the filter goes by: the gold one, or the majority's if enough agree."""
    if how.method != "self_consistency":
        return item.answer
    keys = [sample["read"] if sample["finished"] else None for sample in samples]
    winner, share = vote(keys, [0.0] * len(keys))
    return winner if share >= how.agreement else None


def taught(row: Row, method: Method) -> list[tuple[str, bool]]:
    """The rationales that are learned from a row, each with whether it was made by rationalisation."""
    samples = row["samples"]
    if method == "self_consistency":
        kept = [s["text"] for s in samples if s["finished"] and row["label"] is not None and s["read"] == row["label"]]
    else:
        kept = [s["text"] for s in samples if s["right"]]
    different: dict[str, str] = {}
    for text in kept:
        different.setdefault(" ".join(text.split()), text)
    found = [(text, False) for text in different.values()]
    hinted = row["hinted"]
    return found or ([(hinted["text"], True)] if hinted and hinted["right"] else [])


def read_rationales(file: Path) -> list[Row]:
    """The rows of a loop."""
    return list(read_jsonl_tolerant(file))


def counted(rows: Iterable[Row], method: Method) -> dict[str, Any]:
    """Shares of a loop: solved (a right sample), rationalised (right with the hint), used (anything learned), and of
    each group; of self_consistency also how often the label was right."""
    rows = list(rows)
    kept = [taught(row, method) for row in rows]
    solved = [any(s["right"] for s in row["samples"]) for row in rows]
    rationalised = [any(hint for _, hint in found) for found in kept]
    out: dict[str, Any] = {
        "asked": len(rows), "solved": sum(solved) / len(rows), "rationalised": sum(rationalised) / len(rows),
        "used": sum(bool(found) for found in kept) / len(rows), "taught": sum(map(len, kept)),
        "errors": sum(bool(row["error"]) for row in rows),
    }  # fmt: skip
    groups = sorted({row["group"] for row in rows} - {""})
    for group in groups:
        mine = [i for i, row in enumerate(rows) if row["group"] == group]
        out[f"solved/{group}"] = sum(solved[i] for i in mine) / len(mine)
        out[f"rationalised/{group}"] = sum(rationalised[i] for i in mine) / len(mine)
    if method == "self_consistency":
        voted = [(row, found) for row, found in zip(rows, kept, strict=True) if found]
        fine = sum(any(s["right"] for s in row["samples"] if s["read"] == row["label"]) for row, _ in voted)
        out["label_right"] = fine / max(1, len(voted))
    return out
