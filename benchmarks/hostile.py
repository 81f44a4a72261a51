"""10,000 hostile requests (tests/serve/hostile.py) against `tutelage serve` in a process of its own.

    python benchmarks/hostile.py                 # about ten minutes
    python benchmarks/hostile.py --count 300

Broken JSON, wrong types, bad Unicode, huge bodies, path tricks, broken HTTP; some clients hang up in the middle, reset,
or dribble their bytes, and eight read nothing all the while. Met: the process lives, no answer was 5xx, its log has no
traceback, nothing is left running, and it answers a proper request as before.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import socket
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import common  # noqa: E402
import serve_vs_transformers as bench  # noqa: E402

from tests.serve import hostile  # noqa: E402

LIMITS = (
    "body_bytes=200000", "body_seconds=0.5", "header_seconds=0.5", "send_seconds=2", "seconds=5", "max_tokens=512"
)  # fmt: skip


def asked(port: int) -> str:
    """A proper greedy answer."""
    body = json.dumps({"prompt": "where is sam?", "max_tokens": 20, "temperature": 0}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(json.load(answer)["choices"][0]["text"])


def metric(port: int, name: str) -> float:
    """A metric's sum over its labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}{{"))


def not_reading(port: int) -> socket.socket:
    """A client that asks for a lot and takes none of it."""
    link = socket.socket()
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    link.connect(("127.0.0.1", port))
    body = {"prompt": "sam", "max_tokens": 512, "n": 16, "stream": True, "logprobs": 20}
    link.sendall(hostile.framed("/v1/completions", json.dumps(body).encode()))
    return link


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    port, log = bench.free_port(), common.WORK / "serve" / "hostile.log"
    command = [sys.executable, "-m", "tutelage.cli", "serve", bench.make_model(), f"port={port}", *LIMITS]
    began = time.time()
    with bench.server(command, port, log) as pid:
        before = asked(port)
        idle = [not_reading(port) for _ in range(8)]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            seeds = range(args.seed, args.seed + args.count)
            found = Counter(pool.map(lambda seed: hostile.attack(port, seed), seeds, chunksize=1))
        for link in idle:
            link.close()
        end = time.time() + 30
        while (left := metric(port, "tutelage_running_rows")) and time.time() < end:
            time.sleep(0.2)
        alive, same = Path(f"/proc/{pid}").exists(), asked(port) == before
    trouble = log.read_text(encoding="utf-8").count("Traceback")
    worse = sum(count for status, count in found.items() if status >= 500)
    row = {
        "name": "hostile", "requests": args.count, "statuses": {str(k): v for k, v in sorted(found.items())},
        "answers_5xx": worse, "tracebacks": trouble, "rows_left": left, "alive": alive, "answers_as_before": same,
        "seconds": round(time.time() - began), "met": alive and same and not (worse or trouble or left),
        "machine": common.machine(),
    }  # fmt: skip
    print(json.dumps({key: value for key, value in row.items() if key != "machine"}, indent=1))
    common.save("hostile", row, args.count < 10_000)
    return int(not row["met"])


if __name__ == "__main__":
    raise SystemExit(main())
