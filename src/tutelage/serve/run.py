"""`tutelage serve`: the configuration, the models loaded, and the server that runs until it is told to stop."""

from __future__ import annotations

import contextlib
import gc
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from tutelage.core.config import build, merge, read_toml
from tutelage.core.errors import ConfigError, RunError
from tutelage.core.lineage import read_manifest
from tutelage.core.progress import console
from tutelage.engine import LocalEngine, RemoteEngine, load
from tutelage.serve.access import Keys
from tutelage.serve.app import create_app
from tutelage.serve.connection import within
from tutelage.serve.limits import Limits
from tutelage.train.rewards import Reward
from tutelage.train.scorer import open_reward

REMOTE = ("http://", "https://")
NONE = Limits()


class ServeConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)

    models: dict[str, str] = {}
    """Further models by the names that clients use, e.g. models.assistant=runs/demo/ppo."""
    host: str = "127.0.0.1"
    """Address to listen at. Another than this machine's own (0.0.0.0: every one) needs keys=."""
    port: int = Field(8000, ge=0, lt=1 << 16)
    """0 takes a free one and says which."""
    keys: str | None = None
    """File of API keys, of which it holds hashes only; requests then need one."""
    new_key: str | None = None
    """Make a key of this name, add it to keys=FILE, show it once, and serve nothing."""
    store: str | None = None
    """Ranking store for the pages: labels.db, or postgresql+psycopg://..."""
    batch: str | None = None
    """The store's batch that the ranking page shows."""
    reward: str | None = None
    """Reward model (a run directory) or file.py:function whose scores the chat page shows. A pipeline run's own reward
    model is found by itself."""
    device: str = "auto"
    """auto | cpu | cuda"""
    dtype: str = "auto"
    """auto (the checkpoint's own) | float32 | bfloat16 | float16"""
    bf16: bool = False
    """Run forwards under bfloat16 autocast."""
    compiled: bool | Literal["frozen"] = False
    """Decode through torch.compile: seconds at the first step, then quicker steps. frozen: with the weights as
    constants, which pays for few clients at a time."""
    max_rows: int = Field(256, ge=1)
    """Most answers decoded at once, for each model."""
    kv_bytes: int = Field(2 << 30, ge=1)
    """Most bytes of keys and values, for each model; what does not fit waits."""
    prefix_bytes: int = Field(256 << 20, ge=0)
    """Further bytes for the keys of beginnings that came up before (system messages, conversations); 0 keeps none."""
    queue: int = Field(NONE.queue, ge=0)
    """Most answers that wait, for each model; then clients are told 429 and when to try again."""
    max_tokens: int = Field(NONE.max_tokens, ge=1)
    """Most new tokens of an answer."""
    n: int = Field(NONE.n, ge=1)
    """Most answers of one request."""
    body_bytes: int = Field(NONE.body_bytes, ge=1)
    """Most bytes of a request's body."""
    seconds: float = Field(NONE.seconds, gt=0)
    """Longest an answer may take; then it ends as if that were its length."""
    header_seconds: float = Field(NONE.header_seconds, gt=0)
    """Longest a request's headers may take to arrive."""
    body_seconds: float = Field(NONE.body_seconds, gt=0)
    """Longest a request's body may take to arrive."""
    send_seconds: float = Field(NONE.send_seconds, gt=0)
    """Longest a client may take nothing of what it is sent."""
    connections: int = Field(NONE.connections, ge=1)
    """Most connections at once."""
    stop_seconds: float = Field(60.0, gt=0)
    """How long a stop (Ctrl-C, SIGTERM) waits for what is running; a second Ctrl-C does not wait."""
    served_model: str | None = None
    """Of a server's address: the model's name there (default: its first)."""
    workers: int = Field(64, ge=1)
    """Of a server's address: requests in flight at once."""
    api_key_env: str | None = None
    """Of a server's address: the environment variable that holds its API key (default: OPENAI_API_KEY)."""

    @property
    def limits(self) -> Limits:
        """As the server takes them."""
        return Limits(**self.model_dump(include=set(Limits.__dataclass_fields__)))


def configured(words: Sequence[str], values: Mapping[str, Any]) -> tuple[list[str], ServeConfig]:
    """The models named, and the configuration; a word that ends in .toml is a file of keys."""
    named = [word for word in words if not word.endswith(".toml")]
    for file in (word for word in words if word.endswith(".toml")):
        values = merge(read_toml(file), values)
    return named, build(ServeConfig, values, where="serve")


def names_of(
    words: Sequence[str], config: ServeConfig, models_of: Callable[[str], Mapping[str, Path]]
) -> dict[str, str]:
    """Name -> folder, hub id or address of every model. ConfigError for two of one name."""
    found: dict[str, str] = {}
    for word in words:
        inside = {word: word} if word.startswith(REMOTE) else {k: str(v) for k, v in models_of(word).items()}
        if len(inside) == 1 and not word.startswith(REMOTE):
            inside = {Path(word).resolve().name if Path(word).is_dir() else word: next(iter(inside.values()))}
        elif word.startswith(REMOTE):
            inside = {config.served_model or "remote": word}
        several = len(words) > 1 and len(inside) > 1
        for name, source in inside.items():
            full = f"{Path(word).resolve().name}/{name}" if several else name
            if full in found:
                raise ConfigError(f"two models are called {full!r}; give one a name: models.NAME={source}")
            found[full] = source
    for name, source in config.models.items():
        if name in found:
            raise ConfigError(f"models.{name}: {found[name]} is called {name!r} already")
        found[name] = source
    if not found:
        raise ConfigError("no model; e.g. tutelage serve runs/demo")
    return found


def rewards_of(words: Sequence[str], config: ServeConfig) -> dict[str, Reward]:
    """The reward functions by name: `reward=`, else the reward models in the pipeline runs that were named."""
    if config.reward is not None:
        return {Path(config.reward).name: open_reward(config.reward)}
    found: dict[str, Reward] = {}
    for run in (Path(word) for word in words if Path(word).is_dir()):
        for stage in sorted(place for place in run.iterdir() if (place / "model").is_dir()):
            if (read_manifest(stage) or {}).get("kind") == "reward":
                found[stage.name if stage.name not in found else f"{run.name}/{stage.name}"] = open_reward(str(stage))
    return found


def opened(source: str, config: ServeConfig) -> LocalEngine | RemoteEngine:
    """The engine of a model. DataError when there is none."""
    if source.startswith(REMOTE):
        return RemoteEngine(source, config.served_model, workers=config.workers, api_key_env=config.api_key_env)
    engine = load(source, device=config.device, dtype=config.dtype)
    assert isinstance(engine, LocalEngine)
    return LocalEngine(
        engine.model, engine.tokenizer, max_rows=config.max_rows, kv_bytes=config.kv_bytes, bf16=config.bf16,
        compiled=config.compiled, prefix_bytes=config.prefix_bytes,
    )  # fmt: skip


def is_local(host: str) -> bool:
    """Whether an address is this machine's own."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


class Server(uvicorn.Server):
    """uvicorn's, which ends quietly: a signal lets what runs finish, and is not raised again afterwards."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """See uvicorn."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See uvicorn."""
        app = self.config.app
        if isinstance(app, FastAPI):
            app.state.stopping = True
        super().handle_exit(sig, frame)


def make_server(app: FastAPI, limits: Limits, host: str, port: int, stop_seconds: float = 60.0) -> Server:
    """The server of an application. It is not listening yet."""
    return Server(
        uvicorn.Config(
            app, host=host, port=port, http=within(limits), ws="none", log_level="warning", access_log=False,
            server_header=False, limit_concurrency=limits.connections, backlog=1024,
            timeout_graceful_shutdown=round(stop_seconds) or 1,
        )
    )  # fmt: skip


def bound(host: str, port: int) -> socket.socket:
    """A listening socket. RunError when the address cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(1024)  # whoever comes before the application is ready waits
    except OSError as problem:
        raise RunError(f"host={host} port={port}: {problem.strerror or problem}; choose another port=") from None
    return made


def serve(
    words: Sequence[str], values: Mapping[str, Any], models_of: Callable[[str], Mapping[str, Path]],
    best_of: Callable[[Mapping[str, Path]], str],
) -> None:  # fmt: skip
    """Run `tutelage serve`: returns when the server was told to stop and what ran has finished."""
    named, config = configured(words, values)
    if config.new_key is not None:
        if config.keys is None:
            raise ConfigError("new_key= needs keys=FILE, where its hash goes")
        key = Keys.add(config.keys, config.new_key)
        words_of_it = f"the key of {config.new_key}, shown this once; {config.keys} holds its hash"
        console.print(f"{key}\n{words_of_it}", markup=False, soft_wrap=True)
        return
    keys = Keys(config.keys) if config.keys is not None else None
    local = is_local(config.host)
    if not local and keys is None:
        raise ConfigError(
            f"host={config.host}: others could use the server without a key; give keys=FILE "
            "(make one with new_key=NAME keys=FILE), or leave host= out"
        )
    sources = names_of(named, config, models_of)
    listening = bound(config.host, config.port)  # before minutes of loading
    engines = {name: opened(source, config) for name, source in sources.items()}
    best = best_of({name: Path(source) for name, source in sources.items()})
    app = create_app(
        engines, keys=keys, limits=config.limits, local=local, best=best, store=_store(config), batch=config.batch,
        rewards=rewards_of(named, config),
    )  # fmt: skip
    server = make_server(app, config.limits, config.host, config.port, config.stop_seconds)
    host, port = listening.getsockname()[:2]
    shown = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    told = f"serving {', '.join(engines)} at {shown} (API: {shown}/v1; Ctrl-C stops)"
    console.print(told, markup=False, soft_wrap=True)
    gc.collect()
    gc.freeze()  # models and libraries are there to stay, and need not be looked through again and again
    server.run(sockets=[listening])
    console.print("stopped", markup=False)


def _store(config: ServeConfig) -> Any:
    if config.store is None:
        return None
    from tutelage.feedback.store import Store

    return Store(config.store)

