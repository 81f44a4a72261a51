"""Answers read at a mask or a sentinel: equal to forwards without the engine, and the toolkit around them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertTokenizerFast,
    PreTrainedTokenizerFast,
    RobertaConfig,
    T5Config,
)

from tutelage.core.errors import ConfigError
from tutelage.core.rundir import RunDir
from tutelage.engine import Cloze, LocalEngine
from tutelage.icl.evaluate import Bench, Setting, evaluate, reading
from tutelage.icl.examples import Example
from tutelage.icl.prompts import MINIMAL, Format, Prompter
from tutelage.icl.scoring import Job, score_jobs, unconditional
from tutelage.icl.tune import add_prompt, answer_rows, tune
from tutelage.model.hub import merged
from tutelage.text.tokenizer import ensure_masked, ensure_pad, ensure_sentinels, train_tokenizer
from tutelage.train.optim import OptimConfig

LABELS = ("bad", "good", "so so")
TEXTS = ["Review: a fine film\nIt was good .\n\nReview: a dull play\nIt was bad .\n\nReview: there\nIt was so so ."] * 9
FORM = Format(input="Review: {text}", output="\nIt was {answer} .", separator="\n\n")
FAMILIES = ("bert", "roberta", "t5")


def example(text: str, gold: int) -> Example:
    return Example({"text": text}, text, LABELS, gold, LABELS[gold])


DEMOS = [example("a fine film", 1), example("a dull play", 0), example("there", 2)]
QUERIES = [example("fine play", 1), example("dull dull film", 0), example("a play", 2)]
SETS = [DEMOS, DEMOS[:1], []]
ALL = [(s, q) for s in range(3) for q in range(3)]


def tiny(family: str, context: int = 160) -> LocalEngine:
    """A random model of two layers, sharp enough that its predictions differ, with a tokenizer made ready for it."""
    torch.manual_seed(1)
    tokenizer = train_tokenizer(TEXTS, 300)
    ensure_pad(tokenizer)
    if family == "t5":
        ensure_sentinels(tokenizer)
        config: Any = T5Config(
            vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, n_positions=context,
            decoder_start_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        model = AutoModelForSeq2SeqLM.from_config(config)
    else:
        ensure_masked(tokenizer)
        kind = {"bert": BertConfig, "roberta": RobertaConfig}[family]
        config = kind(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
            max_position_embeddings=context + 1, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        model = AutoModelForMaskedLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name.lower() and weight.ndim > 1:
                weight.mul_(3)
    return LocalEngine(model.eval(), tokenizer)


@pytest.fixture(scope="module", params=FAMILIES)
def cloze_engine(request: pytest.FixtureRequest) -> LocalEngine:
    return tiny(request.param)


def own_read(engine: LocalEngine) -> Any:
    return reading(engine, Setting())


def brute(engine: LocalEngine, before: str, after: str, label: str) -> float:
    """Sum of the label's log-probs: one forward of one text, nothing of the engine's code."""
    t = engine.tokenizer
    tokens = t(" " + label, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        if engine.kind == "masked":
            ids = t(before, add_special_tokens=False)["input_ids"]
            rest = t(after, add_special_tokens=False)["input_ids"]
            row = [t.cls_token_id, *ids, *[t.mask_token_id] * len(tokens), *rest, t.sep_token_id]
            found = engine.model(torch.tensor([row])).logits[0].double().log_softmax(-1)
            return sum(float(found[1 + len(ids) + k, token]) for k, token in enumerate(tokens))
        mark = t.convert_tokens_to_ids("<extra_id_0>")
        row = t(before + "<extra_id_0>" + after)["input_ids"]
        assert row.count(mark) == 1 and row[-1] == t.eos_token_id
        given = [engine.model.config.decoder_start_token_id, mark, *tokens[:-1]]
        logits = engine.model(input_ids=torch.tensor([row]), decoder_input_ids=torch.tensor([given])).logits[0]
        found = logits.double().log_softmax(-1)
        return sum(float(found[1 + k, token]) for k, token in enumerate(tokens))


def text_of(e: Example) -> str:
    return f"Review: {e.text}\nIt was {e.answer} ."


def by_hand(demos: list[Example], query: Example, place: str) -> tuple[str, str]:
    """The text around the query's answer."""
    half = (len(demos) + 1) // 2
    first = {"before": demos, "after": [], "around": demos[:half]}[place]
    last = demos[len(first) :]
    before = "".join(text_of(e) + "\n\n" for e in first) + f"Review: {query.text}\nIt was"
    return before, " ." + "".join("\n\n" + text_of(e) for e in last)


@pytest.mark.parametrize("place", ["before", "after", "around"])
def test_scores_equal_brute_force(cloze_engine: LocalEngine, place: Any) -> None:
    prompter = Prompter(FORM, read=own_read(cloze_engine), demos=place)
    scores = score_jobs(cloze_engine, [Job(prompter, SETS, QUERIES, ALL)])[0]
    for found, (s, q) in zip(scores.logprob, ALL, strict=True):
        expected = [brute(cloze_engine, *by_hand(SETS[s], QUERIES[q], place), label) for label in LABELS]
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_one_row_serves_all_labels_of_a_length(cloze_engine: LocalEngine) -> None:
    rows: list[int] = []
    trunk = cloze_engine.model.base_model.encoder
    prompter = Prompter(FORM, read=own_read(cloze_engine))
    score_jobs(cloze_engine, [Job(prompter, SETS, QUERIES, ALL)])  # the habits of the model are tried
    hook = trunk.register_forward_hook(lambda _m, _a, out: rows.append(out[0].shape[0]))
    try:
        score_jobs(cloze_engine, [Job(prompter, SETS, QUERIES, ALL)])
    finally:
        hook.remove()
    # "bad" and "good" share a row; "so so" has two masks, but T5 reads it off the same encoder pass
    assert sum(rows) == len(ALL) * (2 if cloze_engine.kind == "masked" else 1) and len(rows) <= 2


def test_the_text_may_hold_masks_of_its_own() -> None:
    engine = tiny("bert")
    mask = engine.tokenizer.mask_token
    score = engine.score([(Cloze(f"a {mask} film was ", f" {mask} ."), "good")])[0]
    assert score.logprob == pytest.approx(brute(engine, f"a {mask} film was", f" {mask} .", "good"), abs=1e-4)


def test_norms_and_calibration_go_through_the_gap(cloze_engine: LocalEngine) -> None:
    prompter = Prompter(FORM, read=own_read(cloze_engine))
    base = unconditional(cloze_engine, prompter, QUERIES, empty=False)
    expected = [brute(cloze_engine, "It was", " .", label) for label in LABELS]
    np.testing.assert_allclose(base[0], expected, atol=1e-4)
    bench = Bench(cloze_engine, FORM, MINIMAL, DEMOS, QUERIES)
    settings = [Setting(shots=2, norm="token"), Setting(shots=2, calibrate="contextual", demos="around")]
    for result in evaluate(bench, settings, seed=0):
        assert result.metrics["n"] == 3 and result.dropped == 0 and 0 < result.computed < result.asked


def test_demonstrations_that_do_not_fit_are_dropped(cloze_engine: LocalEngine) -> None:
    many = [example(f"a fine film number {i}", i % 3) for i in range(40)]
    prompter = Prompter(FORM, read=own_read(cloze_engine), demos="around")
    endless = example("dull " * 300, 0)
    job = Job(prompter, [many], [QUERIES[0], endless], [(0, 0), (0, 1)])
    scores = score_jobs(cloze_engine, [job])[0]
    assert scores.too_long == [1] and 0 < scores.dropped[0] < 40
    kept = many[scores.dropped[0] :]
    expected = [brute(cloze_engine, *by_hand(kept, QUERIES[0], "around"), label) for label in LABELS]
    np.testing.assert_allclose(scores.logprob[0], expected, atol=1e-4)


@pytest.mark.parametrize("read", ["own", "continuation"])
def test_tuning_rows_are_what_is_scored(cloze_engine: LocalEngine, read: str) -> None:
    """A row's loss is the score of its answer (and, of a decoder, of the end behind it)."""
    prompter = Prompter(FORM, read=own_read(cloze_engine) if read == "own" else "continuation")
    rows = answer_rows(cloze_engine, prompter, DEMOS)
    scores = score_jobs(cloze_engine, [Job(prompter, [[]], DEMOS, [(0, q) for q in range(3)])])[0]
    for row, found, example in zip(rows, scores.logprob, DEMOS, strict=True):
        labels = torch.tensor(row["labels"])
        given = {"input_ids": torch.tensor([row["input_ids"]])}
        if cloze_engine.kind == "seq2seq":
            start = cloze_engine.model.config.decoder_start_token_id
            given["decoder_input_ids"] = torch.tensor([[start, *row["labels"][:-1]]])
            assert row["labels"][-1] == cloze_engine.tokenizer.eos_token_id
            labels[-1] = -100
            if read == "own":
                labels[0] = -100  # the sentinel
        with torch.inference_mode():
            logprobs = cloze_engine.model(**given).logits[0].log_softmax(-1)
        kept = labels != -100
        total = float(logprobs[kept].gather(1, labels[kept][:, None]).sum())
        # several masks of a continuation are scored in turn, and learned together
        if cloze_engine.kind == "seq2seq" or read == "own" or int(kept.sum()) == 1:
            assert total == pytest.approx(found[example.gold], abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_tuning_learns(family: str, tmp_path: Any) -> None:
    engine = tiny(family)
    bench = Bench(engine, FORM, MINIMAL, [], DEMOS)
    run = RunDir(tmp_path / "run", "tune", {})
    run.open()
    spent = tune(
        engine, bench.prompter(Setting(shots=0)), DEMOS, run, steps=40, batch_size=3,
        optimizer=OptimConfig(name="adamw", lr=1e-2),
    )  # fmt: skip
    run.close()
    assert evaluate(bench, [Setting(shots=0)], 0)[0].metrics["accuracy"] == 1.0
    assert spent["rows"] == 3 and spent["flops"] > 0 and spent["loss"] < 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_learned_prompt_is_all_that_is_trained(family: str, tmp_path: Any) -> None:
    engine = tiny(family)
    before = {name: weight.clone() for name, weight in engine.model.state_dict().items()}
    wrapped, prompt = add_prompt(engine.model, engine.tokenizer, 4)
    form = FORM.model_copy(update={"instruction": prompt})
    bench = Bench(LocalEngine(wrapped, engine.tokenizer), form, MINIMAL, [], DEMOS)
    run = RunDir(tmp_path / "run", "tune", {})
    run.open()
    spent = tune(
        bench.engine, bench.prompter(Setting(shots=0)), DEMOS, run, steps=3, batch_size=3,
        optimizer=OptimConfig(name="adamw", lr=0.1),
    )  # fmt: skip
    run.close()
    plain = merged(wrapped)
    assert spent["trained"] == 4 * 32
    for name, weight in before.items():  # rows of the vocabulary's tables were added
        torch.testing.assert_close(plain.state_dict()[name][: weight.shape[0]], weight)
    job = Job(bench.prompter(Setting(shots=0)), [[]], QUERIES, [(0, 0)])
    engines = (tiny(family), bench.engine, LocalEngine(plain, engine.tokenizer))
    untaught, taught, saved = (score_jobs(e, [job])[0].logprob[0] for e in engines)
    np.testing.assert_allclose(saved, taught, atol=1e-5)
    assert np.abs(taught - untaught).max() > 1e-4


def test_what_a_model_cannot_read_is_refused(cloze_engine: LocalEngine, engine: LocalEngine) -> None:
    other = "sentinel" if cloze_engine.kind == "masked" else "mask"
    with pytest.raises(ConfigError, match=f"read={other} needs"):
        reading(cloze_engine, Setting(read=other))
    with pytest.raises(ConfigError, match="read=mask needs a masked LM; of this model read=continuation"):
        reading(engine, Setting(read="mask"))
    assert reading(cloze_engine, Setting(score="channel")) == "continuation"
    assert reading(cloze_engine, Setting(read="continuation")) == "continuation"
    assert reading(engine, Setting()) == "continuation"
    for fault in ({"read": "mask", "score": "channel"}, {"read": "nose"}, {"demos": "above"}):
        with pytest.raises(ConfigError):
            Setting(**fault)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="demos=after puts demonstrations behind"):
        Bench(engine, FORM, MINIMAL, DEMOS, QUERIES).prompter(Setting(demos="after"))
    twice = FORM.model_copy(update={"output": " {answer}, I say {answer}"})
    with pytest.raises(ConfigError, match="says the answer twice"):
        Prompter(twice, read="mask")
    assert "does not see what stands behind" in str(engine.score([(Cloze("a", "b"), "c")])[0].error)


def roberta_like() -> Any:
    """Byte-level BPE whose mask takes the blank before it, as RoBERTa's does."""
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=True, special=True)})
    ensure_masked(tokenizer)
    return tokenizer


def word_pieces() -> Any:
    """BERT's WordPiece."""
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] review : a fine film it was go ##od bad so . dull play there".split()
    return BertTokenizerFast(vocab={word: i for i, word in enumerate(words)})


def sentence_pieces() -> Any:
    """Unigram pieces with T5's blanks, and a mask among them."""
    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>", "<extra_id_0>"]
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False)
    inner.train_from_iterator(TEXTS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    ensure_masked(tokenizer)
    return tokenizer


@pytest.mark.parametrize("make", [roberta_like, word_pieces, sentence_pieces])
def test_a_row_is_the_filled_text_with_the_filling_masked(make: Any) -> None:
    tokenizer = make()
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=16, max_position_embeddings=40)  # fmt: skip
    engine = LocalEngine(AutoModelForMaskedLM.from_config(config).eval(), tokenizer)
    seen: list[list[int]] = []
    hook = engine.model.register_forward_pre_hook(lambda _m, _a, given: seen.append(given["input_ids"][0].tolist()),
                                                  with_kwargs=True)  # fmt: skip
    score = engine.score([(Cloze("Review: a fine film it was ", " ."), "good")])[0]
    hook.remove()
    whole = tokenizer("Review: a fine film it was good .")["input_ids"]
    assert score.error is None and len(score.tokens) >= 1
    masks = [tokenizer.mask_token_id] * len(score.tokens)
    start = seen[-1].index(tokenizer.mask_token_id)
    assert whole[start : start + len(masks)] == list(score.tokens)
    assert seen[-1] == [*whole[:start], *masks, *whole[start + len(masks) :]]


def test_a_filling_without_tokens_of_its_own_is_told() -> None:
    score = tiny("bert").score([(Cloze("a film", " ."), "")])[0]
    assert "no token of its own" in str(score.error)


def test_the_stage_sweeps_where_demonstrations_stand(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tutelage.model.hub import save_model
    from tutelage.pipeline.stages import launch

    made = tiny("roberta")
    save_model(made.model, made.tokenizer, tmp_path / "model")
    rows = [{"text": e.text, "label": e.answer} for e in DEMOS * 2 + QUERIES]
    for name in ("train", "test"):
        lines = "".join(json.dumps({**row, "text": f"{row['text']} {name} {i}"}) + "\n" for i, row in enumerate(rows))
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "task.toml").write_text(
        'train = "train.jsonl"\ntest = "test.jsonl"\nlabels = { bad = "bad", good = "good", "so so" = "so so" }\n'
        '[format]\ninput = "Review: {text}"\noutput = "\\nIt was {answer} ."\nseparator = "\\n\\n"\n', encoding="utf-8",
    )  # fmt: skip
    given = {"task": str(tmp_path / "task.toml"), "model": str(tmp_path / "model"), "out": str(tmp_path / "icl")}
    path, ran = launch("icl", {**given, "shots": 2, "demos": ["before", "after", "around"]})
    cells = json.loads((path / "summary.json").read_text())["cells"]
    assert ran and [c["demos"] for c in cells] == ["before", "after", "around"] and cells[0]["n"] == 9
    with pytest.raises(ConfigError, match="read and demos are for method=score"):
        launch("icl", {**given, "out": str(tmp_path / "other"), "demos": "after", "method": "zero_shot_cot"})
