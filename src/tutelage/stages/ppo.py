"""PPO with KL to the SFT model and a pretraining mix (InstructGPT sec. 3.5, PPO-ptx)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tutelage.core.config import StageConfig
from tutelage.core.errors import RunError
from tutelage.core.rundir import RunDir
from tutelage.core.runtime import stream_seed
from tutelage.engine import LocalEngine
from tutelage.loss.policy import AdaptiveKL, FixedKL
from tutelage.model.adapters import LoraSettings
from tutelage.model.hub import load_model
from tutelage.text.loader import BlockLoader
from tutelage.text.shards import TokenShards
from tutelage.train.actors import separate, shared
from tutelage.train.drive import Values, console, drive, settle_precision
from tutelage.train.evaluate import text_loss
from tutelage.train.optim import OptimConfig
from tutelage.train.ppo import UpdateConfig, improve, judge
from tutelage.train.rewards import RewardSpec
from tutelage.train.rollouts import encode_prompts, sample_episodes
from tutelage.train.scores import Score, by_function
from tutelage.train.sources import prompts, truth


class PpoConfig(StageConfig, UpdateConfig):
    model: str
    """The SFT model; it is also the reference."""
    reward: RewardSpec
    """Run directory of `reward`, file.py:function, a Python function, or "logprob" (the reference's own log-prob: the
    label-free control). The critic starts from the reward model, or from the SFT trunk where there is none."""
    gold: RewardSpec | None = None
    """What the reward is meant to stand for, logged beside it and never trained on: file.py:function or a Python
    function. The embedded world has its own."""
    data: str = "schoolroom:demo"
    """Prompts: a file or folder, or the embedded world."""
    prompts: int = Field(20_000, ge=1)
    """At most this many of them."""
    ptx_data: str | None = None
    """Run directory of `prepare` whose text is mixed in with weight ptx_coef."""
    ptx_batch: int = Field(16, ge=1)
    """Blocks of text per minibatch."""
    ptx_block: int = Field(96, ge=2)
    """Tokens of a block."""
    updates: int = Field(60, ge=1)
    batch_size: int = Field(256, ge=1)
    """Episodes per update."""
    max_tokens: int = Field(24, ge=1)
    """Longest answer."""
    kl_coef: float = Field(0.05, ge=0)
    """Weight of the per-token KL to the SFT model in the reward."""
    kl_target: float | None = Field(None, gt=0)
    """Adaptive coefficient towards this KL (sum over tokens), if given."""
    method: Literal["full", "lora"] = "full"
    """lora: policy, reference, critic and (if it was trained so) reward are adapters on one frozen trunk."""
    lora: LoraSettings = LoraSettings(r=8)
    gate: float | None = 0.8
    """Share of right-wrong pairs that the reward model should order rightly (its summary's right_over_wrong). Below it
    PPO tends to raise the reward and not the quality: it is said aloud, and gate_passed is false in the summary."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU and on a CPU that was measured to be quicker with it."""
    save_every: int = Field(10, ge=0)
    """Steps between checkpoints; 0: only at the end and when stopped."""
    sample_every: int = Field(10, ge=1)
    """Updates between rows of samples.jsonl."""
    optimizer: OptimConfig = OptimConfig(name="adamw", lr=5e-4, decay=0.4, eps=1e-5, warmup=0.05)


def run(config: PpoConfig, run: RunDir) -> dict[str, Any]:
    """Roll out, score, improve, `updates` times; the summary has the last metrics and the text loss it cost."""
    policy, tokenizer = load_model(config.model)
    held = Path(config.ptx_data) / "validation" if config.ptx_data else None
    shards = TokenShards(held, tokenizer) if held else None
    facts = _gate(config)
    if shards:
        facts["text_loss_before"] = text_loss(policy, shards, config.ptx_block)
    common = (policy, tokenizer, config.reward, config.optimizer, config.temperature, config.seed)
    cast = shared(*common, config.lora) if config.method == "lora" else separate(*common)
    engine = LocalEngine(policy, tokenizer)
    rows = prompts(config.data, "train", config.prompts, config.seed, run.bad_rows)
    rows = encode_prompts(rows, tokenizer, engine.context_length, config.max_tokens, config.data, run.bad_rows)
    ptx = None
    if config.ptx_data and config.ptx_coef:
        text = TokenShards(Path(config.ptx_data) / "train", tokenizer)
        ptx = BlockLoader(text, config.ptx_batch, config.ptx_block, stream_seed(config.seed, "ptx") % 2**31)
    kl = AdaptiveKL(config.kl_coef, config.kl_target, 10_000) if config.kl_target else FixedKL(config.kl_coef)
    state = Values(curve=[], last={}, seconds=0.0)
    function = truth(config.data, config.gold)
    gold, precision = by_function(function) if function else None, settle_precision(run, config.precision)
    one_update = _update(config, cast, engine, rows, ptx, kl, state, run, precision, gold)
    parts = {**cast.parts, "kl": kl, "state": state} | ({"ptx": ptx} if ptx else {})
    drive(run, parts, config.updates, one_update, config.save_every)
    cast.enter_policy()
    if shards:
        facts["text_loss"] = text_loss(policy, shards, config.ptx_block)
    cast.save(tokenizer, run.path / "model")
    return {**_summary(state.values), **facts}


def _update(
    config: PpoConfig, cast: Any, engine: LocalEngine, rows: list[dict[str, Any]], ptx: Any, kl: FixedKL, state: Values,
    run: RunDir, precision: str, gold: Score | None,
) -> Callable[[int], dict[str, Any]]:  # fmt: skip
    """The update as a function of its number, for `drive`."""

    def one(step: int) -> dict[str, Any]:
        began = time.perf_counter()
        cast.enter_policy()
        episodes = sample_episodes(
            engine, rows, batch_size=config.batch_size, minibatches=config.minibatches, max_tokens=config.max_tokens,
            temperature=config.temperature, seed=config.seed, step=step,
        )  # fmt: skip
        judged = judge(cast.actors, episodes.rollout, config, precision)
        scores = cast.score(episodes, judged.ref)
        metrics = improve(
            cast.actors, episodes.rollout, scores, judged, config, beta=kl.coef, done=(step - 1) / config.updates,
            ptx=(lambda: next(ptx)) if ptx else None, precision=precision,
        )  # fmt: skip
        if metrics["skipped_steps"] == metrics["optimizer_steps"]:
            raise RunError(
                f"{run.path}: no gradient of update {step} was finite; lower the learning rate "
                f"(optimizer.lr={config.optimizer.lr:g}) or the reward's size. The checkpoints before are kept"
            )
        known = {"gold": float(gold(episodes, judged.ref).mean())} if gold else {}
        row = {"step": step, "proxy": float(scores.mean()), **known, **metrics, "beta": kl.coef}
        kl.update(metrics["kl"], config.batch_size)
        seconds = time.perf_counter() - began
        row["episodes_per_second"] = round(config.batch_size / seconds, 1)
        if step == 1 or step % config.sample_every == 0:
            shown = list(zip(episodes.rows, episodes.texts, scores.tolist()))[:8]
            run.sample([{"step": step, "prompt": r["prompt"], "response": t, "score": s} for r, t, s in shown])
        values = state.values
        values["curve"] = [*values["curve"], row.get("gold", row["proxy"])]
        values["seconds"] += seconds
        values["last"] = {k: row[k] for k in row if k != "episodes_per_second"}
        words = "  ".join(f"{k} {row[k]:.3f}" for k in ("proxy", "gold", "kl", "entropy", "length") if k in row)
        left = values["seconds"] / step * (config.updates - step)
        speed = f"{row['episodes_per_second']:.0f} episodes/s"
        console.print(f"[bold]{run.path.name}[/] {step}/{config.updates}  {words}  {speed}  ETA {left:.0f}s")
        return row

    return one


def _gate(config: PpoConfig) -> dict[str, Any]:
    """Whether the reward model tells right from wrong well enough, where its run directory says how well it does."""
    file = Path(config.reward) / "summary.json" if isinstance(config.reward, str) else None
    found = json.loads(file.read_text(encoding="utf-8")).get("right_over_wrong") if file and file.is_file() else None
    if found is None or config.gate is None:
        return {}
    if found < config.gate:
        console.print(
            f"[bold red]gate:[/] {config.reward} puts right above wrong in {found:.2f} of the pairs, below "
            f"{config.gate}: expect over-optimisation"
        )
    return {"gate_passed": found >= config.gate}


def _summary(values: dict[str, Any]) -> dict[str, Any]:
    """The last update's metrics, and the curve's last and best means over five updates (gold, else proxy)."""
    curve, last = values["curve"], values["last"]
    means = [sum(curve[max(0, i - 4) : i + 1]) / len(curve[max(0, i - 4) : i + 1]) for i in range(len(curve))]
    kept = ("proxy", "gold", "kl", "entropy", "eos_rate", "length", "explained_variance", "length_reward_correlation")
    return {
        **{k: last[k] for k in kept if k in last},
        "last_mean5": means[-1],
        "best_mean5": max(means[4:] or means),
        "updates": len(curve),
        "seconds": round(values["seconds"], 1),
    }
