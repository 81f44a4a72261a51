"""Sample K answers per prompt and have them ranked by a judge."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tutelage.core.config import StageConfig
from tutelage.core.errors import ConfigError
from tutelage.core.rundir import RunDir, write_atomic
from tutelage.core.runtime import stream_seed
from tutelage.engine import LocalEngine, SamplingParams
from tutelage.model.hub import load_model
from tutelage.schoolroom.annotators import panel
from tutelage.schoolroom.rows import gold_reward, item_from_row
from tutelage.text.chat import as_messages
from tutelage.text.rankings import ranking_from_scores
from tutelage.train.rewards import call_reward, load_function
from tutelage.train.sources import is_world, prompts


class RankConfig(StageConfig):
    model: str
    """The SFT model, whose answers are ranked."""
    data: str = "schoolroom:demo"
    """Prompts: a file or folder, or the embedded world."""
    judge: str = "annotators"
    """annotators (the world's simulated people) | gold (the world's program) | file.py:function"""
    prompts: int = 1200
    """At most this many prompts for training."""
    held_out: int = 200
    """Prompts of the held-out world, ranked by the same judge, for the reward model's evaluation."""
    responses: int = 4
    """K: answers sampled per prompt (InstructGPT: 4 to 9)."""
    annotators: int = 5
    """Simulated people, who take turns."""
    temperature: float = 1.0
    max_tokens: int = 24
    """Longest answer."""


Judge = Callable[[dict[str, Any], list[str], int], dict[str, Any]]


def run(config: RankConfig, run: RunDir) -> dict[str, Any]:
    if config.responses < 2:
        raise ConfigError(f"responses={config.responses}: a ranking needs at least 2 responses per prompt")
    model, tokenizer = load_model(config.model)
    engine = LocalEngine(model, tokenizer)
    judge = _judge(config)
    out: dict[str, Any] = {}
    for name, split, n in (("rankings", "train", config.prompts), ("heldout", "heldout", config.held_out)):
        rows = prompts(config.data, split, n, stream_seed(config.seed, "rank", name) % 2**31, run.bad_rows)
        params = SamplingParams(
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            n=config.responses,
            seed=stream_seed(config.seed, "rank sampling", name) % 2**31,
        )
        asked = [as_messages({"prompt": r["prompt"]}) for r in rows]
        outputs = engine.generate(asked, params)
        ranked = []
        for i, (row, output) in enumerate(zip(rows, outputs)):
            texts = list(dict.fromkeys(c.text for c in output.completions))  # equal answers say nothing about order
            if len(texts) > 1:
                ranked.append({**row, "responses": texts, **judge(row, texts, i)})
        write_atomic(run.path / f"{name}.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in ranked))
        out[name] = len(ranked)
        out[f"{name}_comparisons"] = sum(len(r["responses"]) * (len(r["responses"]) - 1) // 2 for r in ranked)
    return out


def _judge(config: RankConfig) -> Judge:
    if config.judge == "annotators":
        if not is_world(config.data):
            raise ConfigError("judge=annotators needs data=schoolroom:...; give judge=file.py:function for other data")
        people = panel(config.annotators, config.seed)

        def by_people(row: dict[str, Any], texts: list[str], i: int) -> dict[str, Any]:
            who = i % len(people)
            return {"ranking": people[who].rank(item_from_row(row), texts), "annotator": who}

        return by_people
    function = gold_reward if config.judge == "gold" else load_function(config.judge)

    def by_score(row: dict[str, Any], texts: list[str], i: int) -> dict[str, Any]:
        columns = {k: [v] * len(texts) for k, v in row.items() if k != "prompt"}
        scores = call_reward(function, [row["prompt"]] * len(texts), texts, columns)
        return {"ranking": ranking_from_scores(scores)}

    return by_score
