"""Logs as JSON lines, and Prometheus metrics."""

import contextlib
import json
import logging
import queue
from collections.abc import Mapping
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener, WatchedFileHandler
from pathlib import Path
from threading import Thread
from typing import Any, Final
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from serving.errors import LaunchError

LATENCY_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_FIELDS: Final = "understudy_fields"
_LOG_QUEUE: Final = 10_000
_LOG_END_S: Final = 1.0


class JsonLines(logging.Formatter):
    """One JSON object per record: ``ts`` (UTC), ``level``, ``logger``, ``event``, then the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """A record as one line."""
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= getattr(record, _FIELDS, {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)  # which, unlike orjson, refuses no string and no integer


class _InProcessQueue(QueueHandler):
    """Hands records to the listener's thread as they are; drops them rather than wait when it cannot keep up."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(queue.Full):
            super().enqueue(record)


class _Listener(QueueListener):
    def enqueue_sentinel(self) -> None:
        self.queue.put(self._sentinel, timeout=_LOG_END_S)  # type: ignore[attr-defined]  # waits where the queue is full


def log_to_file(path: Path, level: int = logging.INFO) -> QueueListener:
    """Append every log record of the process to a file as JSON lines, in place of whatever was set up before.

    A thread writes them: no event loop waits for a disk. The file may be moved away at any time, as logrotate does: it
    is opened anew. The listener's ``stop`` writes what is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = WatchedFileHandler(path, encoding="utf-8")
    file.setFormatter(JsonLines())
    records: queue.Queue[logging.LogRecord] = queue.Queue(_LOG_QUEUE)
    listener = _Listener(records, file)
    listener.start()
    logging.basicConfig(handlers=[_InProcessQueue(records)], level=level, force=True)
    return listener


def log_event(
    logger: logging.Logger, event: str, level: int = logging.INFO, *, exc_info: bool = False, **fields: Any
) -> None:
    """Log ``event``, a fixed text, with its facts as fields; never with a request's payload."""
    if logger.isEnabledFor(level):
        logger.log(level, event, exc_info=exc_info, extra={_FIELDS: fields})


class _Version:
    """The children of one model version, bound once: finding them by label costs more than the rest."""

    __slots__ = ("error", "ok", "seconds")

    def __init__(self, requests: Counter, seconds: Histogram, model: str, version: str) -> None:
        self.ok = requests.labels(model, version, "ok")
        self.error = requests.labels(model, version, "error")
        self.seconds = seconds.labels(model, version)


class Metrics:
    """A router's metrics, registered with ``registry``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._requests = Counter(
            "understudy_requests", "Requests by outcome.", ("model", "version", "outcome"), registry=registry
        )
        self._seconds = Histogram(
            "understudy_request_seconds",
            "Time from a checked request to its answer.",
            ("model", "version"),
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._mirror = Gauge(
            "understudy_mirror_items",
            "Mirrored items by outcome, since start.",
            ("model", "outcome"),
            registry=registry,
        )
        self._weight = Gauge(
            "understudy_candidate_weight_percent", "The candidate's share of requests.", ("model",), registry=registry
        )
        self._fallbacks = Counter(
            "understudy_fallbacks",
            "Requests of the candidate that the baseline answered.",
            ("model",),
            registry=registry,
        )
        self._depth = Gauge(
            "understudy_queue_depth", "Items that wait for a replica.", ("model", "version"), registry=registry
        )
        self._versions: dict[tuple[str, int], _Version] = {}

    def observe(self, model: str, version: int, ok: bool, seconds: float) -> None:
        """Count one request and its duration."""
        children = self._versions.get((model, version))
        if children is None:
            children = _Version(self._requests, self._seconds, model, str(version))
            self._versions[model, version] = children
        (children.ok if ok else children.error).inc()
        children.seconds.observe(seconds)

    def set_mirror(self, model: str, accounting: Mapping[str, int]) -> None:
        """Publish the mirror's accounting, items by outcome."""
        for outcome, items in accounting.items():
            self._mirror.labels(model, outcome).set(items)

    def set_weight(self, model: str, weight: int) -> None:
        """Publish the candidate's share in percent."""
        self._weight.labels(model).set(weight)

    def count_fallback(self, model: str) -> None:
        """Count a request that the baseline answered in the candidate's place."""
        self._fallbacks.labels(model).inc()

    def set_queue(self, model: str, version: int, items: int) -> None:
        """Publish how many items wait for a replica."""
        self._depth.labels(model, str(version)).set(items)


class MetricsServer:
    """Prometheus's endpoint over HTTP, in a thread of its own; ``port`` 0 takes any free one."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        self._host, self._registry = host, registry
        self._running: tuple[WSGIServer, Thread] | None = None
        self.port = port

    def start(self) -> None:
        """Open the endpoint; ``port`` then says where.

        Raises:
            LaunchError: the address cannot be bound; names it.
        """
        try:
            server, thread = start_http_server(self.port, self._host, self._registry)
        except OSError as error:
            raise LaunchError(f"cannot bind {self._host}:{self.port} for metrics: {error.strerror}") from None
        self.port = server.server_port
        self._running = server, thread

    def stop(self) -> None:
        """Close the endpoint and wait for its thread; may be called twice."""
        if self._running is None:
            return
        server, thread = self._running
        self._running = None
        server.shutdown()
        server.server_close()
        thread.join()
