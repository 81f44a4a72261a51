"""Muon on stacks of matrices does what torch's Muon does matrix by matrix."""

import pytest
import torch

from tutelage.train.optim import Muon, orthogonalise


def _one_by_one(x: torch.Tensor) -> torch.Tensor:
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 16, 20), (4, 16, 64)])
def test_stack_equals_one_by_one(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    made = orthogonalise(x)
    for got, matrix in zip(made, x):
        assert torch.allclose(got, _one_by_one(matrix), atol=1e-5)


def test_singular_values_come_near_one_and_zero_stays_zero():
    x = torch.randn(1, 32, 96, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalise(x)[0])
    assert values.min() > 0.5 and values.max() < 1.5
    assert torch.equal(orthogonalise(torch.zeros(2, 8, 24)), torch.zeros(2, 8, 24))


@pytest.mark.parametrize("adjust", ["match_rms_adamw", "original"])
@pytest.mark.parametrize("stack_limit", [1 << 25, 700])
def test_follows_torch_muon(monkeypatch, adjust, stack_limit):
    monkeypatch.setattr(Muon, "stack_limit", stack_limit)
    shapes = [(16, 16), (16, 16), (40, 16), (16, 40), (16, 40)]
    start = [torch.randn(s, generator=torch.Generator().manual_seed(i)) for i, s in enumerate(shapes)]
    settings = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": adjust}
    theirs = [torch.nn.Parameter(x.clone()) for x in start]
    ours = [torch.nn.Parameter(x.clone()) for x in start]
    a, b = torch.optim.Muon(theirs, **settings), Muon(ours, **settings)
    noise = torch.Generator().manual_seed(9)
    for _ in range(4):
        for p, q in zip(theirs, ours):
            p.grad = torch.randn(p.shape, generator=noise)
            q.grad = p.grad.clone()
        ours[0].grad = theirs[0].grad = None  # a parameter without a gradient stays where it is
        a.step()
        b.step()
    assert torch.equal(ours[0], start[0])
    for p, q, x in zip(theirs[1:], ours[1:], start[1:]):
        moved = (p - x).norm()
        assert moved > 0.1 and (p - q).norm() < 0.02 * moved  # torch iterates in bf16
    b.load_state_dict(a.state_dict())
    assert len(b.state) == 4
