"""A group behind one copy of its prompt: log-probs, entropies and gradients are those of the rows apart."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from tutelage.loss.lm import entropy_from_logits, token_logprobs
from tutelage.train.shared import Logits, cheaper, pack_rows, packed_logprobs, takes_groups
from tutelage.train.update import Actors, PassConfig, Rollout, current_logprobs, judge

SMALL = {"vocab_size": 40, "num_hidden_layers": 2, "hidden_size": 32}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, intermediate_size=48, num_attention_heads=4)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=64, n_embd=32, n_layer=2, n_head=2)),
}


def rollout(group=3, prompts=(4, 11), seed=0):
    """Groups of answers of unlike length, right-padded."""
    draw = torch.Generator().manual_seed(seed)
    rows, T = group * len(prompts), max(prompts) + 6
    tokens, mask = torch.zeros(rows, T, dtype=torch.long), torch.zeros(rows, T - 1)
    for p, start in enumerate(prompts):
        prompt = torch.randint(1, 40, (start,), generator=draw)
        for k in range(group):
            said = int(torch.randint(1, 7, (1,), generator=draw))
            row = p * group + k
            tokens[row, :start], mask[row, start - 1 : start + said - 1] = prompt, 1
            tokens[row, start : start + said] = torch.randint(1, 40, (said,), generator=draw)
    ends = mask.argmax(1) + 1 + mask.sum(1)
    attention = (torch.arange(T) < ends[:, None]).long()
    return Rollout(tokens, attention, mask, torch.ones(rows), group=group)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_packed_log_probs_and_gradients_are_those_of_the_rows_apart(family, temperature):
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    forward, x = Logits(model), rollout()
    assert takes_groups(forward)
    pack = pack_rows(x.tokens, x.mask, [0, 0, 0, 1, 1, 1])
    logp, entropy = packed_logprobs(forward, pack, temperature, entropy=True)
    logits = forward(x.tokens, x.attention)
    apart = token_logprobs(logits, x.tokens, temperature) * x.mask
    assert torch.allclose(logp, apart, atol=1e-5) and not logp[x.mask == 0].any()
    assert torch.allclose(entropy, entropy_from_logits(logits[:, :-1] / temperature) * x.mask, atol=1e-5)
    weights = torch.randn(logp.shape, generator=torch.Generator().manual_seed(1))
    params = list(model.parameters())
    each = [torch.autograd.grad((y * weights).sum(), params, retain_graph=True) for y in (logp, apart)]
    for a, b in zip(*each):
        assert torch.allclose(a, b, atol=1e-4)


def test_a_family_that_ignores_the_mask_is_not_packed():
    model = MambaForCausalLM(MambaConfig(**SMALL, state_size=4)).eval()
    assert not takes_groups(Logits(model))


def test_what_cannot_or_need_not_be_packed():
    x = rollout()
    assert pack_rows(x.tokens, x.mask, [0, 0, 0, 0, 1, 1]) is None  # another prompt within a group
    assert pack_rows(x.tokens, x.mask * 0, [0, 0, 0, 1, 1, 1]) is None  # no answer
    for group, prompt, worth in ((8, 200, True), (64, 1, False)):  # attention over a long row costs more than a token
        y = rollout(group=group, prompts=(prompt,))
        assert cheaper(pack_rows(y.tokens, y.mask, [0] * group), tuple(y.tokens.shape), 32) == worth


@pytest.mark.parametrize("minibatches", [1, 2, 3])
def test_the_first_ratio_is_one_whether_groups_are_whole_or_cut(minibatches):
    """And what is left open is filled with what judging gives."""
    torch.manual_seed(1)
    x = rollout(prompts=(30, 25))
    actors = Actors(Logits(FAMILIES["llama"]().eval()), Logits(FAMILIES["llama"]().eval()), share_prompts=True)
    config = PassConfig.model_validate({"minibatches": minibatches})
    judged = judge(actors, x, config)
    size = 6 // minibatches
    for start in range(0, 6, size):
        s = slice(start, start + size)
        now = current_logprobs(actors, x, s, config, "fp32")
        assert torch.equal(now.detach(), judged.old[s]) and now.requires_grad
    assert any(x.packs.values())
    if minibatches == 1:
        later = judge(actors, x, config, leave_open=True)
        assert later.open and not later.old.any() and torch.equal(later.ref, judged.ref)
        current_logprobs(actors, x, slice(0, 6), config, "fp32", later)
        assert not later.open and torch.equal(later.old, judged.old) and torch.equal(later.entropy, judged.entropy)
