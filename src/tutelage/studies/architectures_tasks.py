"""Questions of the embedded world as tasks of the in-context-learning toolkit.

"asked": the passage with its question, in the documents' own form, so that a model needs no demonstrations.
"hidden": the passage alone. Nothing but demonstrations tells which of its two or three facts is meant.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from tutelage.core.atomic import write_atomic
from tutelage.schoolroom import World
from tutelage.schoolroom.item import Item

FAMILIES = ("where", "price", "colour", "sentiment")
"""Families that are evaluated: their answers come from lists, which are the options."""
OTHERS = ("who", "politeness", "opposite", "plural", "addition")
"""What instruction tuning learns beside them."""
FORMS = ("asked", "hidden")
FORMAT = {"input": "{text}", "output": " answer: {answer}.", "separator": " "}


def write_tasks(folder: Path, train: int, test: int, seed: int) -> dict[str, list[str]]:
    """Descriptions (.toml) with their data in the folder: of the evaluated families in each form, and, under
    "instructions", of the others as they are asked. `train`, `test`: examples of each."""
    out: dict[str, list[str]] = {"asked": [], "hidden": [], "instructions": []}
    for name in (*FAMILIES, *OTHERS):
        world = World(seed=seed, families=[name])
        train_items, test_items = _items(world, "train", train), _items(world, "heldout", test)
        words = sorted({item.answer for item in [*train_items, *test_items]})
        for form in FORMS if name in FAMILIES else FORMS[:1]:
            task: dict[str, Any] = {"name": f"{name}-{form}", "labels": {word: word for word in words}}
            for split, items in (("train", train_items), ("test", test_items)):
                task[split] = f"{name}-{form}-{split}.jsonl"
                rows = [{"text": _text(item, form), "label": item.answer} for item in items]
                write_atomic(folder / task[split], "".join(json.dumps(row) + "\n" for row in rows))
            path = folder / f"{name}-{form}.toml"
            write_atomic(path, _toml(task))
            out[form if name in FAMILIES else "instructions"].append(str(path))
    return out


def _items(world: Any, split: str, count: int) -> list[Item]:
    """The first different items of a split, as many as there are up to `count`."""
    found: dict[str, Item] = {}
    for item in islice(world.items(split, stream=11), 20 * count):
        found.setdefault(item.prompt, item)
        if len(found) == count:
            break
    return list(found.values())


def _text(item: Item, form: str) -> str:
    return item.passage if form == "hidden" else f"{item.passage} question: {item.meta['question']}".strip()


def _toml(task: dict[str, Any]) -> str:
    labels = ", ".join(f"{json.dumps(word)} = {json.dumps(word)}" for word in task["labels"])
    lines = [f"{key} = {json.dumps(task[key])}" for key in ("name", "train", "test")]
    format_ = [f"{key} = {json.dumps(value)}" for key, value in FORMAT.items()]
    return "\n".join([*lines, f"labels = {{ {labels} }}", "[format]", *format_]) + "\n"


