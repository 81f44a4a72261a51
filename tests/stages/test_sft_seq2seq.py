"""Fine-tuning encoder-decoders: transformers' own loss, the engine's own ids, learning, and what is refused."""

import json

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import tutelage
from tutelage.core.errors import ConfigError, DataError
from tutelage.core.records import BadRows
from tutelage.model.hub import create_model, save_model
from tutelage.pipeline.stages import launch, read_summary
from tutelage.studies.parts import word_tokenizer
from tutelage.text.tokenizer import ensure_sentinels, train_tokenizer
from tutelage.train.objectives import seq2seq
from tutelage.train.seq2seq import PairLoader, encode_pairs, two_sides

SIZES = {"an ant": "no", "a whale": "yes", "a flea": "no", "a tower": "yes", "a pea": "no", "a hill": "yes"}
ROWS = [{"prompt": f"Is {word} big?", "completion": answer} for word, answer in SIZES.items()]
OPTIMIZER = {"name": "adamw", "lr": 3e-3}


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """A random T5 with a byte-level tokenizer, as `pretrain objective=span` makes them."""
    folder = tmp_path_factory.mktemp("t5")
    tokenizer = train_tokenizer([row["prompt"] + row["completion"] for row in ROWS], 300)
    ensure_sentinels(tokenizer)
    save_model(create_model("preset:laptop-t5-1m", tokenizer, 64), tokenizer, folder / "model")
    return folder


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_loss_is_transformers_own_and_the_ids_are_the_engines(t5):
    engine = tutelage.load(str(t5))
    pairs = encode_pairs(ROWS, engine.tokenizer, 64, BadRows())
    batch = next(PairLoader(pairs, engine.model.config.decoder_start_token_id, batch_size=4,
                            pad_id=engine.tokenizer.pad_token_id))  # fmt: skip
    total, metrics = seq2seq(engine.model, batch)
    theirs = engine.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"])
    assert float(total.detach()) / metrics["count"] == pytest.approx(float(theirs.loss.detach()), abs=1e-5)
    end = engine.tokenizer.eos_token_id
    scores = engine.score([(row["prompt"], [*pair["labels"]]) for row, pair in zip(ROWS, pairs)])
    whole = next(PairLoader(pairs, engine.model.config.decoder_start_token_id, batch_size=6, shuffle=False,
                            pad_id=engine.tokenizer.pad_token_id))  # fmt: skip
    total, _ = seq2seq(engine.model, whole)
    assert -sum(s.logprob for s in scores) == pytest.approx(float(total.detach()), rel=1e-4)
    assert all(pair["input_ids"][-1] == pair["labels"][-1] == end for pair in pairs)
    assert pairs[0]["input_ids"] == engine.encode(ROWS[0]["prompt"])


def test_it_learns_and_the_checkpoint_answers_in_plain_transformers(t5, tmp_path):
    data = written(tmp_path / "rows.jsonl", ROWS)
    out, _ = launch("sft", {
        "model": str(t5), "data": data, "held_out": written(tmp_path / "held.jsonl", [{**ROWS[0], "prompt": "Is it?"}]),
        "steps": 50, "batch_size": 6, "precision": "fp32", "save_every": 0, "eval_every": 0, "optimizer": OPTIMIZER,
        "out": str(tmp_path / "sft"),
    })  # fmt: skip
    found = read_summary(out)
    assert found["rows"] == 6 and found["rows_left_out"] == 0 and found["held_rows"] == 1 and found["loss"] < 0.2
    assert {"val_loss", "val_loss_before"} <= set(found)
    model = AutoModelForSeq2SeqLM.from_pretrained(out / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    for row in ROWS:
        ids = torch.tensor([tokenizer(row["prompt"])["input_ids"]])
        said = model.generate(ids, max_new_tokens=8, do_sample=False)
        assert tokenizer.decode(said[0], skip_special_tokens=True) == row["completion"]
    sample = json.loads((out / "samples.jsonl").read_text().splitlines()[0])
    assert sample["prompt"] == "Is it?"


def test_all_turns_but_the_last_answer_are_read():
    talk = [("system", "be brief"), ("user", "hi"), ("assistant", "yes?"), ("user", "bye"), ("assistant", "bye")]
    row = {"messages": [{"role": role, "content": text} for role, text in talk]}
    assert two_sides(row) == ("be brief\n\nhi\n\nyes?\n\nbye", "bye")


def test_answers_that_the_tokenizer_cannot_write_are_faults():
    tokenizer = word_tokenizer(["is", "it", "yes", "no"])
    tokenizer.unk_token = tokenizer.pad_token
    rows = [{"prompt": "is it", "completion": "yes"}, {"prompt": "is it", "completion": "perhaps yes"}]
    with pytest.raises(DataError, match=r"answer 'perhaps yes' .*token 1 of 2 is <\|pad\|>.*on_bad_row=skip"):
        encode_pairs(rows, tokenizer, 9, BadRows())
    bad = BadRows("skip")
    assert len(encode_pairs(rows, tokenizer, 9, bad)) == 1 and bad.count == 1
    with pytest.raises(DataError, match="it has no token"):
        encode_pairs([{"prompt": "is it", "completion": ""}], tokenizer, 9, BadRows())
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no eos token"):
        encode_pairs(rows, tokenizer, 9, bad)


def test_rows_that_do_not_fit_are_left_out_and_counted(t5, tmp_path):
    rows = [*ROWS, {"prompt": "long " * 40, "completion": "no"}, {"prompt": "Is it?", "completion": "yes " * 70}]
    held = written(tmp_path / "held.jsonl", [{"prompt": "Is?", "completion": "no"}])
    values = {"model": str(t5), "data": written(tmp_path / "rows.jsonl", rows), "held_out": held, "steps": 1,
              "batch_size": 4, "eval_every": 0}  # fmt: skip
    out, _ = launch("sft", {**values, "out": str(tmp_path / "sft")})
    assert read_summary(out)["rows_left_out"] == 2 and read_summary(out)["rows"] == 6
    with pytest.raises(DataError, match="no training row .* within 2 tokens; raise max_length"):
        launch("sft", {**values, "max_length": 2, "out": str(tmp_path / "short")})


@pytest.mark.parametrize(("key", "value"), [("packing", True), ("method", "lora"), ("ptx_data", "text")])
def test_what_only_decoders_have_is_refused(t5, tmp_path, key, value):
    (tmp_path / "text").mkdir()
    value = str(tmp_path / value) if key == "ptx_data" else value
    with pytest.raises(ConfigError, match=f"{key}={value} is for decoders"):
        launch("sft", {"model": str(t5), "out": str(tmp_path / "sft"), key: value})
