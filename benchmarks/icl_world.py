"""A small world of questions, and a model taught to read them out of demonstrations or an instruction.

A sentence says who did what with what ("ann found the lovely hat"), and a question asks about one word of it: a woman
or a man, is it at hand or gone, good or bad, to wear or to eat. Nothing but demonstrations or an instruction tells
which of the four is meant, and all eight answers are options for every one of them: who understands the sentence alone
is right one time in four.

The model's text is documents of four kinds (`document`). It never sees a third of the sentences, which are the tasks'
demonstrations and test examples. Being asked to write an instruction, or to say one in other words, is part of the
text, in the words of `MetaPrompts`. icl_taught.py measures the model.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.core.rundir import RunDir
from tutelage.icl.instructions import MetaPrompts
from tutelage.icl.instructions.prompts import filled
from tutelage.icl.instructions.ranked import Pair
from tutelage.model.hub import create_model, load_tokenizer, save_model
from tutelage.pipeline.stages import launch
from tutelage.schoolroom.words import BAD_WORDS, GOOD_WORDS
from tutelage.train.loop import train
from tutelage.train.optim import OptimConfig, Optimizers

WOMEN = "ann sue eva amy lea ida".split()
MEN = "tom bob max dan ben sam".split()
HAVE = "found bought got made".split()
GONE = "lost sold broke burnt".split()
GOOD, BAD = GOOD_WORDS[:5], BAD_WORDS[:5]
WEAR = "hat coat sock glove scarf boot".split()
EAT = "cake soup apple bread pie plum".split()


@dataclass(frozen=True)
class Question:
    """Which of two groups the sentence's word number `place` is of."""

    name: str
    place: int
    groups: tuple[list[str], list[str]]
    answers: tuple[str, str]
    clause: str
    """What is asked, as an instruction says it."""

    def answer(self, text: str) -> str:
        return self.answers[text.split()[self.place] in self.groups[1]]


QUESTIONS = (
    Question("who", 0, (WOMEN, MEN), ("woman", "man"), "it is a woman or a man"),
    Question("fate", 1, (HAVE, GONE), ("here", "gone"), "it is here or gone"),
    Question("worth", 3, (GOOD, BAD), ("good", "bad"), "it is good or bad"),
    Question("use", 4, (WEAR, EAT), ("wear", "eat"), "one can wear or eat it"),
)
MIXED = tuple((QUESTIONS[a], QUESTIONS[b]) for a, b in ((1, 2), (2, 3), (3, 1)))
"""Tasks that the model has not seen the like of: one question of sentences about women, another of those about men. So
demonstrations about the wrong people mislead, and it matters which ones are chosen and which comes last."""
WORDINGS = {"say whether {}": 0.5, "tell me if {}": 0.25, "answer whether {}": 0.15, "please find out if {}": 0.1}
"""How instructions are worded, and how often."""
FORMAT = {
    "input": "{text}", "output": ": {answer}", "separator": "\n", "channel_input": "{answer}: ",
    "channel_output": "{text}",
}  # fmt: skip
KINDS = {"rows": 0.46, "told": 0.26, "propose": 0.18, "reword": 0.1}
ROWS = 8
REST = 0.02
OPTIMIZER = OptimConfig(name="muon", lr=4e-3, muon_lr=0.01)
Pieces = list[tuple[str, float]]
"""A document as pieces of text, and the weight of each one's tokens: what is to be said 1, the rest REST."""


def sentence(rng: np.random.Generator) -> str:
    who, did, how, what = (str(rng.choice(q.groups[0] + q.groups[1])) for q in QUESTIONS)
    return f"{who} {did} the {how} {what}"


def part(text: str) -> int:
    """Which split a sentence belongs to: 0 demonstrations, 1 test, others the model's own text."""
    return zlib.crc32(text.encode()) % 6


def sentences(count: int, rng: np.random.Generator, parts: Sequence[int]) -> list[str]:
    """Different sentences of those splits."""
    found: dict[str, None] = {}
    while len(found) < count:
        text = sentence(rng)
        if part(text) in parts:
            found[text] = None
    return list(found)


def instruction(question: Question, rng: np.random.Generator) -> str:
    return str(rng.choice(list(WORDINGS), p=list(WORDINGS.values()))).format(question.clause)


def document(rng: np.random.Generator, prompts: MetaPrompts) -> Pieces:
    """Rows of one question with nothing said ("rows") or behind an instruction ("told"); rows that ask for their
    instruction ("propose"); or an instruction in other words ("reword")."""
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    question = QUESTIONS[rng.integers(len(QUESTIONS))]
    if kind == "reword":
        old, new = (str(w).format(question.clause) for w in rng.choice(list(WORDINGS), 2))
        templates = (*(t.replace("{text}", "{instruction}") for t in prompts.paraphrase), prompts.variation)
        return [(filled(templates[rng.integers(len(templates))], instruction=old), REST), (f" {new}\n", 1.0)]
    texts = sentences(5 if kind == "propose" else ROWS, rng, (2, 3, 4, 5))
    if kind == "propose":
        shown = prompts.demonstrations([Pair(t, (question.answer(t),)) for t in texts])
        template = prompts.forward if rng.random() < 0.5 else prompts.induction
        return [(filled(template, demonstrations=shown), REST), (f" {instruction(question, rng)}\n", 1.0)]
    out: Pieces = [(instruction(question, rng) + "\n", REST)] if kind == "told" else []
    for text in texts:
        out += [(f"{text}:", REST), (f" {question.answer(text)}", 1.0), ("\n", REST)]
    return out


class Documents:
    """Endless batches {"input_ids", "labels", "weights"} [B, T]: documents beside each other, padded on the right.

    The weights: who did what is chance, and its gradients drown the answers'.
    """

    def __init__(self, tokenizer: Any, batch_size: int, seed: int) -> None:
        self.tokenizer, self.batch_size, self.seed = tokenizer, batch_size, seed
        self.position, self.prompts = 0, MetaPrompts()

    def __next__(self) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, 3, self.position])
        self.position += 1
        rows = [self._row(document(rng, self.prompts)) for _ in range(self.batch_size)]
        size = (len(rows), max(len(ids) for ids, _ in rows))
        batch = {"input_ids": torch.zeros(size, dtype=torch.int64), "weights": torch.zeros(size)}
        for i, (ids, weights) in enumerate(rows):
            batch["input_ids"][i, : len(ids)] = torch.tensor(ids)
            batch["weights"][i, : len(ids)] = torch.tensor(weights)
        return {**batch, "colon": torch.tensor(self.tokenizer.encode(":")[-1])}

    def _row(self, pieces: Pieces) -> tuple[list[int], list[float]]:
        parts = self.tokenizer([text for text, _ in pieces], add_special_tokens=False)["input_ids"]
        weights = [weight for part, (_, weight) in zip(parts, pieces) for _ in part]
        return [self.tokenizer.bos_token_id or 0, *(i for part in parts for i in part)], [0.0, *weights]

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = int(state["position"])


def weighted(model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Next-token cross-entropy by the tokens' weights, and the share of answers that are the likeliest token."""
    logits = model(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1].float()
    targets, weights = batch["input_ids"][:, 1:], batch["weights"][:, 1:]
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    said = (weights == 1) & (batch["input_ids"][:, :-1] == batch["colon"])
    right = (logits.argmax(-1) == targets)[said].float().mean()
    return (loss * weights).sum(), {"count": float(weights.sum()), "right": float(right), "tokens": targets.numel()}


def teach(out: Path, steps: int, seed: int, batch_size: int = 32) -> Path:
    """The folder of a model of a million parameters that has read the world."""
    out.mkdir(parents=True)
    rng, prompts = np.random.default_rng([seed, 2]), MetaPrompts()
    texts = ["".join(text for text, _ in document(rng, prompts)) for _ in range(4000)]
    (out / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    launch("tokenizer", {"data": str(out / "text.jsonl"), "vocab_size": 640, "out": str(out / "tokenizer")})
    tokenizer = load_tokenizer(str(out / "tokenizer"))
    model = create_model("laptop-1m", tokenizer, 512, seed)
    run = RunDir(out / "taught", "taught", {"steps": steps, "seed": seed})
    run.open()
    train(
        model, weighted, Documents(tokenizer, batch_size, seed), Optimizers(model, OPTIMIZER), run, steps=steps,
        log_every=50,
    )  # fmt: skip
    save_model(model, tokenizer, out / "model")
    run.close()
    return out / "model"


def write_tasks(folder: Path, seed: int, pool: int = 120, test: int = 120) -> dict[str, str]:
    """Descriptions of the four questions and the tasks of MIXED, by name; all eight answers are options."""
    rng = np.random.default_rng([seed, 1])
    texts = {"train": sentences(pool, rng, (0,)), "test": sentences(test, rng, (1,))}
    form = "\n".join(f"{key} = {json.dumps(value)}" for key, value in FORMAT.items())
    words = [word for question in QUESTIONS for word in question.answers]
    labels = ", ".join(f"{word} = {json.dumps(word)}" for word in words)
    out = {}
    tasks = {question.name: (question, question) for question in QUESTIONS}
    tasks |= {f"{a.name}-{b.name}": (a, b) for a, b in MIXED}
    for name, asked in tasks.items():
        for split, rows in texts.items():
            labelled = [(t, asked[t.split()[0] in MEN].answer(t)) for t in rows]
            lines = "".join(json.dumps({"text": t, "label": answer}) + "\n" for t, answer in labelled)
            (folder / f"{name}.{split}.jsonl").write_text(lines, encoding="utf-8")
        files = "".join(f'{split} = "{name}.{split}.jsonl"\n' for split in texts)
        text = f"{files}labels = {{ {labels} }}\n[format]\n{form}\n"
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
        out[name] = str(folder / f"{name}.toml")
    return out
