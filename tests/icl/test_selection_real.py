"""SST-2 and the real stories260K checkpoint: neighbours by words and by hidden states."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.icl.selection_helpers import review
from tutelage.core.stats import wilson
from tutelage.engine import load
from tutelage.icl.selection import SELECTORS, SelectionContext, demonstrations
from tutelage.icl.selection.embed import hidden_states

pytestmark = pytest.mark.real
SHOTS = 8


def test_neighbours_in_sst2(real_data: Path) -> None:
    folder = real_data / "icl" / "ordered_prompt" / "sst2"  # test.jsonl has GLUE's placeholders for labels: all are 0

    def read(name: str) -> list:
        rows = [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        return [review(row["sentence"].strip(), int(row["label"])) for row in rows]

    pool, queries = read("dev.jsonl"), read("dev_subsample.jsonl")  # the queries stand in the pool as well
    engine = load(real_data / "weights" / "stories260K" / "hf")
    chosen = {
        by: SELECTORS["knn"](pool, queries, SHOTS, SelectionContext(engine, options={"by": by}), 0)
        for by in ("bm25", "hidden")
    }
    for selection in chosen.values():
        for query, shown in zip(queries, demonstrations(pool, selection)):
            assert len({e.text for e in shown} - {query.text}) == SHOTS

    # reviews with the same words agree in sentiment more often than chance
    pairs = [(q.gold, e.gold) for q, shown in zip(queries, demonstrations(pool, chosen["bm25"])) for e in shown]
    low, _ = wilson(sum(a == b for a, b in pairs), len(pairs))
    assert low > 0.5

    # states computed in batches rank as states computed one text at a time
    alone = np.concatenate([hidden_states(engine, [e.text]) for e in pool])
    unit = alone / np.linalg.norm(alone, axis=1, keepdims=True)
    place = {e.text: i for i, e in enumerate(pool)}
    for query, one in zip(queries[:50], chosen["hidden"]):
        cosines = unit @ unit[place[query.text]]
        cosines[place[query.text]] = -np.inf
        assert cosines[one].min() >= np.sort(cosines)[-SHOTS] - 1e-5
