"""Every published shape of a preference becomes the one shape; bad rows say where, what and what to do."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.core.errors import DataError
from tutelage.text.rankings import as_ranking, join_annotators, ranking_from_scores

USER = {"role": "user", "content": "why?"}
YES, NO = {"role": "assistant", "content": "yes"}, {"role": "assistant", "content": "no"}


def short(row):
    """(prompt, responses best first)."""
    found = as_ranking(row, "f.jsonl:3")
    return found["prompt"], [found["responses"][i] for group in found["ranking"] for i in group]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "why?", "responses": ["no", "yes"], "ranking": [[1], [0]]},
        {"prompt": "why?", "responses": ["no", "yes"], "scores": [-1, 2.5]},
        {"prompt": "why?", "responses": [NO, {"from": "gpt", "value": "yes"}], "scores": [0, 1]},
        {"prompt": "why?", "chosen": "yes", "rejected": "no"},
        {"prompt": "why?", "chosen": "yes", "rejected": "no", "responses": None, "p_chosen": None},  # as parquet gives
        {"prompt": "why?", "chosen": [YES], "rejected": [NO]},
        {"prompt": "why?", "chosen": [USER, YES], "rejected": [USER, NO]},  # ultrafeedback repeats the prompt
        {"prompt": "why?", "chosen": "no", "rejected": "yes", "p_chosen": 0.0},
        {"prompt": "why?", "candidates": [{"output": "no", "rank": 2}, {"output": "yes", "rank": 1}]},
    ],
)
def test_shapes_with_a_prompt_of_text(row):
    assert short(row) == ("why?", ["yes", "no"])


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [YES], "rejected": [NO]},
        {"prompt": [{"from": "human", "value": "why?"}], "chosen": "yes", "rejected": "no"},
        {"chosen": [USER, YES], "rejected": [USER, NO]},  # TRL's implicit prompt
        {"chosen": "\n\nHuman: why?\n\nAssistant: yes", "rejected": "\n\nHuman: why?\n\nAssistant: no"},
        {"conversations": [{"from": "human", "value": "why?"}], "chosen": {"from": "gpt", "value": "yes"},
         "rejected": {"from": "gpt", "value": "no"}},
        {"conversations": [{"from": "human", "value": "why?"}], "chosen": "yes", "rejected": "no"},
        {"instruction": "why?", "input": "", "chosen": "yes", "rejected": "no"},
        {"instruction": "why?", "candidates": [
            {"output": "no", "winrate_vs_base": 1e-7}, {"output": "yes", "winrate_vs_base": 2e-7}]},
    ],
)  # fmt: skip
def test_shapes_with_a_prompt_of_messages(row):
    assert short(row) == ([USER], ["yes", "no"])


def test_a_prompt_may_have_parts_and_turns():
    assert short({"instruction": "add", "input": "2 3", "system": "be brief", "chosen": "5", "rejected": "6"})[0] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "add\n\n2 3"},
    ]
    talk = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: why?\n\nAssistant:"
    prompt, best = short({"chosen": f"{talk} as I said\n\nHuman: no\n\nAssistant: so", "rejected": f"{talk} as ever"})
    assert [m["content"] for m in prompt] == ["hi", "hello", "why?"]  # the last turn that both sides share
    assert best == ["as I said\n\nHuman: no\n\nAssistant: so", "as ever"]


def test_scores_tie_where_they_are_equal_and_columns_stay():
    row = {"prompt": "p", "responses": ["a", "b", "c", "d"], "scores": [1, 3, 3.0, -2], "source": "x"}
    found = as_ranking(row, "f:1")
    assert found == {"prompt": "p", "responses": row["responses"], "ranking": [[1, 2], [0], [3]], "source": "x"}
    assert ranking_from_scores([0.5]) == [[0]]


@pytest.mark.parametrize(("p", "ranking"), [(0.8, [[0], [1]]), (0.5, [[0, 1]]), (0.25, [[1], [0]])])
def test_the_share_of_people_is_kept(p, ranking):
    found = as_ranking({"prompt": "p", "chosen": "a", "rejected": "b", "p_chosen": p}, "f:1")
    assert found["ranking"] == ranking and found["p_better"] == [[None, p], [1 - p, None]]
    assert as_ranking(found, "f:1") == found
    assert "p_better" not in as_ranking({"prompt": "p", "chosen": "a", "rejected": "b", "p_chosen": 1}, "f:1")


RANKED = {"prompt": "p", "responses": ["a", "b", "c"]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "responses": ["a"], "ranking": [[0]]}, "1 response; a ranking needs at least 2"),
        ({**RANKED, "ranking": [[0], [1]]}, r"each of 0..2 exactly once \(missing: 2\)"),
        ({**RANKED, "ranking": [[0], [1, 2], [1]]}, r"exactly once \(twice: 1\)"),
        ({**RANKED, "ranking": [[0], [1], [3]]}, r"exactly once \(missing: 2; unknown: 3\)"),
        ({**RANKED, "ranking": [0, 1, 2]}, "ranking.0: Input should be a valid list"),
        ({**RANKED}, "no 'ranking'"),
        ({**RANKED, "scores": [1, 2]}, "a finite number for each of 3 responses"),
        ({**RANKED, "scores": [1, 2, float("nan")]}, "a finite number for each"),
        ({"prompt": "p", "responses": ["a", "a"], "ranking": [[0], [1]]}, "0 and 1 are the same but ranked apart"),
        ({"prompt": "p", "responses": ["a", 3], "ranking": [[0], [1]]}, "responses.1: Input should be a valid string"),
        ({"responses": ["a", "b"], "ranking": [[0], [1]]}, "no 'prompt'"),
        ({**RANKED, "prompt": "", "ranking": [[0], [1], [2]]}, "'prompt' is empty"),
        ({"prompt": "  \n", "chosen": "a", "rejected": "b"}, "the prompt is empty"),
        ({"prompt": [{"role": "user", "content": ""}], "chosen": "a", "rejected": "b"}, "the prompt is empty"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "are the same, .*; remove the row"),
        ({"chosen": [USER, YES], "rejected": [USER, YES]}, "are the same"),
        ({"prompt": "p", "chosen": "a"}, "no 'rejected' .keys: prompt, chosen.; expected"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "p_chosen": 1.2}, "p_chosen=1.2"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "p_chosen": "most"}, "'p_chosen' is a str"),
        ({"chosen": "a b", "rejected": "a c"}, "no 'prompt', .*Human"),
        ({"chosen": [USER, YES], "rejected": [NO]}, "begin differently"),
        ({"chosen": [USER, YES, USER], "rejected": [USER, NO]}, "'chosen' holds messages of assistant, user"),
        ({"prompt": "p", "chosen": {"from": "tool", "value": "x"}, "rejected": "b"}, "role 'tool'"),
        ({"instruction": "p", "candidates": [{"output": "a"}, {"output": "b"}]}, "nothing orders the candidates"),
        ({"instruction": "p", "candidates": [{"output": "a", "rank": 1}]}, "1 response; a ranking needs"),
        ({"instruction": "p", "candidates": ["a", "b"]}, "list of objects with an 'output'"),
        ({"text": "p"}, "keys text; expected"),
        ({"prompt": "p", "responses": 3, "scores": [1]}, "'responses' is a int; expected"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "p_chosen": True}, "'p_chosen' is a bool"),
        ({**RANKED, "ranking": [[0], [1], [2]], "p_better": [[None, 1.0]]}, "p_better must be 3 x 3"),
        ({"prompt": "p", "responses": ["a", "b"], "ranking": [[0], [1]], "p_better": [[None, 0.7], [0.2, None]]},
         r"p_better\[1\]\[0\]=0.2 and p_better\[0\]\[1\]=0.7 must .* sum to 1"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_with_its_fault(row, message):
    with pytest.raises(DataError, match=rf"^f.jsonl:3: .*{message}"):
        as_ranking(row, "f.jsonl:3")


TEXTS = st.sampled_from(["", "a", "b", "user", "gpt", "\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: c"])
INNER = st.sampled_from(["role", "from", "content", "value", "output", "rank", "score"])
JUNK = st.recursive(
    TEXTS | st.none() | st.booleans() | st.integers(-2, 3) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(INNER, inner, max_size=3),
    max_leaves=6,
)
KEYS = ["prompt", "responses", "ranking", "scores", "chosen", "rejected", "p_chosen", "p_better", "conversations",
        "messages", "instruction", "input", "system", "candidates", "annotator"]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=5))
def test_whatever_a_row_holds_it_is_read_or_named(row):
    try:
        found = as_ranking(row, "f.jsonl:3")
    except DataError as error:
        assert str(error).startswith("f.jsonl:3: ")
    else:
        assert as_ranking(found, "f.jsonl:3") == found and join_annotators([found, found])


def ranked(annotator, groups, texts=("a", "b", "c"), **more):
    return {"prompt": "p", "responses": list(texts), "ranking": groups, "annotator": annotator, **more}


def test_annotators_of_the_same_responses_become_shares_counted_by_hand():
    rows = [
        ranked(0, [[0], [1], [2]]),
        ranked(1, [[1], [0], [2]], ("b", "a", "c")),  # a over b over c, written in another order
        ranked(2, [[1], [0, 2]]),  # b over a and c, which tie
        ranked("x", [[0], [1]], ("a", "b")),  # other responses: a row of its own
        {"prompt": "p", "responses": ["a", "b", "c"], "ranking": [[2], [1], [0]]},  # no one's: perhaps a copy
    ]
    joined = join_annotators(rows)
    assert joined[1:] == rows[3:]
    (row,) = joined[:1]
    assert row["annotator"] == [0, 1, 2] and row["responses"] == ["a", "b", "c"]
    p = row["p_better"]
    assert p[0][1] == pytest.approx(2 / 3)  # two of three
    assert p[0][2] == pytest.approx(2.5 / 3) and p[1][2] == 1.0  # the tie is half a vote
    assert all(p[i][j] + p[j][i] == pytest.approx(1) for i, j in combinations(range(3), 2))
    assert row["ranking"] == [[0], [1], [2]]  # Borda: a 2/3 + 2.5/3, b 1/3 + 1, c 0.5/3
    assert as_ranking(row, "f:1") == row


def test_annotators_who_agree_stay_a_plain_order_and_one_person_counts_once():
    agree = join_annotators([ranked(i, [[2], [0, 1]]) for i in range(3)])
    assert len(agree) == 1 and "p_better" not in agree[0] and agree[0]["ranking"] == [[2], [0, 1]]
    twice = join_annotators([ranked(0, [[0], [1], [2]]), ranked(0, [[0], [1], [2]]), ranked(1, [[1], [0], [2]])])
    assert twice[0]["p_better"][0][1] == 0.5 and twice[0]["ranking"] == [[0, 1], [2]]
    tied = join_annotators([ranked(0, [[0, 1], [2]]), ranked(1, [[2], [0, 1]])])
    assert tied[0]["p_better"][0][1] is None  # a pair that no one orders makes no pair
    soft = {"prompt": "p", "responses": ["a", "b"], "ranking": [[0], [1]], "p_better": [[None, 0.8], [0.2, None]]}
    mixed = join_annotators([{**soft, "annotator": 0}, ranked(1, [[1], [0]], ("a", "b"))])
    assert mixed[0]["p_better"][0][1] == pytest.approx(0.4) and mixed[0]["ranking"] == [[1], [0]]
