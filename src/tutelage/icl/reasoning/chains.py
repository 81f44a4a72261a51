"""Chains of thought: none, few-shot, zero-shot in two stages, and many of them with a vote.

Wei et al. 2022 (few-shot), Kojima et al. 2022 (zero-shot), Wang et al. 2022 (self-consistency).
"""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.engine.requests import Completion, Output, Prompt, SamplingParams
from tutelage.icl.reasoning.asking import Asker, Engine, path, single
from tutelage.icl.reasoning.problems import Problem
from tutelage.icl.reasoning.prompts import STOP, answer_trigger, ask, then
from tutelage.icl.reasoning.settings import Path, ProblemResult, ReasonResult, ReasonSettings
from tutelage.icl.reasoning.votes import curve, log_weights, vote
from tutelage.text.answers import answer_key, cleanse


def stop(settings: ReasonSettings) -> tuple[str, ...]:
    """A chat model ends its turn by itself; a base model would go on with the next question."""
    return () if settings.chat else STOP


def zero_shot(engine: Engine, problems: Sequence[Problem], settings: ReasonSettings, seed: int = 0) -> ReasonResult:
    """The answer at once, asked for by the answer trigger without "Therefore" (Kojima et al.'s baseline)."""
    asker = Asker(engine, problems, seed)
    prompts = [ask((), p, settings.chat, answer_trigger(p, therefore=False)) for p in problems]
    outputs = asker.greedy(prompts, settings.answer_tokens, stop(settings))
    return asker.result("zero_shot", [_cleansed(p, output) for p, output in zip(problems, outputs, strict=True)])


def _cleansed(problem: Problem, output: Output) -> ProblemResult:
    if not output.completions:
        return single(problem, None, None, output.error or "no completion")
    answer = cleanse(output.text, problem.kind, problem.letters)
    return single(problem, answer, path(output.completions[0], answer))


def few_shot(engine: Engine, problems: Sequence[Problem], settings: ReasonSettings, seed: int = 0) -> ReasonResult:
    """Demonstrations without their reasoning, "The answer is N.", greedy."""
    return _shown("few_shot", engine, problems, settings, seed, chain=False, opening="")


def few_shot_cot(engine: Engine, problems: Sequence[Problem], settings: ReasonSettings, seed: int = 0) -> ReasonResult:
    """Demonstrations with their reasoning, greedy; the answer is what follows "The answer is"."""
    return _shown("few_shot_cot", engine, problems, settings, seed, chain=True, opening="")


def zero_plus_few_shot_cot(
    engine: Engine, problems: Sequence[Problem], settings: ReasonSettings, seed: int = 0
) -> ReasonResult:
    """Few-shot chain of thought whose reasoning opens with the trigger, in demonstrations and problem alike."""
    return _shown("zero_plus_few_shot_cot", engine, problems, settings, seed, chain=True, opening=settings.trigger)


def _shown(
    name: str, engine: Engine, problems: Sequence[Problem], settings: ReasonSettings, seed: int, chain: bool,
    opening: str,
) -> ReasonResult:  # fmt: skip
    asker = Asker(engine, problems, seed)
    return demonstrated_answers(asker, name, settings, asker.exemplars(settings, chain), chain, opening)


def demonstrated_answers(
    asker: Asker, name: str, settings: ReasonSettings, exemplars: list[Problem], chain: bool, opening: str
) -> ReasonResult:
    """Greedy answers after demonstrations, as many of them as fit (Auto-CoT ends here too)."""
    room = settings.max_tokens if chain else settings.answer_tokens

    def make(shown: list[Problem], problem: Problem) -> Prompt:
        return ask(shown, problem, settings.chat, opening, chain, opening)

    shown = asker.fit(exemplars, make, room)
    outputs = asker.greedy([make(shown, p) for p in asker.problems], room, stop(settings))
    results = []
    for problem, output in zip(asker.problems, outputs, strict=True):
        if not output.completions:
            results.append(single(problem, None, None, output.error or "no completion"))
            continue
        answer = problem.read(output.text)
        results.append(single(problem, answer, path(output.completions[0], answer)))
    return asker.result(name, results, shown)


def zero_shot_cot(engine: Engine, problems: Sequence[Problem], settings: ReasonSettings, seed: int = 0) -> ReasonResult:
    """Two greedy stages: the trigger draws the reasoning out, then an answer trigger draws the answer."""
    asker = Asker(engine, problems, seed)
    return asker.result("zero_shot_cot", reason_then_answer(asker, problems, settings))


def reason_then_answer(asker: Asker, problems: Sequence[Problem], settings: ReasonSettings) -> list[ProblemResult]:
    """Zero-shot chain of thought of any problems (Auto-CoT makes its demonstrations with it)."""
    prompts = [ask((), p, settings.chat, settings.trigger) for p in problems]
    outputs = asker.greedy(prompts, settings.max_tokens, stop(settings))
    thoughts = [output.completions[0] if output.completions else None for output in outputs]
    asked = [(p, prompt, thought) for p, prompt, thought in zip(problems, prompts, thoughts) if thought is not None]
    found = iter(second_stage(asker, asked, settings))
    results = []
    for problem, output, thought in zip(problems, outputs, thoughts, strict=True):
        if thought is None:
            results.append(single(problem, None, None, output.error or "no completion"))
            continue
        made, error = next(found)
        results.append(single(problem, made.answer, made, error))
    return results


def second_stage(
    asker: Asker, asked: Sequence[tuple[Problem, Prompt, Completion]], settings: ReasonSettings
) -> list[tuple[Path, str | None]]:
    """(path with its answer, error) of each (problem, first prompt, reasoning): one call for all of them."""
    prompts = [then(prompt, thought.text, answer_trigger(problem)) for problem, prompt, thought in asked]
    outputs = asker.greedy(prompts, settings.answer_tokens, stop(settings), _logprobs(settings))
    found: list[tuple[Path, str | None]] = []
    for (problem, _, thought), output in zip(asked, outputs, strict=True):
        first = path(thought, None)
        if not output.completions:
            found.append((first, output.error or "no completion"))
            continue
        second = path(output.completions[0], cleanse(output.text, problem.kind, problem.letters))
        text = f"{first.text}\n{answer_trigger(problem)}{second.text}"
        tokens = None if first.tokens is None or second.tokens is None else first.tokens + second.tokens
        logprob = None if first.logprob is None or second.logprob is None else first.logprob + second.logprob
        found.append((Path(text, second.answer, logprob, tokens, (first.text, second.text)), None))
    return found


def _logprobs(settings: ReasonSettings) -> int | None:
    """Servers send log-probabilities only where they are asked for."""
    return None if settings.weighting == "majority" else 0


def self_consistency(
    engine: Engine, problems: Sequence[Problem], settings: ReasonSettings, seed: int = 0
) -> ReasonResult:
    """Many sampled chains of thought a problem, and a vote over their answers.

    Few-shot, or the zero-shot chain of thought where ``shots`` is 0. All paths of all problems are one call: a prompt
    is computed once for its paths, and what prompts share once for all. The result's ``curve`` is the accuracy against
    the number of paths, from these same samples. DataError where the weighting needs log-probabilities that the server
    does not give.
    """
    asker = Asker(engine, problems, seed)
    shown: list[Problem] = []
    if settings.shots:
        shown = asker.fit(
            asker.exemplars(settings, chain=True), lambda e, p: ask(e, p, settings.chat), settings.max_tokens
        )
    opening = "" if settings.shots else settings.trigger
    prompts = [ask(shown, p, settings.chat, opening) for p in problems]
    sampled, errors = _sample(asker, prompts, settings)
    if settings.shots:
        paths = [[path(c, p.read(c.text)) for c in group] for p, group in zip(problems, sampled, strict=True)]
    else:
        triples = [(p, prompt, c) for p, prompt, group in zip(problems, prompts, sampled) for c in group]
        made = iter(second_stage(asker, triples, settings))
        paths = [[next(made)[0] for _ in group] for group in sampled]
    results = [
        _voted(problem, tuple(group), error, settings)
        for problem, group, error in zip(problems, paths, errors, strict=True)
    ]
    return asker.result(
        "self_consistency", results, shown, curve(results, settings.weighting, settings.draws, seed)
    )


def _sample(
    asker: Asker, prompts: Sequence[Prompt], settings: ReasonSettings
) -> tuple[list[list[Completion]], list[str | None]]:
    """The completions of each prompt, and its error if it has none."""
    part = settings.paths_per_request or settings.paths
    sizes = [min(part, settings.paths - start) for start in range(0, settings.paths, part)]
    params = [
        SamplingParams(
            max_tokens=settings.max_tokens, temperature=settings.temperature, top_k=settings.top_k, n=size,
            stop=stop(settings), seed=asker.seed + number,
            logprobs=_logprobs(settings),
        )
        for number, size in enumerate(sizes)
    ]  # fmt: skip
    outputs = asker.ask([p for p in prompts for _ in sizes], params * len(prompts))
    groups, errors = [], []
    for i in range(len(prompts)):
        mine = outputs[i * len(sizes) : (i + 1) * len(sizes)]
        groups.append([completion for output in mine for completion in output.completions])
        failed = [output.error for output in mine if output.error is not None]
        errors.append(failed[0] if failed and not groups[-1] else None)
        if failed and groups[-1]:
            asker.note(f"some paths failed, the vote is over the others: {failed[0]}")
    return groups, errors


def _voted(problem: Problem, paths: tuple[Path, ...], error: str | None, settings: ReasonSettings) -> ProblemResult:
    if not paths:
        return ProblemResult(problem, None, False, (), None, error or "no completion")
    logs = log_weights([(p.logprob, p.tokens) for p in paths], settings.weighting)
    keys = [None if p.answer is None else answer_key(p.answer, problem.kind) for p in paths]
    winner, share = vote(keys, logs)
    return ProblemResult(problem, winner, problem.grade(winner), paths, share)
