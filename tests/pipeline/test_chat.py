"""The terminal chat: texts of many lines, taking back, answering again, saving, sampling, and models of a server."""

import io
import json
from collections.abc import Iterator
from http.server import ThreadingHTTPServer

import pytest
from rich.console import Console

from tests.servers import JsonHandler, serving
from tutelage.core.errors import ConfigError, DataError
from tutelage.core.records import ConversationRow
from tutelage.pipeline import chat as chat_module
from tutelage.pipeline.chat import Chat, chat_loop, read_text


def typed(*lines):
    """An `ask` that reads these lines, and the prompts it was asked with."""
    left, asked = iter(lines), []

    def ask(prompt):
        asked.append(prompt)
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    return ask, asked


@pytest.fixture
def talk(chain):
    out = io.StringIO()
    made = Chat(chain / "sft", {"max_tokens": 6}, Console(file=out, width=200, highlight=False))
    made.out = out
    return made


def test_a_text_may_have_many_lines():
    ask, asked = typed("one \\", "two", '"""first', "", 'last""" ignored', "plain")
    assert read_text(ask, "> ") == "one \ntwo"
    assert read_text(ask, "> ") == "first\n\nlast"
    assert read_text(ask, "> ") == "plain"
    assert asked == ["> ", "... ", "> ", "... ", "... ", "> "]
    with pytest.raises(EOFError):
        read_text(typed('"""never ended')[0], "> ")


def test_undo_and_regenerate(talk):
    talk.answer("who is eva?")
    first = talk.answer("where is sam?")
    assert len(talk.messages) == 4
    talk.command("/regenerate")
    assert len(talk.messages) == 4 and talk.messages[-1]["content"] == first  # greedy
    assert "temperature=0 gives the same answer" in talk.out.getvalue()
    talk.command("/undo")
    assert [m["content"] for m in talk.messages if m["role"] == "user"] == ["who is eva?"]
    talk.command("/undo")
    assert talk.messages == []
    talk.command("/undo")
    assert "nothing to take back" in talk.out.getvalue()
    with pytest.raises(DataError, match="no question"):
        talk.command("/regenerate")


def test_regenerate_that_fails_changes_nothing(talk):
    talk.answer("who is eva?")
    before = list(talk.messages)
    talk.command(f"/params max_tokens={talk.engine().context_length}")
    with pytest.raises(DataError, match="fit beside"):
        talk.command("/regenerate")
    assert talk.messages == before


def test_a_base_model_continues_and_leaves_the_conversation_alone(chain, monkeypatch):
    out = io.StringIO()
    made = Chat(chain, {"max_tokens": 4}, Console(file=out, width=200))
    assert made.label == "sft" and made.talks
    made.answer("who is eva?")
    made.command("/base")
    assert not made.talks
    kept = list(made.messages)
    made.answer("sam is in")
    made.command("/regenerate")
    assert made.messages == kept


def test_params_change_what_they_name(talk):
    talk.command("/params temperature=0.5 top_p=0.9 stop=[x,y] seed=3")
    assert (talk.settings.temperature, talk.settings.top_p, talk.settings.max_tokens) == (0.5, 0.9, 6)
    assert talk.settings.stop == ("x", "y") and talk.settings.seed == 3
    assert "top_p=0.9" in talk.out.getvalue()
    talk.command("/params seed=null")
    assert talk.settings.seed is None and talk.settings.top_p == 0.9
    with pytest.raises(ConfigError, match="did you mean 'temperature'"):
        talk.command("/params temprature=1")
    with pytest.raises(ConfigError, match="expected key=value"):
        talk.command("/params hot")
    assert talk.settings.temperature == 0.5


def test_saved_rows_are_rows_for_sft(talk, tmp_path):
    with pytest.raises(DataError, match="nothing to save"):
        talk.command(f"/save {tmp_path / 'a.jsonl'}")
    talk.command("/system be kind 你好")
    talk.answer("who is eva?")
    talk.command(f"/save {tmp_path / 'a.jsonl'}")
    talk.command(f"/save {tmp_path / 'a.jsonl'}")
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 2 and [m["role"] for m in rows[0]["messages"]] == ["system", "user", "assistant"]
    ConversationRow.model_validate(rows[0])
    talk.command(f"/save {tmp_path / 'a.md'}")
    assert "be kind 你好" in (tmp_path / "a.md").read_text(encoding="utf-8")
    wrong = (("a.md", "is there already"), ("a.txt", "ends in .jsonl"), ("no/a.jsonl", "cannot be written"))
    for place, words in wrong:
        with pytest.raises(DataError, match=words):
            talk.command(f"/save {tmp_path / place}")


def test_a_loop_says_what_is_wrong_and_goes_on(chain, monkeypatch, capsys):
    ask, prompts = typed("/regenerate", "/hepl", "/help", "who is eva?", "/params top_q=1", "/quit", "never read")
    monkeypatch.setattr(chat_module, "_asker", lambda console: ask)
    chat_loop(chain / "sft", {"max_tokens": 4})
    said = capsys.readouterr().out
    assert "error: nothing to answer again" in said and "no /hepl; there is" in said
    assert "/save FILE" in said and "unknown key 'top_q'" in said
    assert prompts == ["sft> "] * 6


class Talker(JsonHandler):
    """A server of two models; its answers say what it was asked."""

    asked: list = []

    def do_GET(self):
        self.answer({"data": [{"id": "org/base"}, {"id": "big"}]})

    def do_POST(self):
        body = self.body()
        self.asked.append((self.path, body))
        chat = "messages" in body
        words = f"{len(body['messages'])} messages" if chat else "continued"
        choice = {"index": 0, "finish_reason": "stop"} | ({"delta": {"content": words}} if chat else {"text": words})
        events = f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n\n"
        self.answer(events, Content_Type="text/event-stream")


@pytest.fixture
def server() -> Iterator[str]:
    Talker.asked = []
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Talker)) as address:
        yield address


def test_a_server_is_talked_to_like_a_model(server):
    made = Chat(server, {"max_tokens": 4}, Console(file=io.StringIO()))
    assert made.label == "org/base" and not made.talks
    assert made.answer("once") == "continued"
    made.command("/big")
    assert made.talks and made.answer("hello") == "1 messages"
    assert made.answer("again") == "3 messages"
    assert [path for path, _ in Talker.asked] == ["/v1/completions", "/v1/chat/completions", "/v1/chat/completions"]
    assert {body["model"] for _, body in Talker.asked} == {"org/base", "big"}
    assert Chat(server, {"model": "big"}, Console(file=io.StringIO())).label == "big"


def test_model_names_a_server_s_model_only(chain):
    with pytest.raises(ConfigError, match="names a model of a server"):
        Chat(chain / "sft", {"model": "x"}, Console(file=io.StringIO()))
