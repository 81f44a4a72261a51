"""Fine-tuning of encoder-decoders (Flan-T5): the encoder reads the question, the decoder's answer alone is learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tutelage.core.errors import ConfigError, DataError
from tutelage.core.records import BadRows
from tutelage.core.rundir import RunDir
from tutelage.engine import LocalEngine
from tutelage.engine.seq2seq import decoder_start
from tutelage.model.hub import find_model_dir, load_model, model_source, reading, resize_for, save_model
from tutelage.model.kinds import stored_kind
from tutelage.text.chat import as_messages
from tutelage.text.denoise import collate_pairs
from tutelage.text.loader import Batch, Row, RowLoader
from tutelage.text.tokenizer import ensure_pad
from tutelage.train.evaluate import objective_loss
from tutelage.train.loop import train
from tutelage.train.objectives import seq2seq
from tutelage.train.optim import OptimConfig, Optimizers
from tutelage.train.samples import sampler

Rows = Sequence[dict[str, Any]]
Pair = dict[str, list[int]]


def is_encoder_decoder(model: str) -> bool:
    """Whether a folder, run directory or hub id holds an encoder-decoder. DataError where nothing loadable is there."""
    with reading(model, find_model_dir(model), "a language model"):
        return stored_kind(model_source(model)) == "seq2seq"


def two_sides(row: dict[str, Any]) -> tuple[str, str]:
    """(what the encoder reads, what the decoder writes): the dialogue up to its last answer, turns apart by an empty
    line, and that answer."""
    messages = as_messages(row)
    last = max(i for i, m in enumerate(messages) if m["role"] == "assistant")
    return "\n\n".join(m["content"] for m in messages[:last]), messages[last]["content"]


def encode_pairs(rows: Rows, tokenizer: Any, longest: int, bad: BadRows) -> list[Pair]:
    """{"input_ids", "labels"} of each row, the answer closed by eos: the ids with which the engine scores the same
    texts. A side of more than `longest` tokens leaves the row out; an answer that is empty, or that the tokenizer
    cannot write, is a fault for `bad`. DataError for a tokenizer without eos.
    """
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no eos token, which ends an encoder-decoder's answer; set one")
    out: list[Pair] = []
    for start in range(0, len(rows), 1024):
        sides = [two_sides(row) for row in rows[start : start + 1024]]
        read = tokenizer([question for question, _ in sides], split_special_tokens=True)["input_ids"]
        written = tokenizer([a for _, a in sides], add_special_tokens=False, split_special_tokens=True)["input_ids"]
        for (question, answer), left, right in zip(sides, read, written, strict=True):
            if fault := unwritable_answer(tokenizer, right):
                bad(DataError(f"the answer {answer[:60]!r} to {question[:60]!r}: {fault}"))
            elif left and len(left) <= longest and len(right) < longest:
                out.append({"input_ids": list(left), "labels": [*right, tokenizer.eos_token_id]})
    return out


def unwritable_answer(tokenizer: Any, ids: Sequence[int]) -> str:
    """Why a decoder cannot be taught these ids, in words; "" if it can."""
    if not ids:
        return "it has no token; leave the row out, or give an answer"
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        place = list(ids).index(tokenizer.unk_token_id)
        return (
            f"its token {place + 1} of {len(ids)} is {tokenizer.unk_token}: the tokenizer has no token for that text; "
            "choose another wording or tokenizer, or leave such rows out with on_bad_row=skip"
        )
    return ""


class PairLoader(RowLoader):
    """RowLoader's batches of rows whose labels have a length of their own; see `collate_pairs`.

    start: the token that the decoder begins with.
    """

    def __init__(self, rows: Sequence[Row], start: int, **more: Any) -> None:
        self.start = start
        super().__init__(rows, **more)

    def sound(self, row: Row) -> bool:
        """Both sides have a token."""
        return bool(len(row["input_ids"]) and len(row["labels"]))

    def batch(self, rows: Sequence[Row]) -> Batch:
        """input_ids, attention_mask, labels and decoder_input_ids."""
        arrays = [{key: np.asarray(row[key], dtype=np.int64) for key in ("input_ids", "labels")} for row in rows]
        return collate_pairs(arrays, self.pad_id, self.start)


def tune(
    name: str, train_rows: Rows, held_rows: Rows, run: RunDir, *, max_length: int, batch_size: int, seed: int,
    steps: int, precision: str, eval_every: int, save_every: int, optimizer: OptimConfig,
) -> dict[str, Any]:  # fmt: skip
    """Train the encoder-decoder `name` on the rows, save it into the run's model/, and return the stage's summary."""
    model, tokenizer = load_model(name, any_kind=True)
    ensure_pad(tokenizer)
    resize_for(model, tokenizer)
    engine = LocalEngine(model, tokenizer)
    longest = min(max_length, engine.context_length)
    rows, held = (encode_pairs(part, tokenizer, longest, run.bad_rows) for part in (train_rows, held_rows))
    for side, part in (("training", rows), ("held-out", held)):
        if not part:
            raise DataError(f"no {side} row has a question and an answer within {longest} tokens; raise max_length")
    shape = {"pad_id": tokenizer.pad_token_id, "start": decoder_start(model)}

    def evaluate() -> dict[str, Any]:
        return objective_loss(model, seq2seq, PairLoader(held, batch_size=64, epochs=1, shuffle=False, **shape))

    before = evaluate()
    last = train(
        model,
        seq2seq,
        PairLoader(rows, batch_size=batch_size, seed=seed, **shape),
        Optimizers(model, optimizer),
        run,
        steps=steps,
        precision=precision,
        evaluate=evaluate,
        sample=sampler(engine, [two_sides(row)[0] for row in held_rows[:3]], max_tokens=48),
        eval_every=eval_every,
        save_every=save_every,
    )
    save_model(model, tokenizer, run.path / "model")
    return {
        "rows": len(rows),
        "rows_left_out": len(train_rows) - len(rows),
        "held_rows": len(held),
        **{f"{key}_before": value for key, value in before.items()},
        **{key: last[key] for key in ("loss", *before) if key in last},
    }


def refuse(**given: tuple[Any, Any]) -> None:
    """ConfigError for a key that decoders alone have: key=(value, the value that leaves it out)."""
    for key, (value, without) in given.items():
        if value != without:
            raise ConfigError(f"{key}={value} is for decoders, and the model is an encoder-decoder; leave it out")
