"""PPO: first minibatch exact, LoRA on one trunk, ptx gradient summed, live reward functions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tutelage.core.errors import DataError
from tutelage.loss.lm import cross_entropy_sum
from tutelage.model.adapters import Adapters, LoraSettings, unload
from tutelage.model.hub import create_model, load_model, save_model
from tutelage.pipeline.stages import launch, read_summary
from tutelage.schoolroom import World
from tutelage.text.chat import ensure_chat
from tutelage.text.tokenizer import ensure_pad, train_tokenizer
from tutelage.train.optim import OptimConfig, Optimizers
from tutelage.train.ppo import Actors, Judged, Rollout, UpdateConfig, improve


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("ppo")
    world = World()
    stream = world.documents("train")
    tokenizer = train_tokenizer([next(stream) for _ in range(200)], 400)
    ensure_pad(tokenizer)
    ensure_chat(tokenizer)
    save_model(create_model("laptop-0.3m", tokenizer, 128), tokenizer, folder / "sft" / "model")
    return str(folder / "sft")


SMALL = {
    "prompts": 40, "updates": 4, "batch_size": 8, "minibatches": 2, "max_tokens": 6, "save_every": 2,
    "precision": "fp32",
}  # fmt: skip


def short(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    return [-float(len(c)) / 20 for c in completions]


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_first_minibatch_has_ratio_one_and_no_kl(sft: str, tmp_path: Path, method: str) -> None:
    path, _ = launch(
        "ppo", {**SMALL, "updates": 1, "model": sft, "reward": "logprob", "method": method, "out": str(tmp_path / "p")}
    )
    first = rows_of(path)[0]
    assert first["first_ratio_deviation"] == 0.0 and first["kl"] == 0.0 and first["optimizer_steps"] == 2
    assert first["sampler_gap"] < 1e-3 and first["skipped_steps"] == 0


def test_lora_policy_moves_and_trunk_does_not(sft: str, tmp_path: Path) -> None:
    rank = tmp_path / "rank.jsonl"
    world = World()
    items = [item for item, _ in zip(world.items("train"), range(12))]
    rank.write_text(
        "".join(
            json.dumps({"prompt": i.prompt, "responses": [i.good, "no.", "go away."], "ranking": [[0], [1], [2]]})
            + "\n"
            for i in items
        )
    )
    reward, _ = launch(
        "reward",
        {"model": sft, "data": str(rank), "steps": 3, "batch_size": 4, "method": "lora", "precision": "fp32",
         "out": str(tmp_path / "reward")},
    )  # fmt: skip
    assert (reward / "model/adapter.safetensors").is_file()
    ppo, _ = launch(
        "ppo", {**SMALL, "model": sft, "reward": str(reward), "method": "lora", "out": str(tmp_path / "ppo")}
    )
    first = rows_of(ppo)[0]
    assert first["first_ratio_deviation"] == 0.0 and first["kl"] == 0.0
    before, after = load_model(sft)[0].state_dict(), load_model(ppo)[0].state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved and all("proj" in k for k in moved)  # the policy's adapters, merged; embeddings and norms are frozen
    state = load_file(str(sorted((ppo / "checkpoints").glob("step-*"))[-1] / "state.safetensors"))
    trunk = sum(p.numel() for p in before.values())
    assert sum(v.numel() for k, v in state.items() if "/policy/" in k) < trunk / 5  # no copy of the trunk


def test_adapters_are_apart_and_merge_exactly(sft: str) -> None:
    model, tokenizer = load_model(sft)
    ids = torch.arange(10, 26)[None]
    bare = model(ids).logits
    adapters = Adapters(model.base_model, ["policy", "critic"], LoraSettings(r=4), seed=1)
    assert torch.equal(model(ids).logits, bare)
    with torch.no_grad():
        for _, p in adapters.parameters("policy"):
            p.normal_(std=0.1)
    adapters.use("critic")  # B is zero: a fresh adapter changes nothing
    assert torch.allclose(model(ids).logits, bare, atol=1e-5)
    adapters.use("policy")
    changed = model(ids).logits
    assert not torch.allclose(changed, bare, atol=1e-3)
    assert torch.allclose(unload(model, "policy")(ids).logits, changed, atol=1e-4)
    adapters.use(None)
    assert torch.equal(model(ids).logits, bare)


def test_ptx_gradient_is_summed_into_the_same_step(sft: str) -> None:
    """With advantages 0 the policy gradient vanishes, so the step's gradient is gamma times the text's gradient."""
    policy, tokenizer = load_model(sft)
    ids = torch.randint(5, 100, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 11)
    batch = {"input_ids": ids, "labels": ids}
    total, count = cross_entropy_sum(policy(ids).logits, ids)
    wanted = torch.autograd.grad(0.3 * total / count, list(policy.parameters()))
    seen: list[list[torch.Tensor]] = []

    class Spy(Optimizers):
        def clip(self) -> float:
            seen.append([p.grad.clone() for p in self.params])
            return super().clip()

    config = UpdateConfig(epochs=1, minibatches=1, ptx_coef=0.3)
    head = torch.nn.Linear(1, 1)
    actors = Actors(
        lambda t, a: policy(t, attention_mask=a).logits, lambda t, a: policy(t, attention_mask=a).logits,
        lambda t, a: head(t[..., None].float() * 0).squeeze(-1), Spy(policy, OptimConfig()),
        Optimizers(head, OptimConfig()),
    )  # fmt: skip
    zero = torch.zeros(3, 11)
    judged = Judged(zero.clone(), zero.clone(), zero.clone(), zero.clone())
    rollout = Rollout(ids, torch.ones_like(ids), mask, torch.ones(3))
    metrics = improve(actors, rollout, torch.zeros(3), judged, config, beta=0.0, done=0.1, ptx=lambda: batch)
    assert metrics["optimizer_steps"] == len(seen) == 1  # one step for both gradients
    for got, want in zip(seen[0], wanted):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_a_live_function_is_a_reward_and_it_is_learned(sft: str, tmp_path: Path) -> None:
    values = {**SMALL, "updates": 25, "batch_size": 32, "kl_coef": 0.0, "optimizer": {"lr": 2e-3, "decay": 0.0}}
    path, _ = launch("ppo", {**values, "model": sft, "reward": short, "out": str(tmp_path / "short")})
    rows = rows_of(path)
    start, end = (sum(r["proxy"] for r in part) / 5 for part in (rows[:5], rows[-5:]))
    assert end > start + 0.1, (start, end)
    assert "test_ppo.short#" in (path / "config.toml").read_text()
    assert read_summary(path)["updates"] == 25
    assert (path / "samples.jsonl").is_file()


def test_a_prompt_longer_than_the_context_names_itself(sft: str, tmp_path: Path) -> None:
    data = tmp_path / "prompts.jsonl"
    data.write_text(json.dumps({"prompt": "tom has the hat. " * 60}) + "\n")
    with pytest.raises(DataError, match=r"prompts.jsonl:1: the prompt has \d+ tokens; .*context of 128"):
        launch("ppo", {**SMALL, "model": sft, "reward": short, "data": str(data), "out": str(tmp_path / "x")})


