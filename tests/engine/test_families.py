"""Greedy decoding of left-padded batches equals transformers' own for families whose caches and masks differ."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from tests.engine.tiny_families import FALL_BACK, PLANNED, Numbers, build
from tutelage.engine import SamplingParams
from tutelage.engine.local import LocalEngine
from tutelage.model.heads import RewardModel, create_reward_model

PROMPTS = [[5, 9, 31, 7, 7, 8, 60], [12, 13], [40, 41, 42, 43]]


@pytest.fixture(scope="module", params=[*PLANNED, *FALL_BACK])
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


def test_greedy_equals_transformers(model: Any) -> None:
    engine = LocalEngine(model, Numbers())
    each = [SamplingParams(max_tokens=n, temperature=0) for n in (4, 14, 5)]  # two rows end early and are dropped
    for ids, params, output in zip(PROMPTS, each, engine.generate(PROMPTS, each), strict=True):
        row = torch.tensor([ids])
        full = model.generate(
            row, max_new_tokens=params.max_tokens, do_sample=False, attention_mask=torch.ones_like(row)
        )
        assert list(output.completions[0].tokens) == full[0, len(ids) :].tolist()


def test_who_follows_plans_and_that_the_others_are_told(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    from tutelage.engine import support

    vars(model).pop("_tutelage_support", None)
    support._TOLD.discard(type(model))
    with caplog.at_level(logging.WARNING, "tutelage"):
        found = LocalEngine(model, Numbers()).support
        LocalEngine(model, Numbers()).generate([[5, 6]], SamplingParams(max_tokens=1))
    assert found.plans is (model.family not in FALL_BACK), found.reason
    lines = [r.message for r in caplog.records]
    assert len(lines) == (0 if found.plans else 1) and all("runs without shared prefixes: " in line for line in lines)


def test_scores_and_logprobs_equal_a_full_forward(model: Any) -> None:
    engine = LocalEngine(model, Numbers())
    head = list(range(20, 40))
    pairs = [([*head, 5, 6], [7, 8]), ([*head, 5, 6], [7, 9, 11]), ([*head, 50], [3]), ([44], [45, 46, 47, 48] * 3)]
    for (context, said), score in zip(pairs, engine.score(pairs, max_tokens=16), strict=True):
        with torch.inference_mode():
            whole = model(torch.tensor([context + said])).logits[0].float().log_softmax(-1)
        expected = [float(whole[len(context) + i - 1, token]) for i, token in enumerate(said)]
        assert score.token_logprobs == pytest.approx(expected, abs=1e-4)
    params = SamplingParams(max_tokens=9, n=3, seed=3, temperature=0.8, banned_tokens=(1,))
    for output in engine.generate([pairs[0][0], pairs[3][0]], params):
        for made in output.completions:
            ids = [*output.prompt_tokens, *made.tokens]
            with torch.inference_mode():
                whole = (model(torch.tensor([ids])).logits[0].float() / 0.8).log_softmax(-1)
            start = len(output.prompt_tokens) - 1
            expected = [float(whole[start + i, token]) for i, token in enumerate(made.tokens)]
            assert made.logprobs == pytest.approx(expected, abs=1e-4)


def test_bf16_follows_plans_too(model: Any) -> None:
    """Queries and keys that a norm left in float32 must not make a family fall back under autocast."""
    engine = LocalEngine(model, Numbers(), bf16=True)
    assert engine.support.plans is (model.family not in FALL_BACK), engine.support.reason
    score = engine.score([([5, 9, 31], [7, 8])])[0].logprob
    assert score == pytest.approx(LocalEngine(model, Numbers()).score([([5, 9, 31], [7, 8])])[0].logprob, abs=0.3)


def test_a_pair_that_cannot_be_scored_is_alone(model: Any) -> None:
    good, bad, long = LocalEngine(model, Numbers()).score([([5], [6]), ([5], [400]), ([5], [6] * (1 << 10))])
    assert good.error is None and "outside 0..95" in (bad.error or "")
    assert long.error is None or "context is" in long.error


def test_reward_model_ignores_padding_and_reloads(model: Any, tmp_path: Any) -> None:
    reward = create_reward_model(model, seed=1).eval()
    ids = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 0, 0]])
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    scores = reward(ids, mask)
    assert torch.allclose(reward(ids[1:, :4], mask[1:, :4]), scores[1:], atol=1e-5)
    reward.save(tmp_path / "rm")
    loaded = RewardModel.load(tmp_path / "rm", attn_implementation=model.config._attn_implementation).eval()
    assert torch.allclose(loaded(ids, mask), scores, atol=1e-6)
