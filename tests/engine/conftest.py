"""A small byte-level tokenizer, with any special tokens around a text."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = ["the cat sat on the mat and the dog ran away", "do you like tea? yes, I like it very much", "one two"] * 9


@pytest.fixture(scope="session")
def make_tokenizer():
    """make_tokenizer("<s> $A </s>"): 320 tokens, the first four <pad> <s> </s> <mask>."""

    def make(template):
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        special = ["<pad>", "<s>", "</s>", "<mask>"]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        inner.train_from_iterator(TEXT, trainer)
        inner.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", mask_token="<mask>"
        )

    return make
