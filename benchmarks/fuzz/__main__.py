"""What malformed input does to Understudy: ``python -m benchmarks.fuzz``.

First the decoders, one by one, under a fuzzer that is guided by coverage. Then a service as a user starts it gets
malformed bodies over HTTP, messages over gRPC and damaged requests byte by byte, until so many were refused. What may
not happen: an answer that blames the server (5xx, INTERNAL, UNKNOWN), one that is not the protocol's, a server that
does not live after a batch, memory that grows.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks.environment import ROOT, describe
from benchmarks.errors import BenchmarkError
from benchmarks.fuzz.bodies import grpc_bodies, heads, http_bodies
from benchmarks.fuzz.campaign import Campaign, over_grpc, over_http, over_http2, over_sockets
from benchmarks.fuzz.decoders import TARGETS, fuzz
from benchmarks.fuzz.memory import Memory, processes_of
from benchmarks.fuzz.sessions import sessions
from benchmarks.process import free_ports, running
from benchmarks.report import RESULTS, origin, say, table, write
from benchmarks.service import COMMAND
from models.errors import UnderstudyError

BATCH: Final = 1000
GROWTH_LIMIT_MB: Final = 32.0
_WARM_UP_SHARE: Final = 0.2  # of the refusals: allocators and caches fill up first


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is sent: ``runs`` counts those of each decoder, the others what was refused."""

    http: int
    grpc: int
    sockets: int
    http2: int
    runs: int
    seed: int


@contextmanager
def service(scratch: Path) -> Iterator[dict[str, int]]:
    """The examples' models served on free ports, which are given by their names."""
    ports = dict(zip(("http_port", "grpc_port", "metrics_port", "admin_port"), free_ports(4), strict=True))
    model = {"baseline": 1, "replicas": {"num_cpus": 0.1}, "comparator": {"kind": "classification", "output": "scores"}}
    settings = {
        "repository": str(ROOT / "examples" / "model_repository"),
        "reports": "reports",
        "server": ports,
        "models": {"digits": model, "digits-image": model},
    }
    config = scratch / "config.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    ready = f"http://127.0.0.1:{ports['http_port']}/v2/health/ready"
    with running([*COMMAND, str(config)], ready_url=ready, log=scratch / "serve.log"):
        yield ports


def measure(plan: Plan) -> dict[str, Any]:
    """Do what ``plan`` says; the result as plain values.

    Raises:
        BenchmarkError: something happened that may not, or the service does not start.
    """
    environment = describe()
    with tempfile.TemporaryDirectory(prefix="understudy-fuzz-") as folder:
        scratch = Path(folder)
        decoders = [fuzz(name, scratch / name, runs=plan.runs, seed=plan.seed) for name in TARGETS if plan.runs]
        found = {name: [each.read_bytes() for each in (scratch / name).glob("*")] for name in TARGETS}
        say("starting the service")
        with service(scratch) as ports:
            doors = [_run(each, ports) for each in _campaigns(plan, ports, found)]
            _no_traceback(scratch / "serve.log")
    return {
        "benchmark": "fuzz",
        "environment": environment,
        "settings": {**asdict(plan), "batch": BATCH, "growth_limit_mb": GROWTH_LIMIT_MB},
        "decoders": decoders,
        "doors": doors,
    }


def _no_traceback(log: Path) -> None:
    """Raise if the service's log shows an exception that nobody caught."""
    said = log.read_text(encoding="utf-8", errors="replace")
    if (at := said.find("Traceback (most recent call last)")) >= 0:
        raise BenchmarkError(f"the service logged: {said[at : at + 2000]}")


def _campaigns(plan: Plan, ports: dict[str, int], found: dict[str, list[bytes]]) -> list[Campaign]:
    http, grpc = ports["http_port"], ports["grpc_port"]
    bodies = [each[2:] for each in found["infer"]] + [each[1:] for each in found["picture"]] + found["json"]
    return [
        Campaign(name="HTTP", refusals=plan.http, send=over_http(http, http_bodies(plan.seed, bodies)), port=http),
        Campaign(
            name="gRPC", refusals=plan.grpc, send=over_grpc(grpc, grpc_bodies(plan.seed, found["message"])), port=http
        ),
        Campaign(name="damaged HTTP", refusals=plan.sockets, send=over_sockets(http, heads(plan.seed)), port=http),
        Campaign(name="damaged HTTP/2", refusals=plan.http2, send=over_http2(grpc, sessions(plan.seed)), port=http),
    ]


def _run(campaign: Campaign, ports: dict[str, int]) -> dict[str, Any]:
    """One campaign with the memory of the processes behind the door beside it."""
    memory = Memory(processes_of(ports["http_port"]))
    warm_up = round(campaign.refusals * _WARM_UP_SHARE)
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        send = stack.enter_context(campaign.send)
        while campaign.refused(counts) < campaign.refusals:
            counts += send(BATCH)
            campaign.check(counts)
            if not memory.begun and campaign.refused(counts) >= warm_up:
                memory.begin()
            if sum(counts.values()) % (10 * BATCH) == 0:
                say(f"{campaign.name}: {campaign.refused(counts)} of {campaign.refusals} refused; {memory.now()}")
    grown = memory.end()
    for name, process in grown.items():
        if process["growth_mb"] > GROWTH_LIMIT_MB:
            raise BenchmarkError(f"{campaign.name}: {name} grew by {process['growth_mb']:.0f} MB")
    return {
        "door": campaign.name,
        "sent": sum(counts.values()),
        "refused": campaign.refused(counts),
        "answers": dict(sorted(counts.items())),
        "memory": grown,
    }


def render(document: dict[str, Any]) -> str:
    """The result as Markdown."""
    settings = document["settings"]
    parts = ["# What malformed input does", origin(document["environment"])]
    parts.append(
        f"Seed {settings['seed']}. A service as a user starts it, with the examples' models; after every "
        f"{settings['batch']} requests it must say that it lives. No answer blames the server; no process grew by "
        f"more than {settings['growth_limit_mb']:g} MB after the first fifth."
    )
    for door in document["doors"]:
        parts += [f"## {door['door']}: {door['sent']} sent, {door['refused']} refused", _answers(door), _memory(door)]
    if document["decoders"]:
        rows = [(each["target"], str(each["runs"]), str(each["inputs_kept"])) for each in document["decoders"]]
        parts += ["## Decoders under atheris, guided by coverage", table(("decoder", "runs", "inputs kept"), rows)]
    return "\n\n".join(parts)


def _answers(door: dict[str, Any]) -> str:
    return table(("answer", "times"), [(name, str(times)) for name, times in door["answers"].items()])


def _memory(door: dict[str, Any]) -> str:
    header = ("resident memory, MB", "after the first fifth", "at the end", "growth")
    return table(
        header,
        [
            (name, f"{each['before_mb']:.1f}", f"{each['after_mb']:.1f}", f"{each['growth_mb']:+.1f}")
            for name, each in door["memory"].items()
        ],
    )


def main() -> int:
    """Fuzz, print and write the result; exit status 1 if something happened that may not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--http", type=int, default=100_000, help="bodies to be refused over HTTP")
    parser.add_argument("--grpc", type=int, default=20_000, help="messages to be refused over gRPC")
    parser.add_argument("--sockets", type=int, default=20_000, help="connections of HTTP/1.1 to be refused")
    parser.add_argument("--http2", type=int, default=20_000, help="connections of HTTP/2 to be refused")
    parser.add_argument("--runs", type=int, default=200_000, help="runs of each decoder")
    parser.add_argument("--seed", type=int, default=1, help="the same seed sends the same")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where fuzz.json and fuzz.md are written")
    options = parser.parse_args()
    plan = Plan(**{each.name: getattr(options, each.name) for each in fields(Plan)})
    try:
        document = measure(plan)
    except UnderstudyError as error:
        print(f"fuzz: {error}", file=sys.stderr)
        return 1
    markdown = render(document)
    write(options.out, "fuzz", document, markdown)
    print(markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
