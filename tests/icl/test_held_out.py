"""Held-out tasks: ranks and losses by plain scoring, intervals that know which rows are about the same example."""

import json

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, T5Config

from tutelage.core.errors import DataError
from tutelage.engine import LocalEngine
from tutelage.icl.encode import Encoder
from tutelage.icl.examples import Example
from tutelage.icl.fitting import Fitting
from tutelage.icl.held_out import measure, summarised
from tutelage.icl.prompts import Format, Prompter
from tutelage.icl.ready import ready_tasks
from tutelage.studies.parts import word_tokenizer


@pytest.fixture
def tasks(tmp_path):
    for name in ("a", "b"):
        rows = [{"prompt": f"{name}: is {i} odd?\n", "completion": "yes" if i % 4 else "no"} for i in range(20)]
        (tmp_path / f"paws_{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"prompt": f"tell me of {i}", "completion": f"it is {i}"} for i in range(20)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ready_tasks(tmp_path).tasks


def test_ranks_and_losses_are_those_of_plain_forwards(engine, logprob, tasks):
    rows = measure(engine, tasks, Fitting(engine.tokenizer, 128), 6, chat=False)
    assert len(rows) == 18 and [row["template"] for row in rows[::6]] == ["own", "paws_a", "paws_b"]
    assert [r["case"] for r in rows[6:12]] == [r["case"] for r in rows[12:]]  # one data set: the same examples
    for row in rows:
        name, total, number = row["case"].split("/")
        assert total == "20"
        if name == "own":
            context, answer = f"tell me of {number}\n", f"it is {number}"
            assert "right" not in row and row["nats"] == pytest.approx(-logprob(context, answer), abs=1e-4)
            assert row["tokens"] == len(engine.encode(context + answer)) - len(engine.encode(context))
            continue
        context = f"{row['template'][-1]}: is {number} odd?\n"
        no, yes = (logprob(context, answer) for answer in ("no", "yes"))
        gold = int(number) % 4 > 0
        assert row["right"] == int((yes > no) == gold) and row["chance"] == 0.5 and row["majority"] == int(gold)
        assert row["nats"] == pytest.approx(-(yes if gold else no), abs=1e-4)
        sizes = [len(engine.encode(context + a)) - len(engine.encode(context)) for a in ("no", "yes")]
        assert row["right_by_token"] == int((yes / sizes[1] > no / sizes[0]) == gold)


def test_an_input_that_is_too_long_loses_its_middle(engine, tasks):
    long = [task.model_copy(update={"text": "{prompt}" * 40}) for task in tasks[1:2]]
    rows = measure(engine, long, Fitting(engine.tokenizer, 64), 3, chat=False)
    assert len(rows) == 3 and all(row["nats"] > 0 for row in rows)


def test_intervals_resample_examples_and_add_what_seeds_move():
    def rows(rights):
        same = {"cluster": "c", "nats": 2.0, "tokens": 4, "right_by_token": 1, "chance": 0.5, "majority": 1}
        cases = [(f"x{i}", right, t) for i, right in enumerate(rights) for t in ("a", "b")]
        return [{**same, "case": case, "right": right, "template": t} for case, right, t in cases]

    found = summarised([rows([1, 0, 1, 0] * 10)])["c"]
    assert found["accuracy"] == 0.5 and found["loss"] == found["loss_low"] == found["loss_high"] == 0.5
    assert found["templates"] == found["ranked_templates"] == 2 and found["rows"] == 80 and found["majority"] == 1
    # 40 examples count, not 80 rows: 1.96 sqrt(0.25 / 40)
    assert found["accuracy_high"] - found["accuracy"] == pytest.approx(0.155, abs=0.02)
    two = summarised([rows([1] * 40), rows([0] * 40)])["c"]
    assert two["accuracy_high"] - two["accuracy"] == pytest.approx(1.96 * (0.5 / 2) ** 0.5)  # no example moves it


def test_labels_of_an_encoder_decoder_are_scored_apart_and_must_have_tokens():
    torch.manual_seed(0)
    tokenizer = word_tokenizer(["is", "it", "yes", "no"])
    tokenizer.unk_token = tokenizer.pad_token
    config = T5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=4,
                      eos_token_id=5, decoder_start_token_id=4)  # fmt: skip
    engine = LocalEngine(AutoModelForSeq2SeqLM.from_config(config).eval(), tokenizer)
    prompter = Prompter(Format(output="\nAnswer: {answer}"))
    made = Encoder(engine, prompter).pairs([()], [Example({}, "is it", ("yes", "no"), 0)], [(0, 0)])
    assert made.pairs == [[("is it\nAnswer:", "yes"), ("is it\nAnswer:", "no")]]
    with pytest.raises(DataError, match=r"label 'perhaps' has a token that the model's tokenizer lacks \(<\|pad\|>\)"):
        Encoder(engine, prompter).pairs([()], [Example({}, "is it", ("yes", "perhaps"), 0)], [(0, 0)])
