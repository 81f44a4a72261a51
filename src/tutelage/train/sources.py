"""Where text, rows and prompts come from: a file or folder, the embedded world as `schoolroom:demo`, or a Python
function as `rows.py:train`, which is called without arguments and gives rows."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from tutelage.core.errors import ConfigError, DataError
from tutelage.core.records import BadRows, LabelRow, PromptRow, TextRow, check_row, validate_rows
from tutelage.schoolroom import World
from tutelage.schoolroom.rows import gold_reward, item_from_row, prompt_rows, sft_rows
from tutelage.text.chat import as_messages
from tutelage.text.corpus import Meter, corpus_files, read_rows, read_texts
from tutelage.text.hub_data import PREFIX, hub_pieces, hub_rows
from tutelage.text.parts import Part, Side
from tutelage.text.rankings import as_ranking, join_annotators
from tutelage.train.rewards import Reward, as_function, load_function

Row = dict[str, Any]
T = TypeVar("T")
TENTH = 10
"""One prompt in this many is held out."""


def is_world(data: str) -> bool:
    """Whether `data` names the embedded world."""
    return data.startswith("schoolroom:")


def is_function(data: str) -> bool:
    """Whether `data` names a Python function, as `file.py:function`."""
    return not is_world(data) and re.search(r"\.py:\w+$", data) is not None


def world(data: str, seed: int = 0) -> World:
    """The world named by `schoolroom:demo` or `schoolroom:full`."""
    return World(seed=seed, families=data.split(":", 1)[1])


def texts(
    data: str,
    split: str,
    limit: int,
    phase: float = 0.0,
    stream: int = 0,
    bad: BadRows | None = None,
    meter: Meter | None = None,
) -> Iterator[str]:
    """At most `limit` documents of `data`. Those of a file or function are all given: the caller divides them. `meter`
    is told how far the reading of files is."""
    if is_world(data):
        yield from islice(world(data).documents(split, stream=stream, phase=phase), limit)
        return
    bad = bad or BadRows()
    if is_function(data):
        yield from (row["text"] for _, row in islice(validate_rows(_rows(data, bad), TextRow, bad), limit))
        return
    # A novel is one file: its paragraphs are the units that the held-out rule divides.
    faults: list[str] = []
    found = read_texts(data, document="paragraph", on_bad_row=_policy(bad), report=faults, meter=meter)
    yield from islice(_reporting(found, faults, bad), limit)


def text_parts(data: str, side: Side | None) -> list[Part]:
    """The files of a corpus, or the parts of a hub's data set (`hf:name[:config][:split]`), or all that a function
    gives: what one worker reads at a time. `side`: of all its documents, None where they are to be divided."""
    if data.startswith(PREFIX):
        return [Part(f"{data} {n}", partial(_hub_texts, data, n), side=side) for n in range(hub_pieces(data))]
    if is_function(data):
        return [Part(data, partial(texts, data, "all", sys.maxsize), side=side)]
    files = corpus_files(data)
    return [Part(str(f), partial(texts, str(f), "all", sys.maxsize), f.stat().st_size, side) for f in files]


def _hub_texts(data: str, part: int, bad: BadRows, meter: Meter | None = None) -> Iterator[str]:
    for _, row in validate_rows(hub_rows(data, part), TextRow, bad):
        if row["text"].strip():
            yield row["text"]


def conversations(data: str, split: str, limit: int, seed: int, bad: BadRows | None = None) -> list[Row]:
    """At most `limit` rows for SFT, each with an assistant's answer.

    `split`: "train", "heldout", or "all". Of other data the split goes by the conversation's first user message, so
    that the same question never stands on both sides. Raises DataError naming file and line, or saying that nothing is
    left.
    """
    if is_world(data):
        return list(sft_rows(world(data), limit, split, seed))
    bad = bad or BadRows()
    revised = Path(data) / "sft.jsonl"  # of a run of `constitution`
    data = str(revised) if revised.is_file() else data
    rows = []
    for where, row in islice(_rows(data, bad), _enough(limit)):
        try:
            messages = as_messages(row)
            if not any(m["role"] == "assistant" for m in messages):
                raise DataError("no assistant message; expected at least one answer to learn")
        except DataError as error:
            bad(f"{where}: {error}")
            continue
        rows.append(row)
    return nonempty(_split(rows, split, _question)[:limit], data)


def prompts(data: str, split: str, limit: int, seed: int, bad: BadRows | None = None) -> list[Row]:
    """At most `limit` rows with "prompt" and the columns that reach the reward.

    `split`: "train", "heldout", or "all". A tenth of a file's or function's prompts is held out by a hash of the
    prompt: equal prompts stay on one side, whatever the order of the rows. Raises DataError naming file and line.
    """
    if is_world(data):
        return list(prompt_rows(world(data), limit, split, seed))
    bad = bad or BadRows()
    rows = [row for _, row in islice(validate_rows(_rows(data, bad), PromptRow, bad), _enough(limit))]
    nonempty(rows, data)
    found = _split(rows, split, lambda row: row["prompt"])[:limit]
    if not found:
        raise DataError(f"{data}: one prompt alone; a held-out prompt needs at least 2 different ones")
    return found


def truth(data: str, gold: str | Reward | None) -> Reward | None:
    """The function that knows how good an answer is: the one given, else the embedded world's program, else none."""
    if gold is None:
        return gold_reward if is_world(data) else None
    return as_function(gold)


def demonstration(row: Row) -> str | None:
    """A good answer to the row's prompt, where it has one: the world's, or the column "demonstration" or
    "completion"."""
    found = item_from_row(row).good if "item" in row else row.get("demonstration", row.get("completion"))
    return found if isinstance(found, str) else None


def rankings(
    data: str, held_out: str | None = None, bad: BadRows | None = None, joined: bool = True
) -> tuple[list[Row], list[Row]]:
    """(training, held-out) preferences of `data` as {"prompt", "responses", "ranking"[, "p_better"]}.

    Any shape that text.rankings reads. `data` is a run directory of `rank` (which has both parts), a file or a folder;
    of these a tenth is held out by a hash of the prompt's first user message, or `held_out` names other rows, whose
    questions then leave the training rows. Several annotators' rankings of the same responses are one row with soft
    labels, or (`joined` false) a row each. Raises DataError naming file and line, or saying that a side is empty.
    """
    return _divided(data, held_out, bad or BadRows(), partial(read_rankings, joined=joined))


def thumbs(data: str, held_out: str | None = None, bad: BadRows | None = None) -> tuple[list[Row], list[Row]]:
    """(training, held-out) rows {"prompt", "completion", "label"} for KTO, divided as `rankings` are. Of a ranking the
    best responses count as a thumb up, the worst as a thumb down, and those between are left out."""
    return _divided(data, held_out, bad or BadRows(), _thumbs)


def _divided(
    data: str, held_out: str | None, bad: BadRows, read: Callable[[str, BadRows], list[Row]]
) -> tuple[list[Row], list[Row]]:
    def asked(row: Row) -> Any:
        return _question({"prompt": row["prompt"]})

    if held_out is not None:
        held = read(held_out, bad)
        apart = set(map(asked, held))
        rows = [row for row in read(data, bad) if asked(row) not in apart]
    elif parts := _rank_parts(data):
        rows, held = (read(part, bad) for part in parts)
    else:
        found = read(data, bad)
        rows, held = (_split(found, split, asked) for split in ("train", "heldout"))
    if not rows:
        raise DataError(f"{data}: every question also stands in held_out={held_out}; expected others to train on")
    if not held:
        raise DataError(f"{data}: one prompt alone, so none can be held out; give held_out=FILE with other prompts")
    return rows, held


def _rank_parts(data: str) -> tuple[str, str] | None:
    """The two files of a finished `rank`; None for other data."""
    folder = Path(data)
    parts = folder / "rankings.jsonl", folder / "heldout.jsonl"
    if all(part.is_file() for part in parts):
        return str(parts[0]), str(parts[1])
    if (folder / "manifest.json").is_file():
        raise DataError(f"{data}: a run directory without rankings.jsonl and heldout.jsonl; expected a finished `rank`")
    return None


def read_rankings(data: str, bad: BadRows, joined: bool = True) -> list[Row]:
    """All preferences of `data` (of a run of `rank`, both parts), as `rankings` gives them."""
    rows = []
    for part in _rank_parts(data) or (data,):
        for where, row in _rows(part, bad):
            try:
                rows.append(as_ranking(row, where))
            except DataError as fault:
                bad(fault)
    nonempty(rows, data)
    return join_annotators(rows) if joined else rows


def _thumbs(data: str, bad: BadRows) -> list[Row]:
    rows: list[Row] = []
    for part in _rank_parts(data) or (data,):
        for where, row in _rows(part, bad):
            try:
                rows += _thumbed(row, where)
            except DataError as fault:
                bad(fault)
    return nonempty(rows, data)


def _thumbed(row: Row, where: str) -> list[Row]:
    if "label" in row:
        check_row(row, LabelRow, where)
        return [{**row, "completion": as_messages(row)[-1]["content"]}]
    ranked = as_ranking(row, where)
    kept = {k: v for k, v in ranked.items() if k not in ("responses", "ranking", "p_better")}
    ends = ((ranked["ranking"][0], True), (ranked["ranking"][-1], False))
    if len(ranked["ranking"]) < 2:
        return []  # all tied: neither good nor bad
    return [{**kept, "completion": ranked["responses"][i], "label": label} for group, label in ends for i in group]


def nonempty(rows: list[Row], data: str) -> list[Row]:
    """The rows, or DataError when there are none."""
    if not rows:
        raise DataError(f"{data}: no rows; expected at least one")
    return rows


def place_of(prompt: Any, data: str) -> str:
    """"file:line" of a prompt in `data`, read again for an error message; of the embedded world the prompt itself."""
    if not is_world(data):
        for where, row in _rows(data, BadRows("skip")):
            if row.get("prompt") == prompt:
                return where
    return f"{data}: {str(prompt)[:60]!r}"


def _enough(limit: int) -> int:
    """Rows to read for `limit` of either split; a small file is read whole, so both splits see the same prompts."""
    return 2 * TENTH * limit + 10_000


def _policy(bad: BadRows) -> Any:
    return bad.policy


def _rows(data: str, bad: BadRows) -> Iterator[tuple[str, Row]]:
    if is_function(data):
        yield from _called(data)
        return
    faults: list[str] = []
    yield from _reporting(read_rows(data, _policy(bad), faults), faults, bad)


def _called(data: str) -> Iterator[tuple[str, Row]]:
    """The rows that a function gives; DataError where it raises or gives something else."""
    found, n = load_function(data), 0
    try:
        for n, row in enumerate(found(), 1):
            if not isinstance(row, dict):
                raise DataError(f"a {type(row).__name__}; expected a dictionary")
            yield f"{data}: row {n}", row
    except DataError as error:
        raise DataError(f"{data}: row {n}: {error}") from None
    except Exception as error:  # of the user's function, which may do anything
        raise DataError(f"{data}: {type(error).__name__} after {n} rows: {error}") from error


def _reporting(items: Iterator[Any], faults: list[str], bad: BadRows) -> Iterator[Any]:
    """Pass the items on; the faults that their reader collected meanwhile go to `bad`."""
    for item in items:
        while faults:
            bad(faults.pop(0))
        yield item
    while faults:
        bad(faults.pop(0))


def _question(row: Row) -> Any:
    messages = as_messages(row)
    return next((m["content"] for m in messages if m["role"] == "user"), messages[0]["content"])


def divide(rows: list[T], key: Callable[[T], Any]) -> tuple[list[T], list[T]]:
    """(training, held-out) rows: a tenth by a hash of `key(row)`, so that equal keys stay on one side."""
    train, held = (_split(rows, split, key) for split in ("train", "heldout"))
    return train, held


def _hash(key: Any) -> int:
    text = key if isinstance(key, str) else json.dumps(key, sort_keys=True, ensure_ascii=False)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _split(rows: list[T], split: str, key: Callable[[T], Any]) -> list[T]:
    """The rows of one split. Where no hash says "held out" (a small file), the smallest hash of several does."""
    if split == "all":
        return rows
    if split not in ("train", "heldout"):
        raise ConfigError(f"split={split!r}: expected train, heldout or all")
    hashes = [_hash(key(row)) for row in rows]
    held = {h for h in hashes if h % TENTH == 0}
    if len(held) == len(set(hashes)) or not held:  # all or none: divide at one prompt, if there are several
        held = {min(hashes)} if len(set(hashes)) > 1 else set()
    return [row for row, h in zip(rows, hashes) if (h in held) == (split == "heldout")]
