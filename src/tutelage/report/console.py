"""What the terminal shows: the table at the end of a run and the tree of runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from tutelage.core.errors import RunError
from tutelage.report.read import mappings, metrics_text, read_json, time_text


def stage_table(summary: Mapping[str, Any]) -> Table:
    """The stages of a pipeline's summary.json: {"stages": [{"name", "kind", "seconds", "status", "metrics"}]}."""
    table = Table(title="stages")
    for column in ("stage", "status", "time", "numbers"):
        table.add_column(column, justify="right" if column == "time" else "left", overflow="fold")
    total = 0.0
    stages = mappings(summary.get("stages"))
    for stage in stages:
        seconds = stage.get("seconds")
        total += seconds if isinstance(seconds, int | float) else 0.0
        # Text, not str: rich would read "[...]" in a value as markup.
        cells = (stage.get("name", ""), stage.get("status", ""), time_text(seconds), metrics_text(stage.get("metrics")))
        table.add_row(*[Text(str(cell)) for cell in cells])
    if stages:
        table.add_section()
        table.add_row("total", "", time_text(total), "")
    return table


def runs_tree(root: str | Path) -> Tree:
    """Every run directory under `root`, each below the run it was made from.

    A run with several parents stands below the deepest (in tokenizer -> shards -> pretrain, pretrain stands below the
    shards) and names the others. Raises RunError if `root` is no directory.
    """
    root = Path(root)
    if not root.is_dir():
        raise RunError(f"{root}: no such directory")
    runs = find_runs(root)
    by_hash: dict[str, Path] = {}
    for path, manifest in runs.items():
        by_hash.setdefault(str(manifest.get("fingerprint")), path)
    above = {path: parent_runs(path, manifest, runs, by_hash) for path, manifest in runs.items()}
    depth = depths(above)
    children: dict[Path | None, list[Path]] = {}
    for path in sorted(runs, key=lambda p: (str(runs[p].get("started", "")), depth[p], str(p))):
        children.setdefault(main_parent(path, above, depth), []).append(path)
    tree = Tree(Text(str(root)))

    def grow(branch: Tree, at: Path | None) -> None:
        for path in children.get(at, []):
            grow(branch.add(label(path, root, runs[path], [p for p in above[path] if p != at])), path)

    grow(tree, None)
    return tree


def find_runs(root: Path) -> dict[Path, dict[str, Any]]:
    """Run directories under `root` with their manifests; checkpoints and models inside a run are not searched."""
    found: dict[Path, dict[str, Any]] = {}
    for folder, names, files in os.walk(root):
        manifest = read_json(Path(folder) / "manifest.json") if "manifest.json" in files else {}
        is_run = "kind" in manifest or "fingerprint" in manifest
        if is_run:
            found[Path(folder)] = manifest
        skipped = ("checkpoints", "model") if is_run else ()
        names[:] = sorted(n for n in names if n not in skipped and not n.startswith("."))
    return found


def parent_runs(
    path: Path, manifest: Mapping[str, Any], runs: Mapping[Path, Any], by_hash: Mapping[str, Path]
) -> list[Path]:
    """Parents that are runs under the root: by path where that still holds the run, else by hash (it was moved)."""
    found = []
    resolved = {p.resolve(): p for p in runs}
    for entry in mappings(manifest.get("parents")):
        at = resolved.get(Path(str(entry.get("path", ""))).resolve())
        same = at is not None and str(runs[at].get("fingerprint")) == str(entry.get("hash"))
        parent = at if same else by_hash.get(str(entry.get("hash")))
        if parent is not None and parent != path and parent not in found:
            found.append(parent)
    return found


def depths(above: Mapping[Path, list[Path]]) -> dict[Path, int]:
    """Longest way from each run up to one without parents; where lineage runs in a circle the way stops there."""
    known: dict[Path, int] = {}

    def depth(path: Path, below: frozenset[Path]) -> int:
        if path not in known:
            parents = [p for p in above[path] if p not in below]
            known[path] = 1 + max((depth(p, below | {p}) for p in parents), default=-1)
        return known[path]

    for path in above:
        depth(path, frozenset({path}))
    return known


def main_parent(path: Path, above: Mapping[Path, list[Path]], depth: Mapping[Path, int]) -> Path | None:
    """The parent a run is drawn below: the deepest, of equal ones the first given; None at the top.

    Times would not do: short stages start within the same second. Only a parent less deep than the run itself counts,
    so damaged manifests cannot make a circle.
    """
    return max((p for p in above[path] if depth[p] < depth[path]), key=depth.__getitem__, default=None)


def label(path: Path, root: Path, manifest: Mapping[str, Any], others: list[Path]) -> Text:
    """One line of the tree."""
    name = str(path.relative_to(root)) if path != root else "."
    text = Text.assemble((name, "bold"), f"  {manifest.get('kind', '')}  ")
    status = str(manifest.get("status", ""))
    text.append(status, "green" if status == "finished" else "yellow")
    text.append(f"  {str(manifest.get('fingerprint') or '')[:8]}", "dim")
    if others:
        text.append("  also from " + ", ".join(str(p.relative_to(root)) for p in others), "dim")
    return text
