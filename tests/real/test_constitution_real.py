"""Constitutional AI on real red-team prompts, the paper's principles and examples, with a small real model and with a
server: the whole loop runs; what a preference model says before and after is reported with its intervals."""

import json
from http.server import ThreadingHTTPServer

import pytest

from tests.servers import JsonHandler, serving
from tutelage.engine import SamplingParams, load
from tutelage.feedback.constitution import load_constitution
from tutelage.pipeline.stages import launch, read_summary

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def red_team(real_data, tmp_path_factory):
    """60 questions of dangerousqa, and 60 short harmless instructions."""
    out = tmp_path_factory.mktemp("prompts")
    asked = json.loads((real_data / "cai/red_instruct/dangerousqa.json").read_text())
    lines = (real_data / "instr/alpaca_seed/seed_tasks.jsonl").read_text().splitlines()
    harmless = [text for text in (json.loads(line)["instruction"] for line in lines) if len(text) < 100]
    files = {"red": asked[:60], "plain": harmless[:60]}
    for name, texts in files.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return out


def test_the_papers_files_load_whole(real_data):
    c = load_constitution(str(real_data / "cai/constitutional/prompts"))
    assert (len(c.principles), len(c.preferences)) == (16, 16)
    assert (len(c.examples), len(c.choices), len(c.reasonings)) == (5, 5, 6)
    assert c.principles[0].critique.startswith("Identify specific ways")
    assert not any("Request:" in p.critique + p.revision or p.revision.endswith("Revision:") for p in c.principles)
    assert all(text.count("CritiqueRequest:") == text.count("RevisionRequest:") > 0 for text in c.examples)
    assert all("Options" not in text for text in c.preferences)


def test_the_whole_loop_with_a_small_real_model(real_data, red_team, tmp_path):
    """A model of 0.26M parameters that has read children's stories: what it says is no answer to anything. That all of
    it runs on real prompts, in the paper's format, is what is tested; the scores say how little they mean."""
    model = str(real_data / "weights/stories260K/hf")
    paper = str(real_data / "cai/constitutional/prompts")
    red, plain = str(red_team / "red.jsonl"), str(red_team / "plain.jsonl")
    hh = str(real_data / "pref/hh_rlhf/split/dev.jsonl")

    def run(kind, name, **values):
        return launch(kind, {**values, "out": str(tmp_path / name)})[0]

    said = {"constitution": paper, "style": "text", "max_tokens": 16, "examples": 1}
    run("reward", "pm", model=model, data=hh, rows=60, held_rows=20, steps=3, batch_size=8, features=False)
    judge = {"judge": str(tmp_path / "pm"), "data": red, "helpful": plain}
    run("conduct", "before", model=model, prompts=30, split="all", style="text", max_tokens=16, **judge)
    run("constitution", "cai", model=model, prompts=20, rounds=2, critique_tokens=16, helpful_prompts=10, measure=5,
        **judge, **said)  # fmt: skip
    made = [json.loads(line) for line in (tmp_path / "cai/revisions.jsonl").read_text().splitlines()]
    assert len(made) == 20 and sum("error" not in row for row in made) >= 18
    principles = {p.name for p in load_constitution(paper).principles}
    assert {m["principle"] for row in made for m in row["rounds"]} <= principles
    assert len(json.loads((tmp_path / "cai/summary.json").read_text())["by_round"]) == 3
    run("sft", "sl", model=model, data=str(tmp_path / "cai"), steps=3, batch_size=8)
    sl = {"model": str(tmp_path / "sl")}
    for label in ("choice", "reasoning"):
        run("feedback", label, **sl, judge=model, data=red, prompts=12, held_out=4, label=label, reason_tokens=16,
            mix=hh, mix_rows=20, **said)  # fmt: skip
    run("reward", "reward", **sl, data=str(tmp_path / "choice"), steps=3, batch_size=8, features=False)
    run("ppo", "rl", **sl, reward=str(tmp_path / "reward"), data=red, updates=1, batch_size=8, minibatches=2,
        max_tokens=8)  # fmt: skip
    run("conduct", "after", model=str(tmp_path / "rl"), prompts=30, split="all", max_tokens=16, **judge)
    for name in ("before", "after"):
        found = read_summary(tmp_path / name)
        assert found["score_low"] < found["score"] < found["score_high"] and found["score_n"] == 30
        print(name, {k: round(v, 3) for k, v in found.items()})


class Stories(JsonHandler):
    """An OpenAI-compatible server over a real model: completions, chat by completing the text, a letter's log-probs."""

    engine = None

    def do_GET(self):
        self.answer({"data": [{"id": "stories"}]})

    def do_POST(self):
        body = self.body()
        text = body["prompt"] if "prompt" in body else "\n".join(m["content"] for m in body["messages"])
        n, tokens = body.get("n", 1), min(body["max_tokens"], 24)
        params = SamplingParams(tokens, body.get("temperature", 1.0), n=n, seed=body.get("seed", 0))
        (output,) = self.engine.generate([text[-300:]], params)
        choices = []
        for completion in output.completions:
            choice = {"message": {"content": completion.text}, "text": completion.text, "finish_reason": "length"}
            if body.get("logprobs"):
                scores = self.engine.score([(text[-300:], " (A)"), (text[-300:], " (B)")])
                top = [{"token": letter, "logprob": s.logprob} for letter, s in zip("AB", scores)]
                choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
            choices.append(choice)
        self.answer({"choices": choices})


def test_the_loop_with_a_server(real_data, red_team, tmp_path):
    Stories.engine = load(real_data / "weights/stories260K/hf", device="cpu")
    values = {"constitution": "general", "data": str(red_team / "red.jsonl"), "prompts": 4, "max_tokens": 12}
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Stories)) as url:
        revising = {"rounds": 1, "critique_tokens": 12, "out": str(tmp_path / "cai")}
        launch("constitution", {**values, **revising, "model": url})
        launch("feedback", {**values, "model": url, "held_out": 2, "out": str(tmp_path / "feedback")})
        launch("conduct", {"model": url, "data": values["data"], "helpful": str(red_team / "plain.jsonl"), "prompts": 4,
                           "max_tokens": 12, "out": str(tmp_path / "conduct")})  # fmt: skip
    assert len((tmp_path / "cai/sft.jsonl").read_text().splitlines()) >= 3
    found = [json.loads(line) for line in (tmp_path / "feedback/rankings.jsonl").read_text().splitlines()]
    assert found and all(0.5 <= row["p_chosen"] <= 1 for row in found)
    assert read_summary(tmp_path / "conduct")["harmful_n"] == 4
