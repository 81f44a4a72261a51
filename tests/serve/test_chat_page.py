"""The chat page in a headless browser: a person chats, stops, answers again, edits, compares and votes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import Running, running, until
from tutelage.engine import LocalEngine
from tutelage.feedback.rows import clean
from tutelage.feedback.store import Store
from tutelage.model.hub import create_model, load_model
from tutelage.serve.access import Keys
from tutelage.train.scorer import RewardScorer

NASTY = "<script>window.pwned=1</script><img src=x onerror='window.pwned=1'>"


@pytest.fixture(scope="module")
def served(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """base, sft and slow (untrained, 20 ms a token, long answers) with a reward model and a store."""
    engines = {}
    for name, stage in (("base", "pretrain"), ("sft", "sft")):
        model, tokenizer = load_model(chain / stage)
        engines[name] = LocalEngine(model.eval(), tokenizer)
    slow = create_model("laptop-0.3m", tokenizer, 2048).eval()
    slow.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    engines["slow"] = LocalEngine(slow, tokenizer)
    store = Store(str(tmp_path_factory.mktemp("chat") / "labels.db"))
    rewards = {"reward": RewardScorer.load(chain / "reward")}
    with running(engines, store=store, rewards=rewards) as one:
        yield one


class Visitor:
    """A page in a browser of its own, and what a person does there."""

    def __init__(self, browser: Any, served: Running, **context: Any) -> None:
        self.served = served
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda problem: self.said.append(str(problem)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(f"{self.served.url}/chat")
        self.page.wait_for_selector("#send, #stop")

    def say(self, text: str, wait: bool = True) -> None:
        self.page.fill("#ask", text)
        self.page.press("#ask", "Enter")
        if wait:
            self.done()

    def done(self) -> None:
        self.page.wait_for_selector("#stop", state="detached")
        self.page.wait_for_selector("#send")

    def answers(self) -> list[str]:
        return self.page.locator(".message.assistant .answer").all_inner_texts()

    def users(self) -> list[str]:
        return self.page.locator(".message.user .bubble").all_inner_texts()

    def press(self, label: str) -> None:
        self.page.locator(f"main button[aria-label='{label}']").first.click()

    def most_tokens(self, number: int) -> None:
        self.press("Settings")
        self.page.fill("#set-max_tokens", str(number))
        self.press("Settings")

    def join(self, name: str) -> None:
        self.page.fill("dialog [name=who]", name)
        self.page.press("dialog [name=who]", "Enter")
        self.page.click("text=I have kept it")
        self.page.wait_for_selector("dialog", state="detached")


@pytest.fixture
def visit(browser: Any, served: Running) -> Iterator[Any]:
    """visit(**context): a visitor; at the end the page must have said nothing and asked nobody but the server."""
    visitors: list[Visitor] = []

    def come(**context: Any) -> Visitor:
        visitors.append(Visitor(browser, served, **{"locale": "en-GB", **context}))
        return visitors[-1]

    yield come
    for one in visitors:
        pwned = one.page.evaluate("window.pwned")
        one.context.close()
        assert pwned is None
        assert one.said == []
        assert [url for url in one.asked if not url.startswith((f"{served.url}/", f"blob:{served.url}/"))] == []


def rows(served: Running, kind: str) -> list[Any]:
    return list(served.app.state.store.export(kind))


def test_a_chat_streams_is_scored_and_survives_a_reload(visit: Any) -> None:
    here = visit()
    assert here.page.locator("#model option").all_inner_texts() == ["base · continues text", "sft", "slow"]
    assert here.page.input_value("#model") == "sft"
    here.say("where is eva?")
    facts = here.page.inner_text(".facts")
    assert here.answers()[0] and re.search(r"reward -?\d+\.\d\d", facts) and "tokens" in facts
    here.say("and sam?")
    assert here.users() == ["where is eva?", "and sam?"] and len(here.answers()) == 2
    before = here.answers()
    here.page.reload()
    here.page.wait_for_selector(".message")
    assert here.answers() == before and here.users() == ["where is eva?", "and sam?"]
    assert here.page.inner_text(".conversations .title") == "where is eva?"
    assert here.page.title() == "where is eva? · tutelage"


def test_stop_frees_the_place_on_the_server(visit: Any, served: Running) -> None:
    here = visit()
    here.page.select_option("#model", "slow")
    here.most_tokens(1500)
    here.say("tell me a long story", wait=False)
    until(lambda: here.answers() and len(here.answers()[0]) > 20, 60)
    assert served.metric("tutelage_running_rows") == 1
    here.page.click("#stop")
    here.done()
    assert "stopped" in here.page.inner_text(".facts") and here.answers()[0]
    until(lambda: served.metric("tutelage_running_rows") == 0, 5)
    assert served.metric("tutelage_waiting_rows") == 0


def test_a_page_that_is_left_frees_the_place_too(visit: Any, served: Running) -> None:
    here = visit()
    here.page.select_option("#model", "slow")
    here.most_tokens(1500)
    here.say("tell me a long story", wait=False)
    until(lambda: here.answers() and len(here.answers()[0]) > 20, 60)
    here.page.wait_for_timeout(1200)  # what has come is kept every second
    here.page.reload()
    until(lambda: served.metric("tutelage_running_rows") == 0, 5)
    here.page.wait_for_selector(".message.assistant")
    until(lambda: here.answers()[0] and "stopped" in here.page.inner_text(".facts"))


def test_answering_again_and_editing_keep_every_version(visit: Any) -> None:
    here = visit()
    here.say("where is eva?")
    first = here.answers()[0]
    here.press("Answer again")
    here.page.wait_for_selector(".assistant .versions")
    here.done()
    assert here.page.inner_text(".versions") == "2/2"
    here.press("Version before")
    assert here.answers() == [first] and here.page.inner_text(".versions") == "1/2"
    here.page.hover(".message.user")
    here.press("Edit")
    assert here.page.input_value("textarea.editing") == "where is eva?"
    here.page.fill("textarea.editing", "where is sam?")
    here.page.click("text=Save and send")
    here.page.wait_for_selector(".user .versions")
    here.done()
    assert here.users() == ["where is sam?"] and len(here.answers()) == 1
    here.page.hover(".message.user")
    here.press("Version before")
    assert here.users() == ["where is eva?"] and here.answers() == [first]


@pytest.mark.parametrize("model", ["sft", "base"])
def test_token_probabilities(visit: Any, model: str) -> None:
    here = visit()
    here.page.select_option("#model", model)
    here.say("sam is in the")
    here.press("Colour tokens by probability")
    tokens = here.page.locator(".answer .token")
    assert tokens.count() > 1 and here.page.locator(".answer .token.none").count() == 0
    tokens.first.hover()
    card = here.page.locator(".token-card")
    assert card.is_visible() and card.locator("li").count() >= 5
    assert card.locator("li.chosen").count() == card.locator("p").count() >= 1 and "log p" in card.inner_text()
    tokens.first.focus()
    here.page.keyboard.press("ArrowRight")
    assert here.page.evaluate("document.activeElement === document.querySelectorAll('.answer .token')[1]")
    here.page.keyboard.press("Escape")
    assert card.is_hidden()
    here.press("Colour tokens by probability")
    assert tokens.count() == 0


def events(*bodies: Any) -> dict[str, Any]:
    """How a route answers with these events."""
    text = "".join(f"data: {json.dumps(body)}\n\n" for body in bodies)
    return {"body": text + "data: [DONE]\n\n", "headers": {"content-type": "text/event-stream"}}


def test_markup_of_a_person_or_a_model_stays_text(visit: Any) -> None:
    here = visit()
    text = f"{NASTY} **bold** `code`\n\n```html\n{NASTY}\n```\n\n1. {NASTY}"
    said = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop"}]}
    here.page.route("**/v1/chat/completions", lambda route: route.fulfill(**events(said)))
    here.say(NASTY)
    assert here.users() == [NASTY]
    answer = here.page.locator(".answer")
    assert answer.inner_text().count("<script>") == 3
    assert answer.locator("strong").inner_text() == "bold" and answer.locator("pre code").inner_text() == NASTY
    assert answer.locator("script, img").count() == 0
    assert here.page.inner_text(".conversations .title").startswith("<script>")


def test_what_goes_wrong_is_said_and_can_be_tried_again(visit: Any) -> None:
    here = visit()
    path = "**/v1/chat/completions"
    busy = {"status": 429, "headers": {"Retry-After": "3"}, "json": {"error": {"message": "the queue is full."}}}
    here.page.route(path, lambda route: route.fulfill(**busy))
    here.say("where is eva?")
    assert "the queue is full. Try again in 3 s" in here.page.inner_text(".note.error")
    here.page.unroute(path)
    here.page.route(path, lambda route: route.fulfill(**events({})))
    here.page.click(".note.error >> text=Try again >> nth=1")
    here.page.wait_for_selector("text=ended before the answer did")
    here.page.unroute(path)
    here.page.locator(".note.error button").click()
    here.page.wait_for_selector(".note.error", state="detached")
    here.done()
    assert here.answers()[0] and here.page.locator(".versions").count() == 0  # what failed is no version
    assert all("429" in words for words in here.said)
    here.said.clear()  # the browser's own remark on the 429


def test_prompts_are_kept_only_with_consent(visit: Any, served: Running) -> None:
    here = visit()
    here.say("a secret question")
    here.press("Settings")
    switch = here.page.locator("#set-consent")
    assert not switch.is_checked()
    switch.click()
    here.page.locator("dialog button[aria-label='Close']").click()  # would rather not say who
    here.page.wait_for_selector("dialog", state="detached")
    assert not switch.is_checked()
    here.say("still a secret")
    assert rows(served, "prompts") == [] and not any(url.endswith("/chat/api/prompt") for url in here.asked)
    switch.click()
    here.join("Consenting Ana")
    assert switch.is_checked()
    here.say("a question to keep")
    until(lambda: len(rows(served, "prompts")) == 1, 5)
    kept = rows(served, "prompts")[0]
    assert kept["prompt"][-1]["content"] == "a question to keep" and "Ana" not in json.dumps(kept)
    switch.click()
    here.say("secret again")
    assert len(rows(served, "prompts")) == 1


def test_an_ideal_answer_becomes_a_demonstration(visit: Any, served: Running) -> None:
    here = visit()
    here.say("where is eva?")
    first = here.answers()[0]
    here.press("Write the ideal answer")
    assert here.page.input_value("textarea.editing").split() == first.split()
    here.page.fill("textarea.editing", "eva is in the garden.")
    here.page.click("text=Store the ideal answer")
    here.join("Teacher")
    here.page.wait_for_selector(".badge.ideal")
    assert here.answers() == ["eva is in the garden."] and here.page.inner_text(".versions") == "2/2"
    row = rows(served, "demonstrations")[-1]
    assert (row["prompt"], row["completion"]) == ("where is eva?", "eva is in the garden.")


def test_models_are_compared_blind_and_the_vote_is_a_comparison(visit: Any, served: Running) -> None:
    here = visit()
    here.page.click("text=Compare models")
    assert here.page.locator(".chooser .pick input:checked").count() == 3
    here.say("where is eva?")
    names = here.page.locator(".column .model-name")
    here.page.wait_for_selector(".ballot h3")
    assert names.all_inner_texts() == ["", "", ""]
    assert here.page.locator(".column .badge").count() == 0  # a score would tell
    texts = here.page.locator(".column .answer").all_text_contents()
    here.page.click("text=B is best")
    here.join("Voter")
    here.page.wait_for_selector(".column.won")
    shown = names.all_inner_texts()
    assert sorted(shown) == ["base", "sft", "slow"] and here.page.locator(".column .badge.reward").count() == 3
    assert f"You chose {shown[1]}. Stored." in here.page.inner_text(".ballot")
    row = rows(served, "rankings")[-1]
    best = [row["responses"][i].split() for i in row["ranking"][0]]
    assert len(row["responses"]) == 3 and clean(texts[1]).split() in best  # untrained models write NUL too
    assert row["prompt"] == "where is eva?" and "Voter" not in json.dumps(row)
    store = served.app.state.store
    for number, words in enumerate(("All equally good", "All bad"), 2):
        here.say(f"where is sam? {words}")
        here.page.locator(f".ballot button >> text={words}").click()
        here.page.wait_for_selector(f".round:nth-child({number}) .ballot strong")
    voter = store.person_named("Voter").id
    said = store.history(voter, "chat")
    assert [one.kind for one in said] == ["all_bad", "ranking", "ranking"]
    assert len(said[1].groups) == 1 and all(one.seconds > 0 for one in said)
    here.page.reload()
    here.page.wait_for_selector(".round")
    assert here.page.locator(".round").count() == 3 and here.page.locator(".column.won").count() == 1


def test_conversations_are_renamed_deleted_brought_back_and_saved(visit: Any, tmp_path: Path) -> None:
    here = visit()
    here.say("where is eva?")
    here.page.click("text=New chat")
    here.say("where is sam?")
    titles = here.page.locator(".conversations .title")
    assert titles.all_inner_texts() == ["where is sam?", "where is eva?"]
    here.page.locator(".here button[aria-label='Rename']").click()
    here.page.fill(".conversations input", "Sam's chat")
    here.page.press(".conversations input", "Enter")
    here.page.wait_for_selector("text=Sam's chat")
    for choice, ending in (("Save as JSON", "json"), ("Save as Markdown", "md")):
        here.page.click("summary[aria-label=Export]")
        with here.page.expect_download() as loading:
            here.page.click(f"text={choice}")
        assert loading.value.suggested_filename == f"Sam-s-chat.{ending}"
        loading.value.save_as(tmp_path / f"saved.{ending}")
    saved = json.loads((tmp_path / "saved.json").read_text(encoding="utf-8"))
    assert [m["role"] for m in saved["messages"]] == ["user", "assistant"] and saved["turns"][1]["model"] == "sft"
    assert "## user\n\nwhere is sam?" in (tmp_path / "saved.md").read_text(encoding="utf-8")
    answers = here.answers()
    here.page.locator(".here button[aria-label='Delete']").click()
    until(lambda: titles.count() == 1, 10)
    here.page.click("text=Undo")
    until(lambda: titles.count() == 2, 10)
    assert here.users() == ["where is sam?"]
    here.page.set_input_files("input[type=file]", tmp_path / "saved.json")
    until(lambda: titles.count() == 3, 10)
    assert here.users() == ["where is sam?"] and here.answers() == answers


def test_long_conversations_lose_their_oldest_exchanges_aloud(visit: Any, served: Running) -> None:
    here = visit()
    for number in range(6):
        here.say(f"{number}: where is eva? where is sam?")
    context = served.app.state.models["sft"].context_length
    notes = here.page.locator(".message.assistant .muted").all_inner_texts()
    assert any(f"no longer fit the model's context ({context} tokens)" in words for words in notes)
    assert here.page.locator(".note.error").count() == 0


def test_a_file_from_anybody_is_taken_apart_or_refused(visit: Any) -> None:
    here = visit()
    turn = {"role": "assistant", "content": NASTY, "model": NASTY, "parent": "x", "id": "__proto__", "tokens": [1, 2]}
    bad = [b"[]", b"no json", json.dumps({"tutelage": 1, "kind": "chat", "turns": [turn]}).encode()]
    for body in bad:
        here.page.set_input_files("input[type=file]", {"name": "x.json", "mimeType": "text/json", "buffer": body})
        here.page.wait_for_selector("text=x.json is not a conversation")
        here.page.wait_for_timeout(50)
    fine = {**turn, "tokens": [{"text": "a", "logprob": "high", "top": 3}], "rewards": {"r": "1", "s": 2}}
    asked = {"role": "user", "content": "hi"}
    votes = {"prompt": "p", "answers": [fine, fine], "vote": {"kind": "winner", "winner": 7}}
    for content in ({"kind": "chat", "turns": [asked, fine]}, {"kind": "compare", "rounds": [votes]}):
        file = json.dumps({"tutelage": 1, "title": NASTY, **content}).encode()
        here.page.set_input_files("input[type=file]", {"name": "y.json", "mimeType": "text/json", "buffer": file})
        here.page.wait_for_selector(".message.assistant, .column")
        assert NASTY in here.page.inner_text("#messages") and "reward 2.00" in here.page.inner_text("#messages")
        here.page.reload()
        here.page.wait_for_selector(".message, .round")


def test_a_server_with_keys_asks_for_one_on_the_page(browser: Any, served: Running, tmp_path: Path) -> None:
    engine = served.app.state.models["sft"]
    store = Store(str(tmp_path / "labels.db"))
    person, key = store.add_person("ana"), Keys.add(tmp_path / "keys.json", "ci")
    with running({"sft": engine}, store=store, keys=Keys(tmp_path / "keys.json"), local=False) as one:
        for secret in (person, key):
            here = Visitor(browser, one)
            assert here.page.locator("#send").is_disabled()
            here.page.fill(".welcome input", "wrong")
            here.page.click("text=Enter")
            here.page.wait_for_selector("text=The server does not know this key")
            here.page.fill(".welcome input", secret)
            here.page.press(".welcome input", "Enter")
            here.page.wait_for_selector("text=What would you like to ask?")
            here.say("where is eva?")
            assert here.answers()[0]
            cookies = here.context.cookies()
            assert bool(cookies) == (secret == person) and all(c["httpOnly"] for c in cookies)
            assert all("401" in words or "403" in words for words in here.said)
            here.context.close()


def test_chinese_right_to_left_and_a_phone(visit: Any) -> None:
    here = visit(locale="zh-CN", viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert here.page.get_attribute("html", "lang") == "zh"
    assert here.page.get_attribute("#ask", "placeholder") == "输入消息"
    assert here.page.locator("#list").is_hidden()
    here.say("مرحبا، أين إيفا؟")
    assert here.page.evaluate("getComputedStyle(document.querySelector('.bubble')).direction") == "rtl"
    assert here.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    here.press("显示对话列表")
    here.page.wait_for_selector("#list", state="visible")
    here.page.click("text=比较模型")
    here.say("你好")
    here.page.wait_for_selector(".ballot h3")
    assert here.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
