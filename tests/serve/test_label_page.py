"""The ranking page in a browser: people rank by mouse and keyboard, change their mind, skip, see how they agree."""

import re
import time

import pytest

from tests.serve.conftest import running
from tests.serve.pages import ARABIC, ROWS, SCRIPT, Client, labelling
from tutelage.feedback.store import Store
from tutelage.serve import label_api

WIDE = {"width": 1200, "height": 860}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}


@pytest.fixture
def served(tmp_path, monkeypatch):
    monkeypatch.setattr(label_api, "REPORT_SECONDS", 0.0)
    with labelling(tmp_path / "labels.db") as found:
        yield found


@pytest.fixture
def opened(browser, served):
    """opened(name, path, **context) signs a new person in; at the end nothing may have been written to the console."""
    contexts, complaints = [], []

    def one(name="Ann", path="/label", **context):
        contexts.append(browser.new_context(**{"viewport": WIDE, "locale": "en-GB", **context}))
        page = contexts[-1].new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(served[0] + path)
        page.fill("input[name=who]", name)
        page.click(".sign-in button.primary")
        page.click("dialog button.primary")
        page.wait_for_selector(".answer, .tile, .note")
        return page

    one.expected = "nothing"  # but what a test breaks on purpose, which the browser logs
    yield one
    for context in contexts:
        context.close()
    assert not [words for words in complaints if not words.startswith(one.expected)]


def sync_api():
    return pytest.importorskip("playwright.sync_api")


def done(page, count):
    """Wait until so many items are done."""
    sync_api().expect(page.locator("#progress")).to_have_text(re.compile(rf"(^|完成 ){count} "), timeout=15_000)


def says(page, selector, words):
    """Wait until an element holds the words."""
    sync_api().expect(page.locator(selector)).to_contain_text(words, timeout=15_000)


def placed(page):
    """The numbers of the answers in their groups, best first."""
    groups = page.locator(".group").all()
    return [[int(n) for n in group.locator(".pick").all_inner_texts()] for group in groups]


def judged(store, name="Ann"):
    """What a person said, newest first, with answers as texts."""
    who = store.person_named(name)
    found = []
    for one in store.history(who.id, "colours"):
        texts = {answer.id: answer.text for answer in store.item(one.item).answers}
        found.append((store.item(one.item).prompt, one.kind, [sorted(texts[a] for a in group) for group in one.groups]))
    return found


def drag(page, number, target, part=0.5):
    """Drag the card of an answer by its handle onto a part of the target's height."""
    page.wait_for_function("() => document.getAnimations().length === 0")
    handle = page.locator(".answer", has=page.locator(f".pick:text-is('{number}')")).locator(".rail").bounding_box()
    box = page.locator(target).first.bounding_box()
    page.mouse.move(handle["x"] + 14, handle["y"] + 24)
    page.mouse.down()
    page.mouse.move(handle["x"] + 30, handle["y"] + 40, steps=3)
    page.mouse.move(box["x"] + 90, box["y"] + part * box["height"], steps=6)
    page.mouse.up()


def texts(page):
    """Each answer's number by its text."""
    cards = page.locator(".answer").all()
    return {card.locator(".said").inner_text(): int(card.locator(".pick").inner_text()) for card in cards}


def test_by_keyboard_alone(opened, served):
    page = opened()
    for key in ("2", "4", "1", "=", "3"):
        page.keyboard.press(key)
    assert placed(page) == [[2], [1, 4], [3]]
    page.keyboard.press("ArrowUp")  # the last one chosen, before the tie
    assert placed(page) == [[2], [3], [1, 4]]
    page.keyboard.press("1")
    page.keyboard.press("ArrowUp")  # out of the tie
    page.keyboard.press("Backspace")
    assert placed(page) == [[2], [3], [4]] and page.locator(".unranked .answer").count() == 1
    number = {number: text for text, number in texts(page).items()}
    page.keyboard.press("Enter")  # the one left goes last
    done(page, 1)
    assert judged(served[1]) == [(ROWS[0]["prompt"], "ranking", [[number[2]], [number[3]], [number[4]], [number[1]]])]
    page.keyboard.press("s")
    done(page, 2)
    page.keyboard.press("b")
    page.keyboard.press("Enter")
    done(page, 3)
    assert [kind for _, kind, _ in judged(served[1])] == ["all_bad", "skip", "ranking"]
    page.keyboard.press("c")
    page.keyboard.type("123 s b")  # in a field, keys are letters
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    says(page, "footer [role=alert]", "3 answers")
    for key in "234":
        page.keyboard.press(key)
    page.keyboard.press("Control+Enter")
    done(page, 4)
    assert served[1].history(served[1].person_named("Ann").id, "colours", 1)[0].comment == "123 s b"


def test_by_mouse(opened, served):
    page = opened()
    drag(page, 3, ".ranking")
    assert placed(page) == [[3]]
    drag(page, 1, ".group", 0.05)  # above
    assert placed(page) == [[1], [3]]
    drag(page, 4, ".group >> nth=1", 0.5)  # onto: a tie
    assert placed(page) == [[1], [3, 4]]
    drag(page, 2, ".group >> nth=1", 0.95)  # below
    assert placed(page) == [[1], [3, 4], [2]]
    drag(page, 1, ".group >> nth=2", 0.95)
    assert placed(page) == [[3, 4], [2], [1]]
    page.locator(".answer.chosen [data-do=up]").click()
    page.locator(".tied [data-do=tie]").last.click()
    assert placed(page) == [[3], [4], [1], [2]]
    page.locator("[data-do=out]").first.click()
    page.locator(".unranked .pick").click()
    assert placed(page) == [[4], [1], [2], [3]]
    page.locator("[data-flag=personal]").click()
    page.fill("#comment", "contains a name")
    page.click("[data-act=submit]")
    done(page, 1)
    (one,) = served[1].history(served[1].person_named("Ann").id, "colours")
    assert one.flags == ("personal",) and one.comment == "contains a name" and len(one.groups) == 4 and one.seconds > 0


def test_five_prompts_one_changed_one_skipped_and_the_agreement(opened, served):
    address, store = served
    page = opened()
    for count in range(1, 6):
        if count == 3:
            page.click("[data-act=skip]")
        elif count % 2:
            for _ in page.locator(".unranked .pick").all():
                page.locator(".unranked .pick").first.click()
            page.click("[data-act=submit]")
        else:
            for number in range(1, page.locator(".answer").count() + 1):
                page.keyboard.press(str(number))
            page.keyboard.press("Enter")
        done(page, count)
    before = judged(store)
    assert [kind for _, kind, _ in before] == ["ranking", "ranking", "skip", "ranking", "ranking"]
    page.keyboard.press("u")  # back to the fifth, then to the fourth
    page.wait_for_selector(".note")
    page.click("[data-act=back]")
    says(page, "#prompt", ARABIC)
    was = placed(page)
    page.keyboard.press(str(was[-1][0]))
    for _ in was:
        page.keyboard.press("ArrowUp")
    assert placed(page) == [was[-1], *was[:-1]]
    page.click("[data-act=submit]")
    page.wait_for_selector(".note", state="detached")
    after = judged(store)
    assert len(after) == 5 and after[0][0] == ARABIC  # the newest now
    assert after[0][2] == [before[1][2][-1], *before[1][2][:-1]]
    bo = Client(address)
    bo.join("Bo")
    while bo.rank(len):
        pass
    page.click("nav a[href*=report]")
    page.wait_for_selector("[data-measure=agreement]")
    assert re.search(r"\d+\.\d%", page.inner_text("[data-measure=agreement] .value"))
    lines = page.locator("#people tbody tr").all_inner_texts()
    assert len(lines) == 2 and sum("Ann (you)" in line for line in lines) == 1 and "Bo" not in page.inner_text("main")
    assert page.locator(".chart .dot").count() >= 1


def test_markup_stays_text(opened, served):
    page = opened()
    page.keyboard.press("s")
    done(page, 1)
    assert page.inner_text("#prompt .turn") == SCRIPT and f"{SCRIPT} one" in texts(page)
    assert page.locator("main script, main img").count() == 0 and page.title() == "Rank · tutelage"
    page.keyboard.press("i")
    page.select_option("#ideal-from", label="Answer 1")
    page.fill("#ideal", SCRIPT)
    page.click(".ideal button")
    says(page, ".toast", "ideal answer is saved")
    assert [row["completion"] for row in served[1].export("demonstrations")] == [SCRIPT]
    assert page.evaluate("document.title") == "Rank · tutelage"


def test_in_chinese_and_from_right_to_left(opened):
    page = opened("陈", locale="zh-CN")
    assert page.inner_text("[data-act=submit]").startswith("提交")
    assert page.locator("html").get_attribute("lang") == "zh"
    for count in (1, 2, 3):
        page.keyboard.press("s")
        done(page, count)
    assert page.inner_text("#prompt .turn") == ARABIC
    direction = "element => getComputedStyle(element).direction"
    assert page.locator("#prompt .turn").evaluate(direction) == "rtl"
    assert {card.evaluate(direction) for card in page.locator(".said").all()} == {"rtl", "ltr"}  # "Cairo." is not
    page.keyboard.press("1")
    page.select_option("header select >> nth=0", "en")  # the work stays as it is
    assert page.inner_text("[data-act=submit]").startswith("Submit") and placed(page) == [[1]]
    page.reload()
    page.wait_for_selector(".answer")
    assert page.inner_text("[data-act=submit]").startswith("Submit") and placed(page) == [[1]]  # the draft too


def test_on_a_phone(opened, served):
    page = opened(**PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == 390  # nothing sticks out
    assert page.locator("#guidelines").get_attribute("open") is None
    touch = page.context.new_cdp_session(page)

    def send(kind, *points):
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]})

    handle = page.locator(".unranked .rail").nth(1).bounding_box()
    hollow = page.locator(".ranking").bounding_box()
    x, y = handle["x"] + 14, handle["y"] + 24
    send("touchStart", (x, y))
    for step in range(1, 9):
        send("touchMove", (x + 2 * step, y + (hollow["y"] + 20 - y) * step / 8))
    send("touchEnd")
    page.wait_for_selector(".group")
    assert placed(page) == [[2]]
    for number in (1, 3):
        assert page.locator(".moves:visible").count() == 1  # of the chosen one
        page.tap(f".unranked .pick:text-is('{number}')")
        assert placed(page)[-1] == [number]
    small = "b => { const r = b.getBoundingClientRect(); return r.width < 32 || r.height < 32; }"
    assert not [b for b in page.locator("main button:visible, footer button:visible").all() if b.evaluate(small)]
    page.tap("[data-act=submit]")
    done(page, 1)
    assert served[1].progress("colours", served[1].person_named("Ann").id).mine == 1


def test_a_lost_connection_loses_nothing(opened, served):
    opened.expected = "Failed to load resource: net::"
    page = opened()
    for key in "1234":
        page.keyboard.press(key)
    page.route("**/label/api/judgements", lambda route: (route.fetch(), route.abort()))  # recorded, the answer lost
    page.click("[data-act=submit]")
    says(page, "footer [role=alert]", "cannot be reached")
    assert placed(page) == [[1], [2], [3], [4]]
    page.unroute("**/label/api/judgements")
    page.click("[data-act=submit]")
    done(page, 1)
    import sqlite3

    assert sqlite3.connect(served[1].url).execute("select count(*) from judgements").fetchone() == (1,)


def test_another_person_in_another_tab_is_noticed(opened, served):
    opened.expected = "Failed to load resource: the server responded with a status of 403"
    page = opened()
    other = Client(served[0])
    other.join("Bo")
    name, value = other.cookie.split("=", 1)
    page.context.add_cookies([{"name": name, "value": value, "url": served[0]}])
    page.keyboard.press("s")
    says(page, "footer [role=alert]", "signed in as Bo")
    assert served[1].history(other.person["id"], "colours") == []


def test_a_link_with_a_key_signs_in_and_leaves_no_key_behind(browser, served):
    key = served[1].add_person("Cy")
    context = browser.new_context(locale="en-GB")
    page = context.new_page()
    page.goto(f"{served[0]}/label?key={key}")
    page.wait_for_selector(".answer")
    assert page.inner_text(".who") == "Cy" and key not in page.url
    page.click(".who")  # leaves
    page.wait_for_selector(".sign-in")
    page.goto(f"{served[0]}/label?key=wrong")
    page.wait_for_selector(".sign-in .error-text:not(:empty)")
    page.fill("input[name=who]", key)
    page.click(".sign-in button.primary")
    page.wait_for_selector(".answer")
    context.close()


def test_single_keys_can_be_turned_off(opened):
    page = opened()
    page.keyboard.press("?")
    assert page.locator("dialog kbd").count() > 10
    page.click("dialog input[type=checkbox]")
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    assert placed(page) == []
    page.locator(".pick").first.focus()
    page.keyboard.press("Enter")  # buttons still work from the keyboard
    assert len(placed(page)) == 1


LOOKS = {"light": {}, "dark": {"color_scheme": "dark"}, "phone": {**PHONE, "locale": "zh-CN"}}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_axe_finds_nothing(opened, served, look):
    """axe-core's rules, WCAG 2.2 AA among them, over the pages' states."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def fine(page):
        page.wait_for_timeout(300)  # cards glide to their places, colours change slowly
        wrong = axe.run(page).response["violations"]
        assert not wrong, [(one["id"], [node["html"][:200] for node in one["nodes"]][:3]) for one in wrong]

    page = opened(**look)
    fine(page)
    for key in "21=b3i":
        page.keyboard.press(key)
    page.keyboard.press("Escape")
    page.keyboard.press("f")
    page.keyboard.press("Enter")
    fine(page)
    page.keyboard.press("?")
    fine(page)
    page.keyboard.press("Escape")
    page.click("[data-act=skip]")
    done(page, 1)
    page.keyboard.press("u")
    page.wait_for_selector(".note")
    fine(page)
    for name in "xyz":
        client = Client(served[0])
        client.join(name)
        while client.rank(len):
            pass
    page.goto(f"{served[0]}/label/report")
    page.wait_for_selector(".chart")
    fine(page)
    page.click(".who")
    page.wait_for_selector(".sign-in")
    fine(page)


def test_the_page_goes_on_by_itself_when_new_answers_come(browser, tmp_path):
    class Sampling:
        ended = False

        def state(self):
            return {"done": 1, "total": 2, "ended": self.ended, "error": None}

    store = Store(str(tmp_path / "labels.db"))
    store.add_batch("colours")
    key = store.add_person("Ann")
    with running({}, store=store) as server:
        server.app.state.sampling = Sampling()
        context = browser.new_context(locale="en-GB")
        page = context.new_page()
        page.goto(f"{server.url}/label?key={key}")
        page.wait_for_selector(".nothing-left")
        assert "goes on by itself" in page.inner_text("main") and "1 of 2" in page.inner_text("main")
        store.add_items("colours", ROWS[:1])
        began = time.time()
        page.wait_for_selector(".answer", timeout=10_000)
        assert time.time() - began < 8
        context.close()
