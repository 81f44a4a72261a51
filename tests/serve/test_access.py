"""Keys, origins, hosts, and what a browser is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.serve.conftest import CHAT, Running, make_engine, post, running
from tutelage.core.errors import ConfigError, DataError, RunError
from tutelage.engine import LocalEngine
from tutelage.serve.access import Keys
from tutelage.serve.run import ServeConfig, bound, configured, is_local, names_of, serve


def none(path: str) -> dict[str, Path]:
    return {"model": Path(path)}


def test_keys_are_kept_as_hashes(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key = Keys.add(file, "alice")
    assert key not in file.read_text() and key[12:] not in file.read_text()
    keys = Keys(file)
    assert keys.name_of(key) == "alice" and keys.name_of(key + "x") is None and keys.name_of("\ud800") is None
    second = Keys.add(file, "bob")
    assert keys.name_of(second) == "bob"  # seen without a restart
    rows = json.loads(file.read_text())["keys"]
    file.write_text(json.dumps({"keys": rows[1:]}))
    assert keys.name_of(key) is None and keys.name_of(second) == "bob"
    with pytest.raises(DataError, match="bob"):
        Keys.add(file, "bob")
    file.write_text("{")
    assert keys.name_of(second) == "bob"
    with pytest.raises(DataError, match="no key file"):
        Keys(file)
    with pytest.raises(DataError, match="new_key"):
        Keys(tmp_path / "none.json")


def test_with_keys_everything_but_health_needs_one(engine: LocalEngine, tmp_path: Path) -> None:
    key = Keys.add(tmp_path / "keys.json", "alice")
    with running({"tiny": engine}, keys=Keys(tmp_path / "keys.json"), local=False) as server:
        for path in ("/v1/models", "/v1/models/tiny", "/metrics"):
            assert httpx2.get(server.url + path).status_code == 401
            assert httpx2.get(server.url + path, headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert httpx2.get(f"{server.url}/health").status_code == 200
        for wrong in ("", "Bearer", "Bearer x", f"Basic {key}", "Bearer \xff"):
            headers = {"Authorization": wrong.encode("latin-1")}
            found = post(server, "/v1/chat/completions", {"colour": 1}, headers=headers)
            assert found.status_code == 401 and found.json()["error"]["code"] == "invalid_api_key"
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                client.models.list()
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
            assert client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=2).choices


def test_answers_carry_the_policy(server: Running) -> None:
    for found in (
        httpx2.get(f"{server.url}/"), httpx2.get(f"{server.url}/none"), post(server, "/v1/completions", b"{"),
        post(server, "/v1/completions", {"prompt": "a"}),
    ):  # fmt: skip
        policy = found.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert found.headers["x-content-type-options"] == "nosniff"
        assert "server" not in found.headers


def test_other_origins_and_hosts_are_refused(server: Running) -> None:
    own = {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}
    body = {"prompt": "a", "max_tokens": 1}
    assert post(server, "/v1/completions", body, headers=own).status_code == 200
    for headers in (
        {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://["},
        {"Sec-Fetch-Site": "same-site"}, {"Host": "evil.example"}, {"Host": "127.0.0.1.evil.example"}, {"Host": "["},
    ):  # fmt: skip
        found = post(server, "/v1/completions", body, headers=headers)
        assert found.status_code == 403 and found.json()["error"]["type"] == "permission_error"
    assert httpx2.get(f"{server.url}/v1/models", headers={"Host": "evil.example"}).status_code == 403
    assert httpx2.get(f"{server.url}/v1/models", headers={"Host": "localhost:99"}).status_code == 200


def test_with_keys_any_host_will_do(engine: LocalEngine, tmp_path: Path) -> None:
    key = Keys.add(tmp_path / "keys.json", "alice")
    with running({"tiny": engine}, keys=Keys(tmp_path / "keys.json"), local=False) as server:
        headers = {"Host": "llm.example", "Authorization": f"Bearer {key}"}
        assert httpx2.get(f"{server.url}/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static/%00", "/static//etc/passwd",
     "/static/", "/static/%ff", "/etc/passwd", "/static/common/..%5c..%5capp.py"],
)  # fmt: skip
def test_no_path_leads_out_of_the_pages(server: Running, path: str) -> None:
    found = server.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert b" 404 " in found[:20]


def test_the_first_page_is_there(server: Running) -> None:
    found = httpx2.get(f"{server.url}/")
    assert found.status_code == 200 and found.headers["content-type"].startswith("text/html")
    again = httpx2.get(f"{server.url}/", headers={"If-None-Match": found.headers["etag"]})
    assert again.status_code == 304 and not again.content


def test_the_configuration(tmp_path: Path, capsys: Any) -> None:
    assert is_local("127.0.0.1") and is_local("::1") and is_local("localhost") and is_local("127.9.9.9")
    assert not is_local("0.0.0.0") and not is_local("example.org") and not is_local("")
    with pytest.raises(ConfigError, match="others could use the server"):
        serve(["nowhere"], {"host": "0.0.0.0"}, none, lambda found: "")
    with pytest.raises(ConfigError, match="no model"):
        serve([], {}, none, lambda found: "")
    with pytest.raises(ConfigError, match="did you mean 'port'"):
        serve([], {"prot": 1}, none, lambda found: "")
    with pytest.raises(ConfigError, match="keys=FILE"):
        serve([], {"new_key": "alice"}, none, lambda found: "")
    serve([], {"new_key": "alice", "keys": str(tmp_path / "k.json")}, none, lambda found: "")
    assert "alice" in (tmp_path / "k.json").read_text()
    (tmp_path / "serve.toml").write_text("port = 9\nqueue = 3\n")
    named, config = configured(["m", str(tmp_path / "serve.toml")], {"queue": 4})
    assert named == ["m"] and (config.port, config.limits.queue) == (9, 4)
    with bound("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(RunError, match="another port"):
            bound("127.0.0.1", taken.getsockname()[1])


def test_names_of_models(tmp_path: Path) -> None:
    def found(path: str) -> dict[str, Path]:
        return {"base": Path(path) / "a", "sft": Path(path) / "b"} if "run" in path else {"sft": Path(path)}

    (tmp_path / "one").mkdir()
    one, run, other = str(tmp_path / "one"), str(tmp_path / "run1"), str(tmp_path / "run2")
    plain = ServeConfig()
    assert list(names_of([run], plain, found)) == ["base", "sft"]
    assert list(names_of([one], plain, found)) == ["one"] and list(names_of(["org/hub"], plain, found)) == ["org/hub"]
    assert list(names_of([run, other, one], plain, found)) == ["run1/base", "run1/sft", "run2/base", "run2/sft", "one"]
    assert names_of(["http://x/v1"], ServeConfig(served_model="big"), found) == {"big": "http://x/v1"}
    assert names_of([one], ServeConfig(models={"two": "y"}), found) == {"one": one, "two": "y"}
    with pytest.raises(ConfigError, match="two models are called 'one'"):
        names_of([one, one], plain, found)
    with pytest.raises(ConfigError, match="already"):
        names_of([one], ServeConfig(models={"one": "y"}), found)


def test_several_models_at_once(engine: LocalEngine) -> None:
    with running({"a": engine, "b": make_engine()}, best="a") as server:
        for name, expected in (("a", "a"), ("b", "b"), (None, "a")):
            body = {"prompt": "one", "max_tokens": 1, **({"model": name} if name else {})}
            assert post(server, "/v1/completions", body).json()["model"] == expected
