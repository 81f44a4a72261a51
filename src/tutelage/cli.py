"""The command line: `tutelage VERB [recipe.toml] [key=value ...]`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from tutelage.core.distributed import PeerError, joined, launched
from tutelage.core.errors import ConfigError, Interrupted, TutelageError
from tutelage.core.stop import SIGNALS, exit_code
from tutelage.verbs import MAIN, STUDIES

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="From raw text to a chat assistant: tutelage VERB [recipe.toml] [key=value ...]. "
    "Begin with: tutelage run recipes/demo.toml",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
console = Console(highlight=False, soft_wrap=True)
errors = Console(highlight=False, soft_wrap=True, stderr=True)
Words = Annotated[list[str] | None, typer.Argument(help="[recipe.toml] [key=value ...]", metavar="[WORDS]...")]
study = typer.Typer(no_args_is_help=True, help="Reproduce a published claim at laptop size: tutelage study ginc",
                    rich_markup_mode=None)  # fmt: skip
app.add_typer(study, name="study")


def _words(words: list[str] | None, example: str) -> tuple[list[str], dict[str, Any]]:
    """Plain words, and the nested values of the key=value ones."""
    from tutelage.core.config import parse_words

    words = words or []
    if odd := [w for w in words if w.startswith("=")]:
        raise ConfigError(f"{odd[0]!r}: expected key=value, e.g. {example}")
    return [w for w in words if "=" not in w], parse_words([w for w in words if "=" in w])


def _one(plain: list[str], what: str, example: str) -> str:
    if len(plain) != 1:
        found = f"got {' '.join(plain)!r}" if plain else "got none"
        raise ConfigError(f"expected one {what}, {found}; e.g. {example}")
    return plain[0]


class StageCommand(TyperCommand):
    """A command whose help lists the stage's keys, read from its configuration only when help is asked."""

    kind = ""
    more = [("restart=false", "Move aside a run of another configuration in out=.")]
    """What is no key of the configuration."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Add the keys with their defaults and meaning."""
        from tutelage.core.config import describe

        rows = [(name if default is None else f"{name}={default}", doc) for name, default, doc in
                describe(self.config())]  # fmt: skip
        with formatter.section("Keys (key=default)"):
            formatter.write_dl([*rows, *self.more])

    def config(self) -> Any:
        """The configuration whose keys are listed."""
        from tutelage.pipeline.stages import config_class

        return config_class(self.kind or str(self.name))


class GenerateCommand(StageCommand):
    """The help of batch inference."""

    def config(self) -> Any:
        from tutelage.pipeline.batch import GenerateConfig

        return GenerateConfig


class ServeCommand(StageCommand):
    """The help of the server."""

    more = []

    def config(self) -> Any:
        from tutelage.serve.run import ServeConfig

        return ServeConfig


@app.command("run")
def run_(words: Words = None) -> None:
    """Run a recipe; a stage's key is stage.key. Example: tutelage run recipes/demo.toml out=runs/demo ppo.updates=30"""
    from tutelage.pipeline import run_recipe

    example = "tutelage run recipes/demo.toml out=runs/demo"
    plain, values = _words(words, example)
    run_recipe(_one(plain, "recipe", example), values)


def _stage(kind: str, what: str, words: str, group: typer.Typer = app, verb: str = "tutelage") -> None:
    name = kind.removeprefix("study-")
    example = f"{verb} {name} {words}"

    def command(words: Words = None) -> None:
        from tutelage.core.config import merge, read_toml
        from tutelage.pipeline.stages import launch, read_summary
        from tutelage.report.read import metrics_text

        plain, values = _words(words, example)
        if odd := [w for w in plain if not w.endswith(".toml")] or plain[1:]:
            raise ConfigError(f"{odd[0]!r}: expected key=value, e.g. {example}")
        if plain:
            values = merge(read_toml(plain[0]), values)
        restart = values.pop("restart", False)
        if not isinstance(restart, bool):
            raise ConfigError(f"restart={restart!r}: expected true or false")
        path, ran = launch(kind, values, restart=restart)
        summary = read_summary(path)
        if kind == "icl":
            from tutelage.report.icl import sweep_table

            console.print(sweep_table(summary["cells"]))
        else:
            console.print(metrics_text(summary), markup=False)
        from tutelage.report.sheets import console_tables

        for table in console_tables(path):
            console.print(table)
        console.print(f"{'wrote' if ran else 'already finished:'} {path}", markup=False)

    command.__doc__ = f"{what} Example: {example}"
    group.command(name, cls=type("Command", (StageCommand,), {"kind": kind}))(command)


for _kind, (_what, _example) in MAIN.items():
    _stage(_kind, _what, _example)
for _kind, (_what, _example) in STUDIES.items():
    _stage(_kind, _what, _example, study, "tutelage study")


@app.command(cls=GenerateCommand)
def generate(words: Words = None) -> None:
    """Continue a prompt: tutelage generate runs/base "prompt=once upon a time" max_tokens=64

    Or a file of prompts: tutelage generate model=runs/sft prompts=prompts.jsonl out=answers.jsonl chat=true

    The model may also be an OpenAI-compatible server's address, http://127.0.0.1:8000/v1. A file that was interrupted
    goes on where it stopped when the same command is given again.
    """
    example = 'tutelage generate runs/base "prompt=once upon a time"'
    plain, values = _words(words, example)
    if "prompts" in values or plain[:1] and plain[0].endswith(".toml"):
        _generate_file(plain, values)
        return
    name = _one([*plain, *([str(values.pop("model"))] if "model" in values else [])], "model", example)
    prompt = values.pop("prompt", None)
    if prompt is None:
        raise ConfigError(f"no prompt= (nor prompts=FILE); e.g. {example}")
    from tutelage import load
    from tutelage.pipeline.chat import best_of, models_of, sampling

    params = sampling(values)
    source = name
    if Path(name).is_dir():
        models = models_of(name)
        source = str(models[best_of(models)])
    output = load(source).generate([str(prompt)], params)[0]
    if output.error:
        raise TutelageError(output.error)
    for completion in output.completions:
        console.print(f"{prompt}{completion.text}", markup=False)


def _generate_file(plain: list[str], values: dict[str, Any]) -> None:
    """Batch inference: the model or a recipe may stand first."""
    from tutelage.core.config import merge, read_toml
    from tutelage.pipeline.batch import generate_file

    if "prompt" in values:
        raise ConfigError("prompt= and prompts=: expected one of the two, a text or a file")
    if plain:
        first = _one(plain, "model or recipe", "tutelage generate runs/sft prompts=prompts.jsonl out=answers.jsonl")
        if "model" in values and not first.endswith(".toml"):
            raise ConfigError(f"{first!r} and model={values['model']!r}: expected one model")
        values = merge(read_toml(first) if first.endswith(".toml") else {"model": first}, values)
    restart = values.pop("restart", False)
    if not isinstance(restart, bool):
        raise ConfigError(f"restart={restart!r}: expected true or false")
    _, words = generate_file(values, restart)
    console.print(words, markup=False)


@app.command()
def chat(words: Words = None) -> None:
    """Talk to a model; in a pipeline run /base /sft /rlhf switch, /help lists more. Example: tutelage chat runs/demo

    Also with a server: tutelage chat http://127.0.0.1:8000/v1 model=NAME temperature=0.7
    """
    example = "tutelage chat runs/demo"
    plain, values = _words(words, example)
    path = _one(plain, "model, run directory or server address", example)
    from tutelage.pipeline.chat import chat_loop

    chat_loop(path, values)


class LabelCommand(StageCommand):
    """The help of the ranking page."""

    def config(self) -> Any:
        from tutelage.serve.label import LabelConfig

        return LabelConfig


@app.command(cls=ServeCommand)
def serve(words: Words = None) -> None:
    """Serve models over OpenAI's API, and the pages: tutelage serve runs/demo port=8000

    Several models or servers' addresses at once: tutelage serve runs/demo/sft runs/other http://127.0.0.1:9000/v1

    For others than this machine: tutelage serve keys=keys.json new_key=alice, then tutelage serve runs/demo
    host=0.0.0.0 keys=keys.json
    """
    plain, values = _words(words, "tutelage serve runs/demo port=8000")
    from tutelage.pipeline.chat import best_of, models_of
    from tutelage.serve.run import serve as run_server

    run_server(plain, values, models_of, best_of)


@app.command(cls=LabelCommand)
def label(words: Words = None) -> None:
    """Have people rank answers on a page, and look after what they said. Example: tutelage label answers.jsonl

    tutelage label DATA [key=value ...]: the page, for a file of answers, a run of `rank`, or a store

    tutelage label prompts.jsonl model=runs/sft reward=runs/reward: answers sampled while people rank

    tutelage label report STORE [batch=NAME] [json=true]: progress, agreement between people

    tutelage label export STORE out=FILE [kind=rankings|demonstrations|prompts] [batch=NAME] [split=train|heldout]

    tutelage label key STORE name=NAME [new=true]: a person's key

    tutelage label forget STORE person=NAME [reason=WORDS]: delete all that a person gave

    STORE is a file (labels.db) or a database's address (postgresql+psycopg://host/name).
    """
    addresses = [w for w in words or [] if "://" in w.partition("=")[0]]  # whose own "=" make no key
    plain, values = _words([w for w in words or [] if w not in addresses], "tutelage label answers.jsonl")
    from tutelage.feedback.commands import COMMANDS

    if plain[:1] and plain[0] in COMMANDS:
        console.print(COMMANDS[plain[0]]([*plain[1:], *addresses], values), markup=False)
        return
    from tutelage.serve.label import label as serve_page

    serve_page([*plain, *addresses], values)


class PlanCommand(StageCommand):
    """The help of the planner."""

    more = [("stage.key=value", "Any key of the recipe's stages; for a single stage its own keys.")]

    def config(self) -> Any:
        from tutelage.pipeline.planning import PlanConfig

        return PlanConfig


@app.command(cls=PlanCommand)
def plan(words: Words = None) -> None:
    """Memory, time and cost of a recipe before it runs. Example: tutelage plan recipes/demo.toml gpus=8xH100 price=2.5

    Also of one stage: tutelage plan pretrain model=preset:gpt3-1.3b vocab_size=50257 tokens=26e9 gpus=64xH100
    """
    example = "tutelage plan recipes/demo.toml gpus=8xH100"
    plain, values = _words(words, example)
    first = _one(plain, "recipe or stage", example)
    from tutelage.pipeline.planning import plan_command

    tables, below = plan_command(first, values)
    for table in tables:
        Console(highlight=False).print(table)
    if below:
        console.print(below, markup=False)


@app.command()
def runs(folder: Annotated[Path, typer.Argument(help="where the run directories are")] = Path("runs")) -> None:
    """Show run directories as a tree of what was made from what. Example: tutelage runs runs"""
    from tutelage.report import runs_tree

    Console(highlight=False).print(runs_tree(folder))


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="a pipeline run or a stage's run directory")]) -> None:
    """Write report.html of a run. Example: tutelage report runs/demo"""
    from tutelage.report import write_report

    console.print(f"wrote {write_report(folder)}", markup=False)


class ModelsCommand(StageCommand):
    """The help of the table of models."""

    more = []

    def config(self) -> Any:
        from tutelage.model.listing import ModelsConfig

        return ModelsConfig


@app.command(cls=ModelsCommand)
def models(words: Words = None) -> None:
    """List the shapes that model=preset:NAME starts from scratch, published beside computed. Example: tutelage models

    tutelage models out=runs/models: also the table as JSON, with sources, and a plot of the growth over the years
    """
    plain, values = _words(words, "tutelage models out=runs/models")
    if plain:
        raise ConfigError(f"{plain[0]!r}: expected key=value, e.g. tutelage models out=runs/models")
    from tutelage.model.listing import show_models

    for one in show_models(values):
        console.print(one, markup=False)


def main() -> None:
    """Entry point: a user's error is one line on stderr and exit code 1 (130 after Ctrl-C, 143 after SIGTERM), never
    a traceback."""
    # the libraries' progress bars and advice would drown our own lines; who wants them sets these otherwise
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    code, ran, deaf = None, False, False
    while not deaf:
        try:
            if not ran:
                ran = True
                code = _run()
            # on the way out an impatient further Ctrl-C has nothing left to stop; it may come between these lines
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            deaf = True
        except KeyboardInterrupt:
            continue
    raise SystemExit(exit_code() if code is None else code)  # None: a KeyboardInterrupt from anywhere


def _require_shared() -> None:
    """ConfigError for a verb that several processes cannot share."""
    shared = {"run", *MAIN}
    if launched() > 1 and sys.argv[1:2] and sys.argv[1] not in shared:
        raise ConfigError(
            f"{sys.argv[1]} runs in one process, and torchrun has started {launched()}; start it without torchrun "
            f"(shared: {', '.join(sorted(shared))})"
        )


def _run() -> int:
    """Run the command; returns the exit code."""
    try:
        _require_shared()
        with joined():
            app(standalone_mode=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (TutelageError, OSError) as error:
        if os.environ.get("TUTELAGE_DEBUG"):
            raise
        if isinstance(error, BrokenPipeError | PeerError):  # a PeerError is said by the rank that failed
            return 1
        words = " ".join(str(error).split()) or type(error).__name__
        stopped = isinstance(error, Interrupted)
        errors.print(words if stopped else f"error: {words}", style="red", markup=False)
        return exit_code() if stopped else 1
    return 0


if __name__ == "__main__":
    main()
