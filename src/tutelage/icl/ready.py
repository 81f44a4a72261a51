"""Rows to which templates have been applied already (P3, with which T0 was trained), as tasks.

A file holds one template of one data set: rows {"prompt", "completion"}. Its name begins with the data set's, as in
promptsource: `ag_news_classify.jsonl`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tutelage.core.errors import DataError
from tutelage.icl.prompts import Format
from tutelage.icl.tasks import Task, as_answer, rows_of
from tutelage.text.corpus import corpus_files

READY = Format(output="\n{answer}")
"""The prompt as it is; in few-shot prompts the answer stands on a line of its own."""
CLUSTERS = {
    "multiple_choice": ("commonsense_qa", "dream", "quail", "quartz", "social_i_qa", "wiqa", "cosmos_qa", "qasc",
                        "quarel", "sciq", "wiki_hop"),
    "extractive": ("adversarial_qa", "quoref", "duorc", "ropes"),
    "closed_book": ("kilt_tasks", "wiki_qa"),
    "structure_to_text": ("common_gen", "wiki_bio"),
    "sentiment": ("amazon_polarity", "app_reviews", "imdb", "rotten_tomatoes", "yelp"),
    "summarisation": ("cnn_dailymail", "gigaword", "multi_news", "samsum", "xsum"),
    "topic": ("ag_news", "dbpedia_14", "trec"),
    "paraphrase": ("glue_mrpc", "paws", "glue_qqp"),
}  # fmt: skip
"""The groups of T0's training sets (its model card; Sanh et al. 2022, figure 2), by the names of promptsource."""
MOST_LABELS, RAREST = 10, 0.02


@dataclass
class ReadyFiles:
    """The tasks of a folder, and the files without one usable row, with the reason."""

    tasks: list[Task] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def data_set_of(template: str) -> tuple[str, str]:
    """(data set, cluster) of a file's name; a name that T0 does not know is a data set and a cluster of its own."""
    for cluster, names in CLUSTERS.items():
        for name in names:
            if template == name or template.startswith(f"{name}_"):
                return name, cluster
    return template, template


def ready_tasks(path: str | Path) -> ReadyFiles:
    """A task for each file of `path` (a file or folder). DataError for a row without prompt or completion, and where no
    file has a usable row.

    Answers that are few and come again and again are labels, which can be ranked: at most 10 different ones, each of at
    least two rows and 2% of them. Other tasks are open.
    """
    found = ReadyFiles()
    for file in corpus_files(path):
        name = file.name.split(".")[0]
        task, reason = _task(file, name) if file.stat().st_size else (None, "no rows")
        if task is None:
            found.left_out[name] = reason
        else:
            found.tasks.append(task)
    if not found.tasks:
        raise DataError(f"{path}: no file has a row with an answer; expected {{\"prompt\": ..., \"completion\": ...}}")
    return found


def _task(file: Path, name: str) -> tuple[Task | None, str]:
    answers: Counter[str] = Counter()
    for where, row in rows_of(str(file)):
        for key in ("prompt", "completion"):
            if not isinstance(row.get(key), str):
                keys = ", ".join(row) or "none"
                raise DataError(f"{where}: no text {key!r}, expected prompt and completion (keys: {keys})")
        answers[row["completion"]] += 1
    if not any(as_answer(text) for text in answers):
        return None, "no answer in any row"
    labels = {text: as_answer(text) for text in answers}
    closed = 2 <= len(answers) <= MOST_LABELS and min(answers.values()) >= max(2, RAREST * answers.total())
    if not closed or len(set(labels.values())) < len(labels) or not all(labels.values()):
        labels = {}
    _, cluster = data_set_of(name)
    return Task(
        name=name, cluster=cluster, train=str(file), text="{prompt}", label="completion", labels=labels,
        format=READY,
    ), ""  # fmt: skip
