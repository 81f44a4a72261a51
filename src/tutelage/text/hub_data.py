"""Data sets of the Hugging Face hub as `hf:name[:config][:split]`, through the `datasets` library (not required)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tutelage.core.errors import DataError

PREFIX = "hf:"
PART_ROWS = 100_000
"""Rows of a part of a set that lies on the disk in one piece."""


def hub_parts(source: str, split: str) -> tuple[str, str, str]:
    """(name, configuration, split) of `hf:name[:config][:split]`; `split`: what is meant if none is given."""
    name, *more = source.removeprefix(PREFIX).split(":")
    return name, more[0] if len(more) > 1 else "", more[-1] if more else split


def open_hub(source: str, split: str, streaming: bool = False) -> Any:
    """The rows of `source`: a hub's name, a folder of data files, or one that save_to_disk wrote.

    `streaming`: as a datasets.IterableDataset, of which nothing is downloaded before it is read. DataError when the
    library is missing, or for whatever it says (no such set or split, no network, a broken file).
    """
    try:
        import datasets
    except ImportError:
        raise DataError(f"{source}: needs the datasets library (pip install datasets), or a local file") from None
    name, config, split = hub_parts(source, split)
    try:
        if any((Path(name) / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
            rows = datasets.load_from_disk(name)
            rows = rows[split] if isinstance(rows, datasets.DatasetDict) else rows
            return rows.to_iterable_dataset(max(1, -(-len(rows) // PART_ROWS))) if streaming else rows
        return datasets.load_dataset(name, config or None, split=split, streaming=streaming)
    except Exception as error:  # whatever the library raises
        raise DataError(f"{source}: {type(error).__name__}: {error}") from error


def hub_pieces(source: str) -> int:
    """How many parts (files, as a rule) a streamed set has, which can be read apart."""
    return int(open_hub(source, "train", streaming=True).num_shards)


def hub_rows(source: str, part: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """("hf:name part 3 row 12", row) of one part of a streamed set, in the set's order."""
    rows = open_hub(source, "train", streaming=True)
    try:
        for number, row in enumerate(rows.shard(rows.num_shards, part), 1):
            yield f"{source} part {part} row {number}", dict(row)
    except Exception as error:  # of the network, or of a broken file
        raise DataError(f"{source} part {part}: {type(error).__name__}: {error}") from error
