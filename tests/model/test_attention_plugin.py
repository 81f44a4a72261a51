"""Attention in parts, merged by log-sum-exp, against one softmax over everything."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.model.attention import attend, using
from tutelage.model.kernels import How, Unsupported, attention_with_lse
from tutelage.model.plans import Block, NewKeys, Plan, StoredKeys, packed


def whole(query: Any, key: Any, value: Any, seen: Any, how: How, sinks: Any) -> Any:
    """One softmax: query [H, N, d], key and value [Hkv, L, d], seen [N, L]; out [N, H, d]."""
    repeat = query.shape[0] // key.shape[0]
    key, value = key.repeat_interleave(repeat, 0), value.repeat_interleave(repeat, 0)
    scores = query @ key.transpose(1, 2) * how.scale
    if how.softcap is not None:
        scores = how.softcap * torch.tanh(scores / how.softcap)
    scores = scores.masked_fill(~seen, -math.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(-1, scores.shape[1], 1)], -1)
        value = torch.cat([value, torch.zeros_like(value[:, :1])], 1)
    return (scores.softmax(-1) @ value).transpose(0, 1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**20), st.sampled_from([(4, 4), (4, 2), (4, 1)]), st.sampled_from([None, 3, 9]),
    st.sampled_from([None, 2.0]), st.booleans(), st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.integers(1, 12),
)  # fmt: skip
def test_merged_parts_equal_one_softmax(
    seed: int, heads: tuple[int, int], window: int | None, softcap: float | None, sink: bool, lengths: list[int],
    prefix: int,
) -> None:  # fmt: skip
    """Documents behind a prefix that all share: their own spans, and the prefix as a stored part."""
    generator = torch.Generator().manual_seed(seed)
    count, width = sum(lengths), 8
    query = torch.randn(heads[0], count, width, generator=generator)
    key, value, old_key, old_value = (
        torch.randn(heads[1], n, width, generator=generator) for n in (count, count, prefix, prefix)
    )
    sinks = torch.randn(heads[0], generator=generator) if sink else None
    how = How(0.3, window, softcap, 0.0, sink)
    plan = packed(lengths)
    positions = torch.cat([torch.arange(n) for n in lengths]) + prefix
    for block in plan.own:
        block.query_positions = positions[block.queries]
        block.key_positions = positions[block.queries]
    stored = StoredKeys({0: (old_key, old_value)})
    everything = slice(0, count)
    plan.more = [
        Block(everything, stored, query_positions=positions[None], key_positions=torch.arange(prefix)[None])
    ]
    found = plan.run(0, query, key, value, how, sinks)
    document = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])
    seen = torch.cat([
        torch.ones(count, prefix, dtype=torch.bool),
        (document[:, None] == document) & (positions[:, None] >= positions),
    ], 1)  # fmt: skip
    if window is not None:
        where = torch.cat([torch.arange(prefix), positions])
        seen &= positions[:, None] - where < window
    expected = whole(query, torch.cat([old_key, key], 1), torch.cat([old_value, value], 1), seen, how, sinks)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lse_is_that_of_the_scores(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, n, t, 16).to(dtype) for n, t in ((4, 3), (2, 7), (2, 7)))
    out, lse = attention_with_lse(query, key, value, None, False, 0.25, None)
    scores = query.float() @ key.float().repeat_interleave(2, 1).transpose(2, 3) * 0.25
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(lse.float(), scores.logsumexp(-1), rtol=tolerance, atol=tolerance)
    expected = scores.softmax(-1) @ value.float().repeat_interleave(2, 1)
    torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)


def test_a_query_that_sees_nothing_takes_nothing_from_that_part() -> None:
    query, key, value = torch.randn(2, 1, 4), torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    one, at = slice(0, 1), torch.tensor([[50]])
    own = Block(one, NewKeys(one), query_positions=at, key_positions=at)
    far = Block(one, StoredKeys({0: (key, value)}), query_positions=at, key_positions=torch.arange(3)[None])
    found = Plan([own], [far]).run(0, query, query, query, How(0.5, window=8), None)
    torch.testing.assert_close(found[0], query[:, 0])


class _Layer(torch.nn.Module):
    layer_idx = 0


class _Model:
    class config:
        _attn_implementation = "eager"


def test_what_a_plan_cannot_honour_is_refused_by_name() -> None:
    query = torch.randn(1, 2, 3, 4)
    with using(_Model, packed([3])):
        out, _ = attend(_Layer(), query, query, query, None, 0.5, position_bias=None)
        assert out.shape == (1, 3, 2, 4)
        with pytest.raises(Unsupported, match="_Layer passes position_bias"):
            attend(_Layer(), query, query, query, None, 0.5, position_bias=torch.zeros(1))
        with pytest.raises(Unsupported, match="reshapes the batch"):
            attend(_Layer(), query.expand(2, -1, -1, -1), query, query, None, 0.5)
    assert _Model.config._attn_implementation == "eager"
