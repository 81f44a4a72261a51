"""DPO, IPO and KTO on given preferences: the data, the objective, and what is measured while it trains."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.core.errors import ConfigError
from tutelage.core.records import BadRows
from tutelage.core.rundir import RunDir
from tutelage.core.runtime import autocast, stream_seed
from tutelage.engine import LocalEngine
from tutelage.model.adapters import Adapters, unload
from tutelage.model.hub import load_model, resize_for, save_model
from tutelage.schoolroom.rows import gold_reward
from tutelage.text.chat import ensure_chat
from tutelage.text.loader import BlockLoader, Mixed, share
from tutelage.text.shards import TokenShards
from tutelage.text.tokenizer import ensure_pad
from tutelage.train.drive import settle_precision
from tutelage.train.evaluate import text_loss
from tutelage.train.loop import Objective, train
from tutelage.train.objectives import WithText
from tutelage.train.optim import Optimizers
from tutelage.train.parallel import require_one
from tutelage.train.preferences import (
    LabelLoader,
    Preference,
    Thumbs,
    collate_labels,
    encode_labels,
    remembered_reference,
)
from tutelage.train.probe import probe
from tutelage.train.reward_data import RankingLoader, collate_rankings, encode_ranking
from tutelage.train.rewards import as_function
from tutelage.train.rl import gate
from tutelage.train.rollouts import as_turns, encode_prompts
from tutelage.train.samples import sampler
from tutelage.train.scores import Rewards, by_function
from tutelage.train.shared import Logits
from tutelage.train.sources import rankings, thumbs
from tutelage.train.update import Actors, Forward

Rows = list[dict[str, Any]]
NOT_A_PROMPT = ("responses", "ranking", "p_better", "completion", "label", "annotator", "scores")


def prefer(config: Any, run: RunDir) -> dict[str, Any]:
    """Train on preferences, measure on held-out ones and by sampling, save. `config`: a DpoConfig."""
    policy, tokenizer = load_model(config.model)
    ensure_pad(tokenizer)
    ensure_chat(tokenizer)  # of a base model: its chat tokens are new and get trained here
    resize_for(policy, tokenizer)
    precision = settle_precision(run, config.precision)
    known = gate(config.reward, config.gate)
    if config.loss == "kto":  # its reference point is a mean over the whole batch
        require_one("loss=kto")
    kto, pad = config.loss == "kto", tokenizer.pad_token_id
    rows, held = (thumbs if kto else rankings)(config.data, config.held_out, run.bad_rows)
    held = held[:: -(-len(held) // config.held_rows)]
    encoded = [_encode(config, part, rows, tokenizer) for part in (rows, held)]
    every = [row for part in encoded for row in part]
    remembered_reference(every + [row["other"] for row in every if kto], policy, pad, precision, run.path)
    adapters, actors = _cast(config, policy)
    engine = LocalEngine(policy, tokenizer)
    shards = TokenShards(Path(config.ptx_data) / "validation", tokenizer) if config.ptx_data else None
    loader: Any = (LabelLoader if kto else RankingLoader)(encoded[0], config.batch_size, pad, config.seed)
    objective: Objective = _objective(config)
    evaluate = _evaluation(config, engine, actors, adapters, objective, encoded[1], held, precision, shards)
    before = evaluate()
    if config.ptx_data and config.ptx_coef:
        text = TokenShards(Path(config.ptx_data) / "train", tokenizer)
        seed = stream_seed(config.seed, "ptx") % 2**31
        loader = Mixed(loader, BlockLoader(text, config.ptx_batch, config.ptx_block, seed, **share()))
        objective = WithText(config.ptx_coef, objective)
    last = train(
        policy, objective, loader, Optimizers(policy, config.optimizer), run, steps=config.updates,
        precision=precision, evaluate=evaluate, eval_every=config.eval_every, save_every=config.save_every,
        sample=sampler(engine, [as_turns(row["prompt"]) for row in held[:3]], config.max_tokens), dropout=False,
        parallel=config.parallel,
    )  # fmt: skip
    save_model(unload(policy, "policy") if adapters else policy, tokenizer, run.path / "model")
    after = {k: v for k, v in last.items() if k in before}
    if shards:
        after |= {"text_loss_before": before["val_text_loss"], "text_loss": after.pop("val_text_loss")}
    cut = {key: sum(row[key] for row in every) for key in ("prompts_cut", "responses_cut")}
    return {
        "loss": last["loss"], **after, "val_loss_before": before["val_loss"],
        "train_rows": len(rows), "held_rows": len(held), **cut, "seconds": last["seconds"], **known,
    }  # fmt: skip


def _encode(config: Any, rows: Rows, train: Rows, tokenizer: Any) -> Rows:
    if config.loss == "kto":
        return encode_labels(rows, tokenizer, config.max_length, config.seed, train)
    return [encode_ranking(row, tokenizer, config.max_length) for row in rows]


def _objective(config: Any) -> Objective:
    if config.loss == "kto":
        return Thumbs(config.beta, config.desirable_weight, config.undesirable_weight)
    return Preference(config.loss, config.beta, config.label_smoothing, config.average)


def _cast(config: Any, policy: nn.Module) -> tuple[Adapters | None, Actors]:
    """The policy as it will move, and whom the probe asks: with LoRA the reference is the trunk without the adapter,
    else a copy, which is only kept where answers are sampled."""
    if config.method == "full":
        reference = copy.deepcopy(policy).eval().requires_grad_(False) if config.eval_prompts else policy
        return None, Actors(Logits(policy), Logits(reference))
    adapters = Adapters(policy.base_model, ["policy"], config.lora, config.seed)  # type: ignore[arg-type]
    policy.requires_grad_(False)
    adapters.use("policy")
    logits = Logits(policy)

    def bare(*of: torch.Tensor) -> torch.Tensor:
        adapters.use(None)
        found = logits(*of)
        adapters.use("policy")
        return found

    reference_forward: Forward = bare
    return adapters, Actors(logits, reference_forward)


def _evaluation(
    config: Any, engine: LocalEngine, actors: Actors, adapters: Adapters | None, objective: Objective, encoded: Rows,
    held: Rows, precision: str, shards: TokenShards | None,
) -> Callable[[], dict[str, Any]]:  # fmt: skip
    """What is measured every `eval_every` steps, as a function."""
    tokenizer = engine.tokenizer
    seen = {str(row["prompt"]): {k: v for k, v in row.items() if k not in NOT_A_PROMPT} for row in held}
    rows = list(seen.values())[: config.eval_prompts]
    fitting = (tokenizer, engine.context_length, config.max_tokens, config.data, BadRows("skip"))
    rows = encode_prompts(rows, *fitting) if rows else []
    function = as_function(config.gold) if config.gold else gold_reward if rows and "item" in rows[0] else None
    score: Rewards | None = None
    if config.reward is not None and rows:
        if adapters is not None and config.temperature != 1.0:
            raise ConfigError("method=lora with reward= needs temperature=1: reward models may read the reference")
        score = config.setting().build({}, getattr(actors.reference, "model", None), config.temperature)

    def evaluate() -> dict[str, Any]:
        found = held_out_loss(engine.model, objective, encoded, tokenizer.pad_token_id, precision)
        if rows:
            found |= probe(
                engine, rows, actors, score, by_function(function) if function else None,
                max_tokens=config.max_tokens, temperature=config.temperature, seed=config.seed, precision=precision,
            )  # fmt: skip
        return found | ({"val_text_loss": text_loss(engine.model, shards, config.ptx_block)} if shards else {})

    return evaluate


@torch.no_grad()
def held_out_loss(
    model: nn.Module, objective: Objective, rows: Rows, pad_id: int, precision: str, batch: int = 64
) -> dict[str, float]:
    """Mean loss and accuracy over encoded rows."""
    training = model.training
    model.eval()
    sums, units = {"val_loss": 0.0, "val_accuracy": 0.0}, 0
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        with autocast(precision):
            loss, found = objective(model, (collate_labels if "other" in part[0] else collate_rankings)(part, pad_id))
        sums["val_loss"] += float(loss)
        sums["val_accuracy"] += found["accuracy"] * found["count"]
        units += found["count"]
    model.train(training)
    return {key: value / max(1, units) for key, value in sums.items()}
