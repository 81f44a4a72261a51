"""Episodes: prompts that fit, sampled by the engine from live weights, collated for the update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tutelage.core.distributed import gather, rank, world_size
from tutelage.core.records import BadRows
from tutelage.core.runtime import generator, stream_seed
from tutelage.engine import Completion, LocalEngine, SamplingParams
from tutelage.engine.local import rollout_seeds
from tutelage.text.chat import encode_prompt, turn_end_id
from tutelage.train.sources import nonempty, place_of
from tutelage.train.update import Rollout, collate


@dataclass
class Episodes:
    """A rollout with what a reward function wants to read: the rows (prompt and columns) and the answers' texts."""

    rollout: Rollout
    rows: list[dict[str, Any]]
    texts: list[str]

    def part(self, s: slice) -> Episodes:
        """Some of them."""
        r = self.rollout
        sampled = None if r.sampled is None else r.sampled[s]
        cut = Rollout(r.tokens[s], r.attention[s], r.mask[s], r.ended[s], sampled, r.group)
        return Episodes(cut, self.rows[s], self.texts[s])


def encode_prompts(
    rows: list[dict[str, Any]], tokenizer: Any, limit: int, max_tokens: int, data: str, bad: BadRows | None = None
) -> list[dict[str, Any]]:
    """Rows of `data` with their prompt's token ids as "ids"; `bad` says what becomes of one that leaves no room for
    the answer (by default a DataError that names file and line)."""
    bad = bad or BadRows()
    out = []
    for row in rows:
        ids = encode_prompt(tokenizer, as_turns(row["prompt"]))
        if len(ids) + max_tokens <= limit:
            out.append({**row, "ids": ids})
            continue
        bad(
            f"{place_of(row['prompt'], data)}: the prompt has {len(ids)} tokens; with max_tokens={max_tokens} it "
            f"exceeds the model's context of {limit}: shorten the prompt or lower max_tokens"
        )
    return nonempty(out, data)


def as_turns(prompt: str | list[dict[str, str]]) -> list[dict[str, str]]:
    """A prompt as messages."""
    return prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]


def sample_episodes(
    engine: LocalEngine,
    rows: list[dict[str, Any]],
    *,
    batch_size: int,
    minibatches: int,
    max_tokens: int,
    temperature: float,
    seed: int,
    step: int,
    group: int = 1,
) -> Episodes:
    """One batch of episodes, `group` answers to a prompt one behind another. Prompts and random numbers are functions
    of (seed, step) alone: nothing else to resume, and ranks that share the prompts draw what one process draws."""
    tokenizer = engine.tokenizer
    asked = batch_size // group
    chosen = torch.randperm(len(rows), generator=generator(seed, "prompts", step))[:asked].tolist()
    while len(chosen) < asked:  # fewer prompts than episodes: each is used several times
        chosen += chosen[: asked - len(chosen)]
    batch = [rows[i] for i in chosen]
    end = turn_end_id(tokenizer)
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        stop_tokens=(end,),
        seed=stream_seed(seed, "rollout", step) % 2**31,
        n=group,
    )
    completions = _shared_rollout(engine, [r["ids"] for r in batch], params)
    # neighbours in length went through the engine together; minibatches take every n-th, so that each is a fair sample
    order = sorted(range(len(batch)), key=lambda i: (i % minibatches, i))
    answers = [c for i in order for c in completions[i * group : (i + 1) * group]]
    return episodes_of([batch[i] for i in order for _ in range(group)], answers, tokenizer, group)


def _shared_rollout(engine: LocalEngine, prompts: list[list[int]], params: SamplingParams) -> list[Completion]:
    """`engine.rollout` with the prompts dealt out to the ranks, neighbours to different ones; all get all answers."""
    size, number, n = world_size(), rank(), params.n
    if size == 1:
        return engine.rollout(prompts, params)
    mine, seeds = prompts[number::size], rollout_seeds(params, len(prompts))[number::size]
    every = gather(engine.rollout(mine, params, seeds) if mine else [])
    found = ((every[i % size], i // size * n) for i in range(len(prompts)))
    return [answer for answers, at in found for answer in answers[at : at + n]]


def episodes_of(
    rows: list[dict[str, Any]], answers: Sequence[Completion], tokenizer: Any, group: int = 1
) -> Episodes:
    """An answer to each row as episodes."""
    responses = [list(c.tokens) for c in answers]
    tokens, attention, mask = collate([r["ids"] for r in rows], responses, tokenizer.pad_token_id)
    sampled = torch.zeros_like(mask)
    sampled[mask.bool()] = torch.tensor([x for c in answers for x in c.logprobs])
    ended = torch.tensor([float(c.finish_reason in ("eos", "stop")) for c in answers])
    return Episodes(Rollout(tokens, attention, mask, ended, sampled, group), rows, [c.text.strip() for c in answers])
