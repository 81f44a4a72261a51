"""Best-of-n: its KL on a model whose answers can all be listed, the estimator of its value, and the rungs."""

import itertools
import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tutelage.loss.lm import token_logprobs
from tutelage.train.bestofn import best_of_n_kl, exact_best_of_n, exact_kl, expected_best, ladder


@pytest.fixture(scope="module")
def listed():
    """Log-probs of every answer of four tokens of a vocabulary of 11 (14,641 of them) under a small model."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=12, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    ).eval()
    answers = torch.tensor(list(itertools.product(range(1, 12), repeat=4)))
    ids = torch.cat([torch.zeros(len(answers), 1, dtype=torch.long), answers], 1)
    with torch.no_grad():
        logits = model(ids).logits
        logits[..., 0] = -torch.inf  # never sampled: the answers are all there is
        logp = token_logprobs(logits, ids).double().sum(1)
    assert logp.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    return logp


@pytest.mark.parametrize("n", [2, 4, 8, 16, 64])
def test_the_formula_against_the_exact_kl(listed, n):
    """Within 1%, for scores that depend on the answer and for scores that prefer likely ones."""
    noise = torch.rand(len(listed), generator=torch.Generator().manual_seed(n), dtype=torch.double)
    for scores in (noise, listed + 0.1 * noise):
        best = exact_best_of_n(listed, scores, n)
        assert best.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
        exact = exact_kl(best, listed)
        assert abs(best_of_n_kl(n) - exact) <= 0.01 * exact, (exact, best_of_n_kl(n))


def test_the_exact_distribution_is_what_sampling_gives():
    """Equal scores too; there the formula is only a bound."""
    logp, scores, n = torch.tensor([0.5, 0.2, 0.2, 0.1]).log(), torch.tensor([0.0, 1.0, 1.0, 2.0]), 3
    exact = exact_best_of_n(logp, scores, n).exp()
    draws = torch.multinomial(logp.exp(), 400_000 * n, True, generator=torch.Generator().manual_seed(0)).view(-1, n)
    best = draws.gather(1, scores[draws].argmax(1, keepdim=True)).squeeze(1)
    assert torch.allclose(best.bincount(minlength=4) / len(best), exact.float(), atol=3e-3)
    assert exact_kl(exact.log(), logp) < best_of_n_kl(n)
    assert exact_kl(logp, logp) == 0 and best_of_n_kl(1) == 0


def test_the_estimator_is_the_mean_over_all_choices():
    scores, values = torch.rand(2, 6, generator=torch.Generator().manual_seed(1)), torch.arange(12.0).view(2, 6)
    for n in range(1, 7):
        found = expected_best(scores, values, n)
        for p in range(2):
            picks = [max(c, key=lambda i: scores[p, i]) for c in itertools.combinations(range(6), n)]
            assert found[p].item() == pytest.approx(sum(values[p, i].item() for i in picks) / math.comb(6, n))
    with pytest.raises(ValueError):
        expected_best(scores, values, 7)


def test_ladder():
    assert ladder(16) == [1, 2, 4, 8, 16] and ladder(12) == [1, 2, 4, 8, 12] and ladder(2) == [1, 2]
