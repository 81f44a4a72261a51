"""PPO with KL to the SFT model and a pretraining mix (InstructGPT sec. 3.5, PPO-ptx)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from tutelage.core.config import StageConfig
from tutelage.core.errors import DataError
from tutelage.core.rundir import RunDir
from tutelage.core.runtime import generator, stream_seed
from tutelage.engine import LocalEngine, SamplingParams
from tutelage.loss.policy import AdaptiveKL, FixedKL
from tutelage.model.heads import RewardModel, ValueModel, logprob_features
from tutelage.model.hub import load_model, save_model
from tutelage.schoolroom.rows import gold_reward
from tutelage.text.chat import encode_prompt, turn_end_id
from tutelage.text.loader import BlockLoader
from tutelage.text.shards import TokenShards
from tutelage.train.checkpoint import load_latest, save_checkpoint
from tutelage.train.loop import Interrupted, StopFlag, console
from tutelage.train.optim import OptimConfig, Optimizers
from tutelage.train.ppo import Rollout, collate, update
from tutelage.train.rewards import call_reward, load_function
from tutelage.train.sources import is_world, prompts


class PpoConfig(StageConfig):
    model: str
    """The SFT model; it is also the reference."""
    reward: str
    """Run directory of `reward`, or file.py:function. The critic starts from the reward model (or the SFT trunk)."""
    data: str = "schoolroom:demo"
    prompts: int = 20_000
    ptx_data: str | None = None
    """Run directory of `prepare` whose text is mixed in."""
    ptx_coef: float = 0.3
    ptx_batch: int = 16
    ptx_block: int = 96
    updates: int = 60
    batch_size: int = 256
    epochs: int = 1
    minibatches: int = 4
    max_tokens: int = 24
    temperature: float = 1.0
    kl_coef: float = 0.05
    kl_target: float | None = None
    """Adaptive coefficient towards this KL (sum over tokens), if given."""
    kl_kind: str = "k1"
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    value_clip: float = 0.2
    whiten_rewards: bool = False
    missing_eos_penalty: float = 1.0
    """Subtracted from the score of a response that did not end."""
    precision: str = "auto"
    save_every: int = 10
    optimizer: OptimConfig = OptimConfig(name="adamw", lr=5e-4, decay=0.4, eps=1e-5, warmup=0.05)


def run(config: PpoConfig, run: RunDir) -> dict[str, Any]:
    policy, tokenizer = load_model(config.model)
    reference, _ = load_model(config.model)
    reference.eval().requires_grad_(False)
    score, critic = _rewards(config, reference, tokenizer)
    policy.eval()  # dropout stays off in every forward, so old and new log-probs are of one function
    critic.eval()
    policy_optim, critic_optim = Optimizers(policy, config.optimizer), Optimizers(critic, config.optimizer)
    engine = LocalEngine(policy, tokenizer)
    rows = _usable(prompts(config.data, "train", config.prompts, config.seed), tokenizer, config)
    ptx = None
    if config.ptx_data and config.ptx_coef:
        shards = TokenShards(Path(config.ptx_data) / "train", tokenizer)
        ptx = BlockLoader(shards, config.ptx_batch, config.ptx_block, stream_seed(config.seed, "ptx") % 2**31)
    kl = AdaptiveKL(config.kl_coef, config.kl_target, 10_000) if config.kl_target else FixedKL(config.kl_coef)
    start, best, last = 0, [], {}  # type: ignore[var-annotated]
    if found := load_latest(run.path / "checkpoints"):
        start, state = found
        for part, name in (
            (policy, "policy"),
            (critic, "critic"),
            (policy_optim, "policy_optim"),
            (critic_optim, "critic_optim"),
            (kl, "kl"),
        ):
            part.load_state_dict(state[name])
        if ptx:
            ptx.load_state_dict(state["ptx"])
        best, last = state["curve"], state["last"]
    run.truncate_metrics(start)

    def save(step: int) -> None:
        save_checkpoint(
            run.path / "checkpoints",
            step,
            {
                "policy": policy.state_dict(),
                "critic": critic.state_dict(),
                "policy_optim": policy_optim.state_dict(),
                "critic_optim": critic_optim.state_dict(),
                "kl": kl.state_dict(),
                "ptx": ptx.state_dict() if ptx else None,
                "curve": best,
                "last": last,
            },
        )

    began = time.perf_counter()
    with StopFlag() as stop:
        for step in range(start + 1, config.updates + 1):
            rollout, facts = _rollout(config, step, rows, engine, tokenizer, score)
            metrics = update(
                policy,
                critic,
                reference,
                rollout,
                policy_optim,
                critic_optim,
                beta=kl.coef,
                done=(step - 1) / config.updates,
                epochs=config.epochs,
                minibatches=config.minibatches,
                clip=config.clip,
                value_clip=config.value_clip,
                gamma=config.gamma,
                lam=config.lam,
                kl_kind=config.kl_kind,
                whiten_rewards=config.whiten_rewards,
                temperature=config.temperature,
                ptx_coef=config.ptx_coef if ptx else 0.0,
                ptx_batch=(lambda: next(ptx)) if ptx else None,
                precision=config.precision,
            )
            kl.update(metrics["kl"], config.batch_size)
            seconds = (time.perf_counter() - began) / (step - start)
            last = {
                "step": step,
                **facts,
                **metrics,
                "beta": kl.coef,
                "episodes_per_second": config.batch_size / seconds,
            }
            run.log(last)
            best.append(facts.get("gold", facts["proxy"]))
            words = "  ".join(f"{k} {last[k]:.3f}" for k in ("proxy", "gold", "kl", "entropy", "length") if k in last)
            console.print(
                f"[bold]{run.path.name}[/] {step}/{config.updates}  {words}  ETA "
                f"{seconds * (config.updates - step):.0f}s"
            )
            if stop.set or step % config.save_every == 0 or step == config.updates:
                save(step)
                if stop.set and step < config.updates:
                    run.close()
                    raise Interrupted(f"{run.path}: stopped at update {step} and saved; the same command resumes")
    save_model(policy, tokenizer, run.path / "model")
    means = [sum(best[max(0, i - 4) : i + 1]) / len(best[max(0, i - 4) : i + 1]) for i in range(len(best))]
    return {
        **{k: last[k] for k in ("proxy", "gold", "kl", "entropy", "eos_rate", "length") if k in last},
        "last_mean5": means[-1],
        "best_mean5": max(means[4:] or means),
    }


def _usable(rows: list[dict[str, Any]], tokenizer: Any, config: PpoConfig) -> list[dict[str, Any]]:
    """Prompts with their ids; DataError when one leaves no room for a response."""
    for i, row in enumerate(rows):
        prompt = row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}]
        row["ids"] = encode_prompt(tokenizer, prompt)
        if i == 0:
            limit = 10**9
        if len(row["ids"]) + config.max_tokens > limit:
            raise DataError(f"{config.data}: prompt {i + 1} has {len(row['ids'])} tokens")
    return rows


def _rewards(config: PpoConfig, reference: Any, tokenizer: Any) -> tuple[Any, Any]:
    """The score function (tokens, attention, response mask, rows, texts) -> list, and the critic."""
    if ":" in config.reward:
        function = load_function(config.reward)
        from tutelage.model.heads import create_reward_model

        critic = ValueModel.from_reward(create_reward_model(reference, tokenizer, seed=config.seed))

        def by_function(tokens: Any, attention: Any, mask: Any, rows: list[dict], texts: list[str]) -> list[float]:
            columns = {k: [r.get(k) for r in rows] for k in rows[0] if k not in ("prompt", "ids")}
            return call_reward(function, [r["prompt"] for r in rows], texts, columns)

        return by_function, critic
    model = RewardModel.load(config.reward)
    model.eval().requires_grad_(False)

    def by_model(tokens: Any, attention: Any, mask: Any, rows: list[dict], texts: list[str]) -> list[float]:
        with torch.inference_mode():
            response = torch.cat([torch.zeros_like(mask[:, :1]), mask], 1).long()
            features = None
            if model.features is not None:
                features = logprob_features(reference, tokens, attention, response)
            return model(tokens, attention, features=features).float().tolist()

    critic = ValueModel.from_reward(model)
    critic.requires_grad_(True)
    return by_model, critic


def _rollout(
    config: PpoConfig, step: int, rows: list[dict[str, Any]], engine: LocalEngine, tokenizer: Any, score: Any
) -> tuple[Rollout, dict[str, float]]:
    """Sample one batch of episodes and score them. The prompt cursor is a function of (seed, step): resumable."""
    chosen = torch.randperm(len(rows), generator=generator(config.seed, "prompts", step))[: config.batch_size]
    batch = [rows[i] for i in chosen.tolist()]
    end = turn_end_id(tokenizer)
    params = SamplingParams(
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        stop_tokens=(end,),
        seed=stream_seed(config.seed, "rollout", step) % 2**31,
    )
    completions = engine.rollout([r["ids"] for r in batch], params)
    responses, ended = [], []
    for c in completions:
        tokens = list(c.tokens)
        ended.append(c.finish_reason in ("eos", "stop"))
        if ended[-1] and tokens[-1:] != [end] and end not in tokens:
            tokens.append(end)
        responses.append(tokens)
    order = sorted(range(len(batch)), key=lambda i: (i % config.minibatches, i))
    batch, responses, ended = ([x[i] for i in order] for x in (batch, responses, ended))
    tokens, attention, mask = collate([r["ids"] for r in batch], responses, tokenizer.pad_token_id)
    texts = [tokenizer.decode(r, skip_special_tokens=True).strip() for r in responses]
    scores = torch.tensor(score(tokens, attention, mask, batch, texts))
    proxy = float(scores.mean())
    scores = scores - config.missing_eos_penalty * (1 - torch.tensor(ended).float())
    facts = {"proxy": proxy, "eos_rate": sum(ended) / len(ended)}
    if is_world(config.data):
        gold = gold_reward([r["prompt"] for r in batch], texts, item=[r["item"] for r in batch])
        facts["gold"] = sum(gold) / len(gold)
    return Rollout(tokens, attention, mask, scores), facts
