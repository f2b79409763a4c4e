"""``understudy rollout …``: everything goes through the admin door of a running server."""

import getpass
import os
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from serving.cli.show import status_view
from serving.client import AdminClient

app = typer.Typer(no_args_is_help=True, help="Start, watch and steer rollouts on a running server.")

Model = Annotated[str, typer.Argument(help="The model's name in the configuration.")]
Admin = Annotated[str, typer.Option(help="The admin door of the server.")]
Token = Annotated[str | None, typer.Option(help="The admin token, where the door asks for one.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Reason = Annotated[str, typer.Option(help="Why; it is kept in the journal.")]
ADMIN = "http://127.0.0.1:8080"


@app.command()
def start(
    model: Model,
    candidate: Annotated[int, typer.Option(min=1, help="The version to rehearse.")],
    policy: Annotated[
        str | None, typer.Option(help="A preset's name or a policy file; as configured if not given.")
    ] = None,
    supersede: Annotated[bool, typer.Option(help="End the model's active rollout, if there is one.")] = False,
    note: Annotated[list[str] | None, typer.Option(help="A line for the report; may be given several times.")] = None,
    admin: Admin = ADMIN,
    token: Token = None,
    json: Json = False,
) -> None:
    """Load a candidate in shadow and let the gates decide."""
    with AdminClient(admin, token=token) as client:
        started = client.start(model, candidate, policy=policy, supersede=supersede, notes=note or [], actor=_user())
    _print(started, json=json, text=f"started {started['deployment_id']}; evidence and journal: {started['folder']}")


@app.command()
def status(model: Model, admin: Admin = ADMIN, token: Token = None, json: Json = False) -> None:
    """Show where a rollout stands, what each gate says, and what is missing."""
    with AdminClient(admin, token=token) as client:
        _show(client.status(model), json=json)


@app.command()
def pause(model: Model, reason: Reason = "", admin: Admin = ADMIN, token: Token = None, json: Json = False) -> None:
    """Stop advancing; the weight stays, and harm still rolls back."""
    _act(model, "pause", reason, admin, token, json=json)


@app.command()
def resume(model: Model, reason: Reason = "", admin: Admin = ADMIN, token: Token = None, json: Json = False) -> None:
    """Go on after a pause."""
    _act(model, "resume", reason, admin, token, json=json)


@app.command()
def promote(
    model: Model,
    to: Annotated[
        int | None, typer.Option(min=0, max=100, help="A later stage's weight in percent; else the next.")
    ] = None,
    reason: Reason = "",
    admin: Admin = ADMIN,
    token: Token = None,
    json: Json = False,
) -> None:
    """Raise the weight by hand, whatever the gates say; harm still rolls back."""
    _act(model, "promote", reason, admin, token, json=json, to=to)


@app.command()
def abort(model: Model, reason: Reason = "", admin: Admin = ADMIN, token: Token = None, json: Json = False) -> None:
    """Give the rollout up; the baseline serves alone."""
    _act(model, "abort", reason, admin, token, json=json)


@app.command()
def rollback(model: Model, reason: Reason = "", admin: Admin = ADMIN, token: Token = None, json: Json = False) -> None:
    """Send every client back to the baseline now."""
    _act(model, "rollback", reason, admin, token, json=json)


def _act(model: str, action: str, reason: str, admin: str, token: str | None, *, json: bool, **options: Any) -> None:
    with AdminClient(admin, token=token) as client:
        _show(client.act(model, action, actor=_user(), reason=reason, **options), json=json)


def _user() -> str:
    """Who acts; in a container a process may run as a user that has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _show(value: dict[str, Any], *, json: bool) -> None:
    if json:
        print(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
    else:
        Console(highlight=False).print(status_view(value))


def _print(value: dict[str, Any], *, json: bool, text: str) -> None:
    print(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() if json else text)
