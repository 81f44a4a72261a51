"""64 streaming clients on `tutelage serve` and on `transformers serve`: same model, same prompts, one after the other.

    python benchmarks/serve_vs_transformers.py            # about 5 minutes on two cores
    python benchmarks/serve_vs_transformers.py --quick

The model is of the demo's size (laptop-1m: 0.9 million parameters, 512 tokens) with random weights; answers are greedy
and never end by themselves, so that both sides make the same number of tokens. `transformers serve` runs as it comes
and with --continuous-batching; its better result counts. Ours counts as it comes; compiled=true is measured beside it.
Each server is a process of its own with a whole round as warm-up; the clients are one process of raw sockets. Tokens a
second: all tokens by the seconds from the first request to the last byte. Time to first token: from sending a request
to its first piece of text.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common

MODEL = common.WORK / "serve" / "model"
BAR = 3.0
QUESTIONS = ("where is {}?", "who likes {}?", "what does {} see in the garden?", "tell me about {} and the red ball.")
SYSTEM = "you are a helpful assistant who answers questions about the people of a small town in one short sentence."


def make_model() -> str:
    """The model's folder, made on the first call."""
    if not (MODEL / "config.json").exists():
        import torch

        from tutelage.model.hub import create_model, save_model
        from tutelage.text.chat import ensure_chat
        from tutelage.text.tokenizer import ensure_pad, train_tokenizer

        tokenizer = train_tokenizer([SYSTEM, *(m[1]["content"] for m in prompts(64))] * 20, 512)
        ensure_pad(tokenizer)
        ensure_chat(tokenizer)
        torch.manual_seed(0)
        model = create_model("laptop-1m", tokenizer, 1024)
        # the logit 0 is never the largest: no special token ends an answer, no part of a character is without text
        odd = [i for i in range(len(tokenizer)) if not tokenizer.decode([i]).isascii()]
        with torch.no_grad():
            model.get_input_embeddings().weight[[*odd, *tokenizer.all_special_ids]] = 0
        save_model(model.eval(), tokenizer, MODEL)
    return str(MODEL)


def prompts(count: int) -> list[list[dict[str, str]]]:
    """Conversations with one system message and different questions."""
    names = "sam eva tom ann bob kim max lea dan mia joe zoe ben amy leo ida".split()
    asked = [question.format(name) for name in names for question in QUESTIONS]
    said = (asked[i % len(asked)] for i in range(count))
    return [[{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}] for question in said]


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def processor_seconds(pid: int) -> float:
    """Processor time that a process has used; what others do on the machine does not change it."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def server(command: Sequence[str], port: int, log: Path) -> Iterator[int]:
    """Within: the server listens; gives its process id."""
    env = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    env.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=env, cwd=common.ROOT)
        try:
            end = time.time() + 120
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    if process.poll() is not None or time.time() > end:
                        raise RuntimeError(f"no server: {log.read_text()[-2000:]}") from None
                    time.sleep(0.2)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


async def stream(port: int, model: str, messages: Any, tokens: int, gate: asyncio.Event) -> dict[str, float]:
    """One client: seconds to the first text and to the end, and how many pieces came."""
    body = {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0.0, "stream": True}
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    await gate.wait()
    began = time.perf_counter()
    writer.write(f"{head}Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    first, pieces, tail = 0.0, 0, b""
    while part := await reader.read(1 << 20):
        # transformers 5.24 repeats the prompt as its first piece, before the model has run; that is no answer
        count = part.count(b'"content":"') - part.count(b'"content":""') - part.count(b'"content":"<|')
        if count > 0 and not first:
            first = time.perf_counter()
        pieces, tail = pieces + count, (tail + part)[-3000:]
    ended = time.perf_counter()
    writer.close()
    if not first or b'"finish_reason":"length"' not in tail:
        raise RuntimeError(f"no whole answer: {tail[-500:]!r}")
    return {"first": first - began, "began": began, "ended": ended, "pieces": pieces}


async def crowd(port: int, model: str, clients: int, tokens: int) -> dict[str, float]:
    """All clients at once."""
    gate = asyncio.Event()
    tasks = [asyncio.create_task(stream(port, model, m, tokens, gate)) for m in prompts(clients)]
    await asyncio.sleep(0.3)  # connected
    gate.set()
    found = await asyncio.gather(*tasks)
    seconds = max(f["ended"] for f in found) - min(f["began"] for f in found)
    firsts = sorted(f["first"] for f in found)
    return {
        "tokens_per_s": clients * tokens / seconds, "p50_first": statistics.median(firsts),
        "p95_first": firsts[int(0.95 * (len(firsts) - 1))], "seconds": seconds,
        "pieces": statistics.mean(f["pieces"] for f in found),
    }  # fmt: skip


def measure(kind: str, clients: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Medians over rounds of one server."""
    model, port = make_model(), free_port()
    if kind.startswith("tutelage"):
        command = [sys.executable, "-m", "tutelage.cli", "serve", model, f"port={port}"]
        command += ["compiled=true"] if kind == "tutelage-compiled" else []
        name = Path(model).name
    else:
        command = [str(Path(sys.executable).parent / "transformers"), "serve", model, "--port", str(port)]
        command += ["--host", "127.0.0.1"]
        command += ["--continuous-batching"] if kind == "transformers-cb" else []
        name = model
    log = common.WORK / "serve" / f"{kind}.log"
    with server(command, port, log) as pid:
        asyncio.run(crowd(port, name, clients, tokens))
        before = processor_seconds(pid)
        runs = [asyncio.run(crowd(port, name, clients, tokens)) for _ in range(rounds)]
        each = (processor_seconds(pid) - before) / rounds / clients / tokens
    found = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    return {**found, "processor_ms_a_token": each * 1e3, "all": runs}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="tutelage,tutelage-compiled,transformers,transformers-cb")
    parser.add_argument("--quick", action="store_true", help="small and once: does everything run")
    args = parser.parse_args(argv)
    clients, tokens, rounds = (8, 16, 1) if args.quick else (args.clients, args.tokens, args.rounds)
    found: dict[str, dict[str, Any]] = {}
    for kind in args.only.split(","):
        try:
            found[kind] = measure(kind, clients, tokens, rounds)
        except RuntimeError as problem:
            print(f"{kind}: {problem}", file=sys.stderr)
            continue
        row = found[kind]
        print(
            f"{kind:16} {row['tokens_per_s']:8.0f} tokens/s   first token p50 {row['p50_first'] * 1e3:7.0f} ms, "
            f"p95 {row['p95_first'] * 1e3:7.0f} ms   {row['pieces']:.0f} pieces a stream, "
            f"{row['processor_ms_a_token']:.3f} ms of processor a token", flush=True,
        )  # fmt: skip
    peers = {kind: row for kind, row in found.items() if kind.startswith("transformers")}
    if "tutelage" not in found or not peers:
        return 1
    mine, best = found["tutelage"], max(peers, key=lambda kind: peers[kind]["tokens_per_s"])
    ratios = {kind: mine["tokens_per_s"] / row["tokens_per_s"] for kind, row in peers.items()}
    quicker = all(mine["p95_first"] < row["p95_first"] for row in peers.values())
    row = {
        "name": "serve", "ours": mine["tokens_per_s"], "peer": peers[best]["tokens_per_s"], "unit": "tokens/s",
        "ratio": ratios[best], "bar": BAR, "met": ratios[best] >= BAR and quicker, "peer_name": best, "ratios": ratios,
        "clients": clients, "tokens": tokens, "p95_first": {kind: one["p95_first"] for kind, one in found.items()},
        "sides": found, "machine": common.machine(),
    }  # fmt: skip
    print(common.verdict(row))
    print(*(f"against {kind}: {ratio:.2f}" for kind, ratio in ratios.items()), sep="; ")
    common.save("serve_vs_transformers", row, args.quick)
    return int(not args.quick and not row["met"])


if __name__ == "__main__":
    raise SystemExit(main())
