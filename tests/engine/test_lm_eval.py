"""lm-eval's tasks through our engine give the numbers of lm-eval's own backend. Skipped where lm-eval is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install 'tutelage[eval]')")

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
ROWS: dict[str, list[dict[str, Any]]] = {
    "choice": [
        {"question": "the cat sat on", "choices": [" the mat", " tea", " a dog ran"], "answer": 0},
        {"question": "do you like tea? ", "choices": ["yes", "no way", "yes, very much"], "answer": 2},
        {"question": "one", "choices": [" two", " cat", " one"], "answer": 0},
        {"question": "the dog", "choices": [" ran away and the cat sat on the mat" * 3, " ran"], "answer": 0},
        {"question": "", "choices": ["one two", "the cat"], "answer": 1},
    ],
    "write": [
        {"question": q, "answer": " the mat"}
        for q in ("the cat sat on", "do you like", "one two one two", "the cat sat on the mat and the dog ran " * 4)
    ],
    "text": [
        {"text": "the cat sat on the mat and the dog ran away. " * 9},
        {"text": "do you like tea?"},
        {"text": "yes, I like it very much " * 4},
    ],
}
KINDS = {
    "choice": (
        "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: choices\ndoc_to_target: answer\n"
        "fewshot_split: test\nfewshot_config: {sampler: first_n}\n"
        "metric_list: [{metric: acc}, {metric: acc_norm}]\n"
    ),
    "write": (
        "output_type: generate_until\ndoc_to_text: '{{question}}'\ndoc_to_target: answer\n"
        "generation_kwargs: {until: ['a', \"\\n\\n\"], max_gen_toks: 14}\nmetric_list: [{metric: exact_match}]\n"
    ),
    "text": (
        "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]\n"
    ),
}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}bot:{% endif %}"
)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three tasks with their data: tiny_choice, tiny_write, tiny_text."""
    folder = tmp_path_factory.mktemp("tasks")
    os.environ.update(OFFLINE, HF_HOME=str(folder / "home"))  # read when lm-eval first imports datasets
    for name, rows in ROWS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        head = f"task: tiny_{name}\ndataset_path: json\ntest_split: test\n"
        files = f"dataset_kwargs: {{data_files: {{test: {json.dumps(str(data))}}}}}\n"
        (folder / f"{name}.yaml").write_text(head + files + KINDS[name])
    return folder


def save(folder: Path, tokenizer: Any, config: Any, kind: str = "AutoModelForCausalLM") -> Path:
    torch.manual_seed(0)
    model = getattr(transformers, kind).from_config(config)
    with torch.no_grad():  # sharper logits, so that greedy choices are clear
        for name, weight in model.named_parameters():
            if "norm" not in name.lower() and weight.ndim > 1:
                weight.mul_(4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config_of(family: str) -> Any:
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    size = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **ids}
    more = {"intermediate_size": 48, "max_position_embeddings": 64}
    return {
        "qwen3": lambda: transformers.Qwen3Config(**size, **more, num_key_value_heads=1, head_dim=16),
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=320, n_embd=32, n_layer=2, n_head=2, n_positions=64, **ids
        ),
        "bert": lambda: transformers.BertConfig(**size, **more),
        "t5": lambda: transformers.T5Config(
            vocab_size=320, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=2, pad_token_id=0, eos_token_id=2,
            decoder_start_token_id=0,
        ),
    }[family]()  # fmt: skip


@pytest.fixture(scope="module", params=["qwen3", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Any) -> Path:
    tokenizer = make_tokenizer({"qwen3": "<s> $A", "gpt2": "$A"}[request.param])
    tokenizer.chat_template = TEMPLATE
    return save(tmp_path_factory.mktemp(request.param), tokenizer, config_of(request.param))


def evaluate(model: str, folder: Path, tasks: Path, names: str, arguments: dict[str, Any], **more: Any) -> Any:
    import lm_eval
    from lm_eval.tasks import TaskManager

    import tutelage.lm_eval.model  # noqa: F401

    return lm_eval.simple_evaluate(
        model=model, model_args={"pretrained": str(folder), **arguments}, tasks=[f"tiny_{n}" for n in names.split()],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False), device="cpu", log_samples=True,
        bootstrap_iters=0, **more,
    )  # fmt: skip


def flat(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [x for v in value for x in flat(v)]
    return [value]


def same(folder: Path, tasks: Path, names: str, arguments: dict[str, Any] | None = None, **more: Any) -> Any:
    """Run both models; responses and metrics must agree to 1e-4. Returns ours."""
    theirs = evaluate("hf", folder, tasks, names, arguments or {}, **more)
    ours = evaluate("tutelage", folder, tasks, names, arguments or {}, **more)
    for task, samples in theirs["samples"].items():
        assert samples
        for a, b in zip(samples, ours["samples"][task], strict=True):
            assert a["arguments"] == b["arguments"]
            for x, y in zip(flat(a["resps"]), flat(b["resps"]), strict=True):
                assert type(x) is type(y)
                assert x == (pytest.approx(y, abs=1e-4) if isinstance(y, float) else y)
    for task, metrics in theirs["results"].items():
        for name, value in metrics.items():
            other = ours["results"][task][name]
            assert other == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), name
    return ours


def test_the_numbers_are_those_of_lm_evals_own_backend(folder: Path, tasks: Path) -> None:
    made = same(folder, tasks, "choice write text")
    texts = flat([s["resps"] for s in made["samples"]["tiny_write"]])
    assert len(set(texts)) > 1 and all("a" not in text for text in texts)
    assert made["config"]["model_num_parameters"] > 0


def test_few_shots_and_arguments(folder: Path, tasks: Path) -> None:
    same(folder, tasks, "choice", num_fewshot=2, limit=3, batch_size=2)
    same(folder, tasks, "choice write text", {"add_bos_token": True, "max_length": 48})
    same(folder, tasks, "choice text", {"prefix_token_id": 7, "add_bos_token": False})
    same(folder, tasks, "write", gen_kwargs="repetition_penalty=1.5,max_gen_toks=9")


def test_chat_templates(folder: Path, tasks: Path) -> None:
    more = {"apply_chat_template": True, "fewshot_as_multiturn": True, "num_fewshot": 1}
    made = same(folder, tasks, "choice write", {"max_length": 64}, **more, system_instruction="be kind")
    prompt = made["samples"]["tiny_write"][0]["arguments"][0][0]
    assert prompt.startswith("<s>system: be kind\nuser: ") and prompt.endswith("bot:")


def test_encoder_decoders_and_masked_models(tasks: Path, tmp_path: Path, make_tokenizer: Any) -> None:
    from tutelage.core.errors import ConfigError
    from tutelage.engine import load

    t5 = save(tmp_path / "t5", make_tokenizer("$A </s>"), config_of("t5"), "AutoModelForSeq2SeqLM")
    same(t5, tasks, "choice text", num_fewshot=0)
    bert = save(tmp_path / "bert", make_tokenizer("<s> $A </s>"), config_of("bert"), "AutoModelForMaskedLM")
    made = evaluate("tutelage", bert, tasks, "choice", {}, limit=3)
    samples = made["samples"]["tiny_choice"]
    pairs = [tuple(pair) for sample in samples for pair in sample["arguments"]]
    assert pairs[0] == ("the cat sat on", "  the mat")
    expected = [s.logprob for s in load(bert, device="cpu").score(pairs)]
    found = [pair[0][0] for sample in samples for pair in sample["resps"]]
    assert found == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ConfigError, match="masked LM"):
        evaluate("tutelage", bert, tasks, "text", {})


def test_thoughts_and_stop_strings(folder: Path, tasks: Path) -> None:
    from tutelage.engine import SamplingParams, load

    asked = {"until": ["</s>", "<pad>"], "max_gen_toks": 10}
    texts = flat([s["resps"] for s in same(folder, tasks, "write", gen_kwargs=asked)["samples"]["tiny_write"]])
    written = load(folder, device="cpu").generate(ROWS["write"][0]["question"], SamplingParams(10, temperature=0))[0]
    letter = next(c for c in "".join(texts) if c.isalpha())
    for end in (written.completions[0].tokens[3], letter):  # a token or a string
        made = same(folder, tasks, "write", {"think_end_token": end}, gen_kwargs=asked)
        assert flat([s["resps"] for s in made["samples"]["tiny_write"]]) != texts


def test_chunks_and_the_response_cache(
    folder: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tutelage.lm_eval.model as plugin

    whole = evaluate("tutelage", folder, tasks, "choice text", {})
    monkeypatch.setattr(plugin, "CHUNK", 3)
    first = evaluate("tutelage", folder, tasks, "choice text", {}, use_cache=str(tmp_path / "cache"))
    monkeypatch.setattr(plugin.EngineLM, "_loglikelihood_tokens", None)  # the second time nothing is computed
    second = evaluate("tutelage", folder, tasks, "choice text", {}, use_cache=str(tmp_path / "cache"))
    for made in (first, second):
        for task, samples in whole["samples"].items():
            ours = [x for s in made["samples"][task] for x in flat(s["resps"])]
            assert ours == pytest.approx([x for s in samples for x in flat(s["resps"])], abs=1e-4)


def test_bad_arguments_are_named(folder: Path, tasks: Path) -> None:
    from tutelage.core.errors import ConfigError, DataError

    bad: list[tuple[dict[str, Any], str]] = [
        ({"parallelize": True}, "parallelize"),
        ({"max_length": 65}, "max_length=65 is more than the model's 64"),
        ({"mixed_precision_dtype": "float16"}, "must be bfloat16"),
    ]
    for arguments, words in bad:
        with pytest.raises(ConfigError, match=words):
            evaluate("tutelage", folder, tasks, "choice", arguments)
    with pytest.raises(ConfigError, match="num_beams=4 is not supported"):
        evaluate("tutelage", folder, tasks, "write", {}, gen_kwargs="num_beams=4")
    with pytest.raises(ConfigError, match="max_gen_toks=64 leaves no room"):
        evaluate("tutelage", folder, tasks, "write", {}, gen_kwargs="max_gen_toks=64")
    with pytest.raises(DataError, match="no model in"):
        evaluate("tutelage", folder / "absent", tasks, "choice", {})


def test_sampling_follows_lm_evals_seed(folder: Path, tasks: Path) -> None:
    kwargs = {"gen_kwargs": "do_sample=True,temperature=1.5,top_p=0.95,max_gen_toks=6", "limit": 3}
    made = [
        flat([s["resps"] for s in evaluate("tutelage", folder, tasks, "write", {}, **kwargs, torch_random_seed=n)[
            "samples"]["tiny_write"]])
        for n in (1, 1, 2)
    ]  # fmt: skip
    assert made[0] == made[1] != made[2]


def test_the_command_line(tasks: Path, tmp_path: Path, make_tokenizer: Any) -> None:
    save(tmp_path / "run" / "model", make_tokenizer("$A"), config_of("gpt2"))
    words = [
        "run", "--model", "tutelage", "--model_args", f"pretrained={tmp_path / 'run'},max_rows=8", "--tasks",
        "tiny_choice,tiny_write", "--include_path", tasks, "--batch_size", "auto", "--limit", "2",
        "--output_path", tmp_path / "out.json", "--device", "cpu",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tutelage.lm_eval", *map(str, words)], capture_output=True, text=True, timeout=300,
        env={**os.environ, **OFFLINE}, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(next(tmp_path.rglob("out_*.json")).read_text())["results"]
    assert set(results) == {"tiny_choice", "tiny_write"} and "tiny_choice" in done.stdout
    words[4] = f"pretrained={tmp_path / 'nothing'}"
    done = subprocess.run(
        [sys.executable, "-m", "tutelage.lm_eval", *map(str, words)], capture_output=True, text=True, timeout=300,
        env={**os.environ, **OFFLINE}, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1 and "error: no model in" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.real
def test_real_stories(real_data: Path, tasks: Path) -> None:
    stories = real_data / "weights" / "stories260K" / "hf"
    made = same(stories, tasks, "choice write text", gen_kwargs="max_gen_toks=24")
    same(stories, tasks, "choice", num_fewshot=2)
    assert 0 < made["results"]["tiny_text"]["bits_per_byte,none"] < 8
