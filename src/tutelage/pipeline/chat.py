"""The terminal chat: one conversation, several models to switch between, answers as they are sampled."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from tutelage.core.errors import ConfigError, DataError, TutelageError
from tutelage.core.rundir import read_manifest
from tutelage.engine import LocalEngine, SamplingParams
from tutelage.model.hub import load_model
from tutelage.text.chat import encode_prompt

Message = dict[str, str]
LABELS = {"pretrain": "base", "sft": "sft", "ppo": "rlhf", "grpo": "rlhf", "dpo": "rlhf"}
HELP = "/new forgets the conversation   /system TEXT sets the system message (alone: none)   /quit"


def models_of(path: str | Path) -> dict[str, Path]:
    """The models in a pipeline run by label (base, sft, rlhf; a further one by its stage's name), or the one model."""
    path = Path(path)
    if (path / "model").is_dir() or not path.is_dir():
        return {_label(path): path}
    found: dict[str, Path] = {}
    stages = [p for p in path.iterdir() if (p / "model").is_dir()]
    for stage in sorted(stages, key=lambda p: (str((read_manifest(p) or {}).get("started", "")), p.name)):
        if (read_manifest(stage) or {}).get("kind") in LABELS:
            label = _label(stage)
            found[label if label not in found else stage.name] = stage
    order = [*dict.fromkeys(LABELS.values())]
    return dict(sorted(found.items(), key=lambda kv: order.index(kv[0]) if kv[0] in order else 99)) or {"model": path}


def _label(path: Path) -> str:
    kind = (read_manifest(path) or {}).get("kind") if path.is_dir() else None
    return LABELS.get(str(kind), "model")


def best_of(models: Mapping[str, Path]) -> str:
    """The label of the furthest model: rlhf, else sft, else whatever there is."""
    return next((label for label in ("rlhf", "sft") if label in models), next(iter(models)))


def sampling(values: Mapping[str, Any], **defaults: Any) -> SamplingParams:
    """SamplingParams from `key=value` words; ConfigError names the nearest key of a misspelt one."""
    known = [f.name for f in dataclasses.fields(SamplingParams)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            raise ConfigError(f"unknown key {key!r}; {hint}")
    try:
        return SamplingParams(**{**defaults, **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"sampling: {error}") from None


class Chat:
    """One conversation with the models of `path`."""

    def __init__(self, path: str | Path, values: Mapping[str, Any], console: Console) -> None:
        self.models = models_of(path)
        self.label = best_of(self.models)
        self.settings = sampling(values, max_tokens=48, temperature=0.0)
        self.console = console
        self.messages: list[Message] = []
        self.system: str | None = None
        self._engines: dict[str, LocalEngine] = {}

    @property
    def commands(self) -> str:
        """The line that says what can be typed."""
        return f"{'  '.join('/' + m for m in self.models)}   {HELP}"

    def engine(self) -> LocalEngine:
        """The engine of the chosen model, loaded when first asked."""
        if self.label not in self._engines:
            model, tokenizer = load_model(self.models[self.label])
            self._engines[self.label] = LocalEngine(model.eval(), tokenizer)
        return self._engines[self.label]

    def command(self, line: str) -> bool:
        """Obey a line that begins with "/"; False ends the chat."""
        word, _, rest = line[1:].partition(" ")
        if word in ("quit", "exit"):
            return False
        if word == "new":
            self.messages = []
        elif word == "system":
            self.system = rest.strip() or None
            self.messages = []
        elif word in self.models:
            self.label = word
        else:
            self.console.print(f"no /{word}; there is {self.commands}", markup=False, soft_wrap=True)
        return True

    def fit(self, engine: LocalEngine) -> list[Message]:
        """The conversation, its oldest exchanges left out so that an answer of max_tokens fits the context.

        Raises DataError when even the last message alone does not fit.
        """
        head = [{"role": "system", "content": self.system}] if self.system else []
        room = engine.context_length - self.settings.max_tokens
        kept = list(self.messages)
        while True:
            length = len(encode_prompt(engine.tokenizer, head + kept))
            if length <= room:
                return head + kept
            if len(kept) == 1:
                raise DataError(f"a message of {length} tokens; {room} fit beside an answer of max_tokens")
            kept = kept[2:]  # question and answer together: what remains begins with the user

    def answer(self, line: str) -> str:
        """Print the model's answer to `line` as it comes; the exchange joins the conversation.

        A base model has seen no chat: it continues the line's text, and the conversation stays as it was.
        """
        engine = self.engine()
        talks = self.label != "base" and bool(engine.tokenizer.chat_template)
        prompt: str | list[Message] = line
        before = list(self.messages)
        try:
            if talks:
                self.messages.append({"role": "user", "content": line})
                prompt = self.fit(engine)
            text = self._stream(engine, prompt)
        except TutelageError:
            self.messages = before
            raise
        if talks:
            dropped = len(self.messages) - (len(prompt) - bool(self.system))
            self.messages = [*self.messages[dropped:], {"role": "assistant", "content": text}]
        return text

    def _stream(self, engine: LocalEngine, prompt: str | list[Message]) -> str:
        text = ""
        try:
            for piece in engine.stream(prompt, self.settings):
                new = piece.text if text.strip() else piece.text.lstrip()
                text += new
                self.console.out(new, end="", highlight=False)
                self.console.file.flush()
        except KeyboardInterrupt:  # the answer is cut, the chat goes on
            pass
        self.console.out("", highlight=False)
        return text.strip()


def chat_loop(path: Path, values: Mapping[str, Any]) -> None:
    """Read lines until the end of input or /quit; a line that fails says why and changes nothing."""
    console = Console(highlight=False)
    chat = Chat(path, values, console)
    chat.engine()  # a folder without a model is said before the first question
    console.print(chat.commands, markup=False, soft_wrap=True)
    while True:
        try:
            line = console.input(f"[bold]{chat.label}>[/] ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        try:
            if line.startswith("/"):
                if not chat.command(line):
                    return
            elif line:
                chat.answer(line)
        except TutelageError as error:
            console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
