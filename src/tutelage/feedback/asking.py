"""One way to put a transcript before any engine: as text that a base model continues, or quoted in a user's message
that a chat model answers; locally or over HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tutelage.core.errors import ConfigError, DataError
from tutelage.engine import LocalEngine, Output, RemoteEngine, SamplingParams
from tutelage.feedback.constitution import Format, Message, fill, transcript

Style = Literal["auto", "chat", "text"]


@dataclass
class Asker:
    """An engine with the way it is spoken to. `style`: chat quotes transcripts in a user's message; text continues
    them; auto is chat for a server and for a model with a chat template."""

    engine: LocalEngine | RemoteEngine
    form: Format
    style: Style = "auto"
    _lengths: dict[str, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        local = isinstance(self.engine, LocalEngine)
        has_template = local and bool(getattr(self.engine.tokenizer, "chat_template", None))  # type: ignore[union-attr]
        if self.style == "auto":
            self.style = "chat" if has_template or not local else "text"
        if self.style == "chat" and local and not has_template:
            raise ConfigError("style=chat: the model has no chat template; give style=text, or a model that chats")

    @property
    def chat(self) -> bool:
        """Whether requests go as messages."""
        return self.style == "chat"

    def answers(self, prompts: Sequence[list[Message]], params: Sequence[SamplingParams]) -> list[Output]:
        """The assistant's answers to conversations."""
        if self.chat:
            return self._generate(list(prompts), params)
        texts = [(transcript(self.form, p) + fill(self.form.assistant, text="")).rstrip() for p in prompts]
        return self._generate(texts, params)

    def replies(self, texts: Sequence[str], params: Sequence[SamplingParams]) -> list[Output]:
        """What follows each transcript."""
        return self._generate([self.prompt(text) for text in texts], params)

    def prompt(self, text: str) -> Any:
        """A transcript as the engine takes it."""
        return [{"role": "user", "content": text.strip()}] if self.chat else text

    def _generate(self, prompts: Sequence[Any], params: Sequence[SamplingParams]) -> list[Output]:
        outputs = self.engine.generate(prompts, list(params))
        for output in outputs:
            if output.unserved:
                raise DataError(f"{output.error}; what is written stays, and the same command goes on")
        return outputs

    def stops(self) -> tuple[str, ...]:
        """Strings that end a reply; a chat's replies end with their turn."""
        return () if self.chat else tuple(self.form.stop)

    def with_examples(self, examples: Sequence[str], text: str, new: int) -> str:
        """The text behind as many of the examples, first ones first, as leave room for `new` tokens in the model's
        context. Of a server's context nothing is known: there all of them stand before it."""
        if not isinstance(self.engine, LocalEngine):
            return "".join(examples) + text
        room = self.engine.context_length - new - self._length(text) - 8  # template, boundaries
        kept = []
        for example in examples:
            room -= self._length(example)
            if room < 0:
                break
            kept.append(example)
        return "".join(kept) + text

    def _length(self, text: str) -> int:
        if text not in self._lengths:
            if len(self._lengths) > 1000:  # examples come again and again, texts do not
                self._lengths.clear()
            tokenizer = self.engine.tokenizer  # type: ignore[union-attr]
            self._lengths[text] = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._lengths[text]
