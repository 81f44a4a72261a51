"""What /metrics tells, of one application (a registry of its own, so that two in one process do not mix)."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters of requests and tokens, gauges of the batch, and histograms of times."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def made(kind: type, name: str, words: str, labels: tuple[str, ...], **more: object) -> object:
            return kind(f"tutelage_{name}", words, labels, registry=self.registry, **more)

        self.requests: Counter = made(
            Counter, "requests", "Requests to the API by their answer's status.", ("endpoint", "model", "status")
        )  # type: ignore[assignment]
        self.prompt_tokens: Counter = made(
            Counter, "prompt_tokens", "Tokens of prompts that were accepted.", ("model",)
        )  # type: ignore[assignment]
        self.tokens: Counter = made(Counter, "generated_tokens", "Tokens sampled.", ("model",))  # type: ignore[assignment]
        self.cancelled: Counter = made(
            Counter, "cancelled_requests", "Requests whose client went away or took nothing.", ("model",)
        )  # type: ignore[assignment]
        self.first: Histogram = made(
            Histogram, "time_to_first_token_seconds", "From a request's arrival to its first token.", ("model",),
            buckets=SECONDS,
        )  # type: ignore[assignment]  # fmt: skip
        self.whole: Histogram = made(
            Histogram, "request_seconds", "From a request's arrival to the end of its answer.", ("model",),
            buckets=SECONDS,
        )  # type: ignore[assignment]  # fmt: skip
        self._running: Gauge = made(Gauge, "running_rows", "Answers that are being decoded.", ("model",))  # type: ignore[assignment]
        self._waiting: Gauge = made(
            Gauge, "waiting_rows", "Answers that wait for a place in the batch.", ("model",)
        )  # type: ignore[assignment]

    def watch(self, model: str, running: Callable[[], float], waiting: Callable[[], float]) -> None:
        """The gauges of a model are asked for when somebody looks."""
        self._running.labels(model).set_function(running)
        self._waiting.labels(model).set_function(waiting)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
