"""The command line: `tutelage VERB [recipe.toml] [key=value ...]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tutelage.core.errors import TutelageError

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, rich_markup_mode=None)
console = Console(highlight=False)
Words = Annotated[list[str] | None, typer.Argument(help="[recipe.toml] [key=value ...]")]


def _values(words: list[str] | None) -> tuple[list[str], dict]:
    from tutelage.core.config import merge, parse_words, read_toml

    words = words or []
    plain = [w for w in words if "=" not in w]
    values = parse_words([w for w in words if "=" in w])
    if plain and plain[0].endswith(".toml"):
        values = merge(read_toml(plain[0]), values)
    return plain, values


@app.command("run")
def run_(words: Words = None) -> None:
    """Run a recipe. Example: tutelage run recipes/demo.toml out=runs/demo seed=1"""
    from tutelage.core.config import parse_words
    from tutelage.core.errors import ConfigError
    from tutelage.pipeline import run_recipe

    words = words or []
    plain = [w for w in words if "=" not in w]
    if len(plain) != 1:
        raise ConfigError("tutelage run needs one recipe, e.g. tutelage run recipes/demo.toml")
    run_recipe(plain[0], parse_words([w for w in words if "=" in w]))


def _stage(kind: str, example: str) -> None:
    def command(words: Words = None) -> None:
        from tutelage.pipeline.stages import launch

        _, values = _values(words)
        restart = bool(values.pop("restart", False))
        path, ran = launch(kind, values, restart=restart)
        console.print(f"{'wrote' if ran else 'already finished:'} {path}")

    command.__doc__ = f"Run the {kind} stage. Example: {example}"
    app.command(kind)(command)


for _kind, _example in {
    "tokenizer": "tutelage tokenizer data=corpus.txt vocab_size=4096 out=runs/tokenizer",
    "prepare": "tutelage prepare data=corpus.txt tokenizer=runs/tokenizer out=runs/tokens",
    "pretrain": "tutelage pretrain data=runs/tokens tokenizer=runs/tokenizer model=preset:laptop-1m out=runs/base",
    "sft": "tutelage sft model=runs/base data=chats.jsonl out=runs/sft",
    "rank": "tutelage rank model=runs/sft data=prompts.jsonl judge=judge.py:score responses=4 out=runs/rank",
    "reward": "tutelage reward model=runs/sft data=runs/rank out=runs/reward",
    "ppo": "tutelage ppo model=runs/sft reward=runs/reward data=prompts.jsonl out=runs/ppo",
}.items():
    _stage(_kind, _example)


@app.command()
def generate(words: Words = None) -> None:
    """Continue a prompt. Example: tutelage generate runs/base "prompt=once upon a time" max_tokens=64"""
    from tutelage import load
    from tutelage.core.errors import ConfigError
    from tutelage.engine import SamplingParams

    plain, values = _values(words)
    prompt = values.pop("prompt", None)
    if len(plain) != 1 or prompt is None:
        raise ConfigError('give a model and a prompt: tutelage generate runs/base "prompt=once upon a time"')
    try:
        params = SamplingParams(**values)
    except TypeError as error:
        raise ConfigError(str(error)) from None
    output = load(plain[0]).generate([str(prompt)], params)[0]
    if output.error:
        raise TutelageError(output.error)
    for completion in output.completions:
        console.print(f"{prompt}{completion.text}", markup=False)


@app.command()
def chat(words: Words = None) -> None:
    """Talk to a model; in a pipeline run /base /sft /rlhf switch. Example: tutelage chat runs/demo"""
    from tutelage.core.errors import ConfigError
    from tutelage.pipeline.chat import chat_loop

    plain, values = _values(words)
    if len(plain) != 1:
        raise ConfigError("give a model or run directory: tutelage chat runs/demo")
    chat_loop(Path(plain[0]), values)


@app.command()
def runs(folder: Path = Path("runs")) -> None:
    """Show run directories as a tree of what was made from what. Example: tutelage runs runs"""
    from tutelage.report import runs_tree

    console.print(runs_tree(folder))


@app.command()
def report(folder: Path) -> None:
    """Write report.html of a pipeline run. Example: tutelage report runs/demo"""
    from tutelage.report import write_report

    console.print(f"wrote {write_report(folder)}")


def main() -> None:
    """Entry point: a user's error is one line and exit code 1, never a traceback."""
    try:
        app(standalone_mode=True)
    except TutelageError as error:
        console.print(f"error: {error}", style="red", markup=False)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
