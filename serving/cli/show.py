"""How a rollout is shown in a terminal; shared by ``rollout status`` and ``demo``."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

_COLOURS = {"PASS": "green", "HOLD": "yellow", "ERROR": "red", "FAIL": "bold red"}


def status_view(status: Mapping[str, Any]) -> RenderableType:
    """A rollout's status (``RolloutStatus.to_json``) as a few lines and a table of gates."""
    parts: list[RenderableType] = [_headline(status), _stages(status)]
    judgement = status["judgement"]
    if judgement is not None:
        parts.append(_gates(judgement))
    if status["accounting"]:
        parts.append(Text("mirror (items): " + accounting_line(status["accounting"]), style="dim"))
    parts += [Text(f"structural finding: {each}", style="yellow") for each in status["findings"]]
    if status.get("reopened"):
        again = status["reopened"]
        parts.append(Text(f"reopened at {again['at'][:19]} UTC: {again['reason']}", style="bold red"))
    if status.get("fault"):
        parts.append(Text(f"fault: {status['fault']}", style="red"))
    if not status["active"]:
        parts.append(Text(status["verdict"], style="bold"))
    return Group(*parts)


def accounting_line(account: Mapping[str, int]) -> str:
    """The mirror's account as its own equation."""
    ends = " + ".join(f"{name.replace('_', ' ')} {count}" for name, count in account.items() if name != "sampled")
    return f"sampled {account['sampled']} = {ends}"


def _headline(status: Mapping[str, Any]) -> Text:
    text = Text(f"{status['deployment_id']}  ", style="bold")
    text.append(f"{status['baseline']} → {status['candidate']}  policy {status['policy']}  ", style="default")
    text.append(f"{status['state']}", style="cyan")
    text.append(f"  {status['elapsed_s']:.0f} s  {status['reason']}", style="dim")
    return text


def _stages(status: Mapping[str, Any]) -> Text:
    text = Text("stages  ")
    for index, weight in enumerate(status["stages"]):
        name = "shadow" if weight == 0 else f"{weight} %"
        here = index == status["stage"]
        style = "reverse bold" if here and status["active"] else ("green" if index < status["stage"] else "dim")
        text.append(f" {name} ", style=style)
        text.append(" → " if index < len(status["stages"]) - 1 else "", style="dim")
    return text


def _gates(judgement: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("gate", "", "verdict", "finding", "threshold", "why"):
        table.add_column(column, overflow="fold")
    for gate in judgement["gates"]:
        table.add_row(
            f"{gate['requirement']} {gate['gate']}",
            "binds" if gate["binding"] else "advises",
            Text(gate["verdict"], style=_COLOURS[gate["verdict"]]),
            gate["finding"],
            gate["threshold"],
            gate["reason"],
        )
    return table
