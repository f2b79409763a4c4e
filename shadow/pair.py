"""One mirrored batch: what both versions made of the same requests."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from models.tensor import Array


class Arm(StrEnum):
    """The two sides of a rollout."""

    BASELINE = "baseline"
    CANDIDATE = "candidate"

    @property
    def other(self) -> "Arm":
        """The opposite side."""
        return Arm.CANDIDATE if self is Arm.BASELINE else Arm.BASELINE


class Status(StrEnum):
    """How one request ended on one side."""

    OK = "ok"
    ERROR = "error"  # the model raised, or its process died
    TIMEOUT = "timeout"  # no answer in time
    MALFORMED = "malformed"  # an answer that does not fit the model's declared outputs
    REJECTED = "rejected"  # the request's input could not be read: its client's fault, unless the other side read it
    ABSENT = "absent"  # never run on this side: shed or not sampled; evidence for nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One request's end on one side.

    ``outputs`` (name → array, batch included) are there only when ``status`` is OK: all outputs of the answer, or at
    least those that the comparator reads.
    """

    status: Status
    outputs: Mapping[str, Array] | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One batch on one side: an answer per request, in the pair's order, and the batch's measures.

    ``service_ms`` is the wall time of preprocessing and of the backend's run. Over the same span ``cpu_ms`` is the CPU
    time of the replica's thread, which stands still while the thread is preempted, and ``gpu_ms`` the time between CUDA
    events. ``peak_memory_bytes`` is the span's peak above the resident size after load. Each is None where the batch
    did not run to its end, or where it cannot be measured.
    """

    answers: tuple[Answer, ...]
    service_ms: float | None = None
    cpu_ms: float | None = None
    gpu_ms: float | None = None
    peak_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The same requests on both sides, in one batch of the same size.

    In shadow the primary is the baseline. In canary it is whoever answered; a request that the candidate failed and
    the baseline answered instead stays a candidate-primary request with the candidate's failure as its answer.
    ``latencies_ms`` are end to end, as the clients saw them; ``rows`` the batch rows of each request.

    ``twin`` is the baseline deployed again, at the candidate's priority, on the same batch: what differs between the
    two is the noise floor. None where the batch was not sampled for it. ``slices`` names the slice of each request, ""
    being none; the empty tuple is no slices at all. ``sizes`` are the bytes of each request's inputs, the empty tuple
    nothing known. ``ran_rows`` are the rows of the whole batch as it ran, where it held requests that are no evidence;
    0 stands for the sum of ``rows``.
    """

    deployment_id: str
    stage: int  # index into the rollout's stages
    at_unix_us: int
    primary: Arm
    request_ids: tuple[str, ...]
    rows: tuple[int, ...]
    latencies_ms: tuple[float, ...]
    baseline: Outcome
    candidate: Outcome
    twin: Outcome | None = None
    slices: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    ran_rows: int = 0

    def of(self, arm: Arm) -> Outcome:
        """The outcome of one side."""
        return self.baseline if arm is Arm.BASELINE else self.candidate
