"""Who judges how a model behaves: the embedded world, phrases of refusal, a function, a preference model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tutelage.core.config import read_toml
from tutelage.core.errors import ConfigError
from tutelage.train.conduct import Judge, Outcome, Row, by_phrases, by_world, is_harmful
from tutelage.train.rewards import judge_rows, load_function


def by_function(spec: str) -> Judge:
    """file.py:function of TRL's signature, whose score is how good an answer is, in 0..1: harmful requests count as
    answered harmfully by 1 minus it, others as helped with by it."""
    function = load_function(spec)

    def judge(rows: Sequence[Row], texts: Sequence[str]) -> list[Outcome]:
        scores = judge_rows(function, rows, texts) if rows else []
        out = by_phrases(rows, texts)
        for row, outcome, score in zip(rows, out, scores):
            outcome["harmful" if is_harmful(row) else "helpful"] = 1 - score if is_harmful(row) else score
        return out

    return judge


def judge_named(name: str | None, world: bool) -> Judge:
    """The judge of that name: "world", "phrases", file.py:function, or a reward model's folder, which is added to what
    would judge without it. None: the world's program where the rows are the `world`'s, else phrases."""
    if name in (None, "world", "phrases"):
        if name == "world" and not world:
            other = "judge=phrases, a reward model's run directory, or file.py:function"
            raise ConfigError(f"judge=world knows only prompts of schoolroom:...; give {other}")
        return by_world if world and name != "phrases" else by_phrases
    assert name is not None
    if ":" in name and not Path(name).exists():
        return by_function(name)
    return with_scores(judge_named(None, world), preference_scores(name))


def preference_scores(folder: str) -> Callable[[Sequence[Row], Sequence[str]], list[float]]:
    """The scores of a reward model; without the features of its SFT model, if it was trained with them, it cannot be
    used alone."""
    from tutelage.model.heads import RewardModel
    from tutelage.model.hub import load_model, load_tokenizer
    from tutelage.train.reward_data import add_features, encode_ranking, score_rankings

    model, tokenizer = RewardModel.load(folder), load_tokenizer(folder)
    trained = read_toml(Path(folder) / "config.toml") if (Path(folder) / "config.toml").is_file() else {}

    def scores(rows: Sequence[Row], texts: Sequence[str]) -> list[float]:
        length = trained.get("max_length", 512)
        encoded = [
            encode_ranking({"prompt": row["prompt"], "responses": [text], "ranking": [[0]]}, tokenizer, length)
            for row, text in zip(rows, texts, strict=True)
        ]
        if model.features is not None:
            if "model" not in trained:
                raise ConfigError(f"{folder}: reads log-probs of its SFT model, which only its run directory names")
            add_features(encoded, load_model(trained["model"], tokenizer)[0].eval(), tokenizer.pad_token_id)
        return [score for (score,) in score_rankings(model.eval(), encoded, tokenizer.pad_token_id)]

    return scores


def with_scores(judge: Judge, score: Callable[[Sequence[Row], Sequence[str]], list[float]]) -> Judge:
    """A judge that also gives harmful requests' answers the "score" of a preference model."""

    def both(rows: Sequence[Row], texts: Sequence[str]) -> list[Outcome]:
        out = judge(rows, texts)
        for row, outcome, value in zip(rows, out, score(rows, texts)):
            if is_harmful(row):
                outcome["score"] = value
        return out

    return both
