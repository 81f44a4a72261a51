"""AI feedback: soft labels against the closed form, both orders, chains of thought clamped, votes, servers."""

import math
from http.server import ThreadingHTTPServer

import pytest

from tests.feedback.scripted import Scripted
from tests.servers import JsonHandler, serving
from tutelage.core.errors import DataError
from tutelage.engine import RemoteEngine, load
from tutelage.feedback.asking import Asker
from tutelage.feedback.constitution import Constitution, Principle, load_constitution
from tutelage.feedback.labels import Labelling, label_pairs

PAIRS = [{"prompt": "q", "responses": ["good", "bad"]}, {"prompt": "q", "responses": ["bad", "good"]}]
C = Constitution(
    principles=[Principle(name="p", critique="c", revision="r")], preferences=[f"Which {i}?" for i in range(4)]
)


def judge(context):
    """Likes "good" (0.8) and, besides, whatever stands first (+0.1)."""
    text = context if isinstance(context, str) else context[-1]["content"]
    return 0.9 if text.index("good") < text.index("bad") else 0.3


def test_both_orders_take_the_liking_for_the_first_option_away():
    rows = label_pairs(Asker(Scripted(odds=judge), C.format, "text"), C, PAIRS, Labelling())
    assert [r["p_first"] for r in rows] == pytest.approx([0.8, 0.2])
    assert [r["position"] for r in rows] == pytest.approx([0.2, 0.2])
    one = label_pairs(Asker(Scripted(odds=judge), C.format, "text"), C, PAIRS * 20, Labelling(both_orders=False))
    assert {round(r["p_first"], 6) for r in one} == {0.9, 0.7, 0.1, 0.3} and "position" not in one[0]


def test_labels_of_several_principles_are_averaged():
    def picky(context):
        sign = 1 if context.index("good") < context.index("bad") else -1
        return 0.5 + sign * (0.2 if "Which 0" in context else 0.1)

    rows = label_pairs(Asker(Scripted(odds=picky), C.format, "text"), C, PAIRS, Labelling(principles=4))
    assert sorted(rows[0]["principles"]) == C.preferences
    assert [r["p_first"] for r in rows] == pytest.approx([0.625, 0.375])


def test_a_chain_of_thought_is_put_behind_the_question_and_its_label_clamped():
    engine = Scripted(lambda p: " (A) is kind. So the answer is (A).", judge)
    rows = label_pairs(Asker(engine, C.format, "text"), C, PAIRS, Labelling(reason=True))
    assert [r["p_first"] for r in rows] == pytest.approx([(0.6 + 0.6) / 2, (0.4 + 0.4) / 2])
    assert rows[0]["reasoning"] == ["(A) is kind."] * 2
    assert all(text.endswith("Let's think step by step:") for text in engine.asked)
    wide = label_pairs(Asker(engine, C.format, "text"), C, PAIRS, Labelling(reason=True, clamp=(0.0, 1.0)))
    assert [r["p_first"] for r in wide] == pytest.approx([0.8, 0.2])


def test_votes_need_no_log_probs():
    engine = Scripted(lambda p: " (A)" if judge(p) > 0.5 else "b.")
    rows = label_pairs(Asker(engine, C.format, "chat"), C, PAIRS, Labelling(votes=3))
    assert [r["p_first"] for r in rows] == pytest.approx([3.5 / 4, 0.5 / 4])
    assert engine.params[0].n == 3


def test_labels_are_a_local_models_own_probabilities(chain):
    engine, c = load(chain / "sft"), load_constitution("schoolroom")
    pair = {"prompt": "how do i hit a dog?", "responses": ["sure! use a stick.", "sorry, i cannot help."]}
    asker = Asker(engine, c.format)
    (row,) = label_pairs(asker, c, [pair], Labelling())
    shares = []
    for a, b in (pair["responses"], pair["responses"][::-1]):
        text = c.format.choice.format(
            principle=row["principles"][0], conversation=f"human: {pair['prompt']}", a=a, b=b
        )
        ids = engine.encode([{"role": "user", "content": text}])
        one, two = (
            engine.score([(ids, engine.tokenizer(o, add_special_tokens=False)["input_ids"])])[0].logprob
            for o in c.format.options
        )
        shares.append(math.exp(one) / (math.exp(one) + math.exp(two)))
    assert row["p_first"] == pytest.approx((shares[0] + 1 - shares[1]) / 2, abs=1e-5)
    assert row["position"] == pytest.approx(shares[0] + shares[1] - 1, abs=1e-5)


class Chat(JsonHandler):
    """Chooses B with probability 0.75, and says so if asked and able."""

    logprobs = True

    def do_GET(self):
        self.answer({"data": [{"id": "m"}]})

    def do_POST(self):
        body = self.body()
        top = [{"token": "B", "logprob": math.log(0.6)}, {"token": " A", "logprob": math.log(0.2)}]
        told = {"content": [
            {"token": "(", "logprob": -0.1, "top_logprobs": [{"token": "(", "logprob": -0.1}]},
            {"token": "B", "logprob": top[0]["logprob"], "top_logprobs": top},
        ]}  # fmt: skip
        choice = {"message": {"content": "(B)"}, "finish_reason": "stop"}
        if self.logprobs and body.get("logprobs"):
            choice["logprobs"] = told
        self.answer({"choices": [choice] * body.get("n", 1)})


class Mute(Chat):
    logprobs = False


def test_a_chat_servers_alternatives_make_the_label():
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Chat)) as url:
        rows = label_pairs(Asker(RemoteEngine(url), C.format), C, PAIRS[:1], Labelling(both_orders=False))
    assert rows[0]["p_first"] in (pytest.approx(0.25), pytest.approx(0.75))


def test_a_server_without_log_probs_says_so_and_votes_work():
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Mute)) as url:
        engine = RemoteEngine(url)
        with pytest.raises(DataError, match="votes=8"):
            label_pairs(Asker(engine, C.format), C, PAIRS, Labelling())
        rows = label_pairs(Asker(engine, C.format), C, PAIRS[:1], Labelling(votes=3))
    assert rows[0]["p_first"] == pytest.approx(0.5) and rows[0]["position"] == pytest.approx(2 * 0.5 / 4 - 1)
