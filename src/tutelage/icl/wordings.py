"""Instruction templates of the built-in tasks, written for this package: several wordings a task, in both directions.

`output` tells where the answer goes; `channel_input` is the task turned around: the input is written from the answer.
"""

from __future__ import annotations

from typing import Any

Wording = dict[str, str]


def _wording(asked: str, turned: str, output: str = "\n{answer}", written: str = "{text}") -> Wording:
    return {"input": asked, "output": output, "separator": "\n\n\n", "channel_input": f"{turned}\n", "channel_output":
            written}  # fmt: skip


SENTIMENT = (
    _wording("Is this review positive or negative?\n\n{text}", "Write a review that is {answer}."),
    _wording("{text}\n\nWhat does the writer of these lines think of it?", "What might somebody write who finds "
             "something {answer}?"),
    _wording("Read the review and name its sentiment.\nReview: {text}", "Sentiment: {answer}\nMake up a review with "
             "that sentiment.", "\nSentiment: {answer}"),
    _wording("\"{text}\"\nHow would you call this opinion?", "Give an opinion that one would call {answer}."),
)  # fmt: skip
TOPIC = (
    _wording("What is this text about?\n\n{text}", "Write the beginning of a text about: {answer}."),
    _wording("{text}\n\nWhich section does this belong in?", "Something for the section {answer}, please."),
    _wording("Sort the text by its subject.\nText: {text}", "Subject: {answer}\nWrite a text on that subject.",
             "\nSubject: {answer}"),
)
SUBJECTIVITY = (
    _wording("Does this sentence tell facts or an opinion?\n\n{text}", "Write a sentence that is {answer}."),
    _wording("{text}\n\nIs that subjective or objective?", "Give an example of a sentence that is {answer}."),
)
QUESTION = (
    _wording("What kind of thing does this question ask for?\n\n{text}", "Ask a question about: {answer}."),
    _wording("{text}\n\nThe answer to that would be of which kind?", "Write a question whose answer is of the kind "
             "{answer}."),
    _wording("Sort the question by what it wants to know.\nQuestion: {text}", "Kind: {answer}\nMake up such a "
             "question.", "\nKind: {answer}"),
)  # fmt: skip
EMOTION = (
    _wording("Which emotion does this message show?\n\n{text}", "Write a message that shows {answer}."),
    _wording("{text}\n\nHow does the writer feel?", "What would somebody post who feels {answer}?"),
)
IRONY = (
    _wording("Is this message meant ironically, yes or no?\n\n{text}", "Write a message. Ironic: {answer}."),
    _wording("{text}\n\nDoes the writer mean the opposite of what is said?", "Ironic: {answer}\nWrite such a message."),
)
STANCE = (
    _wording("Is the writer of this message in favor, against, or neither?\n\n{text}", "Write a message. Stance: "
             "{answer}."),
    _wording("{text}\n\nWhich side does this take?", "Take this side in a message: {answer}."),
)  # fmt: skip


def _entailment(first: str, second: str) -> tuple[Wording, ...]:
    a, b = f"{{{first}}}", f"{{{second}}}"
    return (
        _wording(f"{a}\n\nGiven that, is this true?\n{b}", f"{a}\nWrite a statement that is, given that: {{answer}}.",
                 written=b),
        _wording(f"Text: {a}\nClaim: {b}\nWhat does the text say about the claim?", f"Text: {a}\nVerdict: {{answer}}\n"
                 "Write the claim.", "\nVerdict: {answer}", b),
        _wording(f"Suppose this holds: {a}\nWhat then of \"{b}\"?", f"Suppose this holds: {a}\nName something that is "
                 "then {answer}.", written=b),
    )  # fmt: skip


WORDINGS: dict[str, tuple[str, tuple[Wording, ...]]] = {
    **dict.fromkeys(("sst2", "sst5", "mr", "cr", "mpqa"), ("sentiment", SENTIMENT)),
    "subj": ("subjectivity", SUBJECTIVITY),
    "trec": ("topic", QUESTION),
    **dict.fromkeys(("agnews", "dbpedia"), ("topic", TOPIC)),
    "rte": ("entailment", _entailment("sentence_1", "sentence_2")),
    "cb": ("entailment", _entailment("premise", "hypothesis")),
    "emotion": ("emotion", EMOTION),
    "irony": ("irony", IRONY),
    **{f"stance_{topic}": ("stance", STANCE) for topic in ("abortion", "atheism", "climate", "feminist", "hillary")},
    "eprstmt": ("sentiment", ()),
    "bustm": ("paraphrase", ()),
    "ocnli": ("entailment", ()),
    "tnews": ("topic", ()),
    **dict.fromkeys(("mmlu", "cmmlu"), ("exam", ())),
    "gsm8k": ("arithmetic", ()),
}
"""Built-in task -> (cluster, wordings beside its own format)."""


def described(name: str) -> dict[str, Any]:
    """The keys of a built-in task's description that instruction tuning reads."""
    cluster, templates = WORDINGS.get(name, ("", ()))
    return {"cluster": cluster, "templates": list(templates)}
