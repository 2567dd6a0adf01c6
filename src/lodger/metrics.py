"""Every metric that Lodger has, by name, and the registry that `GET /metrics` prints."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lodger.service import ModelStatus

REGISTRY = CollectorRegistry()
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_STATES = ("loading", "ready", "asleep", "restarting", "failed", "stopping")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

requests = Counter(
    "lodger_requests",
    "Requests ended, by how: ok or the error's code.",
    ["verb", "model", "outcome"],
    registry=REGISTRY,
)
request_seconds = Histogram(
    "lodger_request_seconds", "Whole time of a request.", ["verb", "model"], registry=REGISTRY, buckets=_SECONDS
)
first_token_seconds = Histogram(
    "lodger_first_token_seconds", "Time to the first token.", ["model"], registry=REGISTRY, buckets=_SECONDS
)
prompt_tokens = Counter("lodger_prompt_tokens", "Tokens read.", ["model"], registry=REGISTRY)
completion_tokens = Counter("lodger_completion_tokens", "Tokens written.", ["model"], registry=REGISTRY)
worker_restarts = Counter("lodger_worker_restarts", "Workers that died and came back.", ["device"], registry=REGISTRY)
_running = Gauge("lodger_requests_running", "Requests in work or waiting.", ["model"], registry=REGISTRY)
_state = Gauge("lodger_model_state", "1 for the state a model is in.", ["model", "state"], registry=REGISTRY)
_bytes = Gauge("lodger_model_bytes", "Bytes a model holds, by part.", ["model", "part"], registry=REGISTRY)


def render(models: Iterable[ModelStatus]) -> bytes:
    """The registry as Prometheus text, with the gauges read off `models` now."""
    for gauge in (_running, _state, _bytes):
        gauge.clear()  # a model that is gone leaves no line behind
    for model in models:
        _running.labels(model.uid).set(model.running)
        for state in _STATES:
            _state.labels(model.uid, state).set(model.state == state)
        for part, size in model.memory.items():
            _bytes.labels(model.uid, part).set(size)
    return generate_latest(REGISTRY)
