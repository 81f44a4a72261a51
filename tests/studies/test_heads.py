"""Head scores: hand-built attention, several families against the definition, and induction heads that form."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, OPTConfig, Qwen3Config

from tutelage.core.errors import TutelageError
from tutelage.studies.heads import (
    after_earlier_copies,
    copied,
    copying,
    head_scores,
    icl_score,
    prefix_matching,
    previous_token,
    repeated_tokens,
    token_losses,
    usual_tokens,
)  # fmt: skip
from tutelage.studies.induction import RepeatedSequences, coincidence

LENGTH = 6
PROBE = repeated_tokens(range(40), 3, LENGTH, 3)
SHAPE = {"vocab_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
FAMILIES = {
    "qwen3": lambda: Qwen3Config(hidden_size=32, intermediate_size=48, head_dim=8, num_key_value_heads=2, **SHAPE),
    "llama": lambda: LlamaConfig(hidden_size=32, intermediate_size=48, num_key_value_heads=4, **SHAPE),
    "gpt_neox": lambda: GPTNeoXConfig(hidden_size=32, intermediate_size=48, **SHAPE),
    "opt": lambda: OPTConfig(hidden_size=32, ffn_dim=48, word_embed_proj_dim=32, **SHAPE),
    "gpt2": lambda: GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=64),
}


def attention(offset):
    """[3, 1, T, T]: every token attends `offset` places back where it can, else to the first."""
    size = PROBE.shape[1]
    weights = torch.zeros(3, 1, size, size)
    for i in range(size):
        weights[:, 0, i, max(0, i - offset)] = 1
    return weights


def test_perfect_induction_scores_1_and_attention_to_the_copy_itself_0():
    # the token after the copy one period back is LENGTH - 1 places back; in the third round also 2 * LENGTH - 1
    assert prefix_matching(attention(LENGTH - 1), PROBE).tolist() == [1.0]
    assert prefix_matching(attention(LENGTH), PROBE).tolist() == [0.0]
    assert prefix_matching(attention(LENGTH + 1), PROBE).tolist() == [0.0]  # "preceded", as the paper once has it
    assert previous_token(attention(1)).tolist() == [1.0]
    assert previous_token(attention(2))[0] < 0.1


def test_random_attention_scores_what_chance_gives():
    torch.manual_seed(0)
    probe = repeated_tokens(range(200), 10, 25, 4)
    weights = torch.rand(10, 2, 100, 100).tril()
    weights = weights / weights.sum(-1, keepdim=True)
    mask = after_earlier_copies(probe)
    chance = (mask.float() / torch.arange(1, 101)[:, None]).sum(-1)[mask.any(-1)].mean()
    assert torch.allclose(prefix_matching(weights, probe), chance, atol=0.005)
    assert chance < 0.05


def test_after_earlier_copies_by_hand():
    mask = after_earlier_copies(torch.tensor([[5, 7, 5, 5]]))
    assert mask[0].int().tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 1]]


def test_copying_is_1_for_the_attended_token_alone_and_minus_1_for_any_other():
    weights = attention(LENGTH - 1)[:, 0]
    attended = PROBE.gather(1, weights.argmax(-1))
    raised = torch.nn.functional.one_hot(attended, 40).float()
    assert float(copying(weights, 3.0 * raised, PROBE)) == pytest.approx(1.0)
    assert float(copying(weights, -raised, PROBE)) == pytest.approx(-1.0)
    assert copied(weights, raised, PROBE) == 1 and copied(weights, -raised, PROBE) == 0
    half = raised + torch.nn.functional.one_hot((attended + 1) % 40, 40)  # another token is raised as much
    assert float(copying(weights, half, PROBE)) == pytest.approx(0.0)
    assert float(copying(weights, half + 7.0, PROBE)) == pytest.approx(0.0)  # a constant says nothing


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_scores_of_its_attention(family):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(FAMILIES[family](), attn_implementation="sdpa").eval()
    scores = head_scores(model, PROBE)
    assert model.config._attn_implementation == "sdpa"
    assert scores.prefix.shape == scores.copying.shape == (2, 4)
    assert scores.copying.isfinite().all() and (scores.copying.abs() <= 1).all()
    model.set_attn_implementation("eager")
    maps = [m.detach() for m in model(input_ids=PROBE, output_attentions=True).attentions]
    for layer, weights in enumerate(maps):
        for head in range(4):
            found = [
                sum(float(weights[b, head, i, j]) for j in range(1, i + 1) if PROBE[b, j - 1] == PROBE[b, i])
                for b in range(3) for i in range(LENGTH, PROBE.shape[1])
            ]  # fmt: skip
            assert float(scores.prefix[layer, head]) == pytest.approx(sum(found) / len(found), abs=1e-5)
    assert scores.rows()[0]["prefix"] == round(float(scores.prefix.max()), 4)


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_a_head_made_to_copy_scores_1_and_made_to_suppress_minus_1(family):
    """The first layer's heads write what they attend to (or its negative) into a one-hot residual stream."""
    torch.manual_seed(2)
    size = 64
    if family == "qwen3":
        config = Qwen3Config(
            hidden_size=size, intermediate_size=8, head_dim=size, num_key_value_heads=2, vocab_size=40,
            num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=True,
        )  # fmt: skip
    else:
        config = GPT2Config(vocab_size=40, n_embd=2 * size, n_layer=1, n_head=2, n_positions=64)
    model = AutoModelForCausalLM.from_config(config).eval()
    width = model.get_input_embeddings().weight.shape[1]
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(torch.eye(40, width) * 8)
        if family == "qwen3":
            layer = model.model.layers[0].self_attn
            layer.q_proj.weight.zero_()
            layer.v_proj.weight.copy_(torch.cat([torch.eye(size), -torch.eye(size)]))
            layer.o_proj.weight.copy_(torch.cat([torch.eye(size), torch.eye(size)], 1))
        else:
            model.transformer.wpe.weight.zero_()
            layer = model.transformer.h[0].attn
            layer.c_attn.weight.zero_()
            layer.c_attn.bias.zero_()
            layer.c_attn.weight[:size, 2 * width : 2 * width + size] = torch.eye(size)
            layer.c_attn.weight[:size, 2 * width + size :] = -torch.eye(size)
            layer.c_proj.weight.copy_(torch.cat([torch.eye(size, width), torch.eye(size, width)]))
            layer.c_proj.bias.zero_()
    # uniform attention over distinct tokens: the two that a token sees share what is raised
    probe = repeated_tokens(range(40), 4, 2, 1)
    scores = head_scores(model, probe)
    assert float(scores.copying[0, 0]) == pytest.approx(0.0, abs=0.05)  # half to each of two, each half attended
    assert float(scores.copying[0, 1]) == pytest.approx(-1.0, abs=0.05)
    assert float(scores.copied[0, 1]) == 0
    same = torch.tensor([[3, 3, 3, 3], [9, 9, 9, 9]])
    assert float(head_scores(model, same).copying[0, 0]) == pytest.approx(1.0, abs=0.01)  # all attention to one token
    assert float(head_scores(model, same).copied[0, 0]) == 1


def test_a_model_without_a_known_projection_says_so_and_is_scored_without_copying():
    model = AutoModelForCausalLM.from_config(FAMILIES["qwen3"]())
    for layer in model.model.layers:
        layer.self_attn.out = layer.self_attn.o_proj
        del layer.self_attn.o_proj
        layer.self_attn.__dict__["o_proj"] = lambda x, layer=layer: layer.self_attn.out(x)
    with pytest.raises(TutelageError, match="no output projection of attention found"):
        head_scores(model, PROBE)
    assert head_scores(model, PROBE, copies=False).copying.isnan().all()


def test_icl_score_is_late_minus_early_at_places_scaled_to_the_context():
    losses = torch.linspace(5, 1, 512).expand(2, -1)
    assert icl_score(losses) == pytest.approx(float(losses[0, 500] - losses[0, 50]))
    short = torch.linspace(5, 1, 64).expand(2, -1)
    assert icl_score(short) == pytest.approx(float(short[0, 62] - short[0, 6]))


def test_probes_are_distinct_tokens_repeated():
    probe = repeated_tokens(range(10, 50), 5, 25, 4, first=7, seed=3)
    assert probe.shape == (5, 101) and (probe[:, 0] == 7).all()
    assert (probe[:, 1:26] == probe[:, 76:]).all() and all(len(set(row[1:26].tolist())) == 25 for row in probe)
    assert (repeated_tokens(range(10, 50), 5, 25, 4, first=7, seed=3) == probe).all()
    with pytest.raises(TutelageError, match="20 tokens to draw 25"):
        repeated_tokens(range(20))


def test_usual_tokens_leave_out_the_special_and_the_rare():
    from tutelage.studies.parts import word_tokenizer

    tokenizer = word_tokenizer([*(f"w{i}" for i in range(20)), "<0x41>"])
    assert usual_tokens(tokenizer) == list(range(2, 18))


def test_training_sequences_repeat_with_their_own_period_and_resume():
    loader = RepeatedSequences(200, 16, 201, seed=0)
    first, second = next(loader), next(loader)
    ids = first["input_ids"]
    assert ids.shape == (16, 101) and (ids[:, 0] == 201).all() and (ids == first["labels"]).all()
    periods = [next(p for p in range(1, 101) if (row[1 + p :] == row[1:-p]).all()) for row in ids]
    assert all(10 <= p <= 50 for p in periods) and len(set(periods)) > 5
    other = RepeatedSequences(200, 16, 201, seed=0)
    other.load_state_dict({"position": 1})
    assert (next(other)["input_ids"] == second["input_ids"]).all()


def test_coincidence_by_hand():
    steps = [0, 10, 20, 30, 40, 50]
    drop = [4.0, 3.9, 3.8, 1.0, 0.9, 0.9]
    found = coincidence(steps, drop, [0.0, 0.1, 0.1, 0.8, 0.9, 0.9], window=1)
    assert found == {"coincides": True, "drop_step": 25, "rise_step": 25, "drop_half_step": 30, "rise_half_step": 30}
    assert not coincidence(steps, drop, [0.0, 0.9, 0.9, 0.9, 0.9, 0.9], window=1)["coincides"]
    assert not coincidence(steps, [1.0] * 6, [0.0, 0.1, 0.1, 0.8, 0.9, 0.9], window=5)["coincides"]


@pytest.mark.slow
def test_induction_heads_form_and_the_loss_falls_with_them(tmp_path):
    from tutelage.pipeline.stages import launch

    path, _ = launch("induction", {"out": str(tmp_path)})
    summary = json.loads((path / "summary.json").read_text())
    assert summary["prefix"] > 0.8 and summary["coincides"] and summary["loss_repeated"] < 0.5 * summary["loss_first"]
    assert summary["best_layer"] == 1  # it reads what a head of the layer below has written
    assert (path / "figures" / "study.png").is_file()
    model = AutoModelForCausalLM.from_pretrained(path / "model")
    assert (model.model.layers[0].mlp.down_proj.weight == 0).all()  # attention alone did it
    losses = token_losses(model, repeated_tokens(range(64), 10, 25, 4, first=65, seed=0))
    assert float(losses[:, 25:].mean()) == pytest.approx(summary["loss_repeated"], abs=1e-3)


@pytest.mark.real
def test_the_heads_of_a_real_model(real_data, tmp_path):
    from tutelage.pipeline.stages import launch

    model = str(real_data / "weights" / "stories260K" / "hf")
    path, _ = launch("induction", {"model": model, "out": str(tmp_path)})
    heads = json.loads((path / "summary.json").read_text())["heads"]
    assert len(heads) == 40 and heads[0]["prefix"] > 3 * heads[20]["prefix"]
