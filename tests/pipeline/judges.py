"""Reward functions that a user might write, most of them wrong (see test_bad_input.py)."""


def fine(prompts, completions, **columns):
    return [float(len(text)) for text in completions]


def raises(prompts, completions, **columns):
    return [1 / 0 for _ in completions]


def nan(prompts, completions, **columns):
    return [float("nan")] * len(completions)


def few(prompts, completions, **columns):
    return [1.0]


def text(prompts, completions, **columns):
    return "good"


def words(prompts, completions, **columns):
    return ["good"] * len(completions)


def nothing(prompts, completions, **columns):
    pass


def narrow(prompts, completions):
    return [1.0] * len(completions)


CALLS = []


def explodes(prompts, completions, **columns):
    """From the third call on so large that the gradients overflow."""
    CALLS.append(1)
    return [float(len(text)) * (1.0 if len(CALLS) < 3 else 1e37) for text in completions]
