"""Rankings as tensors: what is cut when they are too long, masks, soft labels, and parts that change no number."""

import math
import random

import pytest
import torch

from tutelage.model.heads import create_reward_model
from tutelage.model.hub import create_model
from tutelage.text.tokenizer import train_tokenizer
from tutelage.train.objectives import kwise
from tutelage.train.reward_data import RankingLoader, collate_rankings, encode_ranking, parts, score_rankings

WORDS = ["one", "two", "three", "four"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["one two three four one two three four"] * 9, 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    return create_reward_model(create_model("laptop-0.3m", tokenizer, 128), tokenizer, seed=1)


def text(count, start=0):
    return " ".join(WORDS[(start + i) % 4] for i in range(count))


def row(prompt_words, *response_words, **more):
    k = len(response_words)
    return {"prompt": text(prompt_words), "responses": [text(n, i) for i, n in enumerate(response_words)],
            "ranking": [[i] for i in range(k)], **more}  # fmt: skip


def said(encoded, k, tokenizer):
    return tokenizer.decode(encoded["ids"][k][encoded["starts"][k] :])


def test_what_fits_is_whole(tokenizer):
    encoded = encode_ranking(row(3, 1, 5), tokenizer, 64)
    assert [said(encoded, k, tokenizer) for k in range(2)] == [text(1) + "<|end|>", text(5, 1) + "<|end|>"]
    assert all(tokenizer.decode(i[:s]).endswith(text(3) + "<|end|><|assistant|>")
               for i, s in zip(encoded["ids"], encoded["starts"]))  # fmt: skip
    assert encoded["prompts_cut"] == encoded["responses_cut"] == 0 and "p_better" not in encoded


def test_a_long_prompt_loses_its_beginning_and_the_response_survives(tokenizer):
    limit = 16
    encoded = encode_ranking(row(40, 2, 8), tokenizer, limit)
    for k, whole in enumerate((text(2) + "<|end|>", text(8, 1) + "<|end|>")):
        ids, start = encoded["ids"][k], encoded["starts"][k]
        assert len(ids) == limit and said(encoded, k, tokenizer) == whole
        assert ids[start - 1] == tokenizer.convert_tokens_to_ids("<|assistant|>")
        assert tokenizer.decode(ids[: start - 2]).strip() in text(40)  # what is left is the prompt's end
    assert encoded["prompts_cut"] == 2 and encoded["responses_cut"] == 0


def test_a_response_too_long_by_itself_loses_its_end(tokenizer):
    limit = 16
    encoded = encode_ranking(row(40, 2, 30), tokenizer, limit)
    ids, start = encoded["ids"][1], encoded["starts"][1]
    assert len(ids) == limit and start == 1 and tokenizer.decode(ids[:1]) == "<|assistant|>"
    assert text(30, 1).startswith(tokenizer.decode(ids[1:])) and encoded["responses_cut"] == 1


@pytest.mark.parametrize("spelt", ["<|end|>", "<|assistant|>"])
def test_a_special_token_spelt_out_is_text(tokenizer, spelt):
    encoded = encode_ranking({**row(2, 1), "responses": ["one " + spelt]}, tokenizer, 64)
    own = encoded["ids"][0][encoded["starts"][0] :]
    assert own.count(tokenizer.convert_tokens_to_ids(spelt)) == (spelt == "<|end|>")  # the real end alone


def test_every_response_stands_in_one_part_with_its_own_mask(tokenizer):
    rng = random.Random(0)
    rows = [encode_ranking(row(rng.randint(1, 30), *[rng.randint(1, 40) for _ in range(rng.randint(2, 5))]),
                           tokenizer, 48) for _ in range(9)]  # fmt: skip
    seen = []
    for here, part in parts(rows, tokenizer.pad_token_id, 200):
        assert part["input_ids"].numel() <= 200
        tensors = (part[name] for name in ("input_ids", "attention_mask", "response_mask"))
        for (p, k), ids, attention, response in zip(here, *tensors):
            own, start = rows[p]["ids"][k], rows[p]["starts"][k]
            assert ids[attention.bool()].tolist() == own and ids[response.bool()].tolist() == own[start:]
            assert response.sum() == len(own) - start and (ids[len(own) :] == tokenizer.pad_token_id).all()
            seen.append((p, k))
    assert sorted(seen) == [(p, k) for p, r in enumerate(rows) for k in range(len(r["ids"]))]


def test_parts_change_neither_loss_nor_gradient_nor_scores(tokenizer, model):
    rows = [row(4, 3, 9, 27), row(12, 2, 30), row(2, 8, 5, 4, 20)]
    rows[1]["p_better"] = [[None, 0.7], [0.3, None]]
    encoded = [encode_ranking(r, tokenizer, 40) for r in rows]
    found = []
    for budget in (10**6, 64, 1):
        batch = collate_rankings(encoded, tokenizer.pad_token_id, budget)
        model.zero_grad()
        loss, metrics = kwise(model, batch)
        loss.backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((loss.detach(), metrics["accuracy"], metrics["count"], grads))
    assert len(batch["parts"]) == 9
    for loss, accuracy, count, grads in found[1:]:
        assert torch.allclose(loss, found[0][0], atol=1e-5) and (accuracy, count) == found[0][1:3]
        assert torch.allclose(grads, found[0][3], atol=1e-5)
    scores = score_rankings(model, encoded, tokenizer.pad_token_id)
    softplus = torch.nn.functional.softplus
    total = 0.0
    for r, line in zip(encoded, torch.tensor([s + [0.0] * (4 - len(s)) for s in scores])):
        k = len(r["ids"])
        share = {(i, j): 1.0 for i in range(k) for j in range(i + 1, k)}
        if k == 2:
            share = {(0, 1): 0.7, (1, 0): 0.3}
        pairs = k * (k - 1) / 2
        total += sum(p * float(softplus(line[j] - line[i])) for (i, j), p in share.items()) / pairs
    assert float(found[0][0]) == pytest.approx(total, rel=1e-4)


def test_a_batch_without_soft_labels_carries_none_and_a_hard_row_beside_soft_ones_keeps_its_order(tokenizer):
    hard, tied = row(2, 1, 2, 3), {**row(2, 1, 2, 3), "ranking": [[1], [0, 2]]}
    encoded = [encode_ranking(r, tokenizer, 32) for r in (hard, tied)]
    batch = collate_rankings(encoded, tokenizer.pad_token_id)
    assert "p_better" not in batch and batch["ranks"].tolist() == [[0, 1, 2], [1, 0, 1]]
    soft = encode_ranking({**row(2, 1, 2), "p_better": [[None, 0.6], [0.4, None]]}, tokenizer, 32)
    batch = collate_rankings([encoded[1], soft], tokenizer.pad_token_id)
    assert batch["ranks"].tolist() == [[1, 0, 1], [0, 1, -1]] and batch["mask"].tolist()[1] == [True, True, False]
    nan = math.nan
    want = [[[nan, 0, nan], [1, nan, 1], [nan, 0, nan]], [[nan, 0.6, nan], [0.4, nan, nan], [nan, nan, nan]]]
    assert torch.allclose(batch["p_better"], torch.tensor(want), equal_nan=True)


def test_all_pairs_of_a_prompt_stay_in_one_batch_and_the_loader_resumes(tokenizer):
    rows = [encode_ranking(row(i + 1, 1, 2, 3), tokenizer, 32) for i in range(7)]
    loader = RankingLoader(rows, 3, tokenizer.pad_token_id, seed=5)
    first = [next(loader) for _ in range(5)]
    assert all(len(b["places"]) == 9 and b["ranks"].shape == (3, 3) for b in first)
    other = RankingLoader(rows, 3, tokenizer.pad_token_id, seed=5)
    next(other)
    again = RankingLoader(rows, 3, tokenizer.pad_token_id, seed=5)
    again.load_state_dict(other.state_dict())
    for batch in first[1:]:
        same = next(again)
        assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(batch["parts"], same["parts"]))
