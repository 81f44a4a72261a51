"""Sample K answers per prompt and have them ranked by a judge."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field, field_validator

from tutelage.core.atomic import write_atomic
from tutelage.core.config import StageConfig
from tutelage.core.errors import ConfigError, DataError
from tutelage.core.progress import Progress
from tutelage.core.rundir import RunDir
from tutelage.core.runtime import stream_seed
from tutelage.engine import LocalEngine
from tutelage.model.hub import load_model
from tutelage.schoolroom.annotators import panel
from tutelage.schoolroom.rows import gold_reward, item_from_row
from tutelage.text.rankings import ranking_from_scores
from tutelage.train.candidates import sample_answers, turns_of
from tutelage.train.rewards import judge_rows, load_function
from tutelage.train.rollouts import encode_prompts
from tutelage.train.sources import is_world, prompts

Temperature = Annotated[float, Field(gt=0)]


class RankConfig(StageConfig):
    model: str
    """The SFT model, whose answers are ranked."""
    data: str = "schoolroom:demo"
    """Prompts: a file or folder, or the embedded world."""
    judge: str = "annotators"
    """annotators (the world's simulated people) | gold (the world's program) | file.py:function"""
    prompts: int = Field(1200, ge=1)
    """At most this many prompts for training."""
    held_out: int = Field(200, ge=1)
    """Prompts of the held-out world, ranked by the same judge, for the reward model's evaluation."""
    responses: int = 4
    """K: answers sampled per prompt (InstructGPT: 4 to 9); of equal ones one is kept."""
    annotators: int = Field(5, ge=1)
    """Simulated people, who take turns."""
    temperature: Temperature | list[Temperature] = 1.0
    """Of sampling; of a list, a prompt's answers take turns. With low ones too the reward model has seen the even,
    repetitive answers towards which PPO moves, and not those of temperature 1 alone."""
    max_tokens: int = Field(24, ge=1)
    """Longest answer."""

    @field_validator("responses")
    @classmethod
    def _several(cls, value: int) -> int:
        if value < 2:
            raise ValueError("a ranking needs at least 2 responses per prompt")
        return value


Judge = Callable[[dict[str, Any], list[str], int], dict[str, Any]]


def run(config: RankConfig, run: RunDir) -> dict[str, Any]:
    """Sample, rank and write rankings.jsonl and heldout.jsonl."""
    model, tokenizer = load_model(config.model, learned_prompt=True)
    engine = LocalEngine(model, tokenizer)
    judge = _judge(config)
    out: dict[str, Any] = {}
    parts = (("rankings", "train", config.prompts), ("heldout", "heldout", config.held_out))
    asked = {name: _ask(config, engine, name, split, n, run) for name, split, n in parts}
    with Progress(run.path.name, "prompts", len(_turns(config)) * sum(map(len, asked.values()))) as progress:
        engine.on_done = progress.add
        for name, rows in asked.items():
            ranked = _rank(config, engine, judge, name, rows)
            text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in ranked)
            write_atomic(run.path / f"{name}.jsonl", text)
            out[name] = len(ranked)
            out[f"{name}_comparisons"] = sum(len(r["responses"]) * (len(r["responses"]) - 1) // 2 for r in ranked)
    return out


def _ask(config: RankConfig, engine: LocalEngine, name: str, split: str, n: int, run: RunDir) -> list[dict[str, Any]]:
    """The prompts of one part; one too long for the model is a bad row."""
    rows = prompts(config.data, split, n, stream_seed(config.seed, "rank", name) % 2**31, run.bad_rows)
    return encode_prompts(rows, engine.tokenizer, engine.context_length, config.max_tokens, config.data, run.bad_rows)


def _rank(
    config: RankConfig, engine: LocalEngine, judge: Judge, name: str, rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The rows with their responses and ranking; a prompt whose answers are all equal is left out."""
    ranked = []
    stream = ("rank sampling", name)
    sampled = sample_answers(engine, rows, _turns(config), config.max_tokens, config.seed, stream, config.data)
    for i, (row, said) in enumerate(zip(rows, sampled)):
        texts = list(dict.fromkeys(said))  # equal answers say nothing about order
        if len(texts) > 1:
            kept = {k: v for k, v in row.items() if k != "ids"}
            ranked.append({**kept, "responses": texts, **judge(kept, texts, i)})
    if not ranked:
        raise DataError(f"{config.data}: all {config.responses} answers to every prompt are equal; raise temperature")
    return ranked


def _turns(config: RankConfig) -> dict[float, int]:
    return turns_of(config.temperature, config.responses)


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
        scores = judge_rows(function, [row] * len(texts), texts)
        return {"ranking": ranking_from_scores(scores)}

    return by_score
