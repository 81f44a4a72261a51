"""The sampler against its definitions."""

from __future__ import annotations

import pytest
import torch

from tutelage.core.errors import ConfigError
from tutelage.engine import SamplingParams
from tutelage.engine.sampling import RowParams, derive_seed, sample, uniforms

CPU = torch.device("cpu")


def draw(logits: torch.Tensor, params: SamplingParams, count: int = 20000) -> torch.Tensor:
    rows = RowParams.build([params] * count, [derive_seed(7, i) for i in range(count)], len(logits), CPU)
    tokens, _ = sample(logits.expand(count, -1), rows, 0)
    return torch.bincount(tokens, minlength=len(logits)) / count


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    seeds = torch.arange(4096)
    u = torch.stack([uniforms(seeds, k) for k in range(8)])
    assert 0 <= float(u.min()) and float(u.max()) < 1
    assert abs(float(u.mean()) - 0.5) < 0.01 and abs(float(u.var()) - 1 / 12) < 0.003
    across = torch.corrcoef(u)
    assert float((across - torch.eye(8)).abs().max()) < 0.08
    assert torch.equal(uniforms(torch.tensor([5, 9]), 3)[1:], uniforms(torch.tensor([9]), 3))


def test_frequencies_follow_the_temperature_scaled_distribution() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5])
    found = draw(logits, SamplingParams(temperature=0.8))
    assert float((found - (logits / 0.8).softmax(-1)).abs().max()) < 0.012


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        (SamplingParams(top_k=2), {0, 3}),
        (SamplingParams(top_p=0.6), {0, 3}),
        (SamplingParams(min_p=0.3), {0, 3}),
        (SamplingParams(top_k=3, banned_tokens=(3,)), {0, 1, 4}),
        (SamplingParams(logit_bias={2: 100.0}), {2}),
    ],
)
def test_truncation_keeps_the_right_tokens(params: SamplingParams, allowed: set[int]) -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5])  # probabilities .20 .07 .03 .55 .12
    found = draw(logits, params, 4000)
    assert set(found.nonzero().flatten().tolist()) == allowed


def test_rows_with_different_parameters_do_not_mix() -> None:
    logits = torch.randn(3, 50)
    each = [SamplingParams(temperature=0), SamplingParams(top_k=1), SamplingParams(temperature=1.3)]
    tokens, logprobs = sample(logits, RowParams.build(each, [1, 2, 3], 50, CPU), 0)
    assert tokens[:2].tolist() == logits[:2].argmax(-1).tolist()
    alone, lp = sample(logits[2:], RowParams.build(each[2:], [3], 50, CPU), 0)
    assert tokens[2] == alone[0] and torch.allclose(logprobs[2:], lp)


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    logits = torch.full((40,), float("-inf"))
    logits[[4, 17]] = 0.0
    assert draw(logits, SamplingParams()).nonzero().flatten().tolist() == [4, 17]


def test_bad_parameters_name_themselves() -> None:
    for bad in ({"temperature": -1.0}, {"top_p": 0.0}, {"n": 0}, {"stop": ("",)}, {"min_p": 2.0}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            SamplingParams(**bad)


def test_integer_and_tensor_mixing_agree() -> None:
    from tutelage.engine.sampling import _GOLDEN, _signed, mix

    for seed, index in ((0, 1), (-5, 3), (2**62, 999), (123456789, 2**31)):
        assert derive_seed(seed, index) == int(mix(torch.tensor(_signed(seed * 31 + index * _GOLDEN))))
