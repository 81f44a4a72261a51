"""Kept prompts of about one length are attended to in one call, and that changes nothing."""

import numpy as np
import torch

from tests.engine.tiny_families import Numbers, build
from tutelage.engine import SamplingParams
from tutelage.engine.local import LocalEngine
from tutelage.engine.parts import Kept, alike
from tutelage.engine.trie import Node
from tutelage.model.plans import StackedKeys, StoredKeys, side_by_side


def kept(length: int, rows: int, depth: int = 0, order: int = 0) -> Kept:
    return Kept(Node(np.arange(length), 0, length, order=order), depth, StoredKeys(), list(range(rows)))


def test_what_is_put_together() -> None:
    def sizes(*given: Kept) -> list[list[int]]:
        return [[k.node.length for k in part] for part in alike(given)]

    assert sizes(kept(100, 4), kept(110, 4), kept(124, 3)) == [[100, 110, 124]]
    assert sizes(kept(100, 4), kept(126, 4)) == [[100], [126]]  # more than a quarter longer
    assert sizes(kept(20, 4, depth=0), kept(20, 4, depth=1)) == [[20], [20]]  # one may stand above the other
    assert sizes(*[kept(20, 1) for _ in range(9)], kept(21, 64)) == [[20] * 9, [21]]  # mostly padding


def test_a_stack_holds_nothing_twice_and_is_made_once() -> None:
    spans = [StoredKeys({0: (torch.randn(2, n, 4), torch.randn(2, n, 4))}) for n in (3, 5)]
    before = [span.layers[0][0].clone() for span in spans]
    stack = side_by_side(spans)
    assert isinstance(stack, StackedKeys) and stack.layers[0][0].shape == (2, 2, 5, 4)
    for g, span in enumerate(spans):
        assert torch.equal(span.layers[0][0], before[g])
        assert span.layers[0][0].untyped_storage().data_ptr() == stack.layers[0][0].untyped_storage().data_ptr()
    assert not stack.layers[0][0][0, :, 3:].any()
    assert side_by_side(spans) is stack
    assert side_by_side(spans[:1]) is spans[0] and side_by_side(spans[::-1]) is not stack


def test_groups_that_end_one_by_one_get_the_answers_they_get_alone() -> None:
    model, draw = build("llama"), torch.Generator().manual_seed(0)
    prompts = [torch.randint(1, 20, (n,), generator=draw).tolist() for n in (18, 21, 40, 22, 19)]
    engine = LocalEngine(model, Numbers())
    each = [SamplingParams(max_tokens=m, n=3, seed=7) for m in (2, 9, 5, 9, 7)]
    together = engine.generate(prompts, each)
    for prompt, params, found in zip(prompts, each, together):
        alone = engine.generate([prompt], params)[0]
        assert [c.tokens for c in found.completions] == [c.tokens for c in alone.completions]
