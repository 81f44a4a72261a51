"""Training and checking of tokenizers: byte-level BPE or characters, any language, lossless."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tutelage.core.errors import ConfigError, DataError
from tutelage.text.chat import CHAT_TEMPLATE, ROLE_TOKENS, TURN_END

PAD = "<|pad|>"
DOCUMENT_END = "<|endoftext|>"
UNKNOWN = "<|unk|>"
SENTINELS = 100
"""Sentinels of T5's span corruption, <extra_id_0> ... <extra_id_99>."""
SPECIALS = (PAD, DOCUMENT_END, *ROLE_TOKENS.values(), TURN_END)


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, style: Literal["bpe", "char"] = "bpe"
) -> PreTrainedTokenizerFast:
    """A new tokenizer with at most `vocab_size` entries, its special tokens and chat template set; pad is not eos.

    "bpe": byte-level BPE, every digit a token of its own (so that arithmetic lines up); loses nothing in any language.
    "char": one token a character, most frequent first; where 256 entries are left over, unseen characters fall back to
    bytes (lossless), else they become <|unk|>. Errors: ConfigError for a vocabulary too small, DataError for no text.
    """
    if style not in ("bpe", "char"):
        raise ConfigError(f"style: {style!r}, expected 'bpe' or 'char'")
    least = len(SPECIALS) + (256 if style == "bpe" else 2)
    if vocab_size < least:
        raise ConfigError(f"vocab_size: {vocab_size}, expected at least {least} for style {style!r}")
    backend = _train_bpe(texts, vocab_size) if style == "bpe" else _train_char(texts, vocab_size)
    named = {"unk_token": UNKNOWN} if backend.token_to_id(UNKNOWN) is not None else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=DOCUMENT_END,
        bos_token=DOCUMENT_END,
        additional_special_tokens=[*ROLE_TOKENS.values(), TURN_END],
        clean_up_tokenization_spaces=False,
        **named,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _counted(texts: Iterable[str], seen: list[int]) -> Iterable[str]:
    for text in texts:
        seen[0] += len(text)
        yield text


def _train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    seen = [0]
    backend.train_from_iterator(_counted(texts, seen), trainer)
    if not seen[0]:
        raise DataError("tokenizer: the corpus holds no text, expected at least one non-empty document")
    return backend


def _train_char(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    if not counts:
        raise DataError("tokenizer: the corpus holds no text, expected at least one non-empty document")
    ranked = sorted(counts, key=lambda c: (-counts[c], c))
    fallback = len(SPECIALS) + 256 + len(ranked) <= vocab_size
    entries = [*SPECIALS, *([f"<0x{byte:02X}>" for byte in range(256)] if fallback else [UNKNOWN])]
    entries += ranked[: vocab_size - len(entries)]
    vocab = {entry: index for index, entry in enumerate(entries)}
    backend = Tokenizer(
        models.BPE(vocab=vocab, merges=[], unk_token=None if fallback else UNKNOWN, byte_fallback=fallback)
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([*SPECIALS, *([] if fallback else [UNKNOWN])])
    return backend


def encode_documents(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], batch: int = 256
) -> Iterator[list[int]]:
    """Ids of each document, closed by eos (and opened by bos where the tokenizer does so), many encoded at a time.

    A special token spelt out in a document stays ordinary text. DataError when the tokenizer has no eos.
    """
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id  # BERT has no eos
    if end is None:
        raise DataError("tokenizer: it has no eos token, which must close every document; set one")
    source = iter(texts)
    while rows := list(islice(source, batch)):
        for ids in tokenizer(rows, split_special_tokens=True)["input_ids"]:
            yield ids if ids and ids[-1] == end else [*ids, end]


def fertility(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> dict[str, Any]:
    """How finely a tokenizer cuts `texts`: tokens_per_word, tokens_per_character, bytes_per_token, round_trip.

    A word is a run between blanks, so tokens_per_word says little of Chinese; tokens_per_character is the one to read.
    `round_trip` is whether decode(encode(text)) == text for all of them; `lost` counts the texts where it is not.
    """
    tokens = words = characters = size = lost = documents = 0
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        documents += 1
        tokens += len(ids)
        words += len(text.split())
        characters += len(text)
        size += len(text.encode("utf-8"))
        lost += tokenizer.decode(ids, skip_special_tokens=False) != text
    if not tokens:
        raise DataError("fertility: no text to measure, expected at least one non-empty document")
    return {
        "documents": documents,
        "tokens": tokens,
        "bytes": size,
        "tokens_per_word": tokens / max(words, 1),
        "tokens_per_character": tokens / max(characters, 1),
        "bytes_per_token": size / tokens,
        "round_trip": lost == 0,
        "lost": lost,
    }


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash (16 hex digits) of what turns text into ids: vocabulary, merges, normaliser, pre-tokenizer.

    Tokens added later (pad, chat roles) are left out: they change no id of ordinary text, so shards stay valid.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        parts: Any = sorted(tokenizer.get_vocab().items())
    else:
        state = json.loads(backend.to_str())
        parts = [state["model"], state["normalizer"], state["pre_tokenizer"]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:16]


def ensure_pad(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Give the tokenizer a pad token that is not its eos; returns whether the vocabulary (so the embedding) grew.

    transformers pools a classifier at the last non-pad token, so pad == eos would hide the real end of a text.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return False
    return tokenizer.add_special_tokens({"pad_token": PAD}) > 0


def ensure_masked(tokenizer: Any) -> bool:
    """Give the tokenizer what a masked LM needs: [MASK], and [CLS] and [SEP], which it then sets around a text.
    Returns whether the vocabulary grew."""
    named = {"mask_token": "[MASK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    absent = {key: token for key, token in named.items() if getattr(tokenizer, f"{key}_id") is None}
    grew = tokenizer.add_special_tokens(absent, replace_extra_special_tokens=False) > 0 if absent else False
    if tokenizer("a")["input_ids"][0] != tokenizer.cls_token_id:
        _surround(tokenizer, [tokenizer.cls_token], [tokenizer.sep_token])
    return grew


def ensure_sentinels(tokenizer: Any) -> list[int]:
    """Give the tokenizer T5's sentinels where it has none, and let it close every text with eos; the sentinels' ids in
    their order. DataError when it has no eos token."""
    if tokenizer.eos_token_id is None:
        raise DataError("tokenizer: it has no eos token, which closes an encoder-decoder's texts; set one")
    names = [f"<extra_id_{number}>" for number in range(SENTINELS)]
    known = tokenizer.get_vocab()
    absent = [name for name in names if name not in known]
    if absent:
        tokenizer.add_special_tokens({"additional_special_tokens": absent}, replace_extra_special_tokens=False)
    if tokenizer("a")["input_ids"][-1] != tokenizer.eos_token_id:
        _surround(tokenizer, [], [tokenizer.eos_token])
    return [int(i) for i in tokenizer.convert_tokens_to_ids(names)]


def _surround(tokenizer: Any, before: list[str], after: list[str]) -> None:
    """Let the tokenizer set special tokens around a text, and around each of two."""
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in [*before, *after]]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *(f"{part}:1" for part in ("$B", *after))],
        special_tokens=ids,
    )
