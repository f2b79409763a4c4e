"""Settings that were thought of, side by side: where those that a peer is measured with are from."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import orjson

from benchmarks.environment import commit, describe
from benchmarks.peers import PEERS
from benchmarks.peers.bench import Bench, Plan
from benchmarks.peers.contract import Load, Settings
from benchmarks.peers.journal import Journal, Run
from benchmarks.peers.served import PeerServer
from benchmarks.report import origin, say, table, write
from benchmarks.workloads import WORKLOADS


def tune(servers: Sequence[PeerServer], plan: Plan, workload: str, out: Path) -> str:
    """Measure each peer once with every combination of settings that was thought of; write and return the table."""
    environment = describe()
    runs = [
        run for server in servers for settings in server.peer.tried for run in _tuned(server, settings, plan, workload)
    ]
    loads = list(dict.fromkeys(run.load for run in runs))
    rates: dict[tuple[str, str], dict[Load, float]] = {}
    for run in runs:
        said = orjson.dumps(dict(run.settings)).decode()
        rates.setdefault((PEERS[run.server].title, said), {})[run.load] = run.sample.requests_per_s
    header = ["", *(f"requests/s, {load.transport}, {load.amount}" for load in loads)]
    cells = [
        [f"{title} `{said}`", *(f"{each.get(load, 0):.0f}" for load in loads)] for (title, said), each in rates.items()
    ]
    page = f"# Settings of the peers: {WORKLOADS[workload].title}\n\n{origin(environment)}\n\n{table(header, cells)}"
    document = {
        "benchmark": "tuning",
        "environment": environment,
        "plan": asdict(plan),
        "runs": list(map(asdict, runs)),
    }
    write(out, f"tuning_{workload}", document, page)
    return page


def _tuned(server: PeerServer, settings: Settings, plan: Plan, workload: str) -> list[Run]:
    say(f"{server.title} {orjson.dumps(dict(settings)).decode()}")
    changed = replace(server, changed=settings)
    with tempfile.TemporaryDirectory(prefix="understudy-tuning-") as folder:
        journal = Journal(Path(folder) / "runs.jsonl", {})
        one = replace(plan, rounds=1, workloads=(workload,))
        Bench(plan=one, contenders=[changed], journal=journal, commit=commit).run()
    return journal.runs
