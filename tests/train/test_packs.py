"""Responses packed behind one prompt: the scores, loss and gradients are those apart; models that cannot are known."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from tutelage.model.heads import create_reward_model
from tutelage.train.objectives import kwise
from tutelage.train.packs import pack, takes_packs
from tutelage.train.reward_data import collate_rankings

SIZE = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
MORE = {"intermediate_size": 48, "max_position_embeddings": 64, "num_key_value_heads": 1}
FAMILIES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "qwen3": ("Qwen3Config", {**SIZE, **MORE, "head_dim": 16}, True),
    "llama": ("LlamaConfig", {**SIZE, **MORE}, True),
    "gpt2": ("GPT2Config", {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}, True),
    "mistral with a window": ("MistralConfig", {**SIZE, **MORE, "sliding_window": 5}, False),
    "mamba": ("MambaConfig", {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2}, False),
}


def reward_model(family: str) -> Any:
    name, shape, _ = FAMILIES[family]
    config = getattr(transformers, name)(**shape)
    config.pad_token_id, config.eos_token_id, config.bos_token_id = 0, 1, None
    torch.manual_seed(0)
    return create_reward_model(AutoModelForCausalLM.from_config(config, attn_implementation="eager"), seed=1).eval()


def rankings(seed: int, prompts: int = 4) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    rows = []
    for _ in range(prompts):
        head = [rng.randrange(2, 96) for _ in range(rng.randint(1, 14))]
        said = [[rng.randrange(2, 96) for _ in range(rng.randint(1, 9))] for _ in range(rng.randint(2, 6))]
        cut = rng.randint(0, len(head) - 1) if rng.random() < 0.3 else 0  # one whose prompt was cut is packed apart
        ids = [(head[cut:] if i == 0 else head) + s for i, s in enumerate(said)]
        starts = [len(x) - len(s) for x, s in zip(ids, said)]
        rows.append({"ids": ids, "starts": starts, "ranks": [rng.randint(0, 2) for _ in said]})
    return rows


@pytest.mark.parametrize("family", FAMILIES)
def test_who_takes_packs_is_found_out(family: str) -> None:
    model = reward_model(family).train()
    assert takes_packs(model, 0) is FAMILIES[family][2]
    assert model.training


@pytest.mark.parametrize("family", [f for f, (_, _, takes) in FAMILIES.items() if takes])
def test_scores_loss_and_gradients_are_those_apart(family: str) -> None:
    model = reward_model(family).double()
    rows = rankings(3)
    grads = []
    for width in (None, 10**6):  # so wide that attention costs nothing: everything that may be packed is
        batch = collate_rankings(rows, 0, 60, width)
        if width is not None:
            assert sum(len(part["input_ids"]) for part in batch["parts"]) < sum(len(r["ids"]) for r in rows)
        loss, metrics = kwise(model, batch)
        model.zero_grad()
        loss.backward()
        found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        grads.append((loss.item(), metrics["accuracy"], found))
    # the loss itself is computed in fp32
    assert grads[0][0] == pytest.approx(grads[1][0], rel=1e-5) and grads[0][1] == grads[1][1]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(grads[0][2], grads[1][2], strict=True))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([8, 64, 10**6]))
def test_every_response_is_packed_once_with_its_own_prompt(seed: int, width: int) -> None:
    rows = rankings(seed)
    packs = pack(rows, width)
    places = [place for one in packs for place in one.places]
    assert sorted(places) == [(p, k) for p, row in enumerate(rows) for k in range(len(row["ids"]))]
    for one in packs:
        heads = {tuple(rows[p]["ids"][k][: rows[p]["starts"][k]]) for p, k in one.places}
        said = sum(len(rows[p]["ids"][k]) - rows[p]["starts"][k] for p, k in one.places)
        assert len({p for p, _ in one.places}) == len(heads) == 1 and one.length == len(next(iter(heads))) + said


def test_long_answers_to_a_short_question_stay_apart() -> None:
    rows = [{"ids": [[7] * 3 + [8] * 400, [7] * 3 + [9] * 400], "starts": [3, 3]}]
    assert len(pack(rows, 64)) == 2 and len(pack(rows, 10**6)) == 1
