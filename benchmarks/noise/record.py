"""Records the trace: a service whose candidate and twin are its baseline over again, under bursty load.

The model is a convolutional network for the digits on PyTorch, whose float sums depend on the size of the batch (its
matrix products are cut up otherwise), which those of the digits models in ``examples`` do not. Requests arrive in an
open loop, as a Poisson process that a Markov chain turns up and down: quiet times and bursts of exponential lengths.
All are mirrored, and the twin runs every batch that the candidate runs. What is shed meanwhile is not in the trace.
"""

import io
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import pyarrow as pa
import yaml

from benchmarks.environment import describe
from benchmarks.errors import BenchmarkError
from benchmarks.load import Request, Sample
from benchmarks.noise.trace import CLASSES, OUTPUT, write_trace
from benchmarks.open_loop import offer_at
from benchmarks.process import free_ports, running, wait_until
from benchmarks.report import say
from benchmarks.service import BATCHING, COMMAND, REPORTED_AFTER_S, SETTLE_TIMEOUT_S, SHADOW_TIMEOUT_S
from benchmarks.workloads import BASELINE, CANDIDATE
from models.reference.digits import Split, load_split
from models.repository import write_hash
from models.tensor import Array
from serving.client import AdminClient
from shadow.rows import SCHEMA as PAIR_SCHEMA
from shadow.rows import SIDES
from shadow.store import Kind, read_segments

POLICY: Final = "equivalence"  # that judges the rollout while it is recorded
LEAST_PAIRS: Final = 20_000
_MODEL: Final = "digits"
_ACTOR: Final = "benchmark"
_TRAINING_STEPS: Final = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Bursts:
    """Arrivals that a Markov chain turns up and down; rates a second, mean lengths in seconds."""

    quiet_rate: float = 200.0
    burst_rate: float = 1200.0
    quiet_s: float = 2.0
    burst_s: float = 1.0
    seconds: float = 50.0
    seed: int = 0

    def arrivals(self) -> list[float]:
        """When requests are due, in seconds from the start."""
        rng = np.random.default_rng(self.seed)
        return [due for due in self._arrivals(rng) if due < self.seconds]

    def _arrivals(self, rng: np.random.Generator) -> Iterator[float]:
        at_s, busy = 0.0, False
        while at_s < self.seconds:
            rate, mean_s = (self.burst_rate, self.burst_s) if busy else (self.quiet_rate, self.quiet_s)
            length_s = float(rng.exponential(mean_s))
            yield from (at_s + np.sort(rng.random(rng.poisson(rate * length_s))) * length_s).tolist()
            at_s, busy = at_s + length_s, not busy


def record(path: Path, scratch: Path, bursts: Bursts) -> None:
    """Record a trace into ``path``; whatever is in ``scratch`` is discarded.

    Raises:
        BenchmarkError: the service does not start, the rollout ends, or too few pairs are mirrored.
    """
    environment, split = describe(("numpy", "pyarrow", "ray", "torch")), load_split()
    shutil.rmtree(scratch, ignore_errors=True)
    config, url, admin_url = _write_service(scratch, split)
    dues = bursts.arrivals()
    images = np.random.default_rng(bursts.seed + 1).integers(len(split.test_images), size=len(dues)).tolist()
    say(f"starting the service; {len(dues)} requests within {bursts.seconds:g} s follow")
    with (
        running([*COMMAND, str(config)], ready_url=f"{url}/v2/health/ready", log=scratch / "serve.log"),
        AdminClient(admin_url) as admin,
    ):
        admin.start(_MODEL, CANDIDATE, policy=POLICY, actor=_ACTOR)
        wait_until(
            lambda: admin.status(_MODEL)["state"] == "shadow", timeout_s=SHADOW_TIMEOUT_S, what=f"{_MODEL} in shadow"
        )
        sample = offer_at(url, _requests(split.test_images, images), dues)
        status = _settled(admin)
        admin.act(_MODEL, "abort", actor=_ACTOR, reason="recorded")
    table = _table(scratch / "reports" / status["deployment_id"] / "evidence", split)
    facts = {
        "environment": environment,
        "bursts": asdict(bursts),
        "clients": asdict(sample),
        "accounting": status["accounting"],
        "live": {"policy": POLICY, "state": status["state"], "findings": status["findings"]},
    }
    if table.num_rows < LEAST_PAIRS:
        raise BenchmarkError(f"{table.num_rows} pairs recorded of {_said(sample)}, expected at least {LEAST_PAIRS}")
    write_trace(path, table, facts)
    say(f"{path}: {table.num_rows} pairs of {_said(sample)}, {path.stat().st_size >> 10} KiB")
    shutil.rmtree(scratch)


def _said(sample: Sample) -> str:
    return f"{sample.requests} requests ({sample.failed} failed)"


def _settled(admin: AdminClient) -> dict[str, Any]:
    """The rollout's status once nothing is pending.

    Raises:
        BenchmarkError: it has ended, or something stays pending.
    """
    status: dict[str, Any] = {}

    def settled() -> bool:
        status.update(admin.status(_MODEL))
        if not status["active"]:
            raise BenchmarkError(f"the rollout of the baseline over again ended: {status['reason']}")
        return bool(status["accounting"].get("pending") == 0)

    time.sleep(REPORTED_AFTER_S)
    wait_until(settled, timeout_s=SETTLE_TIMEOUT_S, what="nothing pending in the mirror")
    return status


def _requests(images: Array, chosen: Sequence[int]) -> Iterator[Request]:
    """A request for each chosen image; its id says which one it is: ``<running number>-<image>``."""
    for number, image in enumerate(chosen):
        body = images[image].tobytes()
        tensor = {
            "name": "image",
            "datatype": "FP32",
            "shape": (1, *images.shape[1:]),
            "parameters": {"binary_data_size": len(body)},
        }
        document = {"id": f"{number}-{image}", "inputs": [tensor], "parameters": {"binary_data_output": True}}
        header = orjson.dumps(document)
        yield Request(
            path=f"/v2/models/{_MODEL}/infer",
            headers={
                "Content-Type": "application/octet-stream",
                "Inference-Header-Content-Length": str(len(header)),
            },
            body=header + body,
        )


def _table(folder: Path, split: Split) -> pa.Table:
    """The evidence as a trace."""
    parts = []
    for segment in read_segments(folder):
        if segment.header().kind is Kind.PAIRS:
            part = segment.table(PAIR_SCHEMA)
            parts.append(part.append_column("chain", pa.array([segment.chain] * part.num_rows, pa.string())))
    if not parts:
        raise BenchmarkError(f"{folder}: expected evidence, found none")
    rows = pa.concat_tables(parts).unify_dictionaries()
    rows = rows.sort_by([(name, "ascending") for name in ("at_unix_us", "chain", "batch", "batch_row")])
    at_us, batch = rows["at_unix_us"].to_numpy(), rows["batch"].to_numpy()
    chain = np.array(rows["chain"].to_pylist())
    images = np.array([int(each.rpartition("-")[2]) for each in rows["request_id"].to_pylist()], np.int32)
    begins = np.append(True, (np.diff(batch) != 0) | (chain[1:] != chain[:-1]))
    columns: dict[str, Any] = {
        "at_ms": (at_us - at_us[0]) // 1000,
        "batch": np.cumsum(begins) - 1,
        "batch_rows": rows["batch_rows"],
        "image": images,
        "label": split.test_labels[images],
        "latency_us": rows["latency_us"],
    }
    answers = {side: _answers(rows, side) for side in SIDES}
    for side in SIDES[1:]:
        answers[side] = [
            None if mine == theirs else mine for mine, theirs in zip(answers[side], answers[SIDES[0]], strict=True)
        ]
    for side in SIDES:
        kept = ("status", "service_us", "service_cpu_us", "memory_bytes")
        columns |= {f"{side}_{name}": rows[f"{side}_{name}"] for name in kept}
        columns[f"{side}_error"] = rows[f"{side}_error"].dictionary_encode()
        columns[f"{side}_answer"] = pa.array(answers[side], pa.binary(4 * CLASSES))
    return pa.table(columns)


def _answers(rows: pa.Table, side: str) -> list[bytes | None]:
    """The scores of each row as FP32, where there are any."""
    scores = rows[f"{side}_scores"].to_pylist()
    return [None if each is None else np.array(each, np.float32).tobytes() for each in scores]


# The service


def _write_service(folder: Path, split: Split) -> tuple[Path, str, str]:
    """The repository and the configuration; its path, and the URLs of the service and of its admin door."""
    network = _network(split)
    for version in (BASELINE, CANDIDATE):
        _write_version(folder / "repository" / _MODEL / str(version), network)
    ports = dict(zip(("http_port", "grpc_port", "metrics_port", "admin_port"), free_ports(4), strict=True))
    document = {
        "repository": "repository",
        "reports": "reports",
        "server": ports,
        "models": {
            _MODEL: {
                "baseline": BASELINE,
                "replicas": {"num_cpus": 0.1},
                "batching": dict(BATCHING),
                "mirror": {"sample": 1.0, "twin": 1.0},
                "comparator": {"kind": "classification", "output": OUTPUT},
            }
        },
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(document), encoding="utf-8")
    return config, f"http://127.0.0.1:{ports['http_port']}", f"http://127.0.0.1:{ports['admin_port']}"


def _write_version(folder: Path, network: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / "model.pt2").write_bytes(network)
    document = {
        "backend": "torch",
        "artifact": "model.pt2",
        "max_batch_size": BATCHING["max_batch_size"],
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, CLASSES]}],
        "provenance": {"dataset": "digits", "synthetic": False},
    }
    (folder / "model.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    write_hash(folder)


def _network(split: Split) -> bytes:
    """The network, trained on the training images for some seconds, as a ``torch.export`` archive."""
    import torch

    torch.manual_seed(0)
    images = torch.from_numpy(split.train_images)
    labels = torch.from_numpy(split.train_labels)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(16 * 64, CLASSES),
    )
    optimizer = torch.optim.Adam(layers.parameters(), lr=1e-3)
    for _ in range(_TRAINING_STEPS):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(layers(images), labels, label_smoothing=0.1)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    network = torch.nn.Sequential(layers, torch.nn.Softmax(-1)).eval()
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations
        dynamic = ({0: torch.export.Dim("batch")},)
        torch.export.save(torch.export.export(network, (images[:2],), dynamic_shapes=dynamic), buffer)
    return buffer.getvalue()
