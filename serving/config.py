"""The one configuration file: what is served, where, and how it is judged."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from models.room import mebibytes
from models.spec import ModelSpec
from serving.errors import ConfigError
from shadow.errors import ShadowError
from shadow.sampler import Sampling
from shadow.slices import MAX_SLICES, OTHER, Slices

if TYPE_CHECKING:
    from shadow.exemplars import ExemplarSettings

Port = Annotated[int, Field(ge=1, le=65535)]
Positive = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
KIBIBYTE = 1 << 10
MEBIBYTE = 1 << 20
MAX_ROUTERS = 64


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class Limits(_Section):
    """What clients may take of the doors, of HTTP's if nothing else is said; times in seconds.

    ``receiving`` bounds what all clients of a router send at a time, over gRPC, too, and what it decompresses to, until
    it is answered; and the answers over gRPC that they do not take at once. Over HTTP bodies of 64 KiB and more count,
    over gRPC all but the first 64 KiB of a connection.

    ``head_s`` and ``body_s`` bound how long a request's head and body may take to arrive whole, ``idle_s`` a connection
    without a request, ``write_s`` a client that takes next to nothing of its answer.
    """

    connections: int = Field(default=4096, ge=1)
    head: ByteSize = Field(default=ByteSize(64 * KIBIBYTE), ge=KIBIBYTE)
    receiving: ByteSize = Field(default=ByteSize(1024 * MEBIBYTE), ge=64 * KIBIBYTE)
    head_s: Positive = 10.0
    body_s: Positive = 60.0
    idle_s: Positive = 75.0
    write_s: Positive = 60.0


class Server(_Section):
    """Where the doors are. ``deadline_s`` bounds a request that brings no ``timeout`` of its own.

    ``routers`` is how many processes share the ports of HTTP, gRPC and metrics.

    ``shared_memory`` is what a router may hold of bodies that replicas on its machine read in place; 0 sends them.

    ``max_body`` bounds what is read over HTTP, ``max_grpc_message`` over gRPC; both after decompression. ``max_json``
    bounds the JSON of it, while part of whose parsing nobody else is served.
    """

    host: str = "127.0.0.1"
    http_port: Port = 8000
    grpc_port: Port = 8001
    metrics_port: Port = 8002
    admin_port: Port = 8080
    admin_token: str | None = Field(default=None, min_length=16)
    routers: int = Field(default=1, ge=1, le=MAX_ROUTERS)
    deadline_s: Positive = 5.0
    max_body: ByteSize = ByteSize(64 * MEBIBYTE)
    max_json: ByteSize = Field(default=ByteSize(16 * MEBIBYTE), ge=KIBIBYTE)
    shared_memory: ByteSize = ByteSize(256 * MEBIBYTE)
    limits: Limits = Limits()
    max_grpc_message: ByteSize = Field(default=ByteSize(2048 * MEBIBYTE - 1), le=2048 * MEBIBYTE - 1)

    def url(self, port: int) -> str:
        """Where a process of this machine reaches a door."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @model_validator(mode="after")
    def _doors_are_distinct(self) -> Self:
        ports = [self.http_port, self.grpc_port, self.metrics_port, self.admin_port]
        if len(set(ports)) < len(ports):
            raise ValueError(f"four different ports, got {ports}")
        if self.host not in ("127.0.0.1", "localhost", "::1") and self.admin_token is None:
            raise ValueError(f"an admin_token of at least 16 characters, because host {self.host} is not loopback")
        return self


_Checked = TypeVar("_Checked")


def _checked(section: _Checked, build: Callable[[], object], prefix: str) -> _Checked:
    """The section, if what is built of it does not object; its errors name fields that have this prefix."""
    try:
        build()
    except ShadowError as error:
        raise ValueError(str(error).removeprefix(prefix)) from None
    return section


class Autoscaling(_Section):
    """Bounds of a version's replicas, and how many items of clients, waiting or running, are right for each of them.

    More replicas come when more are needed for ``upscale_delay_s`` without a break; fewer, after ``downscale_delay_s``.
    """

    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(ge=1)
    target_queue: Positive
    upscale_delay_s: float = Field(default=5, ge=0)
    downscale_delay_s: float = Field(default=60, ge=0)

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas of at least min_replicas, {self.min_replicas}, got {self.max_replicas}")
        return self


class Replicas(_Section):
    """Ray resources of one replica; ``memory_limit`` is enforced on the process, beyond what it holds when empty.

    Their number is fixed, or follows ``autoscaling``. ``warm_up`` are the sizes of the batches of zeros that each runs
    before it is ready; where None: 1 and the largest (``models.warm_up``).
    """

    num_replicas: int = Field(default=1, ge=1)
    autoscaling: Autoscaling | None = None
    num_cpus: float = Field(default=0.5, ge=0)
    num_gpus: float = Field(default=0, ge=0)
    memory_limit: ByteSize = ByteSize(2048 * MEBIBYTE)
    warm_up: tuple[Annotated[int, Field(ge=1)], ...] | None = None

    @model_validator(mode="after")
    def _number_is_said_once(self) -> Self:
        if self.autoscaling is not None and "num_replicas" in self.model_fields_set:
            raise ValueError("num_replicas or autoscaling, not both")
        return self

    @property
    def least(self) -> int:
        """How many replicas a version has at least."""
        return self.num_replicas if self.autoscaling is None else self.autoscaling.min_replicas

    def too_small_for(self, spec: ModelSpec) -> str:
        """Why a version cannot have what it declares; "" if it can."""
        if spec.resources.memory <= self.memory_limit:
            return ""
        declared, limit = mebibytes(spec.resources.memory, up=True), mebibytes(self.memory_limit)
        return (
            f"memory_limit: expected at least the resources.memory of version {spec.version}, {declared}, got {limit}"
        )


class Batching(_Section):
    """How requests gather. ``max_batch_size`` is further bounded by the model's own; ``max_queue`` counts items.

    ``max_queue_bytes`` bounds their inputs, too; a queue that is empty takes one request of any size.

    A batch that runs longer than ``timeout_s`` means that its replica hangs: the replica is restarted.
    """

    max_batch_size: int = Field(default=32, ge=1)
    max_wait_ms: float = Field(default=2, ge=0)
    max_queue: int = Field(default=1024, ge=1)
    max_queue_bytes: ByteSize = ByteSize(1024 * MEBIBYTE)
    timeout_s: Positive = 10.0


class Exemplars(_Section):
    """Requests that are kept with their inputs, to be looked at and run again: none, unless it says which.

    ``worst`` is how many of the largest disagreements are kept, ``sample`` the share of the compared requests that is
    kept whatever they were answered. ``max_bytes`` bounds all of a rollout's; those older than ``max_age_s`` go.
    """

    worst: int = Field(default=0, ge=0)
    sample: float = Field(default=0.0, ge=0, le=1)
    max_bytes: ByteSize = Field(default=ByteSize(256 * MEBIBYTE), ge=1)
    max_age_s: Positive | None = None

    def build(self) -> "ExemplarSettings":
        """As whoever keeps them has it."""
        from shadow.exemplars import ExemplarSettings  # brings Arrow, which routers and replicas do without

        return ExemplarSettings(
            worst=self.worst, sample=self.sample, max_bytes=self.max_bytes, max_age_s=self.max_age_s
        )

    @model_validator(mode="after")
    def _can_be_kept(self) -> Self:
        if not self.model_fields_set:
            return self  # Arrow is not needed to know that nothing is kept
        return _checked(self, self.build, "mirror.exemplars.")


class Mirror(_Section):
    """The mirror lane: the share of batches mirrored, and its bounds.

    ``sample`` is drawn by request, or by routing key; ``floor_per_minute`` is taken of each slice whatever was drawn,
    and ``max_rps`` bounds all that is taken (``shadow.sampler``).

    ``twin`` is the share of the mirrored batches that the baseline's twin runs as well: the noise floor. ``budget`` is
    how many seconds of CPU or GPU a minute mirrored work may take, of all routers together.
    """

    sample: float = Field(default=1.0, ge=0, le=1)
    by: Literal["request", "key"] = "request"
    floor_per_minute: dict[str, float] = {}
    max_rps: Positive | None = None
    twin: float = Field(default=0.1, ge=0, le=1)
    budget: Positive | None = None
    max_pending: int = Field(default=256, ge=1)
    max_pending_bytes: ByteSize = ByteSize(256 * MEBIBYTE)
    timeout_s: Positive = 10.0
    exemplars: Exemplars = Exemplars()

    def sampling(self) -> Sampling:
        """As the sampler has it."""
        return Sampling(fraction=self.sample, by=self.by, floor_per_minute=self.floor_per_minute, max_rps=self.max_rps)

    @model_validator(mode="after")
    def _can_be_sampled(self) -> Self:
        return _checked(self, self.sampling, "mirror.")


class SliceSettings(_Section):
    """Kinds of requests that are counted and compared apart: the ``values`` of a request's ``parameter``."""

    parameter: str = Field(min_length=1)
    values: tuple[str, ...] = Field(min_length=1, max_length=MAX_SLICES)

    def build(self) -> Slices:
        """As requests are told apart by it."""
        return Slices(self.parameter, self.values)

    @model_validator(mode="after")
    def _can_be_told_apart(self) -> Self:
        return _checked(self, self.build, "slices.")


class Comparator(_Section):
    """How two answers are compared: a registered kind or an import path ``package.module:Name``, and its parameters."""

    kind: str = "classification"
    output: str
    tolerance: Positive = 1e-3
    parameters: dict[str, Any] = {}


class Rollout(_Section):
    """How a candidate rises: a preset's name or a policy file, and the weights in percent.

    A label counts within ``labels_within_s`` of its pair, and whatever its pair's age in the ``labels_reopen_s`` after
    the rollout's end.
    """

    policy: str = "improvement"
    stages: tuple[int, ...] = (0, 5, 20, 50, 100)
    labels_within_s: Positive = 900.0
    labels_reopen_s: Positive = 86_400.0

    @field_validator("stages")
    @classmethod
    def _stages_rise(cls, stages: tuple[int, ...]) -> tuple[int, ...]:
        if len(stages) < 2 or stages[0] != 0 or stages[-1] != 100 or list(stages) != sorted(set(stages)):
            raise ValueError("rising weights from 0 to 100, such as [0, 5, 20, 50, 100]")
        return stages


class Model(_Section):
    """One served model."""

    baseline: int = Field(ge=1)
    replicas: Replicas = Replicas()
    batching: Batching = Batching()
    mirror: Mirror = Mirror()
    comparator: Comparator
    slices: SliceSettings | None = None
    rollout: Rollout = Rollout()

    @model_validator(mode="after")
    def _warm_up_is_of_batches(self) -> Self:
        beyond = [size for size in self.replicas.warm_up or () if size > self.batching.max_batch_size]
        if beyond:
            most = self.batching.max_batch_size
            raise ValueError(f"replicas.warm_up of sizes up to batching.max_batch_size, {most}, got {beyond}")
        return self

    @model_validator(mode="after")
    def _floors_are_of_slices(self) -> Self:
        known = set() if self.slices is None else {*self.slices.values, OTHER}
        unknown = sorted(set(self.mirror.floor_per_minute) - known)
        if unknown:
            raise ValueError(f"mirror.floor_per_minute of declared slices, {sorted(known)}, got {unknown}")
        return self


class Config(_Section):
    """A validated configuration; relative paths are relative to its file."""

    repository: Path
    reports: Path = Path("./reports")
    database: str = "sqlite:///understudy.db"
    server: Server = Server()
    backends: dict[Name, str] = {}
    preprocess: dict[Name, str] = {}
    models: dict[Name, Model] = Field(min_length=1)
    _directory: Path = PrivateAttr(default=Path())

    @property
    def directory(self) -> Path:
        """The folder of the configuration's file."""
        return self._directory

    @field_validator("backends", "preprocess")
    @classmethod
    def _plugins_are_import_paths(cls, plugins: dict[str, str]) -> dict[str, str]:
        for name, path in plugins.items():
            module, _, attribute = path.partition(":")
            if not module or not attribute:
                raise ValueError(f"{name}: an import path package.module:Name, got {path!r}")
        return plugins


def load_config(path: Path) -> Config:
    """Read and validate a configuration file.

    Raises:
        ConfigError: naming the file, the line, the field and what was expected.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(f"{path}{where}: not YAML: {problem}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping with the key 'models', got {type(value).__name__}")
    for key in _repeated(tree):
        raise ConfigError(f"{path}:{key.start_mark.line + 1}: {key.value}: expected once, it is there twice")
    directory = path.resolve().parent
    try:
        config = Config.model_validate(value)
    except ValidationError as error:
        raise ConfigError(_explain(path, tree, error)) from None
    config._directory = directory
    return config.model_copy(
        update={
            "repository": (directory / config.repository).resolve(),
            "reports": (directory / config.reports).resolve(),
            "database": _absolute(config.database, directory),
        }
    )


def _repeated(node: yaml.Node | None) -> Iterator[yaml.Node]:
    """Keys that a mapping has twice: the second would silently undo the first."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    yield key
                seen.add(key.value)
            yield from _repeated(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _repeated(value)


def _absolute(database: str, directory: Path) -> str:
    """A SQLite URL with its file made absolute; other databases as they are."""
    prefix = "sqlite:///"
    if not database.startswith(prefix) or database == prefix:
        return database
    return prefix + str((directory / database.removeprefix(prefix)).resolve())


def _explain(path: Path, tree: yaml.Node | None, error: ValidationError) -> str:
    """The first of pydantic's errors as one line: file:line: field: expectation."""
    first = error.errors()[0]
    location = tuple(part for part in first["loc"] if part != "[key]")
    field = ".".join(str(part) for part in location) or "configuration"
    if first["type"] == "extra_forbidden":
        what = "unknown key"
    elif first["type"] == "missing":
        what = "missing"
    else:
        message = first["msg"].removeprefix("Value error, ")
        what = f"expected {message}" if first["type"] == "value_error" else f"{message}, got {first['input']!r}"
    return f"{path}:{_line(tree, location)}: {field}: {what}"


def _line(node: yaml.Node | None, location: Sequence[Any]) -> int:
    """The 1-based line of the deepest part of ``location`` that the file has."""
    line = node.start_mark.line + 1 if node else 1
    for part in location:
        if not isinstance(node, yaml.MappingNode):
            break
        entry = next(((key, value) for key, value in node.value if key.value == str(part)), None)
        if entry is None:
            break
        line, node = entry[0].start_mark.line + 1, entry[1]
    return int(line)
