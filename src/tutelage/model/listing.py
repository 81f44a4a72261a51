"""`tutelage models`: the presets, published figures beside computed ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tutelage.core.atomic import write_atomic, write_folder
from tutelage.core.config import build
from tutelage.core.errors import RunError
from tutelage.model.presets import PRESETS, kind_of, words
from tutelage.model.published import PUBLISHED, rows
from tutelage.report.growth import growth_png, growth_table


class ModelsConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    out: str | None = None
    """Folder for models.json (the table with its sources) and figures/growth.png; without it they are only printed."""
    check: bool = False
    """Count the parameters anew, on the meta device; takes seconds."""


def found_rows(check: bool = False) -> list[dict[str, Any]]:
    """The published models with their kind and shape, oldest first. RunError when a fresh count differs."""
    out = [{**row, "kind": kind_of(row["model"]), "shape": words(row["model"])} for row in rows()]
    if check:
        from tutelage.model.count import count_parameters

        for row in out:
            fresh = count_parameters(row["model"])
            if fresh != row["computed"]:
                raise RunError(f"{row['model']}: counted {fresh:,} parameters, the table says {row['computed']:,}")
    return out


def show_models(values: Mapping[str, Any]) -> list[str]:
    """Lines to print for the words of `tutelage models`; writes the files if `out=` names a folder."""
    config = build(ModelsConfig, values, where="models")
    found = found_rows(config.check)
    own = [f"preset:{name:18} {kind_of(name):16} {words(name)}" for name in PRESETS if name not in PUBLISHED]
    notes = [f"{row['model']}: {row['note']}" for row in found if row["note"]]
    counted = [f"{row['model']}: {row['counted']}" for row in found if row["counted"] != "all"]
    shown = [*own, "", *growth_table(found), "", *counted, *notes]
    if config.check:
        shown.append("counted again: every number above holds")
    if config.out:
        folder = Path(config.out)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "models.json", json.dumps(found, indent=1, ensure_ascii=False))
        write_folder(folder / "figures", lambda aside: (aside / "growth.png").write_bytes(growth_png(found)))
        shown.append(f"wrote {folder / 'models.json'} and {folder / 'figures' / 'growth.png'}")
    return shown
