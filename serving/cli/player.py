"""Plays handwritten digits to the endpoint as a client would, and brings their labels afterwards.

Runs as a process of its own (``python -m serving.cli.player``), so that it shares no interpreter with what it measures;
writes one JSON line of totals each second.
"""

import argparse
import sys
import threading
import time
from collections import Counter, deque
from typing import Any

import numpy as np
import orjson
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from models.reference.digits import Split, load_split
from serving.client import AdminClient, AdminError

_LABEL_EVERY_S = 0.5
_LABELS_AT_ONCE = 5_000


class Player:
    """Clients in ``threads`` threads that send ``rate`` images a second together, drawn at random with one seed."""

    def __init__(
        self, split: Split, *, http: str, admin: str, model: str, rate: float, threads: int, seed: int
    ) -> None:
        self._split, self._http, self._admin, self._model = split, http, admin, model
        self._interval_s, self._threads, self._seed = threads / rate, threads, seed
        self._lock = threading.Lock()
        self._labels: deque[dict[str, Any]] = deque(maxlen=100_000)
        self._totals = {"requests": 0, "failed": 0, "wrong": 0, "labels": 0}
        self._versions: Counter[str] = Counter()
        self._seen: set[int] = set()
        self._latencies: deque[float] = deque(maxlen=2_000)
        self._error = ""
        self.stopping = threading.Event()

    def start(self) -> None:
        """Begin to play."""
        for number in range(self._threads):
            threading.Thread(target=self._play, args=(number,), daemon=True).start()
        threading.Thread(target=self._bring_labels, daemon=True).start()

    def totals(self) -> dict[str, Any]:
        """What was seen so far; latencies of the last 2,000 requests in milliseconds."""
        with self._lock:
            p50, p99 = np.percentile(self._latencies, [50, 99]).tolist() if self._latencies else (0.0, 0.0)
            return {
                **self._totals,
                "distinct": len(self._seen),
                "versions": dict(self._versions),
                "p50_ms": p50,
                "p99_ms": p99,
                "error": self._error,
            }

    def _play(self, number: int) -> None:
        rng = np.random.default_rng([self._seed, number])
        client = triton.InferenceServerClient(self._http)
        due = time.monotonic()
        count = 0
        while not self.stopping.is_set():
            at = int(rng.integers(len(self._split.test_images)))
            self._send(client, at, f"digit-{self._seed}-{number}-{count}")
            count += 1
            due = max(due + self._interval_s, time.monotonic() - 1)
            time.sleep(max(0.0, due - time.monotonic()))

    def _send(self, client: Any, at: int, request_id: str) -> None:
        tensor = triton.InferInput("image", [1, 1, 8, 8], "FP32")
        tensor.set_data_from_numpy(self._split.test_images[at : at + 1])
        started = time.perf_counter()
        try:
            answer = client.infer(self._model, [tensor], request_id=request_id)
            scores, version = answer.as_numpy("scores"), answer.get_response()["model_version"]
            error = "" if scores.shape == (1, 10) else f"an answer of shape {scores.shape}"
        except InferenceServerException as failure:
            scores, version, error = None, "", str(failure)
        elapsed_ms = (time.perf_counter() - started) * 1000
        label = int(self._split.test_labels[at])
        with self._lock:
            self._totals["requests"] += 1
            self._seen.add(at)
            self._latencies.append(elapsed_ms)
            if error:
                self._totals["failed"] += 1
                self._error = error
                return
            self._versions[version] += 1
            self._totals["wrong"] += int(scores[0].argmax()) != label
            self._labels.append({"request_id": request_id, "label": label})

    def _bring_labels(self) -> None:
        with AdminClient(self._admin) as admin:
            while not self.stopping.wait(_LABEL_EVERY_S):
                with self._lock:
                    part = [self._labels.popleft() for _ in range(min(len(self._labels), _LABELS_AT_ONCE))]
                try:
                    accepted = admin.add_labels(self._model, part)["accepted"] if part else 0
                except AdminError:
                    continue  # no rollout takes labels at present
                with self._lock:
                    self._totals["labels"] += accepted


def main() -> None:
    """Play until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--http", required=True, help="host:port of the endpoint")
    parser.add_argument("--admin", required=True, help="URL of the admin door")
    parser.add_argument("--model", default="digits")
    parser.add_argument("--rate", type=float, default=200.0, help="images a second")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    player = Player(load_split(), **options)
    player.start()
    threading.Thread(target=_stop_at_end_of_input, args=(player,), daemon=True).start()
    stopped = False
    while not stopped:
        stopped = player.stopping.wait(1)
        sys.stdout.buffer.write(orjson.dumps(player.totals()) + b"\n")
        sys.stdout.flush()


def _stop_at_end_of_input(player: Player) -> None:
    sys.stdin.read()
    player.stopping.set()


if __name__ == "__main__":
    main()
