"""The terminal chat: one conversation, several models to switch between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from tutelage.core.errors import ConfigError
from tutelage.engine import LocalEngine, SamplingParams
from tutelage.model.hub import load_model
from tutelage.text.chat import turn_end_id

STAGE_OF = {"base": ("pretrain", "base"), "sft": ("sft",), "rlhf": ("ppo", "rlhf")}


def models_of(path: Path) -> dict[str, Path]:
    """The models in a pipeline run by label, or the one model itself."""
    found = {}
    for label, names in STAGE_OF.items():
        for name in names:
            if (path / name / "model").is_dir():
                found[label] = path / name
    return found or {"model": path}


def chat_loop(path: Path, values: dict[str, Any]) -> None:
    """Read lines until end of input; /base /sft /rlhf switch the model, /new starts over, /quit ends."""
    console = Console(highlight=False)
    models = models_of(path)
    label = list(models)[-1]
    engines: dict[str, LocalEngine] = {}
    messages: list[dict[str, str]] = []
    try:
        settings = SamplingParams(**{"max_tokens": 48, "temperature": 0.0, **values})
    except TypeError as error:
        raise ConfigError(str(error)) from None
    console.print(f"models: {' '.join('/' + m for m in models)}   /new   /quit")
    while True:
        try:
            line = console.input(f"[bold]{label}>[/] ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line in ("/quit", "/exit"):
            return
        if line == "/new":
            messages = []
        elif line.startswith("/"):
            if line[1:] in models:
                label = line[1:]
            else:
                console.print(f"no {line}; there is {' '.join('/' + m for m in models)}, /new, /quit")
        elif line:
            if label not in engines:
                engines[label] = LocalEngine(*load_model(models[label]))
            engine = engines[label]
            if label == "base":  # a base model has seen no chat: it continues the text
                output = engine.generate([line], settings)[0]
            else:
                messages = [{"role": "user", "content": line}]
                stop = SamplingParams(**{**settings.__dict__, "stop_tokens": (turn_end_id(engine.tokenizer),)})
                output = engine.generate([messages], stop)[0]
            console.print(output.error or output.completions[0].text.strip(), markup=False)
