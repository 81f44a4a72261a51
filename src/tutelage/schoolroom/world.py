"""The embedded world's front door: `families="demo"` is the small frozen world, `families="full"` the large one.

Both are endless and deterministic in (seed, split, stream). docs/schoolroom.md describes them and shows how to add a
family to the full one in a few lines.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from tutelage.core.errors import ConfigError
from tutelage.schoolroom.charter import CharterWorld
from tutelage.schoolroom.demo import FAMILIES, DemoWorld
from tutelage.schoolroom.full import FullWorld
from tutelage.schoolroom.item import Item

__all__ = ["FAMILIES", "Item", "World"]


class World:
    """Documents, instructions and demonstrations of the world that `families` names.

    "demo": 11 families, frozen, as tuned in recipes/demo.toml. "full": every registered family. "full:who,critique":
    some of them. "shapes.py" or "shapes.py:shape,who": the same after running that file, which registers families of
    its own. "charter", "charter:talk", "charter:harm,alike": the world of Constitutional AI. A list of names: demo
    families if all of them are, else families of the full world.
    """

    def __init__(self, seed: int = 0, families: str | Sequence[str] = "demo"):
        self._world: CharterWorld | DemoWorld | FullWorld
        source, _, chosen = families.partition(":") if isinstance(families, str) else ("", "", "")
        if source.endswith(".py"):
            _register(Path(source).resolve())
        if source == "charter":
            self._world = CharterWorld(seed, [name.strip() for name in chosen.split(",")] if chosen else None)
        elif source == "full" or source.endswith(".py"):
            self._world = FullWorld(seed, [name.strip() for name in chosen.split(",")] if chosen else None)
        elif isinstance(families, str) or all(name in FAMILIES for name in families):
            self._world = DemoWorld(seed, families)
        else:
            self._world = FullWorld(seed, list(families))
        self.seed, self.families = seed, self._world.families

    def item(self, family: str, rng: random.Random, split: str) -> Item:
        """One item of `family`, drawn from `rng`."""
        return self._world.item(family, rng, split)

    def items(self, split: str, stream: int = 0) -> Iterator[Item]:
        """Instructions without end; splits "train" and "heldout", and "heldout_families" of the full world."""
        return self._world.items(split, stream)

    def demonstration(self, item: Item, rng: random.Random) -> str:
        """An answer to `item` as a labeller of mixed care would write it."""
        return self._world.demonstration(item, rng)

    def documents(self, split: str, stream: int = 0, phase: float = 0.0) -> Iterator[str]:
        """Base text without end; `phase` 0..1 goes from dense recall to the ordinary mixture."""
        return self._world.documents(split, stream, phase)

    def probe(self, n: int, split: str = "heldout", stream: int = 7) -> list[tuple[str, str]]:
        """Questions in the base text's own form, each ending right before its answer."""
        return self._world.probe(n, split, stream)


@cache
def _register(path: Path) -> None:
    """Run a file of families, once a process; ConfigError if there is none or it fails."""
    if not path.is_file():
        raise ConfigError(f"schoolroom: no file {path} to take families from")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"schoolroom: {path}: {type(error).__name__}: {error}") from error
