"""What the server counts, for Prometheus: numbers only, nothing of what anybody asked or got."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
BETWEEN = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Meters:
    """The counters and histograms of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "rhapsode_requests", "Requests by path and status.", ["path", "status"], registry=registry
        )
        self.prompt_tokens = Counter("rhapsode_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.written_tokens = Counter("rhapsode_written_tokens", "Tokens written.", registry=registry)
        self.left = Counter("rhapsode_left", "Requests whose client left before the end.", registry=registry)
        self.waiting = Gauge("rhapsode_waiting_texts", "Texts whose prompt is not read yet.", registry=registry)
        self.running = Gauge("rhapsode_running_texts", "Texts that are being written.", registry=registry)
        self.models = Gauge("rhapsode_models_in_memory", "Models in memory.", registry=registry)
        self.batch_size = Histogram(
            "rhapsode_batch_size", "Texts that got a token in a step.", buckets=TEXTS, registry=registry
        )
        self.to_first_token = Histogram(
            "rhapsode_seconds_to_first_token",
            "Seconds from a request to the first token of a text.",
            buckets=SECONDS,
            registry=registry,
        )
        self.between_tokens = Histogram(
            "rhapsode_seconds_between_tokens",
            "Seconds from one step to the next, in each of which every running text gets a token.",
            buckets=BETWEEN,
            registry=registry,
        )

    def exposition(self) -> bytes:
        """All of them, in Prometheus's text format."""
        return generate_latest(self.registry)
