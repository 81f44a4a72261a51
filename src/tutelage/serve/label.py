"""`tutelage label DATA`: answers go into a store, and the ranking page is served until it is told to stop."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tutelage.core.config import build
from tutelage.core.errors import ConfigError, DataError
from tutelage.core.progress import console
from tutelage.core.records import BadRows
from tutelage.engine import LocalEngine, load
from tutelage.feedback.active import ActiveSampler
from tutelage.feedback.items import as_item
from tutelage.feedback.store import Store
from tutelage.serve.app import create_app
from tutelage.serve.limits import Limits
from tutelage.serve.run import bound, is_local, make_server
from tutelage.text.corpus import read_rows
from tutelage.train.rollouts import encode_prompts
from tutelage.train.scorer import open_reward
from tutelage.train.sources import is_function, is_world, prompts

Row = dict[str, Any]
EXAMPLE = "tutelage label answers.jsonl"
_DATABASE = re.compile(r"(sqlite|postgresql|mysql|mariadb)\S*://|.*\.(db|sqlite3?)$", re.IGNORECASE)
_RANKED = ("ranking", "annotator", "p_better", "responses", "all_bad")


class LabelConfig(BaseModel):
    """The key=value words behind `tutelage label DATA`."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)

    store: str | None = None
    """Where rankings go: a file, or postgresql+psycopg://... (default: DATA's name with .labels.db, beside it)."""
    batch: str | None = None
    """Name of this lot of answers in the store (default: DATA's name)."""
    per_item: int | None = Field(None, ge=1)
    """People that each item goes to (default 1, or as the batch has it)."""
    overlap: float | None = Field(None, ge=0, le=1)
    """Share of the items that everybody gets, so that agreement is measured (default 0.1, or as the batch has it)."""
    guidelines: str | None = None
    """A file of Markdown that stands beside the answers."""
    keep_rankings: bool = False
    """Take the rankings that DATA has already into the store as well; those under an annotator's name count as one of
    the per_item people."""
    host: str = "127.0.0.1"
    """Address to listen at. Others than this machine reach it with 0.0.0.0, each with a key of their own."""
    port: int = Field(8001, ge=0, lt=1 << 16)
    """0 takes a free one and says which."""
    model: str | None = None
    """Sample the answers to DATA's prompts from this model while people rank (a run, folder, hub id or server)."""
    reward: str | None = None
    """Of sampled answers, those come first on which this reward model (or file.py:function) is least decided."""
    prompts: int = Field(1000, ge=1)
    """Sample for at most this many prompts."""
    responses: int = Field(4, ge=2)
    """Answers sampled to each prompt; of equal ones one is kept."""
    temperature: float | list[float] = 1.0
    """Of sampling; of a list, a prompt's answers take turns."""
    max_tokens: int = Field(64, ge=1)
    """Longest sampled answer."""
    seed: int = 0
    """Of sampling, and of the choice of the items that everybody gets."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """A broken row of DATA stops the command, or is left out."""


def label(words: Sequence[str], values: Mapping[str, Any]) -> None:
    """Run `tutelage label DATA`: returns when the server was told to stop."""
    if len(words) != 1:
        found = f"got {' '.join(words)!r}" if words else "got none"
        raise ConfigError(f"expected one file of answers, run or store, {found}; e.g. {EXAMPLE}")
    data, config = words[0], build(LabelConfig, values, where="label")
    local = is_local(config.host)
    with bound(config.host, config.port) as listening:  # before anything is loaded
        store, batch, sampler = prepare(data, config)
        if not local and not store.people():
            raise ConfigError(
                f"host={config.host}: others could rank without a key; give each person one: "
                f"tutelage label key {store.url} name=NAME"
            )
        app = create_app({}, store=store, batch=batch, local=local)
        app.state.sampling = sampler
        host, port = listening.getsockname()[:2]
        _greet(store, batch, f"http://{f'[{host}]' if ':' in host else host}:{port}/label", local)
        try:
            if sampler is not None:
                sampler.start()
            make_server(app, Limits(), config.host, config.port).run(sockets=[listening])
        finally:
            if sampler is not None:
                sampler.stop()
    words = f"To train on it: tutelage label export {store.url} out=rankings.jsonl"
    console.print(f"stopped; {store.url} holds what was said. {words}", markup=False, soft_wrap=True)


def _greet(store: Store, batch: str | None, address: str, local: bool) -> None:
    names = [batch] if batch is not None else [info.name for info in store.batches()]
    counts = ", ".join(f"{name} ({store.progress(name).total} items)" for name in names)
    keys = "" if local else "; each person adds ?key=THEIR_KEY"
    console.print(f"{store.url}: {counts or 'empty'}", markup=False, soft_wrap=True)
    console.print(f"rank at {address}{keys} (Ctrl-C stops)", markup=False, soft_wrap=True)


def prepare(data: str, config: LabelConfig) -> tuple[Store, str | None, ActiveSampler | None]:
    """The store with DATA's answers in it, the batch to show (None: all), and what samples new ones, not yet begun.

    DataError names file and line. Of what the store holds nothing is changed but settings of the batch that are given.
    """
    if is_store(data):
        if config.store is not None:
            raise ConfigError(f"{data!r} is a store, and store={config.store!r} another; expected one of the two")
        store = Store(data, create=False)
        if config.batch is not None:
            store.progress(config.batch)  # an unknown batch is refused, the known ones are named
            _settings(store, config.batch, config)
        elif not store.batches():
            raise DataError(f"{data}: a store without answers; e.g. {EXAMPLE} store={data}")
        return store, config.batch, None
    batch = config.batch or _name(data)
    rows = None if config.model is not None else list(answered(data, config))
    guidelines(config)  # a missing file is said before the store is made
    store = Store(config.store or _beside(data))
    _settings(store, batch, config)
    if rows is not None:
        added, known = store.add_items(batch, rows)
        console.print(f"{data}: {added} items added, {known} were there already", markup=False, soft_wrap=True)
        return store, batch, None
    return store, batch, sampling(data, store, batch, config)


def is_store(data: str) -> bool:
    """Whether DATA names a store: a database's address, or a file called like one."""
    return _DATABASE.match(data) is not None


def _name(data: str) -> str:
    """"answers" of "folder/answers.jsonl.gz"; of the embedded world or a function its own name."""
    if is_world(data) or is_function(data):
        return data
    path = Path(data).resolve()
    return path.name if path.is_dir() else path.name.split(".", 1)[0] or path.name


def _beside(data: str) -> str:
    if is_world(data) or is_function(data):
        return "labels.db"
    path = Path(data)
    name = path.resolve().name if path.is_dir() else path.name.split(".", 1)[0]
    return str((path.resolve().parent if path.name in ("", ".", "..") else path.parent) / f"{name}.labels.db")


def guidelines(config: LabelConfig) -> str | None:
    """The text of guidelines=FILE."""
    if config.guidelines is None:
        return None
    try:
        return Path(config.guidelines).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        reason = getattr(problem, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"guidelines={config.guidelines}: {reason}; expected a file of Markdown") from None


def _settings(store: Store, batch: str, config: LabelConfig) -> None:
    """Make the batch, or change what is given; what is not given stays as it is."""
    old = next((info for info in store.batches() if info.name == batch), None)
    text, per_item, overlap = guidelines(config), config.per_item, config.overlap
    if old is not None and (text, per_item, overlap) == (None, None, None):
        return
    store.add_batch(
        batch,
        guidelines=text if text is not None else old.guidelines if old else "",
        per_item=per_item if per_item is not None else old.per_item if old else 1,
        overlap=overlap if overlap is not None else old.overlap if old else 0.1,
        seed=old.seed if old else config.seed,
    )


def answered(data: str, config: LabelConfig) -> Iterator[Row]:
    """DATA's rows with their answers to rank, every shape that `tutelage reward` reads or without an order; of a `rank`
    run its training part."""
    path = Path(data)
    source = path / "rankings.jsonl" if (path / "manifest.json").is_file() else path
    if is_world(data) or is_function(data):
        raise ConfigError(f"{data}: prompts without answers; give model=RUN to sample them")
    bad, seen = BadRows(config.on_bad_row), 0
    faults: list[str] = []
    for where, row in read_rows(source, config.on_bad_row, faults):
        seen += 1
        if "prompt" in row and not any(key in row for key in ("responses", "candidates", "chosen", "completions")):
            raise DataError(f"{where}: a prompt without answers; give model=RUN to sample them")
        try:
            new = as_item(row, where)
        except DataError as fault:
            bad(fault)
            continue
        plain = {"prompt": new.prompt, "responses": [{"text": t, **o} for t, o in zip(new.texts, new.origins)]}
        yield row if config.keep_rankings else {**new.columns, **plain}
    if skipped := bad.count + len(faults):
        first = [*bad.first, *faults][0]
        console.print(f"{data}: {skipped} rows left out; the first: {first}", markup=False, soft_wrap=True)
    if seen == skipped:
        raise DataError(f"{data}: no rows; expected at least one")


def sampling(data: str, store: Store, batch: str, config: LabelConfig) -> ActiveSampler:
    """What samples answers to DATA's prompts from the model."""
    assert config.model is not None
    bad = BadRows(config.on_bad_row)
    split = "train" if is_world(data) else "all"  # the world has endless prompts, those for measuring apart
    rows = [_unranked(row) for row in prompts(data, split, config.prompts, config.seed, bad)]
    engine = load(config.model)
    if isinstance(engine, LocalEngine):
        found = encode_prompts(rows, engine.tokenizer, engine.context_length, config.max_tokens, data, bad)
        rows = [{key: value for key, value in row.items() if key != "ids"} for row in found]
    reward = open_reward(config.reward) if config.reward else None
    return ActiveSampler(
        store, batch, engine, rows, reward=reward, responses=config.responses,
        temperature=config.temperature, max_tokens=config.max_tokens, seed=config.seed, data=data,
        origin={"model": config.model, "temperature": config.temperature, "max_tokens": config.max_tokens},
    )  # fmt: skip


def _unranked(row: Row) -> Row:
    return {key: value for key, value in row.items() if key not in _RANKED}
