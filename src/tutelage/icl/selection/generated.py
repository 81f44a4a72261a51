"""Demonstrations that the model writes itself, for each query and each label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from pydantic import Field

from tutelage.core.errors import ConfigError, DataError
from tutelage.core.runtime import stream_seed
from tutelage.engine.requests import SamplingParams
from tutelage.icl.examples import Example
from tutelage.icl.selection.context import Options, SelectionContext, check_shots, check_texts, need_options


class GeneratedOptions(Options):
    """Options of `generated`."""

    template: str = 'Write an input: {input}\nWrite an input whose answer is "{label}":'
    """What the model continues: the query's own column, then a label. The paper's is of the task, as in
    'Generate a review: {input}\\nGenerate a "negative" review:'; say what the input is in yours."""
    column: str | None = None
    """The column that is written anew (others are kept: a premise stays, a hypothesis is written). Without it, the
    column that is the whole text."""
    max_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=0.7, ge=0)
    top_p: float = Field(default=0.9, gt=0, le=1)
    attempts: int = Field(default=3, ge=1)
    """How often the model is asked again where it wrote nothing, or the query itself."""


def generated(
    pool: Sequence[Example], queries: Sequence[Example], shots: int, context: SelectionContext, seed: int
) -> list[list[Example]]:
    """Self-generated demonstrations: per query and label the model writes inputs (Kim et al. 2022, arXiv 2206.08082).

    Labels take turns; where ``shots`` is no multiple of them, the labels that come first once more are drawn by the
    seed. The pool is not read. Template and temperature are ours: the paper's were not verified.
    """
    options = context.read(GeneratedOptions, "generated")
    engine = context.need_engine("generated")
    check_shots(shots)
    check_texts([], queries, "generated")
    if not queries:
        return []
    labels = need_options(queries, "generated")
    rng = np.random.default_rng(seed)
    turns = [np.resize(rng.permutation(labels), shots) for _ in queries]
    columns = [_column(query, options.column, q) for q, query in enumerate(queries)]
    written: dict[tuple[int, int], list[str]] = {(q, int(label)): [] for q in range(len(queries)) for label in turns[q]}
    wanted = {(q, label): int((turns[q] == label).sum()) for q, label in written}
    for attempt in range(options.attempts):
        open_ = [key for key in written if len(written[key]) < wanted[key]]
        if not open_:
            break
        prompts = [_ask(options.template, queries[q], columns[q], label) for q, label in open_]
        params = [
            SamplingParams(
                max_tokens=options.max_tokens, temperature=options.temperature, top_p=options.top_p,
                stop=("\n",) if attempt < options.attempts - 1 else (),
                n=wanted[q, label] - len(written[q, label]), seed=stream_seed(seed, "generated", q, label, attempt),
            )
            for q, label in open_
        ]  # fmt: skip
        for (q, label), output in zip(open_, engine.generate(prompts, params), strict=True):
            if output.error is not None:
                raise DataError(f"query {q}: no demonstration could be generated ({output.error})")
            texts = [_line(completion.text) for completion in output.completions]
            written[q, label] += [text for text in texts if text and text != queries[q].fields[columns[q]].strip()]
    for (q, label), texts in written.items():
        if len(texts) < wanted[q, label]:
            raise DataError(
                f"query {q}: asked {options.attempts} times, the model wrote {len(texts)} of {wanted[q, label]} inputs "
                f"for label {queries[q].options[label]!r}; change template= or raise temperature="
            )
    return [
        [_example(query, columns[q], written[q, int(label)].pop(0), int(label)) for label in turns[q]]
        for q, query in enumerate(queries)
    ]


def _line(text: str) -> str:
    """The first line that is not blank: at the last attempt a model that begins with line breaks may write on."""
    return next((" ".join(line.split()) for line in text.splitlines() if line.strip()), "")


def _column(query: Example, named: str | None, q: int) -> str:
    """The column to write anew."""
    if named is not None:
        if named not in query.fields:
            raise ConfigError(f"query {q} has no column {named!r}; its columns are {sorted(query.fields)}")
        return named
    whole = [name for name, value in query.fields.items() if value.strip() == query.text.strip()]
    if len(whole) != 1:
        raise ConfigError(f"which column shall be written? Name one of {sorted(query.fields)} with column=")
    return whole[0]


def _ask(template: str, query: Example, column: str, label: int) -> str:
    # no str.format: texts and templates may hold braces of their own
    asked = template.replace("{label}", query.options[label])
    return asked.replace("{input}", query.fields[column].strip())


def _example(query: Example, column: str, text: str, label: int) -> Example:
    whole = query.text.replace(query.fields[column].strip(), text)
    made = replace(query, fields={**query.fields, column: text}, text=whole, rationale="")
    return replace(made, gold=label, answer=query.options[label])
