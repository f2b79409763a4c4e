"""A Locust load test for engineers: does a running service meet R1 (p95 latency), R2 (error rate), R3 (throughput)?

    locust -f benchmarks/locustfile.py --headless -u 20 -r 5 -t 30s --host http://127.0.0.1:8000
    locust -f benchmarks/locustfile.py --web-host 127.0.0.1       # then http://127.0.0.1:8089

Users send real handwritten digits through the stock clients, over HTTP (binary and JSON tensors, PNG files) and gRPC,
to the digits models of ``--model``. Every answer is checked; a wrong one is a failed request.

A run of ``-t`` seconds has two parts. First ``-u`` users ask, with pauses between their requests: latency and errors
are judged here. What such users get answered is what they *offered*, and says nothing of what the service could do.
So in the last ``--capacity-seconds`` they ask without a pause (a closed loop), 4, 8, 16 … of them, until two steps
brought no more throughput or a step broke R1 or R2. The capacity is the best step within R1 and R2. A step counts from
the moment that all its users run. By Little's law 50 users suffice to see 100 requests/s at 500 ms.

One process makes the load, so its own limit (some thousand requests/s) bounds what is found: a capacity is what was
shown, at least. The verdict is printed at the end; the exit status is 1 on a breach, and too little data is one.
"""

import random
import time
from argparse import Namespace
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Final
from urllib.parse import urlsplit

import grpc.experimental.gevent
import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from geventhttpclient import HTTPClient
from locust import LoadTestShape, User, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import LocalRunner

from benchmarks.errors import BenchmarkError
from benchmarks.slo import Limits, Meter, Window, climbs_on, judge, report
from models.reference.digits import load_split
from models.reference.picture import draw
from models.reference.train import CLASSES
from models.tensor import Array

grpc.experimental.gevent.init_gevent()  # else a call over gRPC stops all other users

PAUSE_S: Final = (0.05, 0.15)  # between an answer and the next request of a user, in the first part of a run
DEFAULT_RUN_S: Final = 60.0
FIRST_USERS: Final = 4
STEP_S: Final = 1.9  # Locust looks once a second: two looks, and one before for the users to start
STEP_TAKES_S: Final = 3.0
USERS_PER_S: Final = 100.0  # Locust warns of more
ANSWER_WITHIN_S: Final = 10.0
GRPC_PORT: Final = 8001
PIXELS: Final = ("FP32", [-1, 1, 8, 8])
PICTURE: Final = ("BYTES", [-1, 1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A digits model as its metadata describe it; ``pictured`` where it takes PNG files instead of pixels."""

    name: str
    input: str
    output: str
    pictured: bool

    def value(self, at: int) -> Array:
        """The test image with this number as a batch of one."""
        if self.pictured:
            return np.array([[pictures()[at]]], dtype=object)
        return load_pixels()[at : at + 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a client got: the version that answered, and its scores (None where there are none)."""

    version: str
    scores: Array | None


Ask = Callable[[int], Answer]  # about the test image with this number


@cache
def load_pixels() -> Array:
    """The test images, FP32 ``[n, 1, 8, 8]``."""
    return load_split().test_images


@cache
def pictures() -> tuple[bytes, ...]:
    """The same as PNG files."""
    return tuple(draw(image, "a test image of models.reference") for image in load_pixels())


def describe(metadata: dict[str, Any]) -> Model:
    """Read a model's metadata.

    Raises:
        BenchmarkError: it takes no digits.
    """
    inputs, outputs = metadata["inputs"], metadata["outputs"]
    forms = [(each["datatype"], each["shape"]) for each in inputs]
    if forms not in ([PIXELS], [PICTURE]) or outputs[0]["shape"] != [-1, CLASSES]:
        raise BenchmarkError(f"model {metadata['name']}: expected a digits model, got inputs {forms}")
    return Model(name=metadata["name"], input=inputs[0]["name"], output=outputs[0]["name"], pictured=forms == [PICTURE])


def check(answer: Answer) -> None:
    """Compare an answer with what a digits model must answer to one image.

    Raises:
        BenchmarkError: it has no version, or no ``CLASSES`` finite scores.
    """
    if not answer.version:
        raise BenchmarkError("an answer without a version")
    if answer.scores is None or answer.scores.shape != (1, CLASSES) or not np.isfinite(answer.scores).all():
        raise BenchmarkError(f"expected {CLASSES} finite scores, got {answer.scores!r}")


class EndpointUser(User):
    """Asks about a random image in a random one of the ways that the transport knows."""

    abstract = True
    kind = ""

    def wait_time(self) -> float:
        """Seconds until the next request."""
        return random.uniform(*PAUSE_S) if climb_of(self.environment).pausing else 0.0

    def on_start(self) -> None:
        """Begin without knowing the models."""
        self.ways: list[tuple[str, Ask]] = []
        self.connect()

    @task
    def ask(self) -> None:
        """One request, measured and checked; the first sees what the models take, again and again until it can."""
        if not self.ways:
            with self.measured("metadata"):
                models = [describe(self.metadata(name)) for name in options_of(self.environment).model.split(",")]
                self.ways = [way for model in models for way in self.ways_to_ask(model)]
            return
        name, send = random.choice(self.ways)
        at = random.randrange(len(load_pixels()))
        with self.measured(name):
            check(send(at))

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """Tell Locust how long the block took, and what it raised."""
        started, failure = time.perf_counter(), ""
        try:
            yield
        except Exception as error:  # noqa: BLE001 — whatever a client raises is a failed request, not the test's end
            failure = f"{type(error).__name__}: {error}"  # the repr of the stock clients' errors says nothing
        self.environment.events.request.fire(
            request_type=self.kind,
            name=name,
            response_time=(time.perf_counter() - started) * 1000,
            response_length=0,
            exception=failure or None,
            context=self.context(),
        )

    def connect(self) -> None:
        """Make the client."""
        raise NotImplementedError

    def metadata(self, model: str) -> dict[str, Any]:
        """The model's metadata as in JSON."""
        raise NotImplementedError

    def ways_to_ask(self, model: Model) -> list[tuple[str, Ask]]:
        """The ways to ask this model, by name."""
        raise NotImplementedError


class HttpUser(EndpointUser):
    """Asks over HTTP: binary tensors, and JSON or whole files besides."""

    kind = "HTTP"

    def connect(self) -> None:
        """Make the clients; one of them knows HTTP alone."""
        limits = {"connection_timeout": ANSWER_WITHIN_S, "network_timeout": ANSWER_WITHIN_S}
        self.client = triton_http.InferenceServerClient(urlsplit(str(self.host)).netloc, **limits)
        self.plain = HTTPClient.from_url(str(self.host), **limits)

    def metadata(self, model: str) -> dict[str, Any]:
        """The model's metadata."""
        found: dict[str, Any] = self.client.get_model_metadata(model)
        return found

    def ways_to_ask(self, model: Model) -> list[tuple[str, Ask]]:
        """Binary tensors always; a file as the whole body where the model takes files, else JSON."""
        binary = (f"{model.name}, binary", lambda at: self.infer(model, at, binary=True))
        if model.pictured:
            return [binary, (f"{model.name}, PNG as body", lambda at: self.post(model, pictures()[at]))]
        return [binary, (f"{model.name}, JSON", lambda at: self.infer(model, at, binary=False))]

    def infer(self, model: Model, at: int, *, binary: bool) -> Answer:
        """Ask through the stock client."""
        value = model.value(at)
        tensor = triton_http.InferInput(model.input, list(value.shape), PICTURE[0] if model.pictured else PIXELS[0])
        tensor.set_data_from_numpy(value, binary_data=binary)
        asked = triton_http.InferRequestedOutput(model.output, binary_data=binary)
        return self.read(self.client.infer(model.name, [tensor], outputs=[asked]), model)

    def post(self, model: Model, body: bytes) -> Answer:
        """Send a file as the whole body, as curl does."""
        response = self.plain.post(f"/v2/models/{model.name}/infer", body, {"Inference-Header-Content-Length": "0"})
        content = bytes(response.read())
        if response.status_code != 200:
            raise BenchmarkError(f"expected 200, got {response.status_code}: {content[:200]!r}")
        length = int(str(response["Inference-Header-Content-Length"]))
        return self.read(triton_http.InferResult.from_response_body(content, header_length=length), model)

    @staticmethod
    def read(result: Any, model: Model) -> Answer:
        """The answer in the stock client's result."""
        return Answer(version=result.get_response()["model_version"], scores=result.as_numpy(model.output))

    def on_stop(self) -> None:
        """Close the connections."""
        self.client.close()
        self.plain.close()


class GrpcUser(EndpointUser):
    """Asks over gRPC."""

    kind = "gRPC"

    def connect(self) -> None:
        """Make the client."""
        address = options_of(self.environment).grpc_host or f"{urlsplit(str(self.host)).hostname}:{GRPC_PORT}"
        # Else gRPC takes one connection for all users, and of several routers only one would be asked.
        self.client = triton_grpc.InferenceServerClient(address, channel_args=[("grpc.use_local_subchannel_pool", 1)])

    def metadata(self, model: str) -> dict[str, Any]:
        """The model's metadata; JSON has its 64-bit numbers as text."""
        found = self.client.get_model_metadata(model, client_timeout=ANSWER_WITHIN_S)
        tensors = {
            side: [{"name": each.name, "datatype": each.datatype, "shape": list(each.shape)} for each in listed]
            for side, listed in (("inputs", found.inputs), ("outputs", found.outputs))
        }
        return {"name": found.name, **tensors}

    def ways_to_ask(self, model: Model) -> list[tuple[str, Ask]]:
        """Raw tensors; gRPC has one way."""
        return [(model.name, lambda at: self.infer(model, at))]

    def infer(self, model: Model, at: int) -> Answer:
        """Ask through the stock client."""
        value = model.value(at)
        tensor = triton_grpc.InferInput(model.input, list(value.shape), PICTURE[0] if model.pictured else PIXELS[0])
        tensor.set_data_from_numpy(value)
        result = self.client.infer(model.name, [tensor], client_timeout=ANSWER_WITHIN_S)
        return Answer(version=result.get_response().model_version, scores=result.as_numpy(model.output))

    def on_stop(self) -> None:
        """Close the channel, and let go of the client: left to the garbage collector, it may hang inside gRPC."""
        self.client.close()
        del self.client


USERS: Final[dict[str, list[type[User]]]] = {"http": [HttpUser], "grpc": [GrpcUser], "both": [HttpUser, GrpcUser]}


class Climb(LoadTestShape):
    """The two parts of a run, and what was measured in them."""

    use_common_options = True  # -u, -r and -t, and their fields in the web UI

    def __init__(self) -> None:
        super().__init__()
        self.reset_time()

    def reset_time(self) -> None:
        """A run begins."""
        super().reset_time()
        self.meter = Meter()
        self.pausing = True
        self.offered: Window | None = None
        self.steps: list[Window] = []
        self._course = self._run()

    def tick(self) -> tuple[int, float] | None:
        """How many users there shall be and how many start a second; None ends the run."""
        return next(self._course, None)

    def finish(self) -> None:
        """The run has ended, perhaps early: what was offered until then counts, half a step does not."""
        window = self.meter.close(time.perf_counter())
        if self.offered is None:
            self.offered = window

    def _run(self) -> Iterator[tuple[int, float]]:
        assert self.runner is not None
        options = options_of(self.runner.environment)
        run_s = float(options.run_time or DEFAULT_RUN_S)
        offering = (options.num_users or 1, float(options.spawn_rate or 1))
        yield offering
        self.offered = yield from self._hold(offering, run_s - options.capacity_seconds)
        self.pausing = False
        users = FIRST_USERS
        while climbs_on(self.steps, limits_of(options)) and self.get_run_time() + STEP_TAKES_S <= run_s + 1:
            yield users, USERS_PER_S
            self.steps.append((yield from self._hold((users, USERS_PER_S), self.get_run_time() + STEP_S)))
            users *= 2

    def _hold(self, load: tuple[int, float], until_s: float) -> Generator[tuple[int, float], None, Window]:
        """Measure these users, who all run by now, until this second of the run."""
        self.meter.open(load[0], time.perf_counter())
        while self.get_run_time() < until_s:
            yield load
        window = self.meter.close(time.perf_counter())
        assert window is not None
        return window


def options_of(environment: Environment) -> Namespace:
    """The options below and Locust's own; the web UI changes them between runs."""
    assert environment.parsed_options is not None
    options: Namespace = environment.parsed_options
    return options


def limits_of(options: Namespace) -> Limits:
    """The objectives."""
    return Limits(p95_ms=options.slo_p95_ms, error_rate=options.slo_error_rate, capacity=options.slo_capacity)


def climb_of(environment: Environment) -> Climb:
    """The one shape, whether or not somebody picked another in the web UI."""
    shapes: Any = environment.available_shape_classes
    climb: Climb = shapes[Climb.__name__]
    return climb


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """Options of this test, which the web UI shows as well."""
    add = parser.add_argument  # a group of its own would not be shown by the web UI
    add("--model", default="digits", help="Digits models to ask, with commas between them")
    add("--grpc-host", default="", help="host:port of gRPC; else the host's port 8001")
    add("--transport", choices=sorted(USERS), default="both", help="Who asks", include_in_web_ui=False)
    add("--slo-p95-ms", type=float, default=500.0, help="R1: p95 latency below this")
    add("--slo-error-rate", type=float, default=0.01, help="R2: share of failed requests below this")
    add("--slo-capacity", type=float, default=100.0, help="R3: at least so many requests/s")
    add("--capacity-seconds", type=float, default=20.0, help="How much of the run the climb may take")


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Choose the users, and listen to what they see."""
    if not isinstance(environment.runner, LocalRunner):
        raise SystemExit("locustfile: expected one process, got --master, --worker or --processes")
    pictures()  # reads the images as well; later, all users would wait for it
    environment.user_classes[:] = USERS[options_of(environment).transport]
    environment.stop_timeout = environment.stop_timeout or ANSWER_WITHIN_S  # requests under way are waited for
    climb = climb_of(environment)

    @environment.events.request.add_listener
    def count(response_time: float, exception: object, **_: Any) -> None:
        climb.meter.add(response_time, failed=exception is not None)

    app = environment.web_ui.app if environment.web_ui else None
    if app is not None:
        plain = {"Content-Type": "text/plain; charset=utf-8"}
        app.add_url_rule("/slo", "slo", lambda: (verdict(environment), plain))


def verdict(environment: Environment) -> str:
    """What is known of the last run, as text."""
    climb = climb_of(environment)
    return report(climb.offered, climb.steps, limits_of(options_of(environment)))


@events.test_stop.add_listener
def say(environment: Environment, **_: Any) -> None:
    """Print the verdict on a run."""
    climb_of(environment).finish()
    print(f"\n{verdict(environment)}\n", flush=True)


@events.quitting.add_listener
def set_status(environment: Environment, **_: Any) -> None:
    """The exit status of the last run; 1 where there was none."""
    climb = climb_of(environment)
    findings = judge(climb.offered, climb.steps, limits_of(options_of(environment)))
    environment.process_exit_code = 0 if all(finding.met for finding in findings) else 1
