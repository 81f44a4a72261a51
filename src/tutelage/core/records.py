"""The JSON rows of data files, one model each; a bad row is named by file and line, with what was expected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tutelage.core.errors import DataError

Row = dict[str, Any]


class Record(BaseModel):
    """Base of the rows: further keys are the user's own columns and pass through."""

    model_config = ConfigDict(extra="allow", strict=True)


class Message(Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


Prompt = str | list[Message]


class TextRow(Record):
    """A document."""

    text: str


class ConversationRow(Record):
    """A dialogue of at least one turn."""

    messages: list[Message] = Field(min_length=1)


class CompletionRow(Record):
    """A prompt and the answer to learn."""

    prompt: Prompt
    completion: str | list[Message]


class PromptRow(Record):
    """A prompt for rollouts; its other columns reach the reward."""

    prompt: Prompt = Field(min_length=1)


class GenerationRow(Record):
    """A prompt for batch inference, an empty one too: that is an error of its row. `params` override the command's."""

    prompt: Prompt
    params: dict[str, Any] | None = None


class PairRow(Record):
    """Two answers, the better one named; `p_chosen` is the share of people who prefer it."""

    prompt: Prompt = Field(min_length=1)
    chosen: str | list[Message]
    rejected: str | list[Message]
    p_chosen: float = Field(1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _two_answers(self) -> PairRow:
        if self.chosen == self.rejected:
            raise ValueError("'chosen' and 'rejected' are the same, which says nothing; remove the row")
        return self


class LabelRow(Record):
    """An answer with a thumb up or down (KTO)."""

    prompt: Prompt
    completion: str | list[Message]
    label: bool


class RankingRow(Record):
    """K answers and their order, best group first; a group is a tie, and every index stands in exactly one.

    Where several people judged, `p_better[i][j]` is the share of them who prefer answer i to j (a tie is half a vote
    for either), null where no one compared the two; `ranking` is then their joint order.
    """

    prompt: Prompt = Field(min_length=1)
    responses: list[str]
    ranking: list[list[int]]
    p_better: list[list[float | None]] | None = None

    @model_validator(mode="after")
    def _an_order_of_all(self) -> RankingRow:
        k = len(self.responses)
        if k < 2:
            raise ValueError(f"{k} response; a ranking needs at least 2 (remove the row)")
        found = [i for group in self.ranking for i in group]
        if sorted(found) != list(range(k)):
            wrong = {
                "missing": set(range(k)) - set(found),
                "twice": {i for i in found if found.count(i) > 1},
                "unknown": set(found) - set(range(k)),
            }
            words = "; ".join(f"{name}: {', '.join(map(str, sorted(which)))}" for name, which in wrong.items() if which)
            raise ValueError(f"ranking {self.ranking} must name each of 0..{k - 1} exactly once ({words})")
        group_of = {i: number for number, group in enumerate(self.ranking) for i in group}
        first: dict[str, int] = {}
        for i, text in enumerate(self.responses):
            same = first.setdefault(text, i)
            if group_of[same] != group_of[i]:
                raise ValueError(f"responses {same} and {i} are the same but ranked apart; remove one of them")
        return self

    @model_validator(mode="after")
    def _shares_of_pairs(self) -> RankingRow:
        k, p = len(self.responses), self.p_better
        if p is None:
            return self
        if [len(line) for line in p] != [k] * k:
            raise ValueError(f"p_better must be {k} x {k}, a share (or null) for every two of the {k} responses")
        for i in range(k):
            for j in range(i):
                a, b = p[i][j], p[j][i]
                if (a is None) != (b is None) or (a is not None and b is not None and not _complementary(a, b)):
                    raise ValueError(f"p_better[{i}][{j}]={a} and p_better[{j}][{i}]={b} must lie in 0..1 and sum to 1")
        return self


def _complementary(a: float, b: float) -> bool:
    return 0 <= a <= 1 and 0 <= b <= 1 and abs(a + b - 1) < 1e-6


EXPECTED: dict[type[Record], str] = {
    TextRow: '{"text": "..."}',
    ConversationRow: '{"messages": [{"role": "user", "content": "..."}, ...]}',
    CompletionRow: '{"prompt": "...", "completion": "..."}',
    PromptRow: '{"prompt": "..."}',
    GenerationRow: '{"prompt": "..."} or {"prompt": [{"role": "user", "content": "..."}]}, "params"?: {...}',
    PairRow: '{"prompt": "...", "chosen": "...", "rejected": "..."}',
    LabelRow: '{"prompt": "...", "completion": "...", "label": true}',
    RankingRow: '{"prompt": "...", "responses": ["...", "..."], "ranking": [[0], [1]]}',
}
"""The shape of each row as an error message shows it."""


class BadRows:
    """What to do with rows that cannot be used: "stop" raises at the first, "skip" leaves them out and lists them."""

    def __init__(self, policy: str = "stop", shown: int = 20) -> None:
        self.policy, self.shown = policy, shown
        self.count = 0
        self.first: list[str] = []
        self._seen: set[str] = set()

    def __call__(self, fault: DataError | str) -> None:
        """Raise the fault as DataError, or count it; a fault met again (data read twice) counts once."""
        if self.policy == "stop":
            raise fault if isinstance(fault, DataError) else DataError(fault)
        if str(fault) in self._seen:
            return
        self._seen.add(str(fault))
        self.count += 1
        if len(self.first) < self.shown:
            self.first.append(str(fault))

    def as_row(self) -> Row:
        """For the manifest: how many, and the first of them."""
        return {"count": self.count, "first": self.first}


def check_row(row: Mapping[str, Any], kind: type[Record], where: str) -> None:
    """Raise DataError `file:line: what is wrong; expected ...` unless the row is a `kind`."""
    try:
        kind.model_validate(dict(row))
    except ValidationError as error:
        raise DataError(f"{where}: {_words(error, row)}; expected {EXPECTED[kind]}") from None


def validate_rows(
    rows: Iterable[tuple[str, Row]], kind: type[Record], bad: BadRows | None = None
) -> Iterator[tuple[str, Row]]:
    """The ("file:line", row) pairs that are a `kind`; `bad` says what becomes of the others (stop by default)."""
    bad = bad or BadRows()
    for where, row in rows:
        try:
            check_row(row, kind, where)
        except DataError as fault:
            bad(fault)
            continue
        yield where, row


def _words(error: ValidationError, row: Mapping[str, Any]) -> str:
    """The first fault in a few words. A prompt may be a string or messages: of the two complaints the fitting one."""
    issues = error.errors()
    missing = [str(i["loc"][0]) for i in issues if i["type"] == "missing" and len(i["loc"]) == 1]
    if missing:
        return f"no {' and no '.join(map(repr, missing))} (keys: {', '.join(map(str, row)) or 'none'})"
    issue = issues[0]
    key = str(issue["loc"][0]) if issue["loc"] else ""
    if not key:
        return str(issue["msg"]).removeprefix("Value error, ")
    value = row.get(key)
    nested = [i for i in issues if isinstance(value, list) and len(i["loc"]) > 1 and i["type"] != "string_type"]
    if nested or (isinstance(value, list) and value):
        issue = (nested or issues)[0]
        path = ".".join(str(part) for part in issue["loc"] if not str(part).startswith(("list[", "str")))
        return f"{path}: {issue['msg']}"
    if value in ("", []):
        return f"{key!r} is empty"
    if issue["type"].endswith("_type"):
        return f"{key!r} is a {type(value).__name__}"
    return f"{key}={value!r}: {issue['msg']}"
