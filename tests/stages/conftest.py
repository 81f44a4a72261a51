"""Fixtures of the stages' tests."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tutelage.model.hub import save_model, set_token_ids
from tutelage.text.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 with dropout whose tokenizer knows no chat: new embedding rows and dropout read the global generator."""
    path = tmp_path_factory.mktemp("foreign")
    tokenizer = train_tokenizer(["sam is in the park. eva is in the market."] * 20, 300)
    tokenizer.chat_template = None
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=128, n_embd=32, n_layer=2, n_head=2)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    set_token_ids(model, tokenizer)
    tokenizer.pad_token = tokenizer.eos_token  # so that a pad token must be added
    save_model(model, tokenizer, path / "model")
    return path
