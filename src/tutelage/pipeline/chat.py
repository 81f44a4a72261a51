"""The terminal chat: one conversation, several models to switch between, answers as they are sampled."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from tutelage.core.config import parse_words
from tutelage.core.errors import ConfigError, DataError, TutelageError
from tutelage.core.rundir import read_manifest
from tutelage.engine import LocalEngine, RemoteEngine, SamplingParams
from tutelage.model.hub import load_model
from tutelage.text.chat import BASE, fit_messages, talks

Message = dict[str, str]
LABELS = {"pretrain": BASE, "sft": "sft", "ppo": "rlhf", "grpo": "rlhf", "dpo": "rlhf"}
HELP = {
    "/new": "forgets the conversation",
    "/system TEXT": "sets the system message (alone: none) and begins anew",
    "/regenerate": "answers the last question again",
    "/undo": "takes the last exchange back",
    "/params [KEY=VALUE ...]": "shows or changes the sampling, e.g. /params temperature=0.8 top_p=0.9",
    "/save FILE": "adds the conversation to a .jsonl file as a row for sft, or writes it as .md",
    "/help": "shows this",
    "/quit": "ends the chat (as Ctrl-D does; Ctrl-C cuts an answer)",
}
BLOCK = '"""'
MORE = f"A line that ends in \\ goes on in the next one; {BLOCK} begins a text of many lines, which {BLOCK} ends."


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


def best_of(models: Iterable[str]) -> str:
    """The label of the furthest model: rlhf, else sft, else the first there is."""
    models = list(models)
    return next((label for label in ("rlhf", "sft") if label in models), models[0])


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


def _local(place: Path) -> LocalEngine:
    model, tokenizer = load_model(place, learned_prompt=True)
    return LocalEngine(model.eval(), tokenizer)


def _loaders(source: str, model: str | None) -> dict[str, Callable[[], LocalEngine | RemoteEngine]]:
    """How to get the engine of each model, by label: those of a run, or those that a server lists (or `model`)."""
    if source.startswith(("http://", "https://")):
        names = [model] if model else RemoteEngine(source).models()
        return {name: lambda name=name: RemoteEngine(source, model=name) for name in names}  # type: ignore[misc]
    if model is not None:
        raise ConfigError(f"model={model!r}: names a model of a server; {source!r} is none")
    return {label: lambda place=place: _local(place) for label, place in models_of(source).items()}  # type: ignore[misc]


class Chat:
    """One conversation with the models of `path`: a model, a pipeline run, or an OpenAI-compatible server's address."""

    def __init__(self, path: str | Path, values: Mapping[str, Any], console: Console) -> None:
        values = dict(values)
        model = values.pop("model", None)
        self._loaders = _loaders(str(path), None if model is None else str(model))
        self.label = best_of(self._loaders)
        self.settings = sampling(values, max_tokens=48, temperature=0.0)
        self.console = console
        self.messages: list[Message] = []
        self.system: str | None = None
        self._continued: str | None = None
        """The last text that a base model was given: what is continued again by /regenerate."""
        self._engines: dict[str, LocalEngine | RemoteEngine] = {}

    @property
    def commands(self) -> str:
        """The line that says what can be typed."""
        return f"{'  '.join('/' + m for m in self._loaders)}   {'  '.join(HELP)}"

    def engine(self) -> LocalEngine | RemoteEngine:
        """The engine of the chosen model, loaded when first asked."""
        if self.label not in self._engines:
            self._engines[self.label] = self._loaders[self.label]()
        return self._engines[self.label]

    @property
    def talks(self) -> bool:
        """Whether the chosen model answers messages rather than continuing text."""
        return talks(self.label, getattr(self.engine(), "tokenizer", None))

    def command(self, line: str) -> bool:
        """Obey a line that begins with "/"; False ends the chat."""
        word, _, rest = line[1:].partition(" ")
        rest = rest.strip()
        if word in self._loaders:
            self.label = word
            return True
        if word in ("quit", "exit"):
            return False
        known = {
            "new": lambda: self.begin(self.system),
            "system": lambda: self.begin(rest or None),
            "regenerate": self.regenerate,
            "undo": self.undo,
            "params": lambda: self.params(rest),
            "save": lambda: self.save(rest),
            "help": self.help,
        }
        if word not in known:
            self.tell(f"no /{word}; there is {self.commands}")
            return True
        known[word]()
        return True

    def tell(self, words: str) -> None:
        """Print a remark of the chat's own."""
        self.console.print(words, style="dim", markup=False, soft_wrap=True)

    def help(self) -> None:
        """Print every command."""
        width = max(map(len, HELP))
        for name in self._loaders:
            self.tell(f"{'/' + name:{width}}  switches to this model")
        for name, what in HELP.items():
            self.tell(f"{name:{width}}  {what}")
        self.tell(MORE)

    def begin(self, system: str | None) -> None:
        """Begin anew, under this system message."""
        self.system, self.messages, self._continued = system, [], None

    def undo(self) -> str | None:
        """Take the last exchange back; its question."""
        if not self.messages:
            self.tell("nothing to take back")
            return None
        question = self.messages[-2]["content"]
        self.messages = self.messages[:-2]
        self.tell(f"taken back: {question[:60]}{'...' if len(question) > 60 else ''}")
        return question

    def regenerate(self) -> None:
        """Answer the last question again. DataError when there is none."""
        question = self._continued
        if question is None and self.messages:
            question = self.messages[-2]["content"]
        if question is None:
            raise DataError("nothing to answer again: no question was asked yet")
        if self.settings.temperature == 0 or self.settings.seed is not None:
            what = "temperature=0" if self.settings.temperature == 0 else f"seed={self.settings.seed}"
            self.tell(f"({what} gives the same answer again; /params temperature=0.8 seed=null)")
        kept = self.messages
        if self._continued is None and self.talks:
            self.messages = self.messages[:-2]
        try:
            self.answer(question)
        except TutelageError:
            self.messages = kept
            raise

    def params(self, words: str) -> None:
        """Change the sampling by `key=value` words, and say how it is."""
        if words:
            given = [word for word in words.split() if "=" in word]
            if len(given) != len(words.split()):
                raise ConfigError(f"{words!r}: expected key=value, e.g. /params temperature=0.8 top_p=0.9")
            now = {f.name: getattr(self.settings, f.name) for f in dataclasses.fields(self.settings)}
            values = parse_words(given)
            off = {k: None for k, v in values.items() if v == "null" and getattr(SamplingParams, k, "") is None}
            self.settings = sampling({**values, **off}, **now)
        default = SamplingParams()
        shown = ("max_tokens", "temperature")
        fields = [f.name for f in dataclasses.fields(self.settings)]
        values = {name: getattr(self.settings, name) for name in fields}
        said = [f"{k}={v}" for k, v in values.items() if k in shown or v != getattr(default, k)]
        self.tell("  ".join(said))

    def save(self, where: str) -> None:
        """Write the conversation: added to a .jsonl file as a {"messages"} row, or as a new .md file.

        DataError for another ending, for a .md file that is there already, and for a place that cannot be written.
        """
        file, head = Path(where), [{"role": "system", "content": self.system}] if self.system else []
        messages = head + self.messages
        if not self.messages:
            raise DataError("nothing to save: no question was asked yet")
        if file.suffix not in (".jsonl", ".md"):
            raise DataError(f"/save {where}: expected a file that ends in .jsonl (a row for sft) or .md (to read)")
        try:
            if file.suffix == ".jsonl":
                with file.open("a", encoding="utf-8") as rows:
                    rows.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
            else:
                with file.open("x", encoding="utf-8") as page:
                    page.write("\n".join(f"## {m['role']}\n\n{m['content']}\n" for m in messages))
        except FileExistsError:
            raise DataError(f"{file}: is there already; choose another name") from None
        except (OSError, UnicodeEncodeError) as error:
            raise DataError(f"{file}: cannot be written ({error})") from None
        self.tell(f"saved {len(self.messages) // 2} exchanges to {file}")

    def fit(self, engine: LocalEngine | RemoteEngine) -> list[Message]:
        """The conversation, its oldest exchanges left out so that an answer of max_tokens fits the context.

        A server's model is sent everything: how long its context is only the server knows. DataError when even the
        last message alone does not fit.
        """
        head = [{"role": "system", "content": self.system}] if self.system else []
        if isinstance(engine, RemoteEngine):
            return head + self.messages
        return fit_messages(engine.tokenizer, head + self.messages, engine.context_length - self.settings.max_tokens)

    def answer(self, line: str) -> str:
        """Print the model's answer to `line` as it comes; the exchange joins the conversation.

        A base model has seen no chat: it continues the line's text, and the conversation stays as it was.
        """
        engine = self.engine()
        prompt: str | list[Message] = line
        before = list(self.messages)
        try:
            if self.talks:
                self.messages.append({"role": "user", "content": line})
                prompt = self.fit(engine)
            text = self._stream(engine, prompt)
        except TutelageError:
            self.messages = before
            raise
        self._continued = line if isinstance(prompt, str) else None
        if not isinstance(prompt, str):
            dropped = len(self.messages) - (len(prompt) - bool(self.system))
            self.messages = [*self.messages[dropped:], {"role": "assistant", "content": text}]
        return text

    def _stream(self, engine: LocalEngine | RemoteEngine, prompt: str | list[Message]) -> str:
        text = ""
        try:
            with contextlib.closing(engine.stream(prompt, self.settings)) as pieces:  # type: ignore[type-var]
                for piece in pieces:
                    new = piece.text if text.strip() else piece.text.lstrip()
                    text += new
                    self.console.out(new, end="", highlight=False)
                    self.console.file.flush()
        except KeyboardInterrupt:  # the answer is cut, the chat goes on
            pass
        self.console.out("", highlight=False)
        return text.strip()


def read_text(ask: Callable[[str], str], prompt: str) -> str:
    """One text of a person: a line, lines joined by a backslash at their ends, or what stands between triple quotes.

    `ask(prompt)` reads a line; EOFError and KeyboardInterrupt of it pass.
    """
    line = ask(prompt)
    lines = []
    if line.lstrip().startswith(BLOCK):
        line = line.lstrip()[len(BLOCK) :]
        while BLOCK not in line:
            lines.append(line)
            line = ask("... ")
        lines.append(line[: line.index(BLOCK)])
        return "\n".join(lines).strip()
    while line.endswith("\\"):
        lines.append(line[:-1])
        line = ask("... ")
    return "\n".join([*lines, line]).strip()


def _asker(console: Console) -> Callable[[str], str]:
    """Reads lines; on a terminal with editing and history, where Python has them."""
    if console.is_terminal and sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # Windows has none
            import readline  # noqa: F401  (input() uses it once it is imported)
    return input


def chat_loop(path: str | Path, values: Mapping[str, Any]) -> None:
    """Read texts until the end of input or /quit; one that fails says why and changes nothing."""
    console = Console(highlight=False)
    chat = Chat(path, values, console)
    chat.engine()  # a folder without a model is said before the first question
    console.print(chat.commands, markup=False, soft_wrap=True)
    ask = _asker(console)
    while True:
        try:
            line = read_text(ask, f"{chat.label}> ")
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
