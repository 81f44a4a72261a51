"""Best-of-n sampling: n answers a prompt, the best by the reward is kept; no training, the oldest rival of RL."""

from __future__ import annotations

import json
import time
from typing import Any, Literal

import torch
from pydantic import Field

from tutelage.core.atomic import write_atomic
from tutelage.core.errors import RewardError
from tutelage.core.rundir import RunDir
from tutelage.core.runtime import stream_seed
from tutelage.core.stats import mean_interval
from tutelage.engine import LocalEngine, SamplingParams
from tutelage.model.hub import load_model
from tutelage.text.chat import turn_end_id
from tutelage.train.bestofn import best_of_n_kl, expected_best, ladder
from tutelage.train.drive import Values, console, drive, settle_precision
from tutelage.train.rl import RewardKeys, gate
from tutelage.train.rollouts import encode_prompts, episodes_of
from tutelage.train.scores import by_function
from tutelage.train.shared import Logits
from tutelage.train.sources import prompts, truth
from tutelage.train.update import Actors, PassConfig, judge

Row = dict[str, Any]


class BestofnConfig(RewardKeys):
    model: str
    """The model that answers."""
    data: str = "schoolroom:demo"
    """Prompts: a file or folder, or the embedded world."""
    split: Literal["train", "heldout", "all"] = "heldout"
    """Which of them; a tenth of a file's prompts is held out."""
    prompts: int = Field(256, ge=1)
    """At most this many of them."""
    n: int = Field(16, ge=2)
    """Answers per prompt."""
    batch: int = Field(16, ge=1)
    """Prompts answered at once."""
    max_tokens: int = Field(24, ge=1)
    """Longest answer."""
    temperature: float = Field(1.0, gt=0)
    missing_eos_penalty: float = 1.0
    """Subtracted from the score of an answer that did not end."""
    gate: float | None = 0.8
    """See ppo."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the forwards that give a reward model its log-probs."""
    save_every: int = Field(10, ge=0)
    """Batches between checkpoints; 0: only at the end and when stopped."""


def run(config: BestofnConfig, run: RunDir) -> dict[str, Any]:
    """Sample, score, keep the best; answers.jsonl has the best answer to every prompt (rows for `sft`), metrics.jsonl
    a row for each n = 1, 2, 4, ... with its KL, reward and gold, and the summary those of the largest n."""
    model, tokenizer = load_model(config.model)
    model.eval()
    engine = LocalEngine(model, tokenizer)
    known, precision = gate(config.reward, config.gate), settle_precision(run, config.precision)
    rows = prompts(config.data, config.split, config.prompts, config.seed, run.bad_rows)
    rows = encode_prompts(rows, tokenizer, engine.context_length, config.max_tokens, config.data, run.bad_rows)
    score = config.setting().build({}, model, config.temperature)
    function = truth(config.data, config.gold)
    gold = by_function(function) if function else None
    actors = Actors(Logits(model), Logits(model))
    passes = PassConfig.model_validate({"minibatches": 1, "temperature": config.temperature})
    state = Values(scores=[], gold=[], kept=[], seconds=0.0)

    def one(step: int) -> None:
        began = time.perf_counter()
        part = rows[(step - 1) * config.batch : step * config.batch]
        params = SamplingParams(
            max_tokens=config.max_tokens, temperature=config.temperature, n=config.n,
            stop_tokens=(turn_end_id(tokenizer),), seed=stream_seed(config.seed, "best of n", step) % 2**31,
        )  # fmt: skip
        answers = engine.rollout([row["ids"] for row in part], params)
        each = [row for row in part for _ in range(config.n)]
        episodes = episodes_of(each, answers, tokenizer, config.n)
        ref = judge(actors, episodes.rollout, passes, precision).ref
        scores, _ = score(episodes, ref)
        golds = gold(episodes, ref).view(-1, config.n).tolist() if gold else []
        # up to here nothing has moved: a reward that fails leaves the state of the batch before (see drive)
        scores = scores - config.missing_eos_penalty * (1 - episodes.rollout.ended)
        best = scores.view(-1, config.n).argmax(1).tolist()
        values = state.values
        values["scores"] = [*values["scores"], *scores.view(-1, config.n).tolist()]
        values["gold"] = [*values["gold"], *golds]
        for i, (row, k) in enumerate(zip(part, best)):
            at = i * config.n + k
            plain = {key: value for key, value in row.items() if key != "ids"}
            values["kept"].append({**plain, "completion": episodes.texts[at], "score": float(scores[at])})
        values["seconds"] += time.perf_counter() - began
        left = values["seconds"] / step * (steps - step)
        console.print(f"[bold]{run.path.name}[/] {step}/{steps}  best {scores.view(-1, config.n).amax(1).mean():.3f}  "
                      f"ETA {left:.0f}s")  # fmt: skip

    steps = -(-len(rows) // config.batch)
    drive(run, {"state": state}, steps, one, config.save_every, unmoved=(RewardError,))
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in state.values["kept"])
    write_atomic(run.path / "answers.jsonl", text)
    run.truncate_metrics(0)  # of a process that was stopped while it wrote them
    table = curve(state.values, config.n)
    for row in table:
        run.log(row)
    return {**{k: v for k, v in table[-1].items() if k != "step"}, "n": config.n, "prompts": len(rows),
            "seconds": round(state.values["seconds"], 1), **known}  # fmt: skip


def curve(values: dict[str, Any], n: int) -> list[Row]:
    """A row for each rung of 1, 2, 4, ..., n: "step" (n), "kl", "proxy", "gold" with its interval over prompts."""
    scores = torch.tensor(values["scores"])
    gold = torch.tensor(values["gold"]) if values["gold"] else None
    out = []
    for rung in ladder(n):
        row: Row = {"step": rung, "kl": best_of_n_kl(rung), "proxy": float(expected_best(scores, scores, rung).mean())}
        if gold is not None:
            found = expected_best(scores, gold, rung).tolist()
            row["gold"], row["gold_low"], row["gold_high"] = mean_interval(found)
        out.append(row)
    return out
