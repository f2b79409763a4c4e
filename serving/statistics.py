"""Inference statistics of each model and version, as the protocol's statistics extension tells them.

Counts begin with the process. What is mirrored is never in them: they are about what clients were answered.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from time import time_ns
from typing import Any, Final

_NS_PER_MS: Final = 1_000_000
_NOTHING: Final = {"count": 0, "ns": 0}


@dataclass(slots=True)
class _Batches:
    """The batches of one size."""

    count: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0


@dataclass(slots=True)
class _Counters:
    """One version's. Durations are sums over requests; a batch's time counts once for each of its requests."""

    last_unix_ns: int = 0
    requests: int = 0
    rows: int = 0
    batches: int = 0
    total_ns: int = 0
    queue_ns: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0
    failures: int = 0
    failed_ns: int = 0
    by_size: dict[int, _Batches] = field(default_factory=dict)


class Statistics:
    """Counts what was answered. Used from one thread, and written to once per batch."""

    def __init__(self, *, clock: Callable[[], int] = time_ns) -> None:
        self._clock = clock
        self._versions: dict[tuple[str, int], _Counters] = {}

    def record(
        self,
        model: str,
        version: int,
        *,
        requests: int,
        rows: int,
        total_ns: int,
        queue_ns: int,
        input_ns: int,
        infer_ns: int,
        output_ns: int,
    ) -> None:
        """Count a batch that answered ``requests`` of ``rows`` altogether.

        ``total_ns`` (arrival to answer) and ``queue_ns`` (arrival to dispatch) are sums over the requests; what was
        spent on gathering inputs, on computing and on taking outputs apart is that of the batch.
        """
        counters = self._of(model, version)
        counters.last_unix_ns = self._clock()
        counters.requests += requests
        counters.rows += rows
        counters.batches += 1
        counters.total_ns += total_ns
        counters.queue_ns += queue_ns
        counters.input_ns += input_ns * requests
        counters.infer_ns += infer_ns * requests
        counters.output_ns += output_ns * requests
        batches = counters.by_size.get(rows)
        if batches is None:
            batches = counters.by_size[rows] = _Batches()
        batches.count += 1
        batches.input_ns += input_ns
        batches.infer_ns += infer_ns
        batches.output_ns += output_ns

    def record_failure(self, model: str, version: int, *, total_ns: int) -> None:
        """Count a request that got an error, ``total_ns`` after it arrived; not one that was wrong in itself."""
        counters = self._of(model, version)
        counters.failures += 1
        counters.failed_ns += total_ns

    def of(self, model: str, version: int) -> dict[str, Any]:
        """The protocol's ``model_stats`` entry of one version; zeros if nothing was counted."""
        counters = self._versions.get((model, version)) or _Counters()
        requests = counters.requests
        return {
            "name": model,
            "version": str(version),
            "last_inference": counters.last_unix_ns // _NS_PER_MS,
            "inference_count": counters.rows,
            "execution_count": counters.batches,
            "inference_stats": {
                "success": _duration(requests, counters.total_ns),
                "fail": _duration(counters.failures, counters.failed_ns),
                "queue": _duration(requests, counters.queue_ns),
                "compute_input": _duration(requests, counters.input_ns),
                "compute_infer": _duration(requests, counters.infer_ns),
                "compute_output": _duration(requests, counters.output_ns),
                "cache_hit": _NOTHING,  # there is no cache, but clients read these unchecked
                "cache_miss": _NOTHING,
            },
            "batch_stats": [_batch_stats(size, batches) for size, batches in sorted(counters.by_size.items())],
            "memory_usage": [],
        }

    def all(self) -> list[dict[str, Any]]:
        """The entries of all versions that counted anything; from any thread."""
        return [self.of(model, version) for model, version in list(self._versions)]

    def _of(self, model: str, version: int) -> _Counters:
        counters = self._versions.get((model, version))
        if counters is None:
            counters = self._versions[model, version] = _Counters()
        return counters


def total(entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What several routers counted of one version, as one ``model_stats`` entry: at least one is needed."""
    first, *others = entries
    merged = {
        **first,
        "batch_stats": _total_batches(batch for each in (first, *others) for batch in each["batch_stats"]),
    }
    for other in others:
        merged["last_inference"] = max(merged["last_inference"], other["last_inference"])
        for name in ("inference_count", "execution_count"):
            merged[name] += other[name]
        merged["inference_stats"] = _sum(merged["inference_stats"], other["inference_stats"])
    return merged


def _total_batches(batches: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    by_size: dict[int, dict[str, Any]] = {}
    for batch in batches:
        size, durations = batch["batch_size"], {name: batch[name] for name in batch if name != "batch_size"}
        by_size[size] = _sum(by_size[size], durations) if size in by_size else durations
    return [{"batch_size": size, **durations} for size, durations in sorted(by_size.items())]


def _sum(some: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Durations by name, added up."""
    return {
        name: _duration(each["count"] + others[name]["count"], each["ns"] + others[name]["ns"])
        for name, each in some.items()
    }


def _duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}


def _batch_stats(size: int, batches: _Batches) -> dict[str, Any]:
    return {
        "batch_size": size,
        "compute_input": _duration(batches.count, batches.input_ns),
        "compute_infer": _duration(batches.count, batches.infer_ns),
        "compute_output": _duration(batches.count, batches.output_ns),
    }
