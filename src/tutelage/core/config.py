"""TOML files and `key=value` words become one frozen pydantic model; a misspelt key names the nearest right one."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tutelage.core.errors import ConfigError


class StageConfig(BaseModel):
    """Base of every stage's configuration: frozen, and strict about unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)

    out: str | None = None
    """Run directory to write."""
    seed: int = 0
    """Every random stream of the stage derives from this one number."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """A broken row of a data file stops the stage, or is left out and listed in the manifest."""

    def named_files(self) -> dict[str, str]:
        """Files that other files or the environment name rather than a key of their own, by a name for each: their
        contents are part of what the run is, as those of the keys in pipeline/stages.py are."""
        return {}

    @classmethod
    def tables(cls, given: Mapping[str, Any]) -> dict[str, BaseModel]:
        """Defaults of tables that follow from other keys, where they differ from the fields' own. Single keys that
        are given in such a table change those alone."""
        return {}


C = TypeVar("C", bound=BaseModel)


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file; ConfigError names the file and line when it is missing or malformed."""
    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe; give the path of a .toml file") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 (byte {error.start}); TOML is UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def parse_words(words: Sequence[str]) -> dict[str, Any]:
    """Turn `["optimizer.lr=0.1", "model=runs/sft"]` into a nested dict; values are TOML, lists of bare words, or plain
    strings."""
    out: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"{word!r}: expected key=value")
        value = _value(text)
        node = out
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{word!r}: {parent!r} was already given a plain value")
        node[last] = value
    return out


def _value(text: str) -> Any:
    """TOML, or a list of bare words ("[direct, channel]"), or the text itself."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        inner = text.strip()
        if inner.startswith("[") and inner.endswith("]") and not set(inner[1:-1]) & set("[]{}\"'"):
            return [_value(part.strip()) for part in inner[1:-1].split(",") if part.strip()]
        return text


def expand(value: Any, where: str = "configuration", names: Mapping[str, str] | None = None) -> Any:
    """`value` with ${NAME} in its strings, however deep, replaced by `names`' or the environment's NAME; ConfigError if
    neither has it."""
    if isinstance(value, Mapping):
        return {key: expand(inner, f"{where}: {key}", names) for key, inner in value.items()}
    if isinstance(value, list):
        return [expand(inner, where, names) for inner in value]
    if not isinstance(value, str):
        return value

    def found(match: re.Match[str]) -> str:
        text = (names or {}).get(match[1], os.environ.get(match[1]))
        if text is None:
            raise ConfigError(f"{where}: {value!r} needs the environment variable {match[1]}; set it or give the key")
        return text

    return re.sub(r"\$\{(\w+)\}", found, value)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Deep merge: `over` wins; tables are joined key by key."""
    out = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(out.get(key), Mapping):
            out[key] = merge(out[key], value)
        else:
            out[key] = value
    return out


def build(kind: type[C], values: Mapping[str, Any], where: str = "configuration") -> C:
    """Validate `values` as `kind`. Raises ConfigError naming each wrong key, and for unknown keys the nearest known."""
    given = dict(values)
    followed = kind.tables(given) if issubclass(kind, StageConfig) else {}
    for name, field in kind.model_fields.items():
        default = followed.get(name, field.default)
        table = given.get(name, {} if name in followed else None)
        if isinstance(default, BaseModel) and isinstance(table, Mapping):
            # optimizer.lr=1e-4 changes that key alone: the others stay as this stage has them, not as the table's class
            given[name] = merge(default.model_dump(), table)
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        lines = []
        # a misspelt key comes first: it is often the one that is missing
        for issue in sorted(error.errors(), key=lambda issue: issue["type"] != "extra_forbidden"):
            key = ".".join(str(part) for part in issue["loc"])
            if issue["type"] == "extra_forbidden":
                table = key.rpartition(".")[0]
                known = [f"{table}.{name}" if table else name for name in _known_keys(kind, issue["loc"][:-1])]
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
                lines.append(f"unknown key {key!r}; {hint}")
            elif issue["type"] == "missing":
                lines.append(f"no {key}=; it must be given")
            elif not key:  # of several keys together; the message names them
                lines.append(issue["msg"].removeprefix("Value error, "))
            else:
                lines.append(f"{key}={issue.get('input')!r}: {issue['msg'].removeprefix('Value error, ')}")
        raise ConfigError(f"{where}: " + "; ".join(lines)) from None


def describe(kind: type[BaseModel], prefix: str = "") -> list[tuple[str, str | None, str]]:
    """(key, default or None if it must be given, meaning) of every key, nested ones as `table.key`."""
    out: list[tuple[str, str | None, str]] = []
    for name, field in kind.model_fields.items():
        doc = " ".join((field.description or "").split())
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            out += [
                (key, _shown(getattr(default, key.rpartition(".")[2], None)), inner)
                for key, _, inner in describe(type(default), f"{prefix}{name}.")
            ]
        elif field.is_required():
            out.append((prefix + name, None, f"{doc} (required)".strip()))
        else:
            out.append((prefix + name, _shown(default), doc))
    return sorted(out, key=lambda row: row[1] is not None)  # what must be given comes first


def _shown(value: Any) -> str:
    """A default as one would type it."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _known_keys(kind: type[BaseModel], path: Sequence[Any]) -> list[str]:
    for part in path:
        field = kind.model_fields.get(str(part))
        inner = field.annotation if field else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            kind = inner
    return list(kind.model_fields)


def digest(value: Any) -> str:
    """Stable short hash of JSON-able data (sorted keys)."""
    text = json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
