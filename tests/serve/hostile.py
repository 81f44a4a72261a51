"""Hostile requests: bytes that a server gets on the open internet. Used by the tests and by benchmarks/hostile.py."""

from __future__ import annotations

import json
import random
import socket
import struct
from collections.abc import Callable
from typing import Any

PATHS = ["/v1/chat/completions", "/v1/completions"]
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 10**30, -(10**30), 0.5, 1e308, float("nan"), float("inf"), "", "x", "\x00", "\ud800",
    "😀" * 50, [], [[]], [[[]]], [0], [-1], ["", None], {}, {"a": {"b": []}}, {"role": "user", "content": "x"},
    "1" * 5000, ["x"] * 3000,
]  # fmt: skip
GOOD: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "one two"}], "max_tokens": 2},
    {"prompt": "the cat", "max_tokens": 2},
    {"prompt": [[9, 10], [11]], "max_tokens": 1, "logprobs": 2, "echo": True},
    {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "stream": True},
    {"prompt": ["a", "b"], "max_tokens": 2, "stream": True, "n": 2, "stream_options": {"include_usage": True}},
]
KEYS = [
    "model", "messages", "prompt", "max_tokens", "temperature", "top_p", "top_k", "min_p", "n", "stop", "seed",
    "stop_token_ids", "logit_bias", "logprobs", "top_logprobs", "presence_penalty", "stream", "stream_options", "echo",
    "best_of", "user", "tools", "__proto__", "\ud800", "",
]  # fmt: skip
TARGETS = [
    "/", "//", "/../../etc/passwd", "/static/../../secret", "/static/%2e%2e%2f%2e%2e%2fetc/passwd", "/static/%00",
    "/%ff%fe",
    "/v1/models/../../x", "/v1/models/%00", "/v1/models/" + "a" * 3000, "/?" + "a=b&" * 500, "/static/" + "../" * 200,
    "/v1/chat/completions", "/health", "/metrics", "/openapi.json", "*", "http://evil.example/", "/label?key=%00",
    "/;", "/.",
    "/v1/completions?x=%F0%28%8C%28", "/\\..\\..\\x", "/v1//completions", "/V1/COMPLETIONS",
    "/label/api/x", "/chat/api/x",
]  # fmt: skip
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT", "BREW", "get", ""]


def framed(path: str, data: bytes, kind: str = "application/json", more: str = "", method: str = "POST") -> bytes:
    """A well-formed request around any body."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n{more}"
    end = f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    return head.encode("latin-1", "replace") + end.encode() + data


def wrong_values(r: random.Random) -> bytes:
    """A request in which some keys have any values."""
    body = dict(r.choice(GOOD))
    for _ in range(r.randint(1, 3)):
        body[r.choice(KEYS)] = r.choice(VALUES)
    if r.random() < 0.3 and "messages" in body:
        body["messages"] = [{"role": r.choice(VALUES), "content": r.choice(VALUES)}]
    return framed(r.choice(PATHS), json.dumps(body).encode())


def broken_json(r: random.Random) -> bytes:
    """JSON cut, mangled, nested without end, or no JSON at all."""
    data = bytearray(json.dumps(r.choice(GOOD)).encode())
    kind = r.randrange(7)
    if kind == 0:
        data = data[: r.randrange(len(data))]
    elif kind == 1:
        for _ in range(r.randint(1, 8)):
            data[r.randrange(len(data))] = r.randrange(256)
    elif kind == 2:
        data = bytearray(b"[" * r.choice([10, 1000, 200_000]))
    elif kind == 3:
        data = bytearray(r.randbytes(r.randrange(400)))
    elif kind == 4:
        data = bytearray(b'{"prompt": "\\ud83d", "a": ' + b'{"a":' * 3000)
    elif kind == 5:
        data = bytearray(json.dumps(r.choice(GOOD)).encode(r.choice(["utf-16", "utf-32", "utf-7"])))
    else:
        data = bytearray(b'{"prompt": ' + b"9" * 6000 + b"}")
    return framed(r.choice(PATHS), bytes(data))


def bad_unicode(r: random.Random) -> bytes:
    """Texts with lone surrogates, controls, odd scripts, and bytes that are no UTF-8."""
    pool = ["\ud800", "\udfff", "\x00", "\ufffe", "\u202e", "😀", "e\u0301" * 40, "ﷺ" * 20, "\u2028", "\r\n"]
    pool += ["<|end|>", "<|user|>"]
    text = "".join(r.choice(pool) for _ in range(r.randint(1, 12)))
    body: dict[str, Any] = dict(r.choice(GOOD[:2]))
    if "prompt" in body:
        body["prompt"] = text
    else:
        body["messages"] = [{"role": "user", "content": text}]
    if r.random() < 0.3:
        body[r.choice(["stop", "user", "model"])] = text
    data = json.dumps(body).encode()
    if r.random() < 0.3:
        data = data.replace(b"one", b"\xff\xfe\xc0\x80").replace(b"max", b"m\xe2\x28x")
    return framed(r.choice(PATHS), data)


def paths(r: random.Random) -> bytes:
    """Targets that lead out of the pages, and methods that nobody has."""
    return f"{r.choice(METHODS)} {r.choice(TARGETS)} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()


def framing(r: random.Random) -> bytes:
    """Broken HTTP: lengths that lie, chunks that are none, headers that are too many or mangled."""
    body = json.dumps(r.choice(GOOD)).encode()
    start = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    options: list[Callable[[], bytes]] = [
        lambda: start + b"Content-Length: -5\r\n\r\n" + body,
        lambda: start + b"Content-Length: 99999999999999999999\r\n\r\n" + body,
        lambda: start + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + body,
        lambda: start + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + body,
        lambda: start + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        lambda: start + b"Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        lambda: start + b"".join(b"X-%d: y\r\n" % i for i in range(3000)) + b"\r\n",
        lambda: start + b"Authorization: Bearer \xff\xfe\x80\r\nCookie: tutelage_key=\xff\r\n\r\n",
        lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + r.randbytes(60),
        lambda: b"GET / HTTP/9.9\r\n\r\n", lambda: b"GET /\r\n\r\n", lambda: b"\r\n\r\n\r\n", lambda: r.randbytes(200),
        lambda: b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n",
        lambda: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        lambda: start + b"Expect: 100-continue\r\nContent-Length: 10\r\n\r\n",
        lambda: start + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body,
        lambda: framed("/v1/completions", body, r.choice(["text/plain", "application/xml", "multipart/form-data"])),
        lambda: framed("/v1/completions", body, "a/b;" * 99),
        lambda: framed("/v1/completions", b"a=b&prompt=c", "application/x-www-form-urlencoded"),
        lambda: framed("/v1/completions", body, more="Origin: https://evil.example\r\n"),
        lambda: framed("/v1/completions", body) * 3,
    ]  # fmt: skip
    return r.choice(options)()


def huge(r: random.Random) -> bytes:
    """Bodies at the bounds and beyond."""
    size = r.choice([20_000, 100_000, 300_000])
    kind = r.randrange(3)
    text = "a" * size if kind == 0 else "<|end|>" * (size // 7) if kind == 1 else [["b" * 50] * 9] * (size // 500)
    body = {"prompt": text} if r.random() < 0.5 else {"messages": [{"role": "user", "content": text}]}
    return framed(r.choice(PATHS), json.dumps(body).encode())


KINDS = (wrong_values, wrong_values, broken_json, bad_unicode, paths, framing, huge)


def attack(port: int, seed: int) -> int:
    """One hostile request. The status of the answer, 0 where the server just hung up (or the attacker did)."""
    r = random.Random(seed)
    data = r.choice(KINDS)(r)
    manner = r.random()
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as link:
        try:
            if manner < 0.03:  # sends a part and hangs up
                link.sendall(data[: r.randrange(len(data) + 1)])
                return 0
            if manner < 0.06:  # sends all and resets at once
                link.sendall(data)
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return 0
            if manner < 0.08:  # dribbles
                for at in range(0, min(len(data), 40)):
                    link.sendall(data[at : at + 1])
                data = data[40:]
            link.sendall(data)
            answer = link.recv(65536)
            link.settimeout(0.1)  # the status is enough
            while len(answer) < 1 << 20 and (part := link.recv(65536)):
                answer += part
        except TimeoutError:
            pass
        except ConnectionError:
            return 0
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0
