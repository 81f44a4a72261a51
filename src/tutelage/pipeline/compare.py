"""The same prompts through several models, judged: sampled, at a low temperature, and greedily."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tutelage.core.stats import mean_interval
from tutelage.engine import LocalEngine, SamplingParams
from tutelage.model.hub import load_model
from tutelage.schoolroom.rows import correct_reward
from tutelage.text.chat import as_messages, encode_prompt, turn_end_id
from tutelage.train.rewards import Reward, RewardSpec, as_function, judge_rows
from tutelage.train.sources import demonstration, is_world, prompts, truth

FRESH = 90_001
"""Stream seed of the prompts kept for measuring: no stage trains on it."""
WAYS = (("sampled", 1.0), ("t0.3", 0.3), ("greedy", 0.0))
"""Ways of answering, with their temperature: what a low one gives by itself is no merit of RLHF."""
Row = dict[str, Any]


class CompareConfig(BaseModel):
    """The table [compare] of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    data: str = "schoolroom:demo"
    models: dict[str, str] = {}
    """Label to stage. The model called base continues the bare text (a row's "opening", where it has one, in place of
    its prompt); the others chat. Where one is called sft, the others' gain over it is measured, paired by prompt."""
    gold: RewardSpec | None = None
    """How good an answer is: file.py:function or a Python function. The embedded world has its own."""
    also: list[str] = []
    """Further such functions (parts of the gold, say), each reported under its name."""
    split: Literal["heldout", "all", "train"] = "heldout"
    prompts: int = Field(256, ge=1)
    samples: int = Field(1, ge=1)
    """Answers a prompt when sampling; a prompt's score is their mean."""
    answers: int = 10
    """Prompts whose greedy answers are shown."""
    max_tokens: int = Field(24, ge=1)


def _ask(path: Path, rows: list[Row], base: bool, temperature: float, config: CompareConfig) -> list[list[str]]:
    """The answers of one model: a list for each row, of one (greedy) or config.samples."""
    model, tokenizer = load_model(path, learned_prompt=True)
    engine = LocalEngine(model.eval(), tokenizer)
    stop = () if base else (turn_end_id(tokenizer),)
    ids = [encode_prompt(tokenizer, _bare(row) if base else as_messages({"prompt": row["prompt"]})) for row in rows]
    n = config.samples if temperature else 1
    params = SamplingParams(max_tokens=config.max_tokens, temperature=temperature, n=n, stop_tokens=stop, seed=1)
    texts = [c.text.strip() for c in engine.rollout(ids, params)]
    return [texts[i : i + n] for i in range(0, len(texts), n)]


def _bare(row: Row) -> str:
    """What a base model continues: the row's opening, or the prompt (a string or a dialogue) without roles."""
    return row.get("opening") or " ".join(m["content"] for m in as_messages({"prompt": row["prompt"]}))


def answers(models: Mapping[str, Path], config: CompareConfig) -> list[Row]:
    """Some of the prompts with every model's greedy answer, and a good one where it is known."""
    rows = prompts(config.data, config.split, config.answers, FRESH)
    out = [{"prompt": row["prompt"]} for row in rows]
    for row, shown in zip(rows, out):
        if (good := demonstration(row)) is not None:
            shown["gold_answer"] = good
    for label, path in models.items():
        for row, shown, (text,) in zip(rows, out, _ask(path, rows, label == "base", 0.0, config)):
            opening = row.get("opening") if label == "base" else None
            shown[label] = f"{opening} {text}" if opening else text
    return out


def measure(models: Mapping[str, Path], config: CompareConfig) -> dict[str, float]:
    """Mean gold and further scores per model and way of answering, on fresh prompts, and the gain in gold over "sft".

    Keys: LABEL_gold_WAY, LABEL_NAME_WAY; LABEL_gain_WAY with _low and _high, the 95% interval of the mean difference
    between the two models' scores on the same prompt.
    """
    judges: dict[str, Reward] = {name.rpartition(":")[2]: as_function(name) for name in config.also}
    if gold := truth(config.data, config.gold):
        judges = {"gold": gold, **judges}
    if is_world(config.data):
        judges["correct"] = correct_reward
    if not judges:
        return {}
    rows = prompts(config.data, config.split, config.prompts, FRESH + 1)
    out: dict[str, float] = {}
    scores: dict[tuple[str, str], list[float]] = {}
    for label, path in models.items():
        if label == "base":
            continue
        for way, temperature in WAYS:
            texts = _ask(path, rows, False, temperature, config)
            for name, judge in judges.items():
                found = _means(judge, rows, texts)
                out[f"{label}_{name}_{way}"] = sum(found) / len(found)
                if name == "gold":
                    scores[label, way] = found
    for (label, way), found in scores.items():
        if label != "sft" and "sft" in models:
            gains = [a - b for a, b in zip(found, scores["sft", way], strict=True)]
            key = f"{label}_gain_{way}"
            out[key], out[f"{key}_low"], out[f"{key}_high"] = mean_interval(gains)
    return out


def _means(judge: Reward, rows: list[Row], texts: Sequence[Sequence[str]]) -> list[float]:
    """Each row's mean score over its answers."""
    n = len(texts[0])
    flat = judge_rows(judge, [row for row in rows for _ in range(n)], [text for group in texts for text in group])
    return [sum(flat[i : i + n]) / n for i in range(0, len(flat), n)]
