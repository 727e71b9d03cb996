"""Metrics: one registry per process, as Prometheus text and as a JSON summary."""

import time
from collections.abc import Sequence
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)

from app.machine.hardware import memory_limit
from app.types import BudgetUse, Ranking

# A creation time for each counter would double the page, and no dashboard reads it.
disable_created_metrics()  # type: ignore[no-untyped-call]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SHARES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


class Metrics:
    """Owns all counters. Gauges read the owner of their state at scrape time."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._started = time.monotonic()
        ProcessCollector(registry=self.registry)
        self.requests = self._counter("requests", "Scoring requests, by HTTP status of the answer", ["status"])
        self.rejections = self._counter("rejections", "Rejected requests, by reason", ["reason"])
        self.disconnects = self._counter("disconnects", "Requests that the client abandoned before the answer")
        self.documents = self._counter("documents", "Ranked documents, by source of the score", ["source"])
        self.languages = self._counter(
            "sampled_documents", "First document of each request to a model for English, by its language", ["language"]
        )
        self.truncated = self._counter("truncated_documents", "Documents cut to fit the model's window")
        self.tokens = self._counter("tokens", "Tokens that the model computed: text and padding", ["kind"])
        self.shared_lookups = self._counter(
            "shared_cache_lookups", "Lookups in the shared cache, by result", ["result"]
        )
        self.shared_failures = self._counter("shared_cache_failures", "Failed calls of the shared cache")
        self.evicted_documents = self._counter("evicted_documents", "Stored documents removed to make room for others")
        self.failed_batches = self._counter("failed_batches", "Failed batches")
        self.out_of_memory = self._counter("out_of_memory", "Batches that did not fit into memory and were halved")
        self.reloads = self._counter("reloads", "Reloads of the engine after it hung or failed")
        self.degraded = self._counter(
            "degraded", "Requests answered in lexical order instead of an error, by reason", ["reason"]
        )
        self.prefiltered = self._counter("prefiltered_documents", "Documents that the first stage left out")
        self.prefilter_seconds = self._histogram("prefilter_seconds", "Time of the first stage, if a request has one")
        self.budget_documents = self._counter("budget_documents", "Documents of requests with a budget", ["result"])
        self.budget_requests = self._counter("budget_requests", "Ranked requests with a budget", ["result"])
        self.request_seconds = self._histogram("request_seconds", "Time from admission to scores, of ranked requests")
        self.queue_seconds = self._histogram("queue_seconds", "Time waiting for a slot, of ranked requests")
        self.tokenize_seconds = self._histogram("tokenize_seconds", "Time of tokenization, of ranked requests")
        self.inference_seconds = self._histogram("inference_seconds", "Time of one batch on the model")
        self.batch_tokens = self._histogram("batch_tokens", "Tokens of one batch, padding included", TOKENS)
        self.key_tokens = self._counter("key_tokens", "Tokens that the model read, by API key", ["key"])
        self.key_cpu_seconds = self._counter("key_cpu_seconds", "CPU time of the engine, by API key", ["key"])
        self.key_joules: Counter | None = None
        self.top_score = self._histogram("top_score", "Highest score of a request, from 0 to 1", SHARES)
        self.top_score_drift = self.gauge(
            "top_score_drift", "Distance of the top scores of the last hour from the reference, from 0 to 1"
        )
        self.moved_pairs = self._histogram(
            "moved_pairs", "Share of the pairs of documents of a request that changed places", SHARES
        )
        self.irrelevant = self._counter(
            "irrelevant_requests", "Requests with a highest score below RERANKER_RELEVANT_SCORE"
        )
        self.sampled = self._counter("sample_requests", "Requests for RERANKER_SAMPLE_FILE, by result", ["result"])
        self.shadowed = self._counter("shadow_requests", "Requests for RERANKER_SHADOW_MODEL, by result", ["result"])
        self.shadow_moved_pairs = self._histogram(
            "shadow_moved_pairs", "Share of the pairs of documents that both models order differently", SHARES
        )
        self.shadow_same_first = self._counter("shadow_same_first", "Requests with the same first document")
        self.shadow_seconds = self._histogram("shadow_seconds", "Time of the second model")
        self.shadowed_seconds = self._histogram("shadowed_seconds", "Time of the first model for the same requests")
        self.gauge("uptime_seconds", "Time since the process started serving").set_function(lambda: self.uptime)
        self.gauge("memory_limit_bytes", "Memory limit of this process").set(memory_limit())
        self.open_connections = self.gauge("open_connections", "Open client connections")
        self.buffered_bytes = self.gauge("buffered_bytes", "Approximate memory of the bodies of running requests")
        self.ready = self.gauge("ready", "1 if requests are served, else 0")
        self.engine = Info("reranker_engine", "The loaded engine", registry=self.registry)

    @property
    def uptime(self) -> float:
        """Seconds since the process started serving."""
        return time.monotonic() - self._started

    def observe_batch(self, tokens: int, padded: int, seconds: float) -> None:
        """Count one batch. `padded`: the tokens that were computed. They are fewer if pairs shared their first ones."""
        text = min(tokens, padded)
        self.tokens.labels("text").inc(text)
        self.tokens.labels("padding").inc(padded - text)
        self.batch_tokens.observe(padded)
        self.inference_seconds.observe(seconds)

    def observe_ranking(self, ranking: Ranking) -> None:
        """Count one ranked request."""
        self.documents.labels("model").inc(ranking.scored)
        self.documents.labels("cache").inc(ranking.pairs - ranking.scored)
        if ranking.prefiltered:
            self.prefiltered.inc(len(ranking.prefiltered))
            self.prefilter_seconds.observe(ranking.timings.prefilter)
        if ranking.degraded:
            self.documents.labels("words").inc(len(ranking.unscored - ranking.prefiltered))
            self.degraded.labels(ranking.degraded).inc()
            return
        self.truncated.inc(ranking.truncated)
        self.queue_seconds.observe(ranking.timings.queue)
        self.tokenize_seconds.observe(ranking.timings.tokenize)
        self.request_seconds.observe(ranking.timings.total)

    def observe_budget(self, use: BudgetUse, seconds: float) -> None:
        """Count a request with a budget that was ranked `seconds` after its arrival."""
        self.budget_documents.labels("read").inc(use.read)
        self.budget_documents.labels("left_out").inc(use.of - use.read)
        self.budget_requests.labels("in_time" if seconds <= use.budget else "overrun").inc()

    def count_cascade(self) -> Counter:
        """There is a cascade: the documents that each of its models reads."""
        meaning = "Documents of requests to the cascade with a score of the model"
        return self._counter("cascade_documents", meaning, ["model"])

    def count_joules(self) -> None:
        """The machine has counters of energy: count that too."""
        if self.key_joules is None:
            self.key_joules = self._counter("key_joules", "Energy during the batches, by API key", ["key"])

    def observe_cost(self, key: str, tokens: int, seconds: float, joules: float | None) -> None:
        """Count what the share of a request in a batch has cost."""
        self.key_tokens.labels(key).inc(tokens)
        self.key_cpu_seconds.labels(key).inc(seconds)
        if self.key_joules is not None and joules is not None:
            self.key_joules.labels(key).inc(joules)

    def observe_shadow(
        self, moved: float | None, same_first: bool, seconds: float, first_seconds: float | None
    ) -> None:
        """Count a comparison of two models. `first_seconds`: None if the first model found scores in the cache."""
        if moved is not None:
            self.shadow_moved_pairs.observe(moved)
        self.shadow_same_first.inc(same_first)
        if first_seconds is not None:
            self.shadow_seconds.observe(seconds)
            self.shadowed_seconds.observe(first_seconds)

    def shadow_summary(self) -> dict[str, Any]:
        """The comparisons since the start, as JSON."""
        results = {result: int(count) for result, count in self._by_label("shadow_requests", "result").items()}
        moved = self._average("shadow_moved_pairs")
        return {
            "requests": results,
            "average_tau": None if moved is None else round(1 - 2 * moved, 6),
            "same_first_share": _ratio(self._value("shadow_same_first_total"), results.get("compared", 0)),
            "average_seconds": self._average("shadow_seconds"),
            "average_seconds_of_first_model": self._average("shadowed_seconds"),
        }

    def summary(self) -> dict[str, Any]:
        """The metrics as JSON: sums, averages and rates since the start."""
        by_status = self._by_label("requests", "status")
        documents = self._by_label("documents", "source")
        tokens = self._by_label("tokens", "kind")
        total, succeeded = sum(by_status.values()), by_status.get("200", 0.0)
        return {
            "uptime_seconds": round(self.uptime, 3),
            "requests": {
                "total": int(total),
                "succeeded": int(succeeded),
                "success_rate": _ratio(succeeded, total),
                "by_status": {status: int(count) for status, count in by_status.items()},
                "disconnected": int(self._value("disconnects_total")),
            },
            "rejections": {reason: int(count) for reason, count in self._by_label("rejections", "reason").items()},
            "average_wait_seconds": self._average("queue_seconds"),
            "average_processing_seconds": self._average("request_seconds"),
            "average_inference_seconds": self._average("inference_seconds"),
            "concurrency": {
                name: int(self._value(name))
                for name in ("active_requests", "waiting_requests", "max_parallel", "max_queue", "pending_pairs")
            },
            "cache": {
                "entries": int(self._value("cache_entries")),
                "hits": int(documents.get("cache", 0)),
                "misses": int(documents.get("model", 0)),
                "hit_rate": _ratio(documents.get("cache", 0.0), sum(documents.values())),
            },
            "batches": {
                "count": int(self._value("inference_seconds_count")),
                "failed": int(self._value("failed_batches_total")),
                "tokens": int(sum(tokens.values())),
                "padding_ratio": _ratio(tokens.get("padding", 0.0), sum(tokens.values())),
            },
            "truncated_documents": int(self._value("truncated_documents_total")),
            "quality": {
                "average_top_score": self._average("top_score"),
                "average_moved_pairs": self._average("moved_pairs"),
                "irrelevant_share": _ratio(self._value("irrelevant_requests_total"), self._value("top_score_count")),
            },
        }

    def _counter(self, name: str, meaning: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(f"reranker_{name}", meaning, labels, registry=self.registry)

    def gauge(self, name: str, meaning: str) -> Gauge:
        """Create the gauge `reranker_NAME`."""
        return Gauge(f"reranker_{name}", meaning, registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: Sequence[float] = SECONDS) -> Histogram:
        return Histogram(f"reranker_{name}", meaning, buckets=buckets, registry=self.registry)

    def _value(self, name: str) -> float:
        return self.registry.get_sample_value(f"reranker_{name}") or 0.0

    def _average(self, histogram: str) -> float | None:
        return _ratio(self._value(f"{histogram}_sum"), self._value(f"{histogram}_count"))

    def _by_label(self, name: str, label: str) -> dict[str, float]:
        family = next(family for family in self.registry.collect() if family.name == f"reranker_{name}")
        return {
            sample.labels[label]: sample.value for sample in family.samples if sample.name == f"reranker_{name}_total"
        }


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 6) if whole else None
