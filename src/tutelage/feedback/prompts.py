"""Prompts that people gave and answers that they wrote (InstructGPT's step 1).

A prompt is kept only with its writer's consent and only once, near-duplicates counting as the same; it is marked with
the kinds of personal data in it; whether it trains or is held out goes by its writer, so that one person's habits never
stand on both sides (InstructGPT app. A.2: split by user).
"""

from __future__ import annotations

import hashlib
import time
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasketch import MinHash
from sqlalchemy import Connection, and_, insert, or_, select

from tutelage.core.errors import DataError
from tutelage.feedback.people import need
from tutelage.feedback.personal import find_personal
from tutelage.feedback.rows import Prompt, clean, digest
from tutelage.feedback.tables import demonstrations, insert_one, people, prompt_bands, prompts
from tutelage.text.chat import as_messages

NEAR = 0.8
"""Jaccard similarity of character 5-grams from which two prompts are the same."""
_BANDS, _ROWS = 16, 4  # a pair at 0.8 shares a band with probability 1 - (1 - 0.8^4)^16 = 0.9998
_GRAM = 5
_HELD_OUT = 10  # one person in this many
LONGEST = 200_000


def add_demonstration(
    c: Connection,
    person_id: int,
    prompt: Prompt,
    answer: str,
    origin: Mapping[str, Any] | None,
    edited_from: str | None,
) -> int:
    """Keep an answer that a person wrote, or edited from a model's; returns its id."""
    need(c, person_id)
    if not isinstance(answer, str) or not answer.strip() or len(answer) > LONGEST:
        raise DataError(f"answer: expected a text of 1 to {LONGEST} characters that is not blank")
    row = {
        "person_id": person_id,
        "prompt": _checked(prompt),
        "answer": clean(answer),
        "origin": clean(dict(origin or {})),
        "edited_from": None if edited_from is None else clean(edited_from),
        "created_at": time.time(),
    }
    return insert_one(c, demonstrations, row)


@dataclass(frozen=True)
class NewPrompt:
    """A prompt with what is looked up and kept about it."""

    prompt: Prompt
    text: str
    hash: str
    bands: list[str]
    personal: list[str]


def examine(prompt: Prompt) -> NewPrompt:
    """What add_prompt wants to know, worked out before its transaction begins: others wait for that. DataError for
    what is no prompt."""
    prompt = _checked(prompt)
    text = _text(prompt)
    personal = sorted({kind for kind, _, _ in find_personal(text)})
    return NewPrompt(prompt, text, digest(_folded(text)), _bands(text), personal)


def add_prompt(c: Connection, new: NewPrompt, person_id: int) -> int | None:
    """Keep a prompt whose writer agreed; its id, or None when the store has it or one much like it."""
    need(c, person_id)
    if c.scalar(select(prompts.c.id).where(prompts.c.hash == new.hash)) is not None or _has_near(c, new):
        return None
    pseudonym = c.scalar(select(people.c.pseudonym).where(people.c.id == person_id))
    row = {
        "person_id": person_id,
        "prompt": new.prompt,
        "hash": new.hash,
        "personal": new.personal,
        "split": split_of(str(pseudonym)),
        "created_at": time.time(),
    }
    number = insert_one(c, prompts, row)
    c.execute(insert(prompt_bands), [{"prompt_id": number, "band": b, "value": v} for b, v in enumerate(new.bands)])
    return number


def split_of(pseudonym: str) -> str:
    """"heldout" for one person in ten, "train" for the others; a person's prompts all stand on one side."""
    number = int.from_bytes(hashlib.blake2b(pseudonym.encode(), digest_size=8).digest(), "big")
    return "heldout" if number % _HELD_OUT == 0 else "train"


def _checked(prompt: Prompt) -> Prompt:
    messages = as_messages({"prompt": prompt}) if isinstance(prompt, str | list) else []
    length = sum(len(message["content"]) for message in messages)
    if not any(message["content"].strip() for message in messages) or length > LONGEST:
        raise DataError(f"prompt: expected a text or messages of 1 to {LONGEST} characters that are not blank")
    return clean(prompt if isinstance(prompt, str) else messages)


def _text(prompt: Prompt) -> str:
    return "\n".join(message["content"] for message in as_messages({"prompt": prompt}))


def _folded(text: str) -> str:
    """What two texts that differ in case, spacing and punctuation have in common; a text of signs alone stays."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(letter for letter in folded if letter.isalnum()) or folded


def _grams(text: str) -> set[str]:
    folded = _folded(text)
    return {folded[at : at + _GRAM] for at in range(max(1, len(folded) - _GRAM + 1))}


def _bands(text: str) -> list[str]:
    """The prompt's MinHash in bands: near-duplicates share at least one."""
    sketch = MinHash(num_perm=_BANDS * _ROWS, seed=1)
    sketch.update_batch([gram.encode() for gram in sorted(_grams(text))])
    values = sketch.hashvalues.reshape(_BANDS, _ROWS)
    return [hashlib.blake2b(band.tobytes(), digest_size=12).hexdigest() for band in values]


def _has_near(c: Connection, new: NewPrompt) -> bool:
    """Whether a stored prompt is nearly the same; those that share a band are compared in full."""
    shared = or_(*(and_(prompt_bands.c.value == v, prompt_bands.c.band == b) for b, v in enumerate(new.bands)))
    ids = select(prompt_bands.c.prompt_id).where(shared).distinct().limit(200)
    grams = _grams(new.text)
    for other in c.scalars(select(prompts.c.prompt).where(prompts.c.id.in_(ids))):
        theirs = _grams(_text(other))
        if len(grams & theirs) >= NEAR * len(grams | theirs):
            return True
    return False
