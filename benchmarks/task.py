"""A task both libraries can be given: four topics, words that are liked or disliked, answers of about ten words.

Nothing of it is tutelage's: the gold score is a few lines of Python, the prompts are plain text, every word is one
token. A policy that answers with liked words of the prompt's topic, without saying one twice, scores near 1.
"""

from __future__ import annotations

import random
from typing import Any

TOPICS = {
    "sea": "wave boat fish sand salt tide gull reef crab pier foam kelp".split(),
    "farm": "hen barn hay cow plough wheat goat mill duck seed fence oats".split(),
    "town": "shop tram bank lamp road clock bridge park bus square bench tower".split(),
    "sky": "cloud star moon wind hawk kite dawn storm rain comet mist sun".split(),
}
ASKS = ["tell me about the {}", "say some words of the {}", "what is in the {}", "describe the {} to me"]
MAX_WORDS = 15


def liked(word: str) -> float:
    """+1 for two words in three, else -1: by the word's place in its topic."""
    for words in TOPICS.values():
        if word in words:
            return -1.0 if words.index(word) % 3 == 2 else 1.0
    return 0.0


def prompts(count: int, seed: int) -> list[dict[str, str]]:
    """Rows {"prompt", "topic"}."""
    rng = random.Random(seed)
    topics = [rng.choice(list(TOPICS)) for _ in range(count)]
    return [{"prompt": rng.choice(ASKS).format(topic), "topic": topic} for topic in topics]


def demonstration(topic: str, rng: random.Random) -> str:
    """An answer of mixed quality: three words in four of the topic, repetitions allowed."""
    out = []
    for _ in range(rng.randint(6, MAX_WORDS - 1)):
        where = topic if rng.random() < 0.75 else rng.choice(list(TOPICS))
        out.append(rng.choice(TOPICS[where]))
    return " ".join(out)


def gold(topic: str, answer: str) -> float:
    """True score, at most 1: mean over words (liked or not; another topic's words and repetitions count -1)."""
    words = answer.split()
    total = 0.0
    for i, word in enumerate(words):
        total += liked(word) if word in TOPICS[topic] and word not in words[:i] else -1.0
    return total / len(words) if words else -1.0


def sft_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows {"prompt", "completion"}."""
    rng = random.Random(seed + 1)
    return [
        {"prompt": row["prompt"], "completion": demonstration(row["topic"], rng)} for row in prompts(count, seed)
    ]


def ranking_rows(count: int, seed: int, k: int = 9) -> list[dict[str, Any]]:
    """Rows {"prompt", "responses", "ranking"}: k answers ordered by the gold score, equal scores tied."""
    rng = random.Random(seed + 2)
    rows = []
    for row in prompts(count, seed):
        answers = [demonstration(row["topic"], rng) for _ in range(k)]
        scores = [round(gold(row["topic"], a), 6) for a in answers]
        ranking = [[i for i in range(k) if scores[i] == s] for s in sorted(set(scores), reverse=True)]
        rows.append({"prompt": row["prompt"], "responses": answers, "ranking": ranking})
    return rows
