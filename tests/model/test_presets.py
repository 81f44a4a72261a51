"""Every preset: its parameters equal the published ones, and it starts a model that plain transformers loads."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tutelage.cli import app
from tutelage.core.errors import ConfigError
from tutelage.model.count import count_parameters
from tutelage.model.hub import create_model, load_model, save_model
from tutelage.model.kinds import model_kind
from tutelage.model.presets import PRESETS, build_config, kind_of, published_config
from tutelage.model.published import PUBLISHED, figure, rounded_like
from tutelage.text.tokenizer import train_tokenizer


@pytest.mark.parametrize("name", PUBLISHED)
def test_computed_equals_published(name):
    assert count_parameters(name) == PUBLISHED[name].computed
    assert PUBLISHED[name].agrees, (PUBLISHED[name].parameters, PUBLISHED[name].computed)


def test_every_preset_but_our_own_sizes_is_in_the_table():
    assert {n for n in PRESETS if not n.startswith(("laptop", "shakespeare"))} == set(PUBLISHED)
    assert list(PUBLISHED) == [n for n in PRESETS if n in PUBLISHED]
    with pytest.raises(ConfigError, match="published nowhere"):
        published_config("laptop-1m")


@pytest.mark.parametrize(
    "count, words, right",
    [(1_315_723_264, "1320M", True), (1_314_999_999, "1320M", False), (17_176_845_728, "17B", True),
     (2_851_598_336, "2.8B", False), (2_849_000_000, "2.8B", True), (335_000_000, "340M", True),
     (334_999_999, "340M", False)],
)  # fmt: skip
def test_rounding(count, words, right):
    assert (rounded_like(count, words) == figure(words)) is right


@given(st.integers(10**6, 10**12), st.sampled_from(["117M", "60M", "3B", "2.8B", "174600M"]))
def test_rounding_moves_a_count_by_half_a_step_at_most(count, words):
    number = words[:-1]
    step = 0.1 if "." in number else 10 ** (len(number) - len(number.rstrip("0")))
    assert abs(rounded_like(count, words) - count) <= step * {"M": 1e6, "B": 1e9}[words[-1]] / 2 + 1


def test_flops_are_those_of_the_paper():
    """Brown et al. 2020, table D.1."""
    for name, flops in {"gpt3-125m": 2.25e20, "gpt3-175b": 3.14e23, "t5-11b": 3.30e22, "t5-base": 6.60e20,
                        "roberta-base": 1.50e21, "roberta-large": 4.26e21, "bert-base": 1.64e20}.items():  # fmt: skip
        assert PUBLISHED[name].flops == pytest.approx(flops, rel=0.03), name


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["sam is in the park. eva is in the market."] * 20, 300)


@pytest.mark.parametrize(
    "name, auto",
    [("laptop-1m", "AutoModelForCausalLM"), ("gpt", "AutoModelForCausalLM"), ("gpt2", "AutoModelForCausalLM"),
     ("lamda-pt", "AutoModelForCausalLM"), ("laptop-bert-1m", "AutoModelForMaskedLM"),
     ("laptop-roberta-1m", "AutoModelForMaskedLM"), ("laptop-t5-1m", "AutoModelForSeq2SeqLM"),
     ("t5-small", "AutoModelForSeq2SeqLM"), ("flan-t5-small", "AutoModelForSeq2SeqLM")],
)  # fmt: skip
def test_from_scratch_and_back_in_plain_transformers(tokenizer, tmp_path, name, auto):
    family = PRESETS[name]["family"]
    small = {
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2}, "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 2},
        "llama": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
                  "intermediate_size": 64},
        "t5": {"d_model": 32, "num_layers": 2, "num_decoder_layers": 2},
    }.get(family, {})  # fmt: skip
    model = create_model(f"preset:{name}", tokenizer, 64, seed=1, **small).eval()
    again = create_model(name, tokenizer, 64, seed=1, **small)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    kinds = {"causal": "decoder", "masked": "masked LM", "seq2seq": "encoder-decoder"}
    assert kinds[model_kind(model)] == kind_of(name)
    ids = torch.randint(8, len(tokenizer), (2, 64))  # the whole context
    more = {"decoder_input_ids": ids} if family == "t5" else {}
    expected = model(input_ids=ids, **more).logits
    for turn in range(2):  # a reloaded model is written again as it is
        save_model(model, tokenizer, tmp_path / str(turn) / "model")
        plain = getattr(transformers, auto).from_pretrained(tmp_path / str(turn) / "model", attn_implementation="eager")
        assert torch.equal(plain.eval()(input_ids=ids, **more).logits, expected)
        model, _ = load_model(tmp_path / str(turn), any_kind=True)


def test_t5_1_1_has_an_output_layer_of_its_own(tokenizer):
    old, new = (create_model(name, tokenizer, 64, d_model=32, num_layers=1, num_decoder_layers=1)
                for name in ("t5-small", "flan-t5-small"))  # fmt: skip
    assert old.lm_head.weight is old.shared.weight and old.config.scale_decoder_outputs
    assert new.lm_head.weight is not new.shared.weight and not new.config.scale_decoder_outputs
    assert new.encoder.embed_tokens.weight is new.shared.weight is new.decoder.embed_tokens.weight


def test_roberta_takes_as_many_tokens_as_asked(tokenizer):
    for pad in (0, 7):
        config = build_config("roberta-base", 300, 64, pad_token_id=pad)
        assert config.max_position_embeddings == 64 + pad + 1
    assert published_config("roberta-base").max_position_embeddings == 514


def test_the_verb(tmp_path):
    told = CliRunner().invoke(app, ["models", f"out={tmp_path / 'models'}"])
    assert told.exit_code == 0 and "gpt3-175b" in told.output and "laptop-t5-1m" in told.output
    rows = json.loads((tmp_path / "models" / "models.json").read_text())
    assert {row["model"] for row in rows} == set(PUBLISHED) and all(row["agrees"] and row["source"] for row in rows)
    assert (tmp_path / "models" / "figures" / "growth.png").read_bytes().startswith(b"\x89PNG")
    bad = CliRunner().invoke(app, ["models", "chek=true"])
    assert isinstance(bad.exception, ConfigError) and "check" in str(bad.exception)


def test_the_list_needs_no_torch():
    code = "import sys; from tutelage.model.listing import show_models; show_models({}); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
