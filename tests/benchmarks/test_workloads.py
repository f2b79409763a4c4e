from pathlib import Path

import numpy as np
import orjson
import pytest
from onnxruntime import InferenceSession

from benchmarks.mobilenet import CLASSES, mobilenet
from benchmarks.raw import RawModel
from benchmarks.workloads import BASELINE, CANDIDATE, WORKLOADS, Workload
from models.repository import Repository


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=list(WORKLOADS))
def test_both_versions_are_the_same_model_and_verified(workload: Workload, tmp_path: Path) -> None:
    workload.write(tmp_path / workload.name)
    repository = Repository(tmp_path)
    baseline, candidate = (repository.open(workload.name, version) for version in (BASELINE, CANDIDATE))
    assert baseline.files == candidate.files
    assert baseline.spec.inputs[0].shape[1:] == workload.example.shape[1:]


def test_an_image_is_602_kb() -> None:
    assert WORKLOADS["images"].example.nbytes == 602_112


def test_a_request_s_header_length_ends_its_json() -> None:
    request = WORKLOADS["digits"].request()
    length = int(request.headers["Inference-Header-Content-Length"])
    assert orjson.loads(request.body[:length])["inputs"][0]["shape"] == [1, 1, 8, 8]
    assert np.array_equal(np.frombuffer(request.body[length:], np.float32), WORKLOADS["digits"].example.ravel())


def test_the_network_is_the_same_each_time_and_its_scores_differ() -> None:
    graph = mobilenet(0.25)
    assert graph == mobilenet(0.25)
    session = InferenceSession(graph, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"image": WORKLOADS["cnn"].example})
    assert scores.shape == (1, CLASSES)
    assert scores.sum() == pytest.approx(1, abs=1e-3)
    assert scores.std() > 1e-5


def test_the_bare_model_is_timed_call_by_call(tmp_path: Path) -> None:
    model = RawModel(WORKLOADS["digits"], tmp_path)
    ticks = iter(range(1000))
    sample = model.measure(2, 10, clock=lambda: float(next(ticks)))
    model.close()
    assert (sample.calls, sample.rows_per_s, sample.p50_ms, sample.p99_ms) == (10, 2.0, 1000.0, 1000.0)
