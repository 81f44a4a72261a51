"""A small world of rules, and a model taught to read them out of demonstrations or an instruction: for icl_taught.py.

A sentence says who saw what ("ann saw the lovely hat"). A rule is a yes-or-no question about one of three things in it,
either way round: is it about a woman (a man), is it good (bad), is it to wear (to eat). All six rules answer yes and
no, so neither the input nor the answers' words tell which one is meant: demonstrations or an instruction must.

The model's text is documents of such rows, in six kinds (`document`). It never sees a third of the sentences, which are
the tasks' demonstrations and test examples. Being asked to write an instruction, or to say one in other words, is part
of the text too, in the words of `MetaPrompts`.
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
from tutelage.icl.perturb import WORDS
from tutelage.model.hub import create_model, load_tokenizer, save_model
from tutelage.pipeline.stages import launch
from tutelage.schoolroom.words import BAD_WORDS, GOOD_WORDS
from tutelage.train.loop import train
from tutelage.train.optim import OptimConfig, Optimizers

WOMEN = "ann sue eva amy lea ida".split()
MEN = "tom bob max dan ben sam".split()
GOOD, BAD = GOOD_WORDS[:5], BAD_WORDS[:5]
WEAR = "hat coat sock glove scarf boot".split()
EAT = "cake soup apple bread pie plum".split()


@dataclass(frozen=True)
class Rule:
    """Yes where the sentence's word number `place` is one of `group`."""

    name: str
    place: int
    group: tuple[str, ...]
    clause: str
    """What makes it yes, as an instruction says it."""


RULES = (
    Rule("woman", 0, tuple(WOMEN), "it is about a woman"),
    Rule("man", 0, tuple(MEN), "it is about a man"),
    Rule("good", 3, tuple(GOOD), "it is good"),
    Rule("bad", 3, tuple(BAD), "it is bad"),
    Rule("wear", 4, tuple(WEAR), "one can wear it"),
    Rule("eat", 4, tuple(EAT), "one can eat it"),
)
WORDINGS = {
    "say yes if {}": 0.5,
    "tell whether {}": 0.25,
    "answer yes where {}, else no": 0.15,
    "is it so that {}?": 0.1,
}
"""How instructions are worded, and how often."""
OWN = {0: ("woman", "man"), 3: ("good", "bad"), 4: ("wear", "eat")}
"""Answers that tell by themselves what is asked, by place."""
FORMAT = {
    "input": "{text}", "output": ": {answer}", "separator": "\n", "channel_input": "{answer}: ",
    "channel_output": "{text}",
}  # fmt: skip
KINDS = {"shared": 0.5, "told": 0.14, "own": 0.08, "any": 0.06, "propose": 0.14, "reword": 0.08}
ROWS = 14
TURNED = 0.35
OPTIMIZER = OptimConfig(name="muon", lr=4e-3, muon_lr=0.01)


def sentence(rng: np.random.Generator) -> str:
    who, how, what = (str(rng.choice(words)) for words in (WOMEN + MEN, GOOD + BAD, WEAR + EAT))
    return f"{who} saw the {how} {what}"


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


def holds(rule: Rule, text: str) -> bool:
    return text.split()[rule.place] in rule.group


def instruction(rule: Rule, rng: np.random.Generator) -> str:
    return str(rng.choice(list(WORDINGS), p=list(WORDINGS.values()))).format(rule.clause)


REST = 0.02
Pieces = list[tuple[str, float]]
"""A document as pieces of text, and the weight of each one's tokens: what is to be said 1, the rest REST, and the first
few answers of rows with nothing said less than 1, as nobody can know them."""


def document(rng: np.random.Generator, prompts: MetaPrompts, turned: float = TURNED) -> Pieces:
    """Rows of one rule: with nothing said ("shared"), behind an instruction ("told"), answered in words of the rule's
    own ("own") or any two words ("any"); or rows that ask for their instruction, or an instruction in other words.

    turned: share of the rules that are the other way round (man, bad, eat).
    """
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    rule = RULES[2 * rng.integers(3) + int(rng.random() < turned)]
    if kind == "reword":
        old, new = (str(w).format(rule.clause) for w in rng.choice(list(WORDINGS), 2))
        templates = (*(t.replace("{text}", "{instruction}") for t in prompts.paraphrase), prompts.variation)
        return [(filled(templates[rng.integers(len(templates))], instruction=old), REST), (f" {new}\n", 1.0)]
    texts = sentences(5 if kind == "propose" else ROWS, rng, (2, 3, 4, 5))
    words = OWN[rule.place] if kind == "own" else ("yes", "no")
    if kind == "any":
        words = tuple(str(w) for w in rng.choice(WORDS, 2, replace=False))  # no way round
    if kind == "own" and rule.name in ("man", "bad", "eat"):
        words = words[::-1]
    answers = [words[0] if holds(rule, text) else words[1] for text in texts]
    if kind == "propose":
        shown = prompts.demonstrations([Pair(t, (a,)) for t, a in zip(texts, answers)])
        template = prompts.forward if rng.random() < 0.5 else prompts.induction
        return [(filled(template, demonstrations=shown), REST), (f" {instruction(rule, rng)}\n", 1.0)]
    out: Pieces = [(instruction(rule, rng) + "\n", REST)] if kind == "told" else []
    for number, (text, answer) in enumerate(zip(texts, answers)):
        known = 1.0 if kind == "told" else min(1.0, (number + 1) / 5)
        out += [(f"{text}:", REST), (f" {answer}", known), ("\n", REST)]
    return out


class Documents:
    """Endless batches {"input_ids", "labels", "weights"} [B, T]: documents beside each other, padded on the right.

    The weights: who saw what is chance, and its gradients drown the answers' (a model that learnt all tokens alike, 5
    million of them, answered no better than chance). Rules that are the other way round come in by and by, until
    half-way: with as many of them from the start neither a word nor a rule alone says anything about the answer, and 3
    minutes found nothing.
    """

    def __init__(self, tokenizer: Any, batch_size: int, seed: int, steps: int) -> None:
        self.tokenizer, self.batch_size, self.seed, self.steps = tokenizer, batch_size, seed, steps
        self.position, self.prompts = 0, MetaPrompts()

    def __next__(self) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, 3, self.position])
        self.position += 1
        turned = TURNED * min(1.0, self.position / (0.5 * self.steps))
        rows = [self._row(document(rng, self.prompts, turned)) for _ in range(self.batch_size)]
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
    said = (weights == 1) & (batch["input_ids"][:, :-1] == batch["colon"])  # of rows, where it can be known
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
        model, weighted, Documents(tokenizer, batch_size, seed, steps), Optimizers(model, OPTIMIZER), run, steps=steps,
        log_every=50,
    )  # fmt: skip
    save_model(model, tokenizer, out / "model")
    run.close()
    return out / "model"


def write_tasks(folder: Path, seed: int, pool: int = 120, test: int = 120) -> dict[str, str]:
    """Descriptions of the six rules, and of the three with answers of their own ("own-good"), by name."""
    rng = np.random.default_rng([seed, 1])
    texts = {"train": sentences(pool, rng, (0,)), "test": sentences(test, rng, (1,))}
    form = "\n".join(f"{key} = {json.dumps(value)}" for key, value in FORMAT.items())
    out = {}
    rules = [(r.name, r, ("yes", "no")) for r in RULES]
    rules += [(f"own-{r.name}", r, OWN[r.place]) for r in RULES if r.name in ("woman", "good", "wear")]
    for name, rule, words in rules:
        for split, rows in texts.items():
            lines = [json.dumps({"text": t, "label": int(not holds(rule, t))}) for t in rows]
            (folder / f"{name}.{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        labels = f'labels = {{ 0 = "{words[0]}", 1 = "{words[1]}" }}'
        body = f'train = "{name}.train.jsonl"\ntest = "{name}.test.jsonl"\n{labels}\n[format]\n{form}\n'
        (folder / f"{name}.toml").write_text(body, encoding="utf-8")
        out[name] = str(folder / f"{name}.toml")
    return out
