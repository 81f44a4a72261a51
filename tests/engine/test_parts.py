"""Kept prompts of about one length are attended to in one call, and that changes nothing."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.tiny_families import Numbers, build
from tutelage.engine import SamplingParams
from tutelage.engine.local import LocalEngine
from tutelage.engine.parts import Kept, Shared, alike
from tutelage.engine.trie import Node
from tutelage.model.plans import StackedKeys, StoredKeys


def kept(length: int, rows: int, depth: int = 0, order: int = 0) -> Kept:
    return Kept(Node(np.arange(length), 0, length, order=order), depth, StoredKeys(), list(range(rows)))


def test_what_is_put_together() -> None:
    def sizes(*given: Kept) -> list[list[int]]:
        return [[k.node.length for k in part] for part in alike(given)]

    assert sizes(kept(100, 4), kept(110, 4), kept(124, 3)) == [[100, 110, 124]]
    assert sizes(kept(100, 4), kept(126, 4)) == [[100], [126]]  # more than a quarter longer
    assert sizes(kept(20, 4, depth=0), kept(20, 4, depth=1)) == [[20], [20]]  # one may stand above the other
    assert sizes(*[kept(20, 1) for _ in range(9)], kept(21, 64)) == [[20] * 9, [21]]  # mostly padding


def test_a_stack_is_a_copy_with_zeros_behind_the_shorter() -> None:
    spans = [StoredKeys({0: (torch.randn(2, n, 4), torch.randn(2, n, 4))}) for n in (3, 5)]
    keys, values = StackedKeys(spans).layers[0]
    assert keys.shape == values.shape == (2, 2, 5, 4) and not keys[0, :, 3:].any() and not values[0, :, 3:].any()
    for g, span in enumerate(spans):
        own, length = span.layers[0], span.layers[0][0].shape[1]
        assert torch.equal(keys[g, :, :length], own[0]) and torch.equal(values[g, :, :length], own[1])
        assert own[0].untyped_storage().data_ptr() != keys.untyped_storage().data_ptr()


@pytest.mark.parametrize("room", [0, 60, 10_000])
def test_copies_are_made_where_there_is_room_and_kept_while_their_nodes_are(room: int) -> None:
    """Five prompts of 20 tokens in two cohorts' order: one call with room for 100 tokens, else one a prompt."""
    engine = LocalEngine(build("llama"), Numbers())
    prompts = [[i, *range(2, 21)] for i in range(30, 35)]
    seen: list[tuple[int, int]] = []
    of = Shared.of

    def watch(self: Shared, cohorts: Any, device: Any, _: int) -> Any:
        parts = of(self, cohorts, device, room)
        seen.append((len(parts), self.tokens))
        return parts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shared, "of", watch)
        engine.generate(prompts, SamplingParams(max_tokens=4, n=3, seed=1, banned_tokens=(1,)))
    assert seen and set(seen) == ({(1, 100)} if room >= 100 else {(5, 0)})
    assert engine._scheduler._shared.tokens == 0


def test_groups_that_end_one_by_one_get_the_answers_they_get_alone() -> None:
    model, draw = build("llama"), torch.Generator().manual_seed(0)
    prompts = [torch.randint(1, 20, (n,), generator=draw).tolist() for n in (18, 21, 40, 22, 19)]
    engine = LocalEngine(model, Numbers())
    each = [SamplingParams(max_tokens=m, n=3, seed=7) for m in (2, 9, 5, 9, 7)]
    together = engine.generate(prompts, each)
    for prompt, params, found in zip(prompts, each, together):
        alone = engine.generate([prompt], params)[0]
        assert [c.tokens for c in found.completions] == [c.tokens for c in alone.completions]
