"""The commands of both READMEs exist and take the keys they are given; the two files hold the same code."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

ROOT = Path(__file__).parents[2]
FILES = ["README.md", "README.zh-CN.md"]


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / name).read_text(encoding="utf-8"), re.M | re.S)


def test_both_languages_hold_the_same_commands_and_code():
    for language in ("sh", "python"):
        assert blocks(FILES[0], language) == blocks(FILES[1], language) != []


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)", "".join(blocks("README.md", "sh")), re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("line", re.findall(r"^tutelage .+", "".join(blocks("README.md", "sh")), re.M))
def test_commands_exist_and_know_their_keys(line):
    from tutelage.cli import app
    from tutelage.core.config import parse_words
    from tutelage.pipeline.stages import STAGES, config_class

    _, verb, *words = shlex.split(line)
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert verb in commands
    with commands[verb].make_context(verb, list(words)):  # raises when the words do not fit the command
        pass
    for word in words:
        if word.endswith(".toml"):
            assert (ROOT / word).is_file()
    if verb in STAGES:
        values = parse_words([w for w in words if "=" in w])
        config_class(verb).model_validate(values)


def test_planned_verbs_are_not_there_yet():
    """When one arrives, its line moves from "planned" into the text."""
    from tutelage.cli import app

    text = (ROOT / "README.md").read_text().split("## Planned", 1)[1].split("##", 1)[0]
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert [v for v in re.findall(r"`([a-z]+)`", text) if v in commands] == []


@pytest.mark.parametrize("name", FILES)
def test_links_within_the_repository_hold(name):
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text(encoding="utf-8")):
        assert target.startswith("http") or (ROOT / target).exists(), target
