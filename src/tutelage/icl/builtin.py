"""Descriptions of well-known sets in the form their authors publish them; the data itself is the user's."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

from tutelage.core.config import build
from tutelage.core.errors import ConfigError
from tutelage.icl.tasks import Task
from tutelage.icl.wordings import described

_REVIEW = {"input": "Review: {text}", "output": "\nSentiment: {answer}", "separator": "\n\n"}
_REVIEW |= {"channel_input": "Sentiment: {answer}\nReview: ", "channel_output": "{text}"}
_ABOUT = {"input": "Article: {text}", "output": "\nTopic: {answer}", "separator": "\n\n"}
_ABOUT |= {"channel_input": "Topic: {answer}\nArticle: ", "channel_output": "{text}"}
_TWEET = {"input": "Tweet: {text}", "separator": "\n\n", "channel_output": "{text}"}
_NLI = {"separator": "\n\n", "output": "\nAnswer: {answer}"}
_POLAR = {"0": "negative", "1": "positive"}


def _pairs(first: str, second: str, labels: dict[str, str]) -> dict[str, Any]:
    body = f"{{{first}}}\nQuestion: {{{second}}} true, false or neither?"
    channel = {"channel_input": "Answer: {answer}\n", "channel_output": body}
    return {"text": f"{{{first}}} {{{second}}}", "labels": labels, "format": {**_NLI, "input": body, **channel}}


def _ordered(folder: str, train: str, test: str, **more: Any) -> dict[str, Any]:
    return {"train": f"ordered_prompt/{folder}/{train}", "test": f"ordered_prompt/{folder}/{test}", **more}


def _sentences(folder: str, labels: dict[str, str], form: dict[str, str], train: str, test: str) -> dict[str, Any]:
    return _ordered(folder, train, test, text="{sentence}", labels=labels, format=form)


def _tweets(folder: str, labels: dict[str, str], word: str) -> dict[str, Any]:
    form = {**_TWEET, "output": f"\n{word}: {{answer}}", "channel_input": f"{word}: {{answer}}\nTweet: "}
    base = f"tweeteval/{folder}"
    return {
        "train": f"{base}/train_text.txt+{base}/train_labels.txt",
        "test": f"{base}/test_text.txt+{base}/test_labels.txt",
        "labels": labels, "format": form,
    }  # fmt: skip


def _clue(folder: str, **more: Any) -> dict[str, Any]:
    return {"train": f"fewclue/{folder}/train_few_all.json", "test": f"fewclue/{folder}/test_public.json", **more}


_SUBJ = {**_REVIEW, "input": "Input: {text}", "output": "\nType: {answer}"}
_SUBJ |= {"channel_input": "Type: {answer}\nInput: "}
_TREC = {**_REVIEW, "input": "Question: {text}", "output": "\nType: {answer}"}
_TREC |= {"channel_input": "Type: {answer}\nQuestion: "}
_TREC_LABELS = ("description", "entity", "expression", "human", "location", "number")
_KINDS = (
    "Company", "School", "Artist", "Athlete", "Politician", "Transportation", "Building", "Nature", "Village", "Animal",
    "Plant", "Album", "Film", "Book",
)  # fmt: skip
_NEWS = {
    "news_story": "故事", "news_culture": "文化", "news_entertainment": "娱乐", "news_sports": "体育",
    "news_finance": "财经", "news_house": "房产", "news_car": "汽车", "news_edu": "教育", "news_tech": "科技",
    "news_military": "军事", "news_travel": "旅游", "news_world": "国际", "news_stock": "股票",
    "news_agriculture": "农业", "news_game": "游戏",
}  # fmt: skip
_ZH_NLI = "{sentence1}\n问题：“{sentence2}”，对吗？"
_EXAM = {"input": "Question: {text}\n{choices}", "output": "\nAnswer: {answer}", "separator": "\n\n"}
_EXAM_ZH = {"input": "题目：{text}\n{choices}", "output": "\n答案：{answer}", "separator": "\n\n"}
_EXAM_COLUMNS = {"label": "answer", "letters": True}

TASKS: dict[str, dict[str, Any]] = {
    "sst2": _sentences("sst2", _POLAR, _REVIEW, "dev_subsample.jsonl", "dev.jsonl"),
    "sst5": _sentences(
        "sst5", dict(zip("01234", ("terrible", "bad", "okay", "good", "great"))), _REVIEW, "train.jsonl", "test.jsonl"
    ),
    "mr": _sentences("mr", _POLAR, _REVIEW, "train.jsonl", "test.jsonl"),
    "cr": _sentences("cr", _POLAR, _REVIEW, "train.jsonl", "test.jsonl"),
    "mpqa": _sentences("mpqa", _POLAR, _REVIEW, "train.jsonl", "test.jsonl"),
    "subj": _sentences("subj", {"0": "subjective", "1": "objective"}, _SUBJ, "train.jsonl", "test.jsonl"),
    "trec": _sentences("trec", dict(zip("012345", _TREC_LABELS)), _TREC, "train.jsonl", "test.jsonl"),
    "agnews": _sentences(
        "agnews", dict(zip("1234", ("world", "sports", "business", "technology"))), _ABOUT, "dev_subsample.jsonl",
        "test.jsonl",
    ),
    "dbpedia": _sentences(
        "dbpedia", {str(i): word for i, word in enumerate(_KINDS, 1)}, _ABOUT, "dev_subsample.jsonl",
        "dev_subsample.jsonl",
    ),
    "rte": _ordered(
        "rte", "train.jsonl", "dev.jsonl",
        **_pairs("sentence_1", "sentence_2", {"entailment": "true", "not_entailment": "false"}),
    ),
    "cb": _ordered(
        "cb", "train.jsonl", "dev.jsonl",
        **_pairs("premise", "hypothesis", {"entailment": "true", "contradiction": "false", "neutral": "neither"}),
    ),
    "emotion": _tweets("emotion", dict(zip("0123", ("anger", "joy", "optimism", "sadness"))), "Emotion"),
    "irony": _tweets("irony", {"0": "no", "1": "yes"}, "Irony"),
    **{
        f"stance_{topic}": _tweets(f"stance/{topic}", {"0": "none", "1": "against", "2": "favor"}, "Stance")
        for topic in ("abortion", "atheism", "climate", "feminist", "hillary")
    },
    "eprstmt": _clue(
        "eprstmt", text="{sentence}", labels={"Positive": "好", "Negative": "差"},
        format={"input": "评论：{text}", "output": "\n评价：{answer}", "separator": "\n\n",
                "channel_input": "评价：{answer}\n评论：", "channel_output": "{text}"},
    ),
    "bustm": _clue(
        "bustm", text="{sentence1} {sentence2}", labels={"0": "不同", "1": "相同"},
        format={"input": "句子一：{sentence1}\n句子二：{sentence2}", "output": "\n意思：{answer}", "separator": "\n\n",
                "channel_input": "意思：{answer}\n", "channel_output": "句子一：{sentence1}\n句子二：{sentence2}"},
    ),
    "ocnli": _clue(
        "ocnli", text="{sentence1} {sentence2}",
        labels={"entailment": "对", "neutral": "不一定", "contradiction": "错"},
        format={"input": _ZH_NLI, "output": "\n回答：{answer}", "separator": "\n\n",
                "channel_input": "回答：{answer}\n", "channel_output": _ZH_NLI},
    ),
    "tnews": _clue(
        "tnews", text="{sentence}", label="label_desc", labels=_NEWS,
        format={"input": "新闻：{text}", "output": "\n类别：{answer}", "separator": "\n\n",
                "channel_input": "类别：{answer}\n新闻：", "channel_output": "{text}"},
    ),
    "mmlu": {
        "train": "exam/mmlu/data/mmlu/dev", "test": "exam/mmlu/data/mmlu/test", "text": "{question}",
        "choices": ["choice0", "choice1", "choice2", "choice3"], "format": _EXAM, **_EXAM_COLUMNS,
    },
    "cmmlu": {
        "train": "exam/cmmlu/dev", "test": "exam/cmmlu/test", "text": "{Question}", "choices": ["A", "B", "C", "D"],
        "letters": True, "label": "Answer", "format": _EXAM_ZH,
    },
    **{
        name: {
            "train": f"exam/agieval/v1/{name}.jsonl", "test": f"exam/agieval/v1/{name}.jsonl",
            "text": "{question}", "choices": "options", "letters": True, "format": _EXAM,
        }
        for name in ("sat-math", "lsat-ar", "lsat-lr", "logiqa-en", "gaokao-history", "gaokao-physics")
    },
    "gsm8k": {
        "train": "reason/gsm8k/train.jsonl", "test": "reason/gsm8k/test.jsonl", "text": "{question}", "label": "answer",
        "metric": "number", "format": {"input": "Q: {text}", "output": "\nA: {answer}", "separator": "\n\n"},
    },
    **{
        name: {"test": f"reason/zero_shot_cot/{file}", "label": "answer", "problems": True}
        for name, file in {
            "multiarith": "MultiArith/MultiArith.json", "addsub": "AddSub/AddSub.json", "svamp": "SVAMP/SVAMP.json",
            "singleeq": "SingleEq/questions.json", "aqua": "AQuA/test.json", "strategyqa": "StrategyQA/task.json",
            "csqa": "CommonsenseQA/train_rand_split.jsonl", "date": "Bigbench_Date/task.json",
            "objects": "Bigbench_object_tracking/task.json", "last_letters": "last_letters/last_letters.json",
            "coin_flip": "coin_flip/coin_flip.json",
        }.items()
    },
}  # fmt: skip


def builtin_task(name: str, data: str | None = None) -> Task:
    """One of TASKS, or "mmlu:SUBJECT" for one subject, with its files under `data` (or $TUTELAGE_DATA)."""
    base, _, part = name.partition(":")
    if base not in TASKS:
        near = difflib.get_close_matches(base, TASKS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"task {name!r}: {hint}a .toml description, or one of {', '.join(TASKS)}")
    values: dict[str, Any] = {"name": name, **TASKS[base], **described(base)}
    root = data or os.environ.get("TUTELAGE_DATA", "")
    if not root:
        raise ConfigError(f"task {name}: where are its files? data=FOLDER (or the environment's TUTELAGE_DATA)")
    for split in [s for s in ("train", "test") if values.get(s)]:
        values[split] = "+".join(str(_find(Path(root), part_, name)) for part_ in values[split].split("+"))
    if part:
        values |= _subject(base, part, values)
    return build(Task, values, where=f"task {name}")


def _subject(base: str, part: str, values: dict[str, Any]) -> dict[str, Any]:
    if base not in ("mmlu", "cmmlu"):
        raise ConfigError(f"task {base}:{part}: {base} has no parts")
    ends = {"mmlu": ("_dev", "_test"), "cmmlu": ("", "")}[base]
    files = {s: Path(values[s]) / f"{part}{end}.csv" for s, end in zip(("train", "test"), ends)}
    if not files["test"].exists():
        known = sorted(f.stem.removesuffix("_test") for f in Path(values["test"]).glob("*.csv"))
        raise ConfigError(f"task {base}:{part}: no such subject; there are {', '.join(known)}")
    return {split: str(file) for split, file in files.items()}


def _find(root: Path, relative: str, name: str) -> Path:
    """The file under the root: at its full place, or at any shorter end of it (data= may point deep)."""
    parts = Path(relative).parts
    for depth in range(len(parts)):
        for base in (root, root / "icl"):
            if (base / Path(*parts[depth:])).exists():
                return base / Path(*parts[depth:])
    raise ConfigError(f"task {name}: {relative} is not under {root}; data= is the folder that holds it")
