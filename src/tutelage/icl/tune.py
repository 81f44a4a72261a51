"""Tuning on labelled examples in the form in which the model is prompted: the answer where the model reads it.

A decoder continues the text, a masked LM fills its masks (as PET does: Schick and Schuetze 2021), an encoder-decoder
writes what stands at the sentinel. So what differs between a prompted and a tuned model is the tuning alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tutelage.core.errors import DataError
from tutelage.core.rundir import RunDir
from tutelage.engine.masked import PairEncoder as MaskedPairs
from tutelage.engine.score import prepared
from tutelage.engine.seq2seq import PairEncoder as Seq2SeqPairs
from tutelage.engine.seq2seq import decoder_start
from tutelage.icl.encode import Encoder
from tutelage.icl.examples import Example
from tutelage.icl.prompts import Prompter
from tutelage.model.count import training_flops
from tutelage.model.hub import parameter_count, resize_for
from tutelage.text.denoise import ordinary_ids
from tutelage.text.loader import IGNORED, RowLoader
from tutelage.train.loop import Objective, train
from tutelage.train.objectives import causal, masked, seq2seq
from tutelage.train.optim import OptimConfig, Optimizers
from tutelage.train.seq2seq import PairLoader

Row = dict[str, list[int]]
OBJECTIVES: dict[str, Objective] = {"causal": causal, "masked": masked, "seq2seq": seq2seq}


def answer_rows(engine: Any, prompter: Prompter, examples: Sequence[Example]) -> list[Row]:
    """{"input_ids", "labels"} of each example without demonstrations: labels at the gold answer's tokens alone.

    An encoder-decoder's labels are the decoder's side, with the sentinel before and eos behind. Examples longer than
    the model are left out. DataError for an answer that the tokenizer cannot put there.
    """
    golds = [replace(e, options=(e.answer,), gold=0) for e in examples]
    which = [(0, number) for number in range(len(golds))]
    pairs = [found[0] for found in Encoder(engine, prompter).pairs([()], golds, which).pairs if found]
    if engine.kind == "causal":
        return [{"input_ids": [*left, *right], "labels": [*_ignored(left), *right]} for left, right in pairs]
    encode: Any = MaskedPairs(engine) if engine.kind == "masked" else Seq2SeqPairs(engine)
    rows: list[Row] = []
    for (_, answer), made in zip(pairs, prepared(engine, pairs, encode), strict=True):
        if isinstance(made, str):
            raise DataError(f"the answer {answer!r}: {made}")
        if engine.kind == "masked":
            left, right, after = made
            ids = [*left, *[encode.mask] * len(right), *after]
            rows.append({"input_ids": ids, "labels": [*_ignored(left), *right, *_ignored(after)]})
        else:
            left, right, given = made
            rows.append({"input_ids": left, "labels": [*given, *right, engine.tokenizer.eos_token_id]})
    return rows


def _ignored(ids: Sequence[int]) -> list[int]:
    return [IGNORED] * len(ids)


def add_prompt(model: Any, tokenizer: Any, tokens: int, seed: int = 0) -> tuple[Any, str]:
    """(the model wrapped by peft, its learned prompt as text): prompt tuning (Lester et al. 2021) of any kind of model.

    The virtual tokens are new words of the tokenizer, which stand wherever their text does; their embeddings alone are
    trained and begin as those of words drawn from the vocabulary. `merge_and_unload()` gives the plain model with them.
    """
    from peft import TrainableTokensConfig, get_peft_model

    names = [f"<prompt_{number}>" for number in range(tokens)]
    words = ordinary_ids(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": names}, replace_extra_special_tokens=False)
    resize_for(model, tokenizer)
    ids = [int(i) for i in tokenizer.convert_tokens_to_ids(names)]
    drawn = np.random.default_rng([seed, tokens]).choice(words, tokens)
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table[ids] = table[torch.from_numpy(drawn)]
    return get_peft_model(model, TrainableTokensConfig(token_indices=ids)), "".join(names)


def tune(
    engine: Any, prompter: Prompter, examples: Sequence[Example], run: RunDir, *, steps: int, batch_size: int,
    optimizer: OptimConfig, seed: int = 0, precision: str = "fp32",
) -> dict[str, Any]:  # fmt: skip
    """Train what the engine's model has to train, in place, on the examples' answers. Returns rows, trained
    parameters, loss, seconds and FLOPs (of a step of the run's first rows, times the steps)."""
    rows = answer_rows(engine, prompter, examples)
    if not rows:
        raise DataError("no example fits the model's context; choose a model with a longer one, or shorter inputs")
    model, pad = engine.model, engine.tokenizer.pad_token_id
    objective = OBJECTIVES[engine.kind]

    def loader(**more: Any) -> Any:
        if engine.kind == "seq2seq":
            return PairLoader(rows, start=decoder_start(model), batch_size=batch_size, pad_id=pad, seed=seed, **more)
        return RowLoader(rows, batch_size=batch_size, pad_id=pad, seed=seed, **more)

    flops = training_flops(lambda: objective(model, next(loader()))[0])
    model.zero_grad(set_to_none=True)
    last = train(model, objective, loader(), Optimizers(model, optimizer), run, steps=steps, precision=precision)
    model.eval()
    trained = parameter_count(model, trainable=True)
    spent = {"loss": last["loss"], "seconds": last["seconds"], "flops": flops * steps}
    return {"rows": len(rows), "trained": trained, **spent}
