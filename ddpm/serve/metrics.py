"""What `/metrics` tells Prometheus. docs/deployment.md lists the names."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SIZES = [2**power for power in range(11)]


class Metrics:
    """The figures of one service, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "ddpm_requests", "Requests answered; 499: the client left.", ["path", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "ddpm_request_seconds",
            "From a request's head to its answer.",
            ["path"],
            buckets=[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60],
            registry=registry,
        )
        self.queue = Gauge("ddpm_queue_requests", "Requests that wait for a batch.", registry=registry)
        self.batch_images = Histogram("ddpm_batch_images", "Images a batch.", buckets=_SIZES, registry=registry)
        self.batch_requests = Histogram(
            "ddpm_batch_requests", "Requests that share a batch.", buckets=_SIZES, registry=registry
        )
        self.batch_seconds = Histogram(
            "ddpm_batch_seconds",
            "Drawing a batch.",
            buckets=[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30],
            registry=registry,
        )
        self.evaluations = Counter(
            "ddpm_network_evaluations", "Images × evaluations that the network has run.", registry=registry
        )
        self.model = Gauge("ddpm_model_info", "1: the model that new requests get.", ["model"], registry=registry)
        self.reloads = Counter(
            "ddpm_model_reloads", "Attempts to follow an alias that has moved.", ["outcome"], registry=registry
        )
        for outcome in ("loaded", "failed"):
            self.reloads.labels(outcome)

    def show_model(self, name: str) -> None:
        """The model that new requests get from now on."""
        self.model.clear()
        self.model.labels(name).set(1)

    def exposition(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)
