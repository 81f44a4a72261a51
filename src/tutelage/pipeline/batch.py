"""Batch inference: a file of prompts through an engine into a file of rows, which goes on where it was interrupted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator

from tutelage.core.config import build
from tutelage.core.errors import ConfigError, DataError, Interrupted
from tutelage.core.lineage import environment, model_contents, parent_entry
from tutelage.core.progress import Progress, console
from tutelage.core.records import GenerationRow, check_row
from tutelage.core.rowfile import RowFile, error_rows
from tutelage.core.runtime import set_threads, stream_seed
from tutelage.core.stop import stops_at_once
from tutelage.engine import LocalEngine, Output, RemoteEngine, SamplingParams, load
from tutelage.model.hub import find_model_dir
from tutelage.pipeline.chat import best_of, models_of
from tutelage.pipeline.stages import require_finished
from tutelage.text.chat import as_messages
from tutelage.text.corpus import read_rows

Row = dict[str, Any]
DEFAULT = SamplingParams()


class SamplingConfig(BaseModel):
    """How to continue a prompt: SamplingParams as keys of the command line and of a row's `params`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    max_tokens: int = DEFAULT.max_tokens
    """Most tokens of a completion."""
    temperature: float = DEFAULT.temperature
    """0 takes the likeliest token each time."""
    top_k: int = DEFAULT.top_k
    """Sample among this many likeliest tokens (0: all)."""
    top_p: float = DEFAULT.top_p
    """Sample among the likeliest tokens that have this much probability together (1: all)."""
    min_p: float = DEFAULT.min_p
    """Leave out tokens less likely than this share of the likeliest one's probability (0: none)."""
    n: int = DEFAULT.n
    """Completions a prompt: one is written as a string, several as a list."""
    stop: str | list[str] = []
    """Strings that end a completion, which does not contain them, e.g. 'stop=["\\n\\n", "Q:"]'."""
    stop_tokens: list[int] = []
    """Token ids that end a completion as the end-of-text token does."""
    banned_tokens: list[int] = []
    """Token ids that are never sampled."""
    repetition_penalty: float = DEFAULT.repetition_penalty
    """Above 1 makes tokens that are there already less likely (1: off)."""
    logit_bias: dict[int, float] | None = None
    """Added to tokens' logits, e.g. logit_bias.17=-2.5."""
    seed: int = 0
    """The rows' own seeds derive from it and their numbers; a seed in a row's `params` is used as it is."""
    logprobs: int | None = None
    """Write each token's log-probability too, as `logprobs` (of a server: and ask it for this many alternatives)."""

    def params(self, where: str) -> SamplingParams:
        """As the engine takes them. ConfigError for a value out of range."""
        try:
            return SamplingParams(**self.model_dump(include=set(SamplingConfig.model_fields)))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None


class GenerateConfig(SamplingConfig):
    model_config = ConfigDict(protected_namespaces=())

    model: str
    """A model folder, run directory, hub id, or an OpenAI-compatible server's address, e.g. http://127.0.0.1:8000/v1."""
    prompts: str
    """Rows with a `prompt`, text to continue or messages to answer; perhaps with `params`, sampling keys of their own.
    .jsonl, .json or .parquet, also .gz and .zst."""
    out: str
    """The .jsonl file to write: each row as it was, with its number as `index`, the completion and `finish_reason`, or
    an `error`."""
    into: str | None = None
    """The completion's column (default: `completion`, and `responses` where n is above 1)."""
    chat: bool = False
    """Take a text prompt as a user's message, which is answered rather than continued."""
    batch: int = Field(256, ge=1)
    """Prompts generated together and then written; a kill loses at most these."""
    device: str = "auto"
    """auto | cpu | cuda"""
    dtype: str = "auto"
    """auto (the checkpoint's own) | float32 | bfloat16 | float16"""
    served_model: str | None = None
    """Of a server: the model's name there (default: its first)."""
    workers: int = Field(8, ge=1)
    """Of a server: requests in flight at once."""
    timeout: float = Field(600.0, gt=0)
    """Of a server: seconds without an answer before a request is given up."""
    retries: int = Field(4, ge=0)
    """Of a server: further tries of a request that it was too busy for (429, 5xx) or that did not reach it."""
    api_key_env: str | None = None
    """Of a server: the environment variable that holds the API key (default: OPENAI_API_KEY)."""
    on_server_error: Literal["stop", "write"] = "stop"
    """When a server fails or refuses everything: stop, and go on later; or write the error into the row."""

    @field_validator("out")
    @classmethod
    def _jsonl(cls, value: str) -> str:
        if not value.endswith(".jsonl"):
            raise ValueError("expected a file name that ends in .jsonl")
        return value


NO_IDENTITY = {
    "model", "prompts", "out", "batch", "device", "served_model", "workers", "timeout", "retries", "api_key_env",
    "on_server_error",
}  # fmt: skip
"""Keys that say how or where rows are made, or whose contents count in their place."""


def generate_file(values: Mapping[str, Any], restart: bool = False) -> tuple[Path, str]:
    """Run `tutelage generate model=... prompts=... out=...`. Returns the file and a line on what it holds.

    Raises ConfigError, DataError naming file and line before anything is generated, and RunError for a file that was
    made of something else. Interrupted by Ctrl-C or SIGTERM; the same call then goes on, with the same result.
    """
    config = build(GenerateConfig, values, where="generate")
    config.params("generate")
    with stops_at_once():
        total = _check(config)
        engine = _server(config)
        identity = {
            "prompts": parent_entry(config.prompts)["hash"],
            "model": _model_identity(config, engine),
            **config.model_dump(exclude=NO_IDENTITY),
        }
        with closing(RowFile(config.out, "generate", identity)) as file:
            # a server's answers do not depend on what else is asked, so that whatever it answered is kept
            finished = file.open(total, 1 if engine else config.batch, restart)
            if finished and file.rows == total:
                return file.path, f"already finished: {_summary(file)}"
            try:
                _generate(config, engine or _local(config, file), file, total)
            except KeyboardInterrupt:
                words = f"{file.path}: stopped; {file.rows} of {total} rows are written; the same command goes on"
                raise Interrupted(words) from None
            file.finish()
            return file.path, f"wrote {_summary(file)}"


def _generate(config: GenerateConfig, engine: LocalEngine | RemoteEngine, file: RowFile, total: int) -> None:
    done = file.rows
    here = {"device": str(engine.device), "threads": torch.get_num_threads()} if isinstance(engine, LocalEngine) else {}
    file.begin(**here, **{key: environment()[key] for key in ("versions", "cpu")})
    if done:
        console.print(f"[bold]{file.path.name}[/] goes on after {done} of {total} rows")
    with Progress(file.path.name, "prompts", total - done) as progress:
        engine.on_done = progress.add
        for part in _batches(config, done):
            rows, problem = _answer(config, engine, part)
            file.append(rows)
            if problem:
                raise DataError(
                    f"{problem}; {file.rows} of {total} rows are written, and the same command goes on "
                    "(on_server_error=write writes the error into the row instead)"
                )
            progress.at(file.rows - done)
    if file.rows != total:
        raise DataError(f"{config.prompts}: {file.rows} rows, {total} when it was checked; it was changed meanwhile")


def _summary(file: RowFile) -> str:
    words = f"{file.path}: {file.rows} rows"
    if file.errors:
        words += f", {file.errors} of them with an error (first: {next(iter(error_rows(file.path)), '')})"
    return words


def _check(config: GenerateConfig) -> int:
    """How many rows there are. DataError naming the file and line of one that is broken."""
    count = 0
    for where, row in read_rows(config.prompts):
        check_row(row, GenerationRow, where)
        try:
            params = _sampling(config, row, where).params(where)
        except ConfigError as error:
            raise DataError(str(error)) from None
        written = {"index", _column(config, params), "finish_reason", "error"}
        written |= {"logprobs"} if params.logprobs is not None else set()
        if taken := written & set(row):
            name = sorted(taken)[0]
            fix = "give into=OTHER" if name == _column(config, params) else "rename it"
            raise DataError(f"{where}: has a column {name!r}, which the output needs for its own; {fix}")
        count += 1
    if not count:
        raise DataError(f"{config.prompts}: no rows; expected at least one")
    return count


def _sampling(config: GenerateConfig, row: Row, where: str) -> SamplingConfig:
    own = _own(row)
    if not own:
        return config
    common = config.model_dump(include=set(SamplingConfig.model_fields))
    return build(SamplingConfig, {**common, **own}, where=f"{where}: params")


def _own(row: Row) -> Row:
    """A row's own parameters; a parquet file has null where a row has none."""
    return {key: value for key, value in (row.get("params") or {}).items() if value is not None}


def _column(config: GenerateConfig, params: SamplingParams) -> str:
    return config.into or ("completion" if params.n == 1 else "responses")


def _server(config: GenerateConfig) -> RemoteEngine | None:
    if not config.model.startswith(("http://", "https://")):
        return None
    return RemoteEngine(
        config.model,
        config.served_model,
        timeout=config.timeout,
        workers=config.workers,
        retries=config.retries,
        api_key_env=config.api_key_env,
    )


def _source(config: GenerateConfig) -> str:
    """The model's folder (of a pipeline run its furthest one's), or its hub id."""
    if not Path(config.model).is_dir():
        return config.model
    models = models_of(config.model)
    path = models[best_of(models)]
    require_finished(path, f"model={config.model}")
    return str(path)


def _model_identity(config: GenerateConfig, engine: RemoteEngine | None) -> Any:
    """A server's address and model, a folder's contents (weights that changed make another file), a hub id."""
    if engine:
        return f"{engine.base_url} {engine.model}"
    source = _source(config)
    folder = find_model_dir(source)
    return model_contents(folder) if folder else parent_entry(source)["hash"]


def _local(config: GenerateConfig, file: RowFile) -> LocalEngine:
    set_threads(file.facts.get("threads"))
    engine = load(_source(config), device=config.device, dtype=config.dtype)
    assert not isinstance(engine, RemoteEngine)
    return engine


def _batches(config: GenerateConfig, done: int) -> Iterator[list[tuple[str, Row, SamplingParams]]]:
    """(place, row, its SamplingParams with its seed) of `batch` rows at a time, after those done."""
    rows = islice(enumerate(read_rows(config.prompts)), done, None)
    while part := list(islice(rows, config.batch)):
        out = []
        for index, (where, row) in part:
            own = _sampling(config, row, where)
            if "seed" not in _own(row):
                own = own.model_copy(update={"seed": stream_seed(config.seed, "generate", index) % 2**31})
            out.append((where, row, own.params(where)))
        yield out


def _answer(
    config: GenerateConfig, engine: LocalEngine | RemoteEngine, part: Sequence[tuple[str, Row, SamplingParams]]
) -> tuple[list[Row], str | None]:
    """The rows to write; with a problem of the server: those before it, and the problem in words."""
    asked = [i for i, (_, row, _) in enumerate(part) if row["prompt"]]
    outputs: list[Output] = [Output(error="the prompt is empty")] * len(part)
    prompts = [_prompt(config, part[i][1]["prompt"]) for i in asked]
    for i, output in zip(asked, engine.generate(prompts, [part[i][2] for i in asked]), strict=True):
        outputs[i] = output
    rows: list[Row] = []
    for (where, row, params), output in zip(part, outputs, strict=True):
        if output.unserved and config.on_server_error == "stop":
            return rows, f"{where}: {output.error}"
        rows.append({**row, **_written(config, params, output)})
    return rows, None


def _prompt(config: GenerateConfig, prompt: Any) -> Any:
    return as_messages({"prompt": prompt}) if config.chat and isinstance(prompt, str) else prompt


def _written(config: GenerateConfig, params: SamplingParams, output: Output) -> Row:
    """The columns that a row gets. Of one completion they are plain values, of several lists."""
    if output.error:
        return {"error": output.error}
    made = output.completions
    columns: dict[str, list[Any]] = {
        _column(config, params): [c.text for c in made],
        "finish_reason": [c.finish_reason for c in made],
    }
    if params.logprobs is not None:
        columns["logprobs"] = [list(c.logprobs) for c in made]
    return {name: values[0] if params.n == 1 else values for name, values in columns.items()}
