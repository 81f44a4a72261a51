"""Conversations: one message format, one template, and masks that supervise exactly what the assistant says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from tutelage.core.errors import DataError

Message = dict[str, str]
ROLE_TOKENS = {"user": "<|user|>", "assistant": "<|assistant|>", "system": "<|system|>"}
TURN_END = "<|end|>"
_FOREIGN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>")
GPT3_END = "<|endoftext|>"
BASE = "base"
"""The label of a pipeline run's pretrained model."""
_BOS_LINE = "{%- if bos_token %}{{- bos_token }}{%- endif %}"

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|' + message['role'] + '|>' }}"
    "{%- if message['role'] == 'assistant' %}"
    "{% generation %}{{- message['content'] + '<|end|>' }}{% endgeneration %}"
    "{%- else %}{{- message['content'] + '<|end|>' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)

_ROLES = {
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
    "system": "system",
}  # fmt: skip


def _message(role: Any, content: Any) -> Message:
    name = _ROLES.get(str(role).lower())
    if name is None:
        raise DataError(f"chat: role {role!r}, expected one of user, assistant, system (or human, gpt)")
    if isinstance(content, list):  # text parts, as multimodal sets write them
        parts = [part.get("text", part.get("value")) if isinstance(part, Mapping) else None for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        content = "".join(texts) if len(texts) == len(parts) else content
    if not isinstance(content, str):
        raise DataError(f"chat: the {name}'s content is a {type(content).__name__}, expected a string")
    return {"role": name, "content": content}


def _turns(turns: Any, key: str) -> list[Message]:
    """A list of {"role","content"} or of ShareGPT's {"from","value"}."""
    if not isinstance(turns, list) or not turns:
        raise DataError(f"chat: {key!r} is not a non-empty list, expected [{{\"role\": ..., \"content\": ...}}, ...]")
    messages = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping):
            raise DataError(f"chat: turn {number} of {key!r} is a {type(turn).__name__}, expected an object")
        messages.append(_message(turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))))
    return messages


def _hh(text: str) -> list[Message]:
    r"""Messages of the HH format "\n\nHuman: ...\n\nAssistant: ..."."""
    pieces = re.split(r"(?:^|\n\n)(Human|Assistant):", text)
    if len(pieces) < 3 or pieces[0].strip():
        raise DataError("chat: expected a text of the form '\\n\\nHuman: ...\\n\\nAssistant: ...'")
    return [_message(role, body.strip()) for role, body in zip(pieces[1::2], pieces[2::2])]


def as_messages(row: Mapping[str, Any] | list[Any] | str) -> list[Message]:
    r"""[{"role", "content"}, ...] from any usual row; DataError when the row is none of them.

    Understood: {"messages"}, {"conversations"} (ShareGPT), {"prompt", "completion"} (prompt a string or messages),
    {"instruction", "input"?, "output"} (Alpaca; of self-instruct's "instances" the first), a list of messages, or HH's
    "\n\nHuman: ..\n\nAssistant: .." string.
    A missing completion or output leaves a prompt alone (the last message is then the user's).
    """
    if isinstance(row, str):
        return _hh(row)
    if isinstance(row, list):
        return _turns(row, "messages")
    for key in ("messages", "conversations"):
        if key in row:
            system = [_message("system", row["system"])] if row.get("system") else []
            return system + _turns(row[key], key)
    if "prompt" in row:
        prompt, answer = row["prompt"], row.get("completion", row.get("response"))
        if isinstance(answer, str):  # sets made for GPT-3 write its end marker into the text; we end turns ourselves
            answer = answer.removesuffix(GPT3_END)
        messages = _turns(prompt, "prompt") if isinstance(prompt, list) else [_message("user", prompt)]
        if isinstance(answer, list):
            return messages + _turns(answer, "completion")
        return messages if answer is None else [*messages, _message("assistant", answer)]
    if "instruction" in row:
        if not isinstance(row["instruction"], str):
            raise DataError("chat: 'instruction' is not a string")
        instances = row.get("instances")  # the self-instruct seeds nest input and output one deeper
        inner = instances[0] if isinstance(instances, list) and instances and isinstance(instances[0], dict) else row
        extra = inner.get("input") or ""
        messages = [_message("user", f"{row['instruction']}\n\n{extra}" if extra else row["instruction"])]
        if row.get("system"):
            messages.insert(0, _message("system", row["system"]))
        return messages if inner.get("output") is None else [*messages, _message("assistant", inner["output"])]
    raise DataError(
        f"chat: a row with keys {', '.join(map(str, row)) or 'none'}; expected prompt/completion, messages, "
        "conversations, or instruction/output"
    )


def _is_ours(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.chat_template in (CHAT_TEMPLATE, _BOS_LINE + CHAT_TEMPLATE)


def _find(tokenizer: PreTrainedTokenizerBase, token: str) -> int | None:
    """A token's id, or None. (get_vocab would copy the whole vocabulary at every call.)"""
    found = tokenizer.convert_tokens_to_ids(token)
    return found if isinstance(found, int) and tokenizer.convert_ids_to_tokens(found) == token else None


def _id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    found = _find(tokenizer, token)
    if found is None:
        raise DataError(f"chat: the tokenizer has no token {token}; call ensure_chat first")
    return found


def _segments(tokenizer: PreTrainedTokenizerBase, chats: Sequence[list[Message]]) -> list[tuple[list[int], list[int]]]:
    """Our template, piece by piece: the role and end tokens are the only joints, so the mask is exact.

    A special token spelt out in a content stays ordinary text, so that no one can fake a turn.
    """
    end = turn_end_id(tokenizer)
    roles = {role: _id(tokenizer, token) for role, token in ROLE_TOKENS.items()}
    starts = str(tokenizer.chat_template).startswith(_BOS_LINE) and tokenizer.bos_token_id is not None
    start = [_id(tokenizer, str(tokenizer.bos_token))] if starts else []
    contents = [message["content"] for messages in chats for message in messages]
    bodies = iter(tokenizer(contents, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    out = []
    for messages in chats:
        ids, mask = list(start), [0] * len(start)
        for message in messages:
            said = [*next(bodies), end]
            ids += [roles[message["role"]], *said]
            mask += [0, *([int(message["role"] == "assistant")] * len(said))]
        out.append((ids, mask))
    return out


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], prompt: bool) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))


def _spans(tokenizer: PreTrainedTokenizerBase, messages: list[Message], whole: str) -> list[tuple[int, int]]:
    """Character spans of `whole` that each assistant turn adds to the rendering of the prompt before it."""
    spans = []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            before = _render(tokenizer, messages[:number], True)
            after = _render(tokenizer, messages[: number + 1], False)
            if not (whole.startswith(after) and after.startswith(before)):
                raise DataError("chat: the tokenizer's template rewrites earlier turns; train on single turns")
            spans.append((len(before), len(after)))
    return spans


def _foreign(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> tuple[list[int], list[int]]:
    """Another model's template, tokenized in one piece as its makers do; the mask comes from character offsets."""
    whole = _render(tokenizer, messages, False)
    out = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets, end = list(out["input_ids"]), out["offset_mapping"], turn_end_id(tokenizer)
    mask = [0] * len(ids)
    for start, stop in _spans(tokenizer, messages, whole):
        said = [i for i, (left, right) in enumerate(offsets) if start <= left < stop and right > left]
        # Some templates put a newline behind the end token; it belongs to the next turn, not to what was said.
        ends = [i for i in said if ids[i] == end]
        for i in said:
            mask[i] = int(not ends or i <= ends[-1])
    return ids, mask


def encode_chats(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[list[Message]], max_length: int | None = None
) -> list[tuple[list[int], list[int]]]:
    """`encode_chat` of many conversations, tokenized in one call."""
    if not all(chats):
        raise DataError("chat: an empty conversation, expected at least one message")
    if not tokenizer.chat_template:
        raise DataError("chat: the tokenizer has no chat template; call ensure_chat first")
    if not chats:
        return []
    rows = _segments(tokenizer, chats) if _is_ours(tokenizer) else [_foreign(tokenizer, chat) for chat in chats]
    return rows if max_length is None else [(ids[:max_length], mask[:max_length]) for ids, mask in rows]


def encode_chat(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], max_length: int | None = None
) -> tuple[list[int], list[int]]:
    """(ids, mask), equally long; mask is 1 exactly on each assistant content and its end token.

    Beyond `max_length` tokens the end is cut off, so the mask may become all 0: such rows teach nothing, drop them.
    """
    return encode_chats(tokenizer, [messages], max_length)[0]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str | list[Message]) -> list[int]:
    """Ids to generate from: plain text as it is, or a conversation followed by the assistant's role token.

    Plain text gets the tokenizer's own bos (never an eos); an empty one gives the document boundary, never nothing.
    """
    if isinstance(prompt, str):
        ids = list(tokenizer(prompt)["input_ids"])
        if prompt and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(tokenizer.eos_token):
            ids.pop()
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        return ids or [start]
    if not prompt:
        raise DataError("chat: an empty conversation, expected at least one message")
    if _is_ours(tokenizer):
        return [*_segments(tokenizer, [prompt])[0][0], _id(tokenizer, ROLE_TOKENS["assistant"])]
    if not tokenizer.chat_template:
        raise DataError("chat: the tokenizer has no chat template; call ensure_chat first")
    return list(tokenizer(_render(tokenizer, prompt, True), add_special_tokens=False)["input_ids"])


def ensure_chat(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Install our template and role tokens where there is no template; returns whether the embedding must grow.

    A tokenizer that starts every text with bos keeps doing so (the template writes it once).
    """
    if tokenizer.chat_template:
        return False
    first = list(tokenizer("")["input_ids"])[:1]
    starts = tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]
    before = len(tokenizer)
    tokens = [*ROLE_TOKENS.values(), TURN_END]
    missing = [token for token in tokens if _find(tokenizer, token) is None]
    tokenizer.add_tokens(missing, special_tokens=True)
    tokenizer.chat_template = (_BOS_LINE if starts else "") + CHAT_TEMPLATE
    return len(tokenizer) > before


def chat_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of our template's role and end tokens, which a base model has never seen; [] under another template."""
    return [_id(tokenizer, token) for token in (*ROLE_TOKENS.values(), TURN_END)] if _is_ours(tokenizer) else []


def turn_end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that ends a turn: <|end|> under our template, the template's own marker, else eos."""
    template = str(tokenizer.chat_template or "")
    for token in (TURN_END, *_FOREIGN_ENDS):
        found = _find(tokenizer, token) if token in template else None
        if found is not None:
            return found
    if tokenizer.eos_token_id is None:
        raise DataError("chat: the tokenizer has neither a turn end nor an eos token; call ensure_chat first")
    return int(tokenizer.eos_token_id)


def fit_messages(tokenizer: PreTrainedTokenizerBase, messages: list[Message], room: int) -> list[Message]:
    """The conversation without as many of its oldest exchanges as must go for its prompt to take `room` tokens.

    A system message at the head stays. DataError when even the last message alone does not fit.
    """
    head = messages[:1] if messages and messages[0]["role"] == "system" else []
    kept = messages[len(head) :]
    while True:
        length = len(encode_prompt(tokenizer, head + kept))
        if length <= room:
            return head + kept
        if len(kept) <= 1:
            raise DataError(f"a message of {length} tokens; {room} fit beside an answer of max_tokens")
        # question and answer together: what remains begins with the user
        kept = kept[2:] if len(kept) > 2 else kept[1:]


def talks(label: str, tokenizer: PreTrainedTokenizerBase | None) -> bool:
    """Whether a model of this label answers messages; a base model, or one without a template, continues text.

    A base model's tokenizer may have the later stages' template, but it has seen no chat. Of a model behind a server
    (no tokenizer) nothing more is known; it is taken to answer.
    """
    if label.rsplit("/", 1)[-1] == BASE:
        return False
    return tokenizer is None or bool(tokenizer.chat_template)
