"""``understudy demo``: two candidates, real digits, real clients, real decisions."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Annotated, Any, Final

import orjson
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.rule import Rule
from rich.text import Text

from rollout.policy import load_policy
from serving.cli.show import accounting_line, status_view
from serving.client import AdminClient
from serving.config import Config, load_config
from serving.errors import LaunchError, ServingError

MODEL: Final = "digits"
ROLLOUT_LIMIT_S: Final = 150.0
_LOOK_S: Final = 0.5
_PLAIN_EVERY_S: Final = 3.0


class DemoError(ServingError):
    """The demo did not go as it must."""


@dataclass(frozen=True, slots=True)
class Act:
    """One candidate and how its rollout must end."""

    version: int
    title: str
    outcome: str


ACTS: Final = (
    Act(2, "a better candidate: rehearsed in shadow, then moved up by its gates", "GO"),
    Act(4, "a regressed candidate (wrong normalisation): rolled back by its gates", "REJECT"),
)


@dataclass(slots=True)
class Clients:
    """The clients' process and what it reported last."""

    process: "subprocess.Popen[bytes]"
    totals: dict[str, Any] = field(default_factory=dict)

    def follow(self) -> None:
        """Read its reports until it ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.totals = orjson.loads(line)

    def line(self) -> str:
        """What clients have seen so far."""
        seen = self.totals
        if not seen:
            return "clients: starting"
        versions = ", ".join(f"version {version} {count}" for version, count in sorted(seen["versions"].items()))
        return (
            f"clients: {seen['requests']} requests, {seen['failed']} failed; answered by {versions or 'nobody yet'}; "
            f"p50 {seen['p50_ms']:.1f} ms, p99 {seen['p99_ms']:.1f} ms; {seen['labels']} labels brought"
        )


def demo(
    config: Annotated[Path, typer.Option(help="The configuration to serve.")] = Path("examples/digits.yaml"),
    policy: Annotated[Path, typer.Option(help="The policy that judges both candidates.")] = Path(
        "examples/demo_policy.yaml"
    ),
    rate: Annotated[float, typer.Option(min=1, max=2000, help="Images a second that the clients send.")] = 240.0,
) -> None:
    """Serve the digits models, play real digits, promote a better candidate and reject a regressed one."""
    from serving import launch

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    settings = load_config(config)
    load_policy(str(policy.resolve()), relative_to=Path())
    launch.check(settings)
    settings = _own_folder(settings)
    console.print(Rule("Understudy"))
    console.print(
        f"Real handwritten digits against the baseline, which is modest on purpose; everything of this run goes to "
        f"{settings.reports}",
    )
    try:
        with launch.running(settings, say=lambda text: console.print(f"[dim]{text} …[/]")):
            _play(console, settings, policy.resolve(), rate)
    except DemoError as error:
        print(f"understudy: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


def _own_folder(config: Config) -> Config:
    """A run of its own: nothing of an earlier one counts."""
    reports = config.reports.resolve() / f"demo-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    reports.mkdir(parents=True)
    return config.model_copy(update={"reports": reports, "database": f"sqlite:///{reports}/understudy.db"})


def _play(console: Console, config: Config, policy: Path, rate: float) -> None:
    admin_url = f"http://{config.server.host}:{config.server.admin_port}"
    with AdminClient(admin_url) as admin, _clients(config, admin_url, rate) as clients:
        endings = [_rollout(console, admin, clients, act, policy) for act in ACTS]
    _close(console, clients, endings, config.reports)


@contextmanager
def _clients(config: Config, admin_url: str, rate: float) -> Iterator[Clients]:
    """The clients, in a process of their own, until the end of the block."""
    command = [sys.executable, "-m", "serving.cli.player", "--admin", admin_url, "--model", MODEL]
    command += ["--http", f"{config.server.host}:{config.server.http_port}", "--rate", str(rate)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    clients = Clients(process)
    reader = Thread(target=clients.follow, daemon=True)
    reader.start()
    try:
        yield clients
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
        reader.join(timeout=2)


def _rollout(console: Console, admin: AdminClient, clients: Clients, act: Act, policy: Path) -> dict[str, Any]:
    console.print(Rule(f"version {act.version}: {act.title}"))
    from models.reference.digits import load_split

    note = (
        f"Clients draw their images at random, with replacement, from {len(load_split().test_images)} distinct test "
        "images; every request was sent in this run."
    )
    admin.start(MODEL, act.version, policy=str(policy), actor="demo", notes=[note])
    status = _watch(console, admin, clients)
    console.print(status_view(status))
    if status["outcome"] != act.outcome:
        raise DemoError(f"version {act.version}: expected {act.outcome}, the rollout ended: {status['verdict']}")
    return status


def _watch(console: Console, admin: AdminClient, clients: Clients) -> dict[str, Any]:
    """Show a rollout live until it has ended; returns its last status."""
    deadline = time.monotonic() + ROLLOUT_LIMIT_S
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            return _follow(admin, clients, deadline, lambda status: live.update(_view(status, clients)))
    return _follow(admin, clients, deadline, _Plain(console, clients))


def _follow(
    admin: AdminClient, clients: Clients, deadline: float, show: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    while True:
        if clients.process.poll() is not None:
            raise LaunchError(f"the clients' process ended with status {clients.process.returncode}")
        status = admin.status(MODEL)
        show(status)
        if not status["active"]:
            return status
        if time.monotonic() > deadline:
            raise DemoError(f"undecided after {ROLLOUT_LIMIT_S:.0f} s: {'; '.join(status['missing'])}")
        time.sleep(_LOOK_S)


def _view(status: dict[str, Any], clients: Clients) -> Group:
    return Group(status_view(status), Text(clients.line()))


class _Plain:
    """Progress where there is no terminal: a line when the rollout moves, and every few seconds."""

    def __init__(self, console: Console, clients: Clients) -> None:
        self._console, self._clients = console, clients
        self._position: tuple[str, int] | None = None
        self._next = 0.0

    def __call__(self, status: dict[str, Any]) -> None:
        position = (status["state"], status["weight"])
        if position == self._position and time.monotonic() < self._next:
            return
        self._position, self._next = position, time.monotonic() + _PLAIN_EVERY_S
        judgement = status["judgement"]
        waiting = (
            [f"{gate['gate']} {gate['verdict']}" for gate in judgement["gates"] if gate["binding"]] if judgement else []
        )
        self._console.print(
            f"{status['state']:8} {status['weight']:3} %  {status['elapsed_s']:4.0f} s  " + "  ".join(waiting)
        )
        self._console.print(f"               {self._clients.line()}", style="dim")


def _close(console: Console, clients: Clients, endings: list[dict[str, Any]], reports: Path) -> None:
    seen = clients.totals
    console.print(Rule("what happened"))
    console.print(clients.line())
    console.print(f"{seen.get('distinct', 0)} distinct test images were sent, each drawn at random with replacement")
    for ending in endings:
        folder = Path(ending["folder"])
        console.print(f"\n[bold]{ending['deployment_id']}[/]: {ending['reason']}")
        console.print(f"mirror (items): {accounting_line(ending['accounting'])}" if ending["accounting"] else "")
        console.print(f"  report    {folder / 'deployment_verdict.md'}")
        console.print(f"  evidence  {folder / 'evidence'}   (check it: understudy evidence verify {folder})")
        console.print(f"  journal   {folder / 'journal.jsonl'}")
        console.print(f"[bold]{ending['verdict']}[/]")
    if seen.get("failed"):
        raise DemoError(f"{seen['failed']} client requests failed: {seen['error']}")
    console.print(f"\nlogs: {reports / 'logs'}")
