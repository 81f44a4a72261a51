"""Three tasks on real files, described to lm-eval and to us: the same log-likelihoods, the same answers.

Skipped where lm-eval is not installed.
"""

import json
import os

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install 'tutelage[eval]')")

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
SHOTS, LIMIT = 2, 25
YAML = """task: parity_{name}
dataset_path: json
dataset_kwargs: {{data_files: {{train: {train}, test: {test}}}}}
test_split: test
fewshot_split: train
fewshot_config: {{sampler: first_n}}
output_type: multiple_choice
doc_to_text: "{text}"
doc_to_choice: {choices}
doc_to_target: "{{{{label|int}}}}"
target_delimiter: " "
fewshot_delimiter: "\\n\\n"
metric_list: [{{metric: acc}}]
"""
TASKS = {  # our built-in descriptions, said again in lm-eval's words (ours take the blanks off the ends of an input)
    "sst2": ("Review: {{sentence|trim}}\\nSentiment:", ["negative", "positive"]),
    "mr": ("Review: {{sentence|trim}}\\nSentiment:", ["negative", "positive"]),
    "subj": ("Input: {{sentence|trim}}\\nType:", ["subjective", "objective"]),
}


@pytest.mark.real
@pytest.mark.parametrize("name", TASKS)
def test_log_likelihoods_and_answers_are_lm_eval_s(real_data, tmp_path, name):
    os.environ.update(OFFLINE, HF_HOME=str(tmp_path / "home"))
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from tutelage.engine import load
    from tutelage.icl.evaluate import Bench, Setting, demonstrations
    from tutelage.icl.prompts import Prompter
    from tutelage.icl.scoring import Job, score_jobs
    from tutelage.icl.tasks import load_task

    task, model = load_task(name, str(real_data)), str(real_data / "weights" / "stories260K" / "hf")
    text, choices = TASKS[name]
    fields = {"train": json.dumps(task.train), "test": json.dumps(task.test), "choices": json.dumps(choices)}
    (tmp_path / f"{name}.yaml").write_text(YAML.format(name=name, text=text, **fields))
    theirs = simple_evaluate(
        model="hf", model_args=f"pretrained={model},dtype=float32,add_bos_token=True", tasks=[f"parity_{name}"],
        num_fewshot=SHOTS, limit=LIMIT, bootstrap_iters=0, device="cpu",
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
    )  # fmt: skip
    samples = theirs["samples"][f"parity_{name}"]

    engine, queries = load(model, dtype="float32"), task.examples("test", LIMIT)
    bench = Bench(engine, task.format, task.minimal, task.examples("train", 10), queries)
    shown = demonstrations(bench, Setting(SHOTS, "fixed"), 0)[0]
    job = Job(Prompter(task.format), [shown], queries, [(0, q) for q in range(LIMIT)])
    ours = score_jobs(engine, [job])[0].logprob
    assert len(samples) == LIMIT
    for sample, mine in zip(sorted(samples, key=lambda s: s["doc_id"]), ours, strict=True):
        said = [float(r[0][0]) for r in sample["resps"]]
        np.testing.assert_allclose(mine, said, atol=1e-3)
        assert int(np.argmax(mine)) == int(np.argmax(said))
    right = np.mean([int(np.argmax(row)) == q.gold for row, q in zip(ours, queries)])
    assert right == pytest.approx(theirs["results"][f"parity_{name}"]["acc,none"])
