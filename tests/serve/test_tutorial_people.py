"""docs/tutorial-people.md at smoke scale: its own commands in their order, the rankings made through the page's API."""

import json
import re
import shlex
import signal
from pathlib import Path

from tests.serve.pages import Client
from tutelage.schoolroom.rows import gold_reward
from tutelage.train.rewards import judge_rows
from tutelage.train.sources import prompts

PAGE = Path(__file__).parents[2] / "docs/tutorial-people.md"
SMALL = {
    "label": ["prompts=14", "max_tokens=8", "port=0", "overlap=1"],
    "reward": ["steps=3", "batch_size=4", "precision=fp32"],
    "ppo": ["updates=1", "prompts=24", "batch_size=8", "max_tokens=8", "ptx_batch=4", "precision=fp32"],
}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


def rank_all(address, name, taste):
    """Somebody who ranks by the world's own judge, with a taste of their own for length."""
    world = {row["prompt"]: row for row in prompts("schoolroom:demo", "train", 14, 0)}
    client = Client(address)
    client.join(name)
    while True:
        found = client("/label/api/next")[1]
        if found["item"] is None:
            if found["sampling"]["ended"]:
                assert found["sampling"]["error"] is None
                return
            continue
        item, texts = found["item"], [answer["text"] for answer in found["item"]["answers"]]
        scores = judge_rows(gold_reward, [world[item["prompt"][-1]["content"]]] * len(texts), texts)
        better = {a["id"]: score + taste * len(a["text"]) for a, score in zip(item["answers"], scores)}
        order = sorted(better, key=better.get, reverse=True)
        said = {"item": item["id"], "person": client.person["id"], "kind": "ranking", "token": str(item["id"]),
                "groups": [[a] for a in order], "seconds": 1.0}  # fmt: skip
        assert client("/label/api/judgements", said)[0] == 200


def test_the_tutorial_runs(chain, command, tmp_path):
    commands = [line for block in blocks("bash") for line in block.strip().splitlines()]
    verbs = [line.split()[1] for line in commands]
    assert verbs == ["run", "label", "label", "label", "reward", "ppo", "generate"]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/demo").symlink_to(chain)
    (guidelines,) = blocks("markdown")
    (tmp_path / "guidelines.md").write_text(guidelines, encoding="utf-8")
    for line in commands[1:]:
        words = shlex.split(line)[1:]
        serving = words[:2] == ["label", "schoolroom:demo"]
        more = SMALL.get(words[0], []) if words[0] != "label" or serving else []
        process = command(*words, *more, cwd=tmp_path)
        if serving:
            process.says("rank at http")
            address = re.search(r"rank at (http://[^/ ]+)/label", process.text())[1]
            for name, taste in (("Ann", 0.0), ("Bo", -0.01)):
                rank_all(address, name, taste)
            process.send(signal.SIGINT)
        assert process.wait() == 0, process.text()
        if words[:2] == ["label", "report"]:
            assert "Ann" in process.text() and "alpha" in process.text()
    rows = [json.loads(line) for line in (tmp_path / "rankings.jsonl").read_text().splitlines()]
    assert len({row["annotator"] for row in rows}) == 2 and "Ann" not in str(rows)
    summary = json.loads((tmp_path / "runs/reward_people/summary.json").read_text())
    assert 0 <= summary["accuracy"] <= 1
    assert (tmp_path / "runs/ppo_people/model/config.json").is_file()
