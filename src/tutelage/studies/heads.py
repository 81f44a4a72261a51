"""What single attention heads do, by the scores of Olsson et al. 2022 ("In-context Learning and Induction Heads").

For any transformers decoder that can return its attention weights. Axis letters: B sequences, T tokens, L layers,
H heads, Y vocabulary, D width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.core.errors import TutelageError
from tutelage.loss.lm import token_logprobs
from tutelage.model.forward import attention_as, evaluating

PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "wo")
"""What decoders call the projection of their heads' outputs back into the residual stream."""


@dataclass(frozen=True)
class HeadScores:
    """Each [L, H]."""

    prefix: Tensor
    """Prefix matching: attention from a token to what came right after its earlier copies, in [0, 1]."""
    previous: Tensor
    """Attention from a token to the one before it, in [0, 1]."""
    copying: Tensor
    """How much of what a head raises is the token that it attends to, in [-1, 1] (2 / Y - 1 by chance)."""
    copied: Tensor
    """How often the token that it raises most is the one that it attends to most, in [0, 1] (1 / Y by chance)."""

    def rows(self) -> list[dict[str, float]]:
        """One row a head, the best prefix matcher first."""
        layers, heads = self.prefix.shape
        made = [
            {"layer": layer, "head": head, **{key: round(float(getattr(self, key)[layer, head]), 4) for key in
             ("prefix", "previous", "copying", "copied")}}
            for layer in range(layers) for head in range(heads)
        ]  # fmt: skip
        return sorted(made, key=lambda row: -row["prefix"])


def after_earlier_copies(tokens_BT: Tensor) -> Tensor:
    """bool [B, T, T]: (i, j) is true where token j - 1 is an earlier copy of token i, so that j came right AFTER one.

    (The paper's text says "preceded" in one place; its figures and code mean this.)
    """
    same = tokens_BT[:, :, None] == tokens_BT[:, None, :]
    mask = torch.zeros_like(same)
    mask[:, :, 1:] = same[:, :, :-1]
    return mask.tril()  # j <= i, so the copy at j - 1 is before i


def prefix_matching(weights_BHTT: Tensor, tokens_BT: Tensor) -> Tensor:
    """[H] mean attention to the tokens right after earlier copies, over the tokens that have one; NaN if none has."""
    mask = after_earlier_copies(tokens_BT)
    found_BHT = (weights_BHTT.float() * mask[:, None]).sum(-1)
    counted = mask.any(-1)
    return found_BHT.transpose(0, 1)[:, counted].mean(-1)


def previous_token(weights_BHTT: Tensor) -> Tensor:
    """[H] mean attention from a token to the one before it (the first token has none and is left out)."""
    return weights_BHTT.float().diagonal(offset=-1, dim1=2, dim2=3).mean((0, 2))


def copying(weights_BTT: Tensor, raised_BTY: Tensor, tokens_BT: Tensor) -> Tensor:
    """Scalar in [-1, 1] for one head: 1 if all that it adds to the logits falls on the tokens that it attends to.

    `raised_BTY`: what the head adds to the logits. Minus its mean over the vocabulary, negative parts dropped, as
    shares: the share of an attended token counts with the attention that it gets; [0, 1] is stretched to [-1, 1]. The
    first position, which can attend to itself only, is left out.
    """
    raised = raised_BTY.float()
    raised = (raised - raised.mean(-1, keepdim=True)).clamp(min=0)
    share = raised / raised.sum(-1, keepdim=True).clamp(min=1e-30)
    own_BTT = share.gather(-1, tokens_BT[:, None, :].expand(-1, tokens_BT.shape[1], -1))  # of token j, at position i
    return 2 * (weights_BTT.float() * own_BTT).sum(-1)[:, 1:].mean() - 1


def copied(weights_BTT: Tensor, raised_BTY: Tensor, tokens_BT: Tensor) -> Tensor:
    """Scalar in [0, 1] for one head: how often the most raised token is the most attended one; the first position is
    left out. Unlike `copying` it does not sink with the size of the vocabulary over which small rises add up."""
    attended = tokens_BT.gather(1, weights_BTT.argmax(-1))
    return (raised_BTY.argmax(-1) == attended)[:, 1:].float().mean()


def output_projections(model: nn.Module) -> list[nn.Module]:
    """The attention layers' output projections, in order. TutelageError when the family calls them otherwise."""
    found = [
        child
        for parent in model.modules() if "attention" in type(parent).__name__.lower()
        for name, child in parent.named_children() if name in PROJECTIONS
    ]  # fmt: skip
    if not found:
        raise TutelageError(
            f"{type(model).__name__}: no output projection of attention found (looked for {', '.join(PROJECTIONS)}); "
            "copying scores need it, prefix matching does not: head_scores(..., copies=False)"
        )
    return found


def _final_norm(model: Any) -> nn.Module:
    """The norm before the unembedding: the last one that belongs to no layer; Identity where there is none."""
    outside = [m for name, m in model.base_model.named_modules()
               if "norm" in type(m).__name__.lower() and not re.search(r"(^|\.)\d+\.", name)]  # fmt: skip
    return outside[-1] if outside else nn.Identity()


def _linear(module: nn.Module, x: Tensor) -> Tensor:
    """The module without its constant part: module(x) - module(0)."""
    return module(x) - module(torch.zeros_like(x[..., :1, :]))


@torch.no_grad()
def head_scores(model: Any, tokens_BT: Tensor, copies: bool = True) -> HeadScores:
    """All heads' scores on token sequences such as `repeated_tokens` makes.

    The copying score follows a head's output through the output projection, the final norm (whose scale is common to
    all tokens and does not matter) and the unembedding, past the layers above. `copies=False` leaves `copying` and
    `copied` NaN and saves time. TutelageError when the model gives no attention weights.
    """
    inputs: list[Tensor] = []
    projections = output_projections(model) if copies else []
    with ExitStack() as stack:
        for module in projections:
            hook = module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
            stack.callback(hook.remove)
        stack.enter_context(evaluating(model))
        stack.enter_context(attention_as(model, "eager"))
        maps = model(input_ids=tokens_BT, output_attentions=True, use_cache=False).attentions
    if not maps or any(m is None for m in maps) or len({m.shape[1] for m in maps}) > 1:
        raise TutelageError(f"{type(model).__name__}: it returns no attention weights of equal heads in every layer")
    made = torch.full((len(maps), maps[0].shape[1], 2), torch.nan)
    if copies and len(inputs) == len(maps):
        for layer, (weights, module, mixed) in enumerate(zip(maps, projections, inputs)):
            made[layer] = _layer_copying(model, module, weights, mixed, tokens_BT)
    return HeadScores(
        torch.stack([prefix_matching(m, tokens_BT) for m in maps]), torch.stack([previous_token(m) for m in maps]),
        made[..., 0], made[..., 1],
    )  # fmt: skip


def _layer_copying(model: Any, module: nn.Module, weights: Tensor, mixed: Tensor, tokens: Tensor) -> Tensor:
    """[H, 2]: copying and copied of each head of one layer; `mixed` [B, T, H * d]: its output projection's input."""
    heads, unembed, norm = weights.shape[1], model.get_output_embeddings(), _final_norm(model)
    mixed = mixed.view(*mixed.shape[:2], heads, -1)
    out = []
    for head in range(heads):
        alone = torch.zeros_like(mixed)
        alone[:, :, head] = mixed[:, :, head]
        found = []
        for b in range(len(tokens)):  # one sequence at a time: [T, Y] of a real vocabulary is large enough
            written = _linear(module, alone[b : b + 1].flatten(2))
            raised = _linear(unembed, _linear(norm, written))
            given = weights[b : b + 1, head], raised, tokens[b : b + 1]
            found.append(torch.stack([copying(*given), copied(*given)]))
        out.append(torch.stack(found).mean(0))
    return torch.stack(out)


def repeated_tokens(
    allowed: Sequence[int], sequences: int = 10, length: int = 25, repeats: int = 4, first: int | None = None,
    seed: int = 0,
) -> Tensor:  # fmt: skip
    """int64 [sequences, repeats * length (+ 1)]: distinct random tokens, repeated; `first` (bos) stands before them.

    Olsson et al.: 25 tokens, 4 times, 10 sequences. TutelageError for fewer allowed tokens than a sequence takes.
    """
    if len(allowed) < length:
        raise TutelageError(f"{len(allowed)} tokens to draw {length} different ones from; shorten length")
    random = torch.Generator().manual_seed(seed)
    pool = torch.tensor(list(allowed))
    rows = torch.stack([pool[torch.randperm(len(pool), generator=random)[:length]] for _ in range(sequences)])
    rows = rows.repeat(1, repeats)
    return rows if first is None else torch.cat([torch.full((sequences, 1), first), rows], 1)


def usual_tokens(tokenizer: Any, drop: float = 0.1) -> list[int]:
    """Ids of ordinary tokens: without special ones, byte fallbacks, and the `drop` most and least common.

    Commonness is read from the id: vocabularies of the BPE kind are about in order of frequency.
    """
    special = set(tokenizer.all_special_ids)
    ids = [i for word, i in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
           if i not in special and not re.fullmatch(r"<0x[0-9A-F]{2}>", word)]  # fmt: skip
    cut = int(drop * len(ids))
    return ids[cut : len(ids) - cut]


@torch.no_grad()
def token_losses(model: Any, tokens_BT: Tensor) -> Tensor:
    """[B, T - 1] nats of every token but the first, given those before it."""
    with evaluating(model):
        return -token_logprobs(model(input_ids=tokens_BT, use_cache=False).logits, tokens_BT)


def icl_score(losses_BT: Tensor, early: float = 50 / 512, late: float = 500 / 512) -> float:
    """Mean loss (nats) of a late token minus an early one's: below 0 where the context helps.

    The paper's 50th and 500th token of 512, scaled to the context at hand; over real text take many sequences.
    """
    context = losses_BT.shape[1]
    at = [min(context - 1, round(share * context)) for share in (early, late)]
    return float((losses_BT[:, at[1]] - losses_BT[:, at[0]]).mean())
