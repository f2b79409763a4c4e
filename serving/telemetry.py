"""Logs as JSON lines, and Prometheus metrics."""

import contextlib
import json
import logging
import queue
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener, WatchedFileHandler
from pathlib import Path
from socketserver import ThreadingMixIn
from threading import Thread
from typing import Any, Final, Literal, TypeAlias, get_args
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, make_wsgi_app
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.board import Notice
from serving.door import bind
from serving.errors import LaunchError
from serving.stages import Histogram

# Of a request; rejected: its client sent what the model cannot read, which says nothing about the version.
Outcome: TypeAlias = Literal["ok", "error", "rejected"]
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
    """What one model version answered: plain numbers, as Prometheus's own children lock for every request."""

    __slots__ = ("requests", "seconds")

    def __init__(self) -> None:
        self.requests: dict[Outcome, int] = dict.fromkeys(get_args(Outcome), 0)
        self.seconds = Histogram(LATENCY_BUCKETS_S)


class _Answers(Collector):
    """The requests of every model version, as Prometheus reads them."""

    def __init__(self) -> None:
        self.versions: dict[tuple[str, int], _Version] = {}

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "understudy_requests", "Requests by outcome.", labels=("model", "version", "outcome")
        )
        seconds = HistogramMetricFamily(
            "understudy_request_seconds", "Time from a checked request to its answer.", labels=("model", "version")
        )
        for (model, version), counts in list(self.versions.items()):
            for outcome, count in counts.requests.items():
                requests.add_metric((model, str(version), outcome), count)
            seconds.add_metric((model, str(version)), counts.seconds.cumulative(), counts.seconds.sum)
        yield requests
        yield seconds


class Metrics:
    """A router's metrics, registered with ``registry``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._answers = _Answers()
        registry.register(self._answers)
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

    def observe(self, model: str, version: int, outcome: Outcome, seconds: float) -> None:
        """Count one request and its duration."""
        counts = self._answers.versions.get((model, version))
        if counts is None:
            counts = self._answers.versions[model, version] = _Version()
        counts.requests[outcome] += 1
        counts.seconds.observe(seconds)

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


class AllRouters(Collector):
    """The metrics of all routers of a machine, as each told them: every sample has the label ``router``."""

    def __init__(self, notices: Callable[[], Iterable[Notice]]) -> None:
        self._notices = notices

    def collect(self) -> Iterable[Metric]:
        """Each family once, with the samples of every router."""
        merged: dict[str, Metric] = {}
        for notice in self._notices():
            for name, documentation, kind, samples in notice.families:
                family = merged.setdefault(name, Metric(name, documentation, kind))
                for sample, labels, value in samples:
                    family.add_sample(sample, {**labels, "router": notice.router}, value)
        return merged.values()


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the parent's name for it
        pass


class _MetricsWSGIServer(ThreadingMixIn, WSGIServer):
    """Serves on a socket that is bound already, of any address family."""

    daemon_threads = True

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock.getsockname(), _Silent, bind_and_activate=False)
        self.socket.close()
        self.socket = sock
        self.server_name, self.server_port = sock.getsockname()[:2]
        self.setup_environ()
        self.server_activate()


class MetricsServer:
    """Prometheus's endpoint over HTTP, in a thread of its own; ``port`` 0 takes any free one.

    ``reuse_port`` lets several processes listen on one port.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry, *, reuse_port: bool = False) -> None:
        self._host, self._registry, self._reuse_port = host, registry, reuse_port
        self._running: tuple[WSGIServer, Thread] | None = None
        self.port = port

    def start(self) -> None:
        """Open the endpoint; ``port`` then says where.

        Raises:
            LaunchError: the address cannot be bound; names it.
        """
        sock = bind(self._host, self.port, reuse_port=self._reuse_port)
        try:
            server = _MetricsWSGIServer(sock)
        except OSError as error:  # someone began to listen there since it was bound
            sock.close()
            raise LaunchError(f"cannot listen on {self._host}:{self.port}: {error.strerror}") from None
        server.set_app(make_wsgi_app(self._registry))
        thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
        thread.start()
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
