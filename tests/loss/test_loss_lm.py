"""Language-model losses: parity with plain autograd, padding that holds NaN, gradients in double precision."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.loss import lm


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


LABELS = torch.tensor([[3, 1, -100, 2, 0], [-100, -100, 4, 4, -100]])


def _head(dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(2, 5, 6, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(7, 6, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight


def test_cross_entropy_is_the_shifted_hugging_face_loss():
    logits = torch.randn(2, 5, 7)
    total, count = lm.cross_entropy_sum(logits, LABELS)
    by_hand = [-logits[b, t - 1].log_softmax(-1)[LABELS[b, t]] for b in range(2) for t in range(1, 5)
               if LABELS[b, t] != -100]
    assert count == len(by_hand) == 5
    assert torch.allclose(total, torch.stack(by_hand).sum())


def test_split_into_micro_batches_sums_to_the_whole():
    logits = torch.randn(2, 5, 7)
    whole = lm.cross_entropy_sum(logits, LABELS)
    parts = [lm.cross_entropy_sum(logits[i : i + 1], LABELS[i : i + 1]) for i in range(2)]
    assert torch.allclose(whole[0], parts[0][0] + parts[1][0]) and whole[1] == parts[0][1] + parts[1][1]


@pytest.mark.parametrize("loss", [
    lambda h, w, y: lm.cross_entropy_sum(h @ w.T, y),
    lm.chunked_linear_cross_entropy,
])
def test_without_any_label_loss_and_gradient_are_zero(loss):
    hidden, weight = _head()
    total, count = loss(hidden, weight, torch.full((2, 5), -100))
    total.backward()
    assert total == 0 and count == 0
    assert not hidden.grad.any() and not weight.grad.any()


def test_last_logit_and_first_label_do_not_count():
    logits = torch.randn(1, 4, 5)
    labels = torch.tensor([[0, 1, 2, 3]])
    moved, relabelled = logits.clone(), labels.clone()
    moved[:, -1] += 5.0
    relabelled[:, 0] = 4
    for fn in (lm.token_logprobs, lambda a, b: lm.cross_entropy_sum(a, b)[0]):
        assert torch.equal(fn(logits, labels), fn(moved, relabelled))


def test_token_logprobs_sum_to_one_and_follow_the_temperature():
    logits = torch.randn(1, 2, 5)
    for temperature in (0.3, 1.0, 2.0):
        total = sum(lm.token_logprobs(logits, torch.tensor([[0, v]]), temperature).exp() for v in range(5))
        assert total.item() == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(lm.token_logprobs(logits / 2.0, torch.tensor([[0, 3]])),
                       lm.token_logprobs(logits, torch.tensor([[0, 3]]), 2.0))


def test_low_precision_logits_are_reduced_in_fp32():
    logits, tokens = torch.randn(2, 4, 300).bfloat16(), torch.randint(300, (2, 4))
    got = lm.token_logprobs(logits, tokens)
    assert got.dtype == torch.float32
    assert torch.equal(got, lm.token_logprobs(logits.float(), tokens))
    total, _ = lm.cross_entropy_sum(logits, tokens)
    assert total.dtype == torch.float32 and torch.allclose(total, -got.sum())


@pytest.mark.parametrize("frozen", ["hidden", "weight", "none"])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_chunked_gradient_parity_with_a_frozen_side_and_a_scaled_loss(frozen, scale):
    grads = []
    for chunked in (True, False):
        hidden, weight = _head(torch.float64)
        hidden.requires_grad_(frozen != "hidden")
        weight.requires_grad_(frozen != "weight")
        if chunked:
            total, count = lm.chunked_linear_cross_entropy(hidden, weight, LABELS, chunk=2)
        else:
            total, count = lm.cross_entropy_sum(hidden @ weight.T, LABELS)
        (scale * total / count).backward()
        grads.append((hidden.grad, weight.grad))
    for ours, plain in zip(*grads):
        assert (ours is None) == (plain is None)
        assert ours is None or torch.allclose(ours, plain, atol=1e-12)


def test_chunked_gradcheck_and_no_grad():
    hidden, weight = _head(torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: lm.chunked_linear_cross_entropy(h, w, LABELS, 2)[0], (hidden, weight))
    with torch.no_grad():
        total, _ = lm.chunked_linear_cross_entropy(hidden, weight, LABELS, 2)
    assert not total.requires_grad
    assert torch.allclose(total, lm.cross_entropy_sum(hidden @ weight.T, LABELS)[0])


def test_chunked_under_bf16_autocast_is_close_to_fp32():
    hidden, weight = _head()
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = lm.chunked_linear_cross_entropy(hidden, weight, LABELS, 2)
    total.backward()
    exact_h, exact_w = _head()
    want, _ = lm.cross_entropy_sum(exact_h @ exact_w.T, LABELS)
    want.backward()
    assert total.dtype == torch.float32 and weight.grad.dtype == torch.float32
    assert torch.allclose(total, want, rtol=2e-2)
    assert torch.allclose(weight.grad, exact_w.grad, atol=5e-2) and torch.allclose(hidden.grad, exact_h.grad, atol=5e-2)


def test_chunked_reaches_tied_embeddings_twice():
    """The weight is both embedding and head: both paths must arrive in one gradient."""
    tokens = torch.tensor([[1, 4, 2, 6, 3]])
    grads = []
    for chunked in (True, False):
        _, weight = _head(torch.float64)
        hidden = weight[tokens]
        total = (lm.chunked_linear_cross_entropy(hidden, weight, tokens, 2) if chunked
                 else lm.cross_entropy_sum(hidden @ weight.T, tokens))[0]
        total.backward()
        grads.append(weight.grad)
    assert torch.allclose(*grads)


@pytest.mark.parametrize("call", [
    lambda: lm.token_logprobs(torch.zeros(2, 3, 4), torch.zeros(2, 2, dtype=torch.long)),
    lambda: lm.token_logprobs(torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.long), 0.0),
    lambda: lm.token_logprobs(torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.long), math.nan),
    lambda: lm.cross_entropy_sum(torch.zeros(2, 3, 4), torch.zeros(3, 2, dtype=torch.long)),
    lambda: lm.cross_entropy_sum(torch.zeros(6, 4), torch.zeros(6, dtype=torch.long)),
    lambda: lm.chunked_linear_cross_entropy(torch.zeros(1, 2, 3), torch.zeros(4, 3), torch.zeros(1, 2).long(), 0),
    lambda: lm.chunked_linear_cross_entropy(torch.zeros(1, 2, 3), torch.zeros(4, 3), torch.zeros(1, 3).long()),
])
def test_wrong_shapes_and_values_are_refused(call):
    with pytest.raises(ValueError):
        call()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-100, 100), st.booleans()), min_size=1, max_size=20))
def test_masked_statistics_equal_those_of_the_picked_elements(rows):
    x = torch.tensor([r[0] for r in rows], dtype=torch.float64)
    mask = torch.tensor([r[1] for r in rows])
    dirty = torch.where(mask, x, torch.tensor(math.nan, dtype=torch.float64))
    picked = x[mask]
    mean = picked.mean() if len(picked) else torch.zeros(())
    var = picked.var(unbiased=False) if len(picked) else torch.zeros(())
    assert lm.masked_mean(dirty, mask).item() == pytest.approx(mean.item(), abs=1e-9)
    assert lm.masked_var(dirty, mask).item() == pytest.approx(var.item(), abs=1e-7)
    white = lm.masked_whiten(dirty, mask)
    kept = lm.masked_whiten(dirty, mask, shift_mean=False)
    assert not white[~mask].any() and not kept[~mask].any() and white.isfinite().all()
    if len(picked) and var > 1e-3:
        assert white[mask].mean().item() == pytest.approx(0.0, abs=1e-6)
        assert white[mask].var(unbiased=False).item() == pytest.approx(1.0, abs=1e-4)
        assert kept[mask].mean().item() == pytest.approx(mean.item(), abs=1e-6)


def test_masked_statistics_broadcast_count_bools_and_keep_gradients_clean():
    x = torch.tensor([[1.0, 2.0, math.nan], [3.0, 4.0, math.inf]], requires_grad=True)
    mask = torch.tensor([True, True, False])  # one mask for all rows: 4 elements, not 2
    assert lm.masked_mean(x, mask) == 2.5
    assert lm.masked_mean(x.detach() > 1.5, mask) == 0.75
    lm.masked_var(x, mask).backward()
    assert x.grad.isfinite().all() and not x.grad[:, 2].any()


def test_whitening_ignores_padding_length():
    x = torch.randn(2, 3)
    mask = torch.ones(2, 3)
    padded = torch.cat([x, torch.full((2, 4), 9.0)], 1)
    padded_mask = torch.cat([mask, torch.zeros(2, 4)], 1)
    assert torch.allclose(lm.masked_whiten(padded, padded_mask)[:, :3], lm.masked_whiten(x, mask), atol=1e-6)


def test_entropy_values_and_gradient_where_probabilities_vanish():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, -500.0, -math.inf, 0.0], [0.0, -500.0, -500.0, -500.0]])
    logits.requires_grad_()
    entropy = lm.entropy_from_logits(logits)
    assert torch.allclose(entropy, torch.tensor([math.log(4), math.log(2), 0.0]))
    entropy.sum().backward()
    assert logits.grad.isfinite().all()
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lm.entropy_from_logits, x)
