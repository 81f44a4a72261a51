"""Bits per byte: every token of the held-out text is counted once, whatever the windows."""

import math

import pytest
import torch

from tutelage.model.hub import create_model
from tutelage.text.shards import TokenShards, write_shards
from tutelage.text.tokenizer import encode_documents, train_tokenizer
from tutelage.train.evaluate import bits_per_byte, whole_text_nats


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    texts = [f"The {i}th fox jumps over {i * 7} lazy dogs." for i in range(9)]
    tokenizer = train_tokenizer(texts, 300)
    folder = tmp_path_factory.mktemp("shards") / "s"
    write_shards(folder, encode_documents(tokenizer, texts), tokenizer)
    return TokenShards(folder), create_model("preset:laptop-0.3m", tokenizer, 2048), tokenizer


@pytest.mark.parametrize("block", [2, 3, 7, 16, 64, 1024])
def test_a_uniform_model_spends_log_vocabulary_on_each_token(setup, block):
    shards, model, tokenizer = setup
    flat = create_model("preset:laptop-0.3m", tokenizer, 2048)
    with torch.no_grad():
        for p in flat.parameters():
            p.zero_()
    nats = whole_text_nats(flat, shards, block)
    assert nats == pytest.approx(shards.tokens * math.log(len(tokenizer)), rel=1e-5)
    assert bits_per_byte(nats, shards.tokens) == pytest.approx(math.log2(len(tokenizer)), rel=1e-5)


def test_one_window_over_everything_is_the_plain_loss(setup):
    shards, model, _ = setup
    ids = torch.from_numpy(shards.read(0, shards.tokens))
    stream = torch.cat([ids[-1:], ids])[None]
    with torch.no_grad():
        logits = model(input_ids=stream, use_cache=False).logits[0, :-1].float()
    plain = float(torch.nn.functional.cross_entropy(logits, stream[0, 1:], reduction="sum"))
    assert whole_text_nats(model, shards, 2 * shards.tokens) == pytest.approx(plain, rel=1e-5)
