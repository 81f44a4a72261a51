"""docs/labelling.md: its code runs, and rankings from a store train a reward model."""

import json
import re
from pathlib import Path

from tutelage.feedback.store import Store
from tutelage.pipeline.stages import launch, read_summary

PAGE = (Path(__file__).parents[2] / "docs" / "labelling.md").read_text(encoding="utf-8")


def test_the_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S):
        exec(block, space)
    assert space["rows"][0]["ranking"] == [[0], [1]]
    shown = json.loads(re.search(r"^```json\n(.*?)^```", PAGE, re.M | re.S)[1])
    assert set(shown) == set(space["rows"][0])


def test_rankings_from_a_store_train_a_reward_model(chain, tmp_path):
    store = Store(str(tmp_path / "labels.db"))
    store.add_batch("b", per_item=2)
    rows = [json.loads(line) for line in (chain / "rank/rankings.jsonl").read_text().splitlines()]
    store.add_items("b", [{"prompt": row["prompt"], "responses": row["responses"]} for row in rows])
    for name in ("Ann", "Bob"):
        who = store.person_of(store.add_person(name)).id
        while item := store.next_item("b", who):
            order = sorted(item.answers, key=lambda answer: (len(answer.text), name == "Bob" and answer.id))
            store.record(who, item.id, "ranking", [[answer.id] for answer in order])
    out = tmp_path / "rankings.jsonl"
    out.write_text("".join(json.dumps(row) + "\n" for row in store.export("rankings")))
    values = {"model": str(chain / "sft"), "data": str(out), "out": str(tmp_path / "reward"), "precision": "fp32"}
    path, ran = launch("reward", {**values, "steps": 2, "batch_size": 4})
    summary = read_summary(path)
    assert ran and summary["train_prompts"] + summary["held_prompts"] == len(rows)
