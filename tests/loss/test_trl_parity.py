"""Losses and gradients of DPO, IPO, KTO, GRPO, DAPO, Dr. GRPO and RLOO against TRL's current trainers on one batch.

Runs where TRL's own environment exists: python -c "import common; common.peer_python('trl_now')" in benchmarks/.
"""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tutelage.loss.lm import token_logprobs
from tutelage.loss.preference import dpo_loss, ipo_loss, kto_loss, kto_reference
from tutelage.model.hub import save_model, set_token_ids
from tutelage.text.chat import ensure_chat
from tutelage.text.tokenizer import ensure_pad, train_tokenizer
from tutelage.train.grpo import GroupConfig, group_loss

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-bench-trl_now/bin/python"
CASES = {
    "dpo": {"trainer": "dpo", "loss_type": ["sigmoid"], "beta": 0.3},
    "ipo": {"trainer": "dpo", "loss_type": ["ipo"], "beta": 0.3},
    "kto": {"trainer": "kto", "beta": 0.2, "desirable_weight": 1.0, "undesirable_weight": 1.5},
    "grpo": {"trainer": "grpo", "loss_type": "grpo", "beta": 0.1, "max_completion_length": 6,
             "use_bias_correction_kl": False},
    "grpo corrected": {"trainer": "grpo", "loss_type": "grpo", "beta": 0.1, "max_completion_length": 6},
    "dapo": {"trainer": "grpo", "loss_type": "dapo", "beta": 0.1, "epsilon_high": 0.28, "max_completion_length": 6,
             "use_bias_correction_kl": False},
    "dr_grpo": {"trainer": "grpo", "loss_type": "dr_grpo", "beta": 0.0, "max_completion_length": 6},
    "rloo": {"trainer": "rloo", "beta": 0.0, "max_completion_length": 6},
}
PROMPT, LONGEST = 4, 6


def llama(tokenizer, seed):
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False, initializer_range=0.2,
    ))  # fmt: skip
    set_token_ids(model, tokenizer)
    return model.eval()


@pytest.fixture(scope="module")
def trl(tmp_path_factory):
    """Policy, reference, the batch's parts, and what TRL makes of every case."""
    if not PYTHON.exists():
        pytest.skip(f"no {PYTHON.parent.parent.name}; see the top of this file")
    out = tmp_path_factory.mktemp("parity")
    tokenizer = train_tokenizer(["a b c d e f g h i j k l"] * 20, 300)
    ensure_pad(tokenizer)
    ensure_chat(tokenizer)
    policy, reference = llama(tokenizer, 0), llama(tokenizer, 1)
    with torch.no_grad():  # near one another, as a policy and its reference are
        for p, q in zip(policy.parameters(), reference.parameters()):
            q.copy_(p + 0.03 * q)
    for model, name in ((policy, "policy"), (reference, "reference")):
        save_model(model, tokenizer, out / name)
    draw = torch.Generator().manual_seed(3)
    lengths = torch.tensor([6, 3, 5, 1, 6, 2, 4, 4])
    ids = torch.randint(10, 200, (8, PROMPT + LONGEST), generator=draw)
    other = torch.randint(10, 200, (8, PROMPT + LONGEST), generator=draw)
    attention = (torch.arange(PROMPT + LONGEST) < PROMPT + lengths[:, None]).long()
    completion = attention * (torch.arange(PROMPT + LONGEST) >= PROMPT)
    ids, other = ids * attention, other * attention
    labels = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0]).bool()
    mask = completion[:, 1:].float()
    with torch.no_grad():
        moved = token_logprobs(policy(ids, attention_mask=attention).logits, ids)
        ref = token_logprobs(reference(ids, attention_mask=attention).logits, ids)
        old = moved + 0.3 * torch.randn(moved.shape, generator=draw)
    advantages = torch.randn(8, generator=draw)
    masked = (old * mask)[:, PROMPT - 1 :]
    batch = {
        "dpo/input_ids": ids, "dpo/attention_mask": attention, "dpo/completion_mask": completion,
        "kto/input_ids": ids, "kto/attention_mask": attention, "kto/completion_mask": completion,
        "kto/KL_input_ids": other, "kto/KL_attention_mask": attention, "kto/KL_completion_mask": completion,
        "kto/label": labels, "grpo/num_items_in_batch": mask.sum(), "rloo/old_logps": masked.sum(1),
    }  # fmt: skip
    for kind in ("grpo", "rloo"):
        batch |= {
            f"{kind}/prompt_ids": ids[:, :PROMPT], f"{kind}/prompt_mask": attention[:, :PROMPT],
            f"{kind}/completion_ids": ids[:, PROMPT:], f"{kind}/completion_mask": attention[:, PROMPT:],
            f"{kind}/advantages": advantages, f"{kind}/old_per_token_logps": old[:, PROMPT - 1 :],
            f"{kind}/ref_per_token_logps": ref[:, PROMPT - 1 :],
        }  # fmt: skip
    save_file({k: v.contiguous().clone() for k, v in batch.items()}, out / "batch.safetensors")
    job = {"model": str(out / "policy"), "reference": str(out / "reference"), "out": str(out),
           "batch": str(out / "batch.safetensors"), "cases": CASES}  # fmt: skip
    script = ROOT / "benchmarks/peers/trl_losses.py"
    env = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PATH": "/usr/bin:/bin", "HOME": str(out)}
    done = subprocess.run([PYTHON, script, json.dumps(job)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    parts = {"ids": ids, "other": other, "attention": attention, "mask": mask, "labels": labels, "old": old,
             "ref": ref, "advantages": advantages}  # fmt: skip
    return policy, reference, parts, {name: load_file(out / f"{name}.safetensors") for name in CASES}


def ours(name, case, policy, reference, x):
    """The same loss by the package's functions."""
    def whole(model, ids):
        return (token_logprobs(model(ids, attention_mask=x["attention"]).logits, ids) * x["mask"]).sum(1)

    if name in ("dpo", "ipo"):
        lengths = x["mask"].sum(1) if name == "ipo" else torch.ones(8)
        logp, ref = whole(policy, x["ids"]) / lengths, whole(reference, x["ids"]).detach() / lengths
        function = ipo_loss if name == "ipo" else dpo_loss
        return function(*logp.chunk(2), *ref.chunk(2), case["beta"])[0]
    if name == "kto":
        with torch.no_grad():
            kl = kto_reference(whole(policy, x["other"]), whole(reference, x["other"]))
        weights = case["beta"], case["desirable_weight"], case["undesirable_weight"]
        return kto_loss(whole(policy, x["ids"]), whole(reference, x["ids"]).detach(), x["labels"], kl, *weights)[0]
    advantage = "rloo" if name == "rloo" else "dr_grpo" if name == "dr_grpo" else "grpo"
    average = "tokens" if name == "dapo" else None
    config = GroupConfig(advantage=advantage, max_tokens=LONGEST, average=average, clip_high=case.get("epsilon_high"),
                         kl_corrected=name == "grpo corrected")  # fmt: skip
    logp = token_logprobs(policy(x["ids"], attention_mask=x["attention"]).logits, x["ids"])
    return group_loss(logp, x["old"], x["ref"], x["advantages"][:, None], x["mask"], config, case["beta"])[0]


@pytest.mark.parametrize("name", CASES)
def test_loss_and_every_gradient_are_trls(trl, name):
    policy, reference, parts, found = trl
    policy.zero_grad()
    loss = ours(name, CASES[name], policy, reference, parts)
    loss.backward()
    theirs = found[name]
    assert abs(loss.item() - theirs["loss"].item()) <= 1e-5 * max(1.0, abs(loss.item())), (loss, theirs["loss"])
    largest = 0.0
    for key, p in policy.named_parameters():
        assert key in theirs, key
        largest = max(largest, (p.grad - theirs[key]).abs().max().item())
    print(name, loss.item(), theirs["loss"].item(), largest)
    assert largest <= 1e-5
