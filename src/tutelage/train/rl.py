"""The loop that PPO, GRPO, RLOO and online DPO share: roll out, score, improve, log; they differ in `improve` alone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor

from tutelage.core.config import StageConfig
from tutelage.core.distributed import from_main, world_size
from tutelage.core.errors import ConfigError, RewardError
from tutelage.core.rundir import RunDir
from tutelage.core.runtime import stream_seed
from tutelage.engine import LocalEngine
from tutelage.loss.policy import FixedKL
from tutelage.model.adapters import LoraSettings
from tutelage.model.hub import load_model
from tutelage.text.loader import BlockLoader, share
from tutelage.text.shards import TokenShards
from tutelage.train.actors import Cast, RewardSetting, separate, shared
from tutelage.train.conduct import rates
from tutelage.train.drive import Values, console, drive, settle_precision
from tutelage.train.evaluate import text_loss
from tutelage.train.guard import Guard, TrainingKeys
from tutelage.train.optim import OptimConfig
from tutelage.train.parallel import ParallelKeys
from tutelage.train.rewards import RewardSpec, RewardSpecs, each_reward
from tutelage.train.rollouts import Episodes, encode_prompts, sample_episodes
from tutelage.train.scores import Ensemble, Score, by_function
from tutelage.train.sources import prompts, truth
from tutelage.train.update import judge, shared_scores
from tutelage.train.watch import Watch, WatchKeys

SHOWN_PROMPT = 200
"""Characters of a prompt by which an episode is known again where it is written down."""
Improve = Callable[..., dict[str, float]]
"""(actors, rollout, scores [B], judged, config, *, beta, done, ptx, precision) -> metrics; see ppo.improve."""


class RewardKeys(StageConfig):
    """Who answers and what is maximised, of every method that scores answers."""

    model: str
    """The SFT model; it is also the reference."""
    reward: RewardSpecs
    """Run directory of `reward`, file.py:function, a Python function, or "logprob" (the reference's own log-prob: the
    label-free control). Several as a list, in which a list of reward models is an ensemble:
    reward=["judge.py:score", ["runs/reward1", "runs/reward2"]]."""
    reward_weights: list[float] | None = None
    """Of several rewards: the weight of each in their sum (1 by default)."""
    ensemble: Ensemble = "mean"
    """How an ensemble's scores become one: mean | min | mean-std (mean - ensemble_k * standard deviation)."""
    ensemble_k: float = Field(1.0, ge=0)
    """Standard deviations that mean-std subtracts."""
    gold: RewardSpec | None = None
    """What the reward is meant to stand for, logged beside it and never trained on: file.py:function or a Python
    function. The embedded world has its own."""

    def setting(self) -> RewardSetting:
        """The reward's keys as the cast takes them."""
        return RewardSetting(self.reward, self.reward_weights, self.ensemble, self.ensemble_k)


class RlConfig(RewardKeys, WatchKeys, TrainingKeys, ParallelKeys):
    """The keys of every method that learns from answers it samples."""

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
    method: Literal["full", "lora"] = "full"
    """lora: policy, reference, critic and (if it was trained so) reward are adapters on one frozen trunk."""
    lora: LoraSettings = LoraSettings(r=8)
    gate: float | None = 0.8
    """Share of right-wrong pairs that the reward model should order rightly (its summary's right_over_wrong). Below it
    RL tends to raise the reward and not the quality: it is said aloud, and gate_passed is false in the summary."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU and on a CPU that was measured to be quicker with it."""
    compiled: bool = False
    """Sample and train through torch.compile: the first update costs half a minute or more, later ones are quicker.
    With method=full."""
    save_every: int = Field(10, ge=0)
    """Steps between checkpoints; 0: only at the end and when stopped."""
    sample_every: int = Field(10, ge=1)
    """Updates between rows of samples.jsonl."""
    optimizer: OptimConfig = OptimConfig(name="adamw", lr=5e-4, decay=0.4, eps=1e-5, warmup=0.05)

    @model_validator(mode="after")
    def _compiled_in_full(self) -> RlConfig:
        if self.compiled and self.method == "lora":
            raise ValueError("compiled=true needs method=full: adapters are switched between forwards")
        if self.parallel == "fsdp" and (self.method == "lora" or self.compiled):
            raise ValueError("parallel=fsdp needs method=full and compiled=false; parallel=ddp takes them")
        return self


@dataclass
class Scene:
    """What a run has while it goes."""

    config: Any
    run: RunDir
    cast: Cast
    engine: LocalEngine
    rows: list[dict[str, Any]]
    ptx: BlockLoader | None
    kl: FixedKL
    state: Values
    precision: str
    gold: Score | None
    improve: Improve
    group: int
    watch: Watch
    leave_open: bool


def reinforce(
    config: Any, run: RunDir, improve: Improve, kl: FixedKL, *, critic: bool = False, group: int = 1,
    leave_open: bool = False,
) -> dict[str, Any]:
    """Roll out, score, improve, `updates` times, each of `batch_size` episodes, `group` to a prompt; saves the policy.

    `config`: an RlConfig with the keys that `improve` reads; `kl`: the coefficient that it is given; `leave_open`:
    `improve` gives the old log-probs by its own forward (see Judged). Returns the
    summary: the last metrics, the curve's last and best means, and the text loss that the run cost.
    """
    if config.batch_size // config.minibatches < world_size():
        raise ConfigError(
            f"batch_size={config.batch_size}, minibatches={config.minibatches}: fewer episodes in a minibatch than "
            f"the {world_size()} ranks; raise batch_size or lower minibatches"
        )
    policy, tokenizer = load_model(config.model)
    held = Path(config.ptx_data) / "validation" if config.ptx_data else None
    shards = TokenShards(held, tokenizer) if held else None
    known = gate(config.reward, config.gate)
    if shards:
        known["text_loss_before"] = text_loss(policy, shards, config.ptx_block)
    common = (policy, tokenizer, config.setting(), config.optimizer, config.temperature, config.seed)
    precision = settle_precision(run, config.precision)
    if config.method == "lora":
        cast = shared(*common, config.lora, critic, group)
    else:
        cast = separate(*common, critic, group, precision if config.compiled else None)
    cast.spread(config.parallel)
    optimizers = [one for one in (cast.actors.policy_optim, cast.actors.critic_optim) if one is not None]
    cast.actors.guard = Guard.of(run, [p for one in optimizers for p in one.params])
    engine = LocalEngine(policy, tokenizer, bf16=precision == "bf16", compiled=config.compiled)
    rows = prompts(config.data, "train", config.prompts, config.seed, run.bad_rows)
    rows = encode_prompts(rows, tokenizer, engine.context_length, config.max_tokens, config.data, run.bad_rows)
    ptx = None
    if config.ptx_data and config.ptx_coef:
        text = TokenShards(Path(config.ptx_data) / "train", tokenizer)
        ptx = BlockLoader(text, config.ptx_batch, config.ptx_block, stream_seed(config.seed, "ptx") % 2**31, **share())
    state = Values(curve=[], last={}, seconds=0.0)
    function = truth(config.data, config.gold)
    gold = by_function(function) if function else None
    watch = _watch(config, run, cast, tokenizer, gold is not None)
    scene = Scene(config, run, cast, engine, rows, ptx, kl, state, precision, gold, improve, group, watch, leave_open)
    parts = {**cast.parts, "kl": kl, "state": state, "watch": watch} | ({"ptx": ptx} if ptx else {})
    drive(
        run, parts, config.updates, lambda step: update(scene, step), config.save_every, lambda: watch.stop,
        unmoved=(RewardError,), guard=cast.actors.guard,
    )  # fmt: skip
    cast.enter_policy()
    found = from_main(lambda: watch.finish(run.path / "model"))
    if shards:  # of the model that is kept, which an early stop may have taken from an earlier update
        known["text_loss"] = text_loss(load_model(run.path / "model")[0], shards, config.ptx_block)
    return {**summary(state.values), **known, **found}


def _watch(config: Any, run: RunDir, cast: Cast, tokenizer: Any, has_gold: bool) -> Watch:
    held_out = None
    if config.held_out_rewards:
        assert cast.build is not None
        held_out = cast.build(RewardSetting([config.held_out_rewards], None, "mean-std", config.ensemble_k))

    def save(folder: Path) -> None:
        cast.save(tokenizer, folder)

    return Watch(config, run, held_out, save, has_gold)


def update(scene: Scene, step: int) -> dict[str, Any]:
    """One update, and its row of metrics."""
    config, cast, ptx, values = scene.config, scene.cast, scene.ptx, scene.state.values
    began = time.perf_counter()
    cast.enter_policy()
    episodes = sample_episodes(
        scene.engine, scene.rows, batch_size=config.batch_size, minibatches=config.minibatches,
        max_tokens=config.max_tokens, temperature=config.temperature, seed=config.seed, step=step, group=scene.group,
    )  # fmt: skip
    cast.actors.guard.begin(step, [str(row["prompt"])[:SHOWN_PROMPT] for row in episodes.rows])
    judged = judge(cast.actors, episodes.rollout, config, scene.precision, scene.leave_open)
    # up to here nothing has moved: a reward that fails leaves the state of the step before (see drive)
    scores, each = shared_scores(cast.score, episodes, judged.ref)
    known = from_main(lambda: _watched(scene, episodes, judged.ref))
    metrics = scene.improve(
        cast.actors, episodes.rollout, scores, judged, config, beta=scene.kl.coef, done=(step - 1) / config.updates,
        ptx=(lambda: next(ptx)) if ptx else None, precision=scene.precision,
    )  # fmt: skip
    row = {"step": step, "proxy": float(scores.mean()), **known, **each, **metrics, "beta": scene.kl.coef}
    cast.enter_policy()  # the model of a best stretch is saved
    scene.watch.note(row)
    scene.kl.update(metrics["kl"], config.batch_size)
    seconds = time.perf_counter() - began
    row["episodes_per_second"] = round(config.batch_size / seconds, 1)
    if step == 1 or step % config.sample_every == 0:
        _show(scene.run, step, episodes.rows, episodes.texts, scores)
    values["curve"] = [*values["curve"], row.get("gold", row["proxy"])]
    values["seconds"] += seconds
    values["last"] = {k: row[k] for k in row if k != "episodes_per_second"}
    words = "  ".join(f"{k} {row[k]:.3f}" for k in ("proxy", "gold", "kl", "entropy", "length") if k in row)
    left = values["seconds"] / step * (config.updates - step)
    speed = f"{row['episodes_per_second']:.0f} episodes/s"
    console.print(f"[bold]{scene.run.path.name}[/] {step}/{config.updates}  {words}  {speed}  ETA {left:.0f}s")
    return row


def _watched(scene: Scene, episodes: Episodes, ref: Tensor) -> dict[str, float]:
    """What is measured of an update's answers and not maximised."""
    known = {"gold": float(scene.gold(episodes, ref).mean())} if scene.gold else {}
    return known | scene.watch.look(episodes, ref) | rates(episodes.rows, episodes.texts)


def _show(run: RunDir, step: int, rows: list[dict[str, Any]], texts: list[str], scores: Tensor) -> None:
    shown = list(zip(rows, texts, scores.tolist()))[:8]
    run.sample([{"step": step, "prompt": r["prompt"], "response": t, "score": s} for r, t, s in shown])


def gate(reward: Any, least: float | None) -> dict[str, Any]:
    """Whether the reward models tell right from wrong well enough, where their run directories say how well they do."""
    files = [Path(one) / "summary.json" for one in each_reward(reward) if isinstance(one, str)]
    found: list[tuple[float, Path]] = []
    for file in files:
        share = json.loads(file.read_text(encoding="utf-8")).get("right_over_wrong") if file.is_file() else None
        if share is not None:
            found.append((share, file.parent))
    if not found or least is None:
        return {}
    for share, folder in found:
        if share < least:
            console.print(
                f"[bold red]gate:[/] {folder} puts right above wrong in {share:.2f} of the pairs, below "
                f"{least}: expect over-optimisation"
            )
    return {"gate_passed": min(found)[0] >= least}


def summary(values: dict[str, Any]) -> dict[str, Any]:
    """The last update's metrics, and the curve's last and best means over five updates (gold, else proxy)."""
    curve, last = values["curve"], values["last"]
    means = [sum(curve[max(0, i - 4) : i + 1]) / len(curve[max(0, i - 4) : i + 1]) for i in range(len(curve))]
    kept = ("proxy", "gold", "kl", "entropy", "eos_rate", "length", "explained_variance", "length_reward_correlation")
    return {
        **{k: last[k] for k in last if k in kept or k.startswith(("reward/", "disagreement/"))},
        "last_mean5": means[-1],
        "best_mean5": max(means[4:] or means),
        "updates": len(curve),
        "seconds": round(values["seconds"], 1),
    }
