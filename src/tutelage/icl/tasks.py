"""Tasks by a small declarative description: files, columns, label words, templates, metric.

A description is a TOML file (or a name of `builtin.py` with `data=` pointing at its files):

    name = "reviews"
    train = "train.jsonl"                 # beside the description; also .csv, .tsv, .parquet, "texts.txt+labels.txt"
    test = "test.jsonl"                   # or "hf:name[:config][:split]", through the `datasets` library
    text = "{title} {body}"               # the input as one text, of the files' columns
    label = "stars"
    labels = { "1" = "bad", "5" = "good" }    # data's label -> the word that is scored
    [format]
    input = "Review: {text}"
    output = "\nVerdict: {answer}"
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from tutelage.core.config import build, read_toml
from tutelage.core.errors import ConfigError, DataError
from tutelage.icl.examples import LETTERS, Example
from tutelage.icl.prompts import _FIELD, Format
from tutelage.schoolroom.incontext import label_task
from tutelage.text.chat import GPT3_END
from tutelage.text.corpus import read_rows
from tutelage.text.hub_data import hub_parts, open_hub

Metric = Literal["exact", "f1", "number", "math"]


class Task(BaseModel):
    """See the module."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str
    train: str = ""
    """Where demonstrations come from."""
    test: str = ""
    text: str = "{text}"
    label: str = "label"
    """Column of the gold label, or of the gold answer where there are no labels."""
    labels: dict[str, str] = {}
    """Data's label -> the word that is scored. Empty: multiple choice (with `choices`) or an open answer."""
    choices: str | list[str] = ""
    """Column of a list of choices, or one column for each; the label is a number from 0, a letter, or the text."""
    letters: bool = False
    """Multiple choice: show the choices as (A) .. (B) .. (as `{choices}`) and score the letters."""
    rationale: str = ""
    """Column of a gold chain of thought."""
    metric: Metric = "exact"
    """Of open answers (see open.grade); chosen options are always told by accuracy and macro-F1."""
    format: Format = Format()
    minimal: Format = Format()
    """What format=minimal stands for: MetaICL's, without words of the task."""
    templates: tuple[Format, ...] = ()
    """Further wordings of the task, for instruction tuning; `{options}` lists the label words or choices."""
    cluster: str = ""
    """What kind of task it is, e.g. sentiment: instruction tuning leaves whole clusters out to measure on."""
    problems: bool = False
    """The files are problems that reasoning.read_problems knows by their keys: for reasoning methods alone."""
    where: dict[str, str] = {}
    """Columns and the values that a row must have to be part of the task."""

    @model_validator(mode="after")
    def _sound(self) -> Task:
        words = list(self.labels.values())
        twice = sorted({w for w in words if words.count(w) > 1})
        if twice:
            raise ValueError(f"labels: the word {twice[0]!r} stands for more than one label; every label needs its own")
        if any(not w.strip() for w in words):
            raise ValueError("labels: a label has an empty word, which has no tokens to score")
        if self.labels and self.choices:
            raise ValueError("labels and choices exclude each other")
        return self

    @property
    def open(self) -> bool:
        """Whether answers are generated rather than chosen."""
        return not self.labels and not self.choices

    def examples(self, split: Literal["train", "test"], limit: int | None = None) -> list[Example]:
        """Examples of a split, in file order. DataError names file, line and key of a row that does not fit."""
        source = self.train if split == "train" else self.test
        if self.problems:
            raise ConfigError(f"task {self.name}: its answers are reasoned out; give method=few_shot_cot or the like")
        if not source:
            raise ConfigError(f"task {self.name}: no {split} file; give {split}=FILE in its description")
        out: list[Example] = []
        shared = self.train == self.test
        for where, row in rows_of(source):
            if any(str(row.get(key)) != value for key, value in self.where.items()):
                continue
            example = self._example(row, where)
            if shared and (zlib.crc32(example.text.encode()) % 4 == 0) != (split == "train"):
                continue  # one file for both: a quarter of it, by the text's hash, gives the demonstrations
            out.append(example)
            if limit is not None and len(out) >= limit:
                break
        if not out:
            raise DataError(f"{source}: no row of task {self.name}")
        return out

    def _example(self, row: dict[str, Any], where: str) -> Example:
        fields = {key: str(value) for key, value in row.items() if isinstance(value, (str, int, float))}
        text = _columns(self.text, fields, where)
        gold = _need(row, self.label, where)
        rationale = str(row.get(self.rationale, "")) if self.rationale else ""
        if self.labels:
            key = str(gold)
            if key not in self.labels:
                raise DataError(f"{where}: {self.label} is {key!r}; the task's labels are {', '.join(self.labels)}")
            options = tuple(self.labels.values())
            index = list(self.labels).index(key)
        elif self.choices:
            options, index = self._chosen(row, gold, where)
            shown = "\n".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, options))
            fields["choices"] = shown
            if self.letters:
                options = tuple(LETTERS[: len(options)])
        else:
            options, index = (), -1
        answer = options[index] if options else as_answer(str(gold))
        if not text.strip() and self.text != "":
            raise DataError(f"{where}: the input is empty ({self.text})")
        return Example({**fields, "text": text}, text, options, index, answer, rationale)

    def _chosen(self, row: dict[str, Any], gold: Any, where: str) -> tuple[tuple[str, ...], int]:
        columns = self.choices
        given = [_need(row, c, where) for c in columns] if isinstance(columns, list) else _need(row, columns, where)
        if not isinstance(given, list) or not given:
            raise DataError(f"{where}: {columns} is {type(given).__name__}, expected a list of choices")
        choices = [_bare(str(c), i) for i, c in enumerate(given)]
        gold = str(gold).strip()
        if gold in choices and not gold.isdigit():
            index = choices.index(gold)
        elif gold.isdigit():
            index = int(gold)
        elif len(gold) == 1 and gold.upper() in LETTERS:
            index = LETTERS.index(gold.upper())
        else:
            index = choices.index(gold) if gold in choices else -1
        if not 0 <= index < len(choices):
            raise DataError(f"{where}: {self.label} is {gold!r}, none of the {len(choices)} choices")
        return tuple(choices), index


def as_answer(text: str) -> str:
    """An open answer without blanks around it and without the end marker of sets made for GPT-3."""
    return text.strip().removesuffix(GPT3_END).strip()


def _bare(choice: str, index: int) -> str:
    """A choice without the letter that some files put in front."""
    mark = f"({LETTERS[index]})"
    return choice.removeprefix(mark).strip() if choice.startswith(mark) else choice.strip()


def _need(row: dict[str, Any], key: str, where: str) -> Any:
    if key not in row or row[key] is None:
        raise DataError(f"{where}: no column {key!r}; the row has {', '.join(row)}")
    return row[key]


def _columns(template: str, fields: dict[str, str], where: str) -> str:
    for name in _FIELD.findall(template):
        if name not in fields:
            raise DataError(f"{where}: no column {name!r} for the template {template!r}; there are {', '.join(fields)}")
    return _FIELD.sub(lambda m: fields[m.group(1)], template).strip()


def rows_of(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", row) of a data file; see the module for the kinds. A folder of .csv files is all of them, with
    their names as column `file`."""
    if source.startswith("hf:"):
        yield from _hub(source)
    elif source.startswith("schoolroom:"):
        name, _, part = source.partition("/")
        yield from ((f"{source}:{number}", row) for number, row in enumerate(label_task(name).rows(part), 1))
    elif "+" in source and source.endswith(".txt"):
        yield from _parallel(source)
    elif source.endswith((".csv", ".tsv")):
        yield from _csv(Path(source))
    elif Path(source).is_dir() and (files := sorted(Path(source).glob("*.csv"))):
        for file in files:
            yield from _csv(file)
    else:
        yield from read_rows(source)


def files_of(source: str) -> list[str]:
    """The files and folders on this machine that `rows_of` reads; none for a set that the datasets library fetches."""
    if source.startswith("hf:"):
        return [folder] if Path(folder := hub_parts(source, "test")[0]).exists() else []
    if source.startswith("schoolroom:"):
        return []
    parts = source.split("+", 1) if "+" in source and source.endswith(".txt") else [source]
    return [part for part in parts if part]


def named_files(names: Sequence[str], data: str | None) -> dict[str, str]:
    """The descriptions and data files of tasks, by a name for each: they are part of what a run is."""
    out = {}
    for number, name in enumerate(names):
        if name.endswith(".toml"):
            out["task" if len(names) == 1 else f"task {number}"] = name
        task = load_task(name, data)
        files = [*files_of(task.train), *files_of(task.test)]
        out.update({f"task {number} file {i}": file for i, file in enumerate(files)})
    return out


def _csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            tabs = path.suffix == ".tsv"
            reader = csv.DictReader(file, delimiter="\t" if tabs else ",", strict=not tabs)
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(f"{where}: {'more' if None in row else 'fewer'} cells than the header's columns")
                yield where, {**row, "file": path.stem}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not readable as CSV ({error})") from error


def _parallel(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Two text files with one line an example: TEXTS.txt+LABELS.txt."""
    texts, labels = (Path(p) for p in source.split("+", 1))
    try:
        left, right = (p.read_text(encoding="utf-8").rstrip("\n").split("\n") for p in (texts, labels))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: not readable ({error})") from error
    if len(left) != len(right):
        raise DataError(f"{source}: {len(left)} texts and {len(right)} labels; they must be line by line")
    for number, (text, label) in enumerate(zip(left, right), 1):
        yield f"{texts}:{number}", {"text": text, "label": label.strip()}


def _hub(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of `hf:name[:config][:split]`: a hub's name, a folder of data files, or one that save_to_disk wrote."""
    rows = open_hub(source, "test")
    for number, row in enumerate(rows, 1):
        yield f"{source}:{number}", dict(row)


def _beside(source: str, base: Path) -> str:
    """A description's source as a path from here; a hub's name stays, unless a folder of that name lies there."""
    if source.startswith("hf:"):
        name, _, rest = source.removeprefix("hf:").partition(":")
        return f"hf:{base / name}{':' * bool(rest)}{rest}" if (base / name).is_dir() else source
    return "+".join(str(base / part) for part in source.split("+"))


WORLD_FORMAT = Format(
    input=" {text}", output=" answer: {answer}", separator=".", channel_input=" {answer}:", channel_output=" {text}"
)
"""As the embedded world's documents ask and answer."""


def load_task(name: str, data: str | None = None) -> Task:
    """A task from a .toml description, one of `builtin.TASKS` with the folder or file of its data, or a task of the
    embedded world (`schoolroom:demo:heldout:7`, see schoolroom/incontext.py).

    Raises ConfigError for an unknown name, a missing data folder and a faulty description.
    """
    if name.endswith(".toml"):
        values = read_toml(name)
        for split in ("train", "test"):
            if values.get(split):
                values[split] = _beside(str(values[split]), Path(data) if data else Path(name).parent)
        values.setdefault("name", Path(name).stem)
        return build(Task, values, where=name)
    if name.startswith("schoolroom:"):
        labels = dict(label_task(name).labels)
        return Task(name=name, train=f"{name}/train", test=f"{name}/test", labels=labels, format=WORLD_FORMAT)
    from tutelage.icl.builtin import builtin_task

    return builtin_task(name, data)
