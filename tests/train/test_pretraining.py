"""Masked LM, span corruption and prefix LM: transformers' own losses, learning, and checkpoints that load there."""

import itertools

import numpy as np
import pytest
import torch
import transformers

from tutelage.core.errors import ConfigError
from tutelage.engine import LocalEngine
from tutelage.model.hub import create_model, load_model, load_tokenizer
from tutelage.model.kinds import AUTO, model_kind
from tutelage.pipeline.stages import launch, read_summary
from tutelage.text.shards import TokenShards
from tutelage.text.tokenizer import ensure_masked, ensure_pad, ensure_sentinels, fingerprint
from tutelage.train.pretraining import setting

CASES = {
    "roberta": ("masked", "preset:laptop-roberta-1m", {}),
    "bert": ("masked", "preset:laptop-bert-1m", {}),
    "next sentence": ("masked", "preset:laptop-bert-1m", {"next_sentence": True}),
    "span": ("span", "preset:laptop-t5-1m", {}),
    "span, tied": ("span", "preset:t5-small", {}),
    "prefix": ("prefix", "preset:laptop-t5-1m", {}),
}


@pytest.fixture
def tokenizer(chain):
    return load_tokenizer(chain / "tokenizer")


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_transformers_own(chain, tokenizer, name):
    objective, model, more = CASES[name]
    made = setting(objective, model, tokenizer, 64, 48, 0, **more)
    net = made.model.eval()
    batch = next(made.loader(TokenShards(chain / "prepare" / "train", tokenizer), 6, 48, 0))
    total, metrics = made.loss(net, batch)
    (total / metrics["count"]).backward()
    ours = {key: p.grad.clone() for key, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    given = {key: value for key, value in batch.items() if key != "decoder_input_ids"}  # which it makes itself
    theirs = net(**given).loss
    theirs.backward()
    assert metrics["count"] == int((batch["labels"] != -100).sum())
    assert float(total) / metrics["count"] == pytest.approx(float(theirs), abs=1e-5)
    for key, p in net.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(ours[key], p.grad, atol=1e-5, rtol=1e-4)
    if "decoder_input_ids" in batch:
        known = batch["labels"] != -100
        right = net.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
        assert torch.equal(batch["decoder_input_ids"][known], right[known])


def unigram(counts):
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


@pytest.mark.parametrize("name", ["roberta", "next sentence", "span", "prefix"])
def test_it_learns_and_its_checkpoint_loads_in_transformers(chain, tmp_path, name):
    objective, model, more = CASES[name]
    values = {"tokenizer": str(chain / "tokenizer"), "data": str(chain / "prepare"), "model": model, "steps": 60,
              "objective": objective, "block_size": 64, "max_length": 64, "batch_size": 12, "precision": "fp32",
              "eval_every": 0, "save_every": 0, **more}  # fmt: skip
    out, _ = launch("pretrain", {**values, "out": str(tmp_path / "run")})
    found = read_summary(out)
    counts = TokenShards(chain / "prepare" / "train").counts().astype(float)
    loss = found.get("val_masked_loss", found["val_loss"])  # without that of the next sentence
    assert loss < unigram(counts), (found, unigram(counts))
    model, tokenizer = load_model(out, any_kind=True)
    plain = AUTO[model_kind(model)].from_pretrained(out / "model", attn_implementation="eager").eval()
    own = transformers.AutoTokenizer.from_pretrained(out / "model")
    batch = own(["sam is in the park", "eva"], return_tensors="pt", padding=True)
    given = {key: batch[key] for key in ("input_ids", "attention_mask")}
    if objective != "masked":
        given["decoder_input_ids"] = batch["input_ids"]
    assert torch.equal(plain(**given).logits, model.eval()(**given).logits)
    engine = LocalEngine(model, tokenizer)
    assert np.isfinite(engine.score([("sam is in", " the park")])[0].logprob)
    if objective == "masked":
        assert batch["input_ids"][0, 0] == own.cls_token_id and batch["input_ids"][0, -1] == own.sep_token_id
        assert own.mask_token_id is not None
    else:
        assert batch["input_ids"][0, -1] == own.eos_token_id and "<extra_id_99>" in own.get_vocab()


def test_rows_fit_and_are_corrupted_anew_at_every_visit(chain, tokenizer):
    shards = TokenShards(chain / "prepare" / "train", tokenizer)
    for objective, model, more in CASES.values():
        made = setting(objective, model, load_tokenizer(chain / "tokenizer"), 64, 48, 0, **more)
        loader = made.loader(shards, 8, 48, seed=3, shuffle=False)
        batches = list(itertools.islice(loader, 6))
        assert max(b["input_ids"].shape[1] for b in batches) <= 48
        state = loader.state_dict()
        ahead = next(loader)
        other = made.loader(shards, 8, 48, seed=3, shuffle=False)
        other.load_state_dict(state)
        assert all(torch.equal(value, ahead[key]) for key, value in next(other).items())
        if not made.next_sentence:
            assert objective == "prefix" or all(b["input_ids"].shape[1] == 48 for b in batches)  # nothing is padded
            again = made.loader(shards, 8, 48, seed=3, shuffle=False)
            again.blocks.position = again.blocks.blocks  # the second epoch
            assert not torch.equal(next(again)["labels"], batches[0]["labels"])


def test_special_tokens_leave_the_text_alone(tokenizer):
    """Shards that were written before stay valid, and asking twice adds nothing."""
    before, ids = fingerprint(tokenizer), tokenizer("sam is in the park")["input_ids"]
    size, roles = len(tokenizer), set(tokenizer.all_special_tokens)
    ensure_pad(tokenizer)
    assert ensure_masked(tokenizer) and not ensure_masked(tokenizer)
    assert ensure_sentinels(tokenizer) == ensure_sentinels(tokenizer) and len(tokenizer) == size + 103
    assert fingerprint(tokenizer) == before and roles < set(tokenizer.all_special_tokens)
    assert tokenizer("sam is in the park", add_special_tokens=False)["input_ids"] == ids


def test_the_narrow_head_changes_nothing(chain, tokenizer, monkeypatch):
    made = setting("masked", "preset:laptop-bert-1m", tokenizer, 64, 48, 0)
    batch = next(made.loader(TokenShards(chain / "prepare" / "train", tokenizer), 4, 48, 0))
    narrow = float(made.loss(made.model.eval(), batch)[0])
    monkeypatch.setattr(made.model.config, "model_type", "another")
    assert narrow == pytest.approx(float(made.loss(made.model, batch)[0]), abs=1e-3, rel=1e-6)


@pytest.mark.parametrize("values, words", [
    ({"model": "preset:laptop-bert-1m"}, "objective=masked"),
    ({"model": "preset:laptop-1m", "objective": "span"}, "preset:laptop-t5-1m"),
    ({"model": "preset:laptop-t5-1m", "objective": "masked"}, "objective=span or prefix"),
    ({"model": "preset:laptop-roberta-1m", "objective": "masked", "next_sentence": True}, "laptop-bert-1m"),
    ({"model": "preset:laptop-1m", "next_sentence": True}, "laptop-bert-1m"),
    ({"model": "preset:laptop-bert-1m", "objective": "masked", "block_size": 999}, "max_length"),
    ({"model": "preset:laptop-bert-1m", "objective": "masked", "block_size": 4}, "at least 8"),
    ({"model": "preset:laptop-t5-1m", "objective": "span", "max_length": 4096, "block_size": 4000}, "sentinels"),
    ({"model": "preset:laptop-t5-1m", "objective": "span", "probe": "schoolroom:demo"}, "leave probe out"),
])  # fmt: skip
def test_what_does_not_fit_is_said_at_once(chain, tmp_path, values, words):
    common = {"tokenizer": str(chain / "tokenizer"), "data": str(chain / "prepare"), "out": str(tmp_path / "x")}
    with pytest.raises(ConfigError, match=words):
        launch("pretrain", {**common, **values})


def test_training_goes_on_from_a_folder(chain, tmp_path):
    common = {"tokenizer": str(chain / "tokenizer"), "data": str(chain / "prepare"), "block_size": 48, "steps": 60,
              "precision": "fp32", "objective": "masked"}  # fmt: skip
    first, _ = launch("pretrain", {**common, "model": "preset:laptop-bert-1m", "out": str(tmp_path / "a")})
    launch("pretrain", {**common, "model": str(first), "out": str(tmp_path / "b")})
    with pytest.raises(ConfigError, match="masked"):
        launch("pretrain", {**common, "model": str(first), "objective": "span", "out": str(tmp_path / "c")})


def test_create_model_keeps_the_callers_generator(tokenizer):
    ensure_pad(tokenizer)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    create_model("laptop-t5-1m", tokenizer, 32)
    assert torch.equal(torch.rand(1), expected)
