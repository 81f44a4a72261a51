"""What benchmarks/endurance.toml asks with STaR: questions, and a check that any model passes now and then."""

from typing import Any


def questions() -> list[dict[str, str]]:
    """120 rows."""
    return [{"prompt": f"What is {number}?"} for number in range(120)]


def even(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """1 where the characters of prompt and answer add up to an even number, else 0."""
    return [float(sum(map(ord, prompt + text)) % 2 == 0) for prompt, text in zip(prompts, completions)]
