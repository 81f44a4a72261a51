"""A tiny random model with a byte-level tokenizer, and log-probs of it without the engine."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tutelage.engine import LocalEngine

TEXT = ["Review: a fine film\nSentiment: positive\n\n", "Review: a dull play\nSentiment: negative\n\n"] * 20


@pytest.fixture(scope="session")
def tokenizer():
    """Byte-level BPE of 330 tokens, no bos."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")


@pytest.fixture(scope="session")
def engine(tokenizer):
    """Two layers, sharp enough that predictions differ."""
    torch.manual_seed(3)
    config = Qwen3Config(
        vocab_size=330, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=512, tie_word_embeddings=True, eos_token_id=0,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.mul_(4)
    return LocalEngine(model, tokenizer)


@pytest.fixture(scope="session")
def logprob(engine):
    """logprob(context text, continuation text): a plain full forward of the whole text's tokens."""

    def of(context, continuation):
        left = engine.encode(context.rstrip(" ")) if context.strip(" ") else []
        whole = engine.encode(context + continuation)
        if not left:
            left, whole = [0], [0, *whole]
        with torch.inference_mode():
            logits = engine.model(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
        return sum(float(logits[i - 1, whole[i]]) for i in range(len(left), len(whole)))

    return of
