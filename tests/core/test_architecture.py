"""The house rules: ranks, no cycles, stages apart, loss/ imports only torch."""

import ast
from pathlib import Path

SRC = Path(__file__).parents[2] / "src/tutelage"
RANKS = {
    "core": 0,
    "text": 1,
    "schoolroom": 1,
    "report": 1,
    "model": 2,
    "loss": 2,
    "engine": 3,
    "train": 4,
    "icl": 5,
    "plan": 5,
    "feedback": 5,
    "stages": 6,
    "pipeline": 7,
    "studies": 7,
    "lm_eval": 7,
    "serve": 7,
    "verbs": 0,
    "cli": 8,
    "__main__": 9,
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def folder(path):
    part = path.relative_to(SRC).parts[0]
    return part.removesuffix(".py")


def test_a_file_imports_only_lower_ranks_and_its_own_folder():
    wrong = []
    for path in SRC.rglob("*.py"):
        own = folder(path)
        if own == "__init__":
            continue
        for name in imports(path):
            if name.startswith("tutelage."):
                other = name.split(".")[1]
                if other != own and RANKS[other] >= RANKS[own]:
                    wrong.append(f"{path.relative_to(SRC)} imports {name}")
    assert not wrong


def test_stages_do_not_import_each_other():
    wrong = [p.name for p in (SRC / "stages").glob("*.py") for n in imports(p) if n.startswith("tutelage.stages.")]
    assert not wrong


def test_losses_import_only_torch():
    allowed = {"torch", "tutelage", "__future__", "typing", "math", "collections", "dataclasses"}
    wrong = [
        (p.name, n)
        for p in (SRC / "loss").glob("*.py")
        for n in imports(p)
        if n.split(".")[0] not in allowed or (n.startswith("tutelage") and not n.startswith("tutelage.loss"))
    ]
    assert not wrong
