"""``understudy serve``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from serving.config import Config, load_config


def serve(
    config: Annotated[Path, typer.Argument(help="The configuration, such as examples/digits.yaml.")],
    check: Annotated[
        bool, typer.Option("--check", help="Check the configuration and what it names, then stop.")
    ] = False,
) -> None:
    """Serve the models of a configuration until Ctrl-C."""
    settings = load_config(config)
    from serving import launch  # takes seconds: Ray

    console = Console(stderr=False, highlight=False)
    if check:
        launch.check(settings)
        console.print(f"{config}: good")
        return
    with launch.running(settings, say=lambda text: console.print(f"[dim]{text} …[/]")):
        for line in urls(settings):
            console.print(line)
        console.print("[bold]ready[/] (Ctrl-C stops)")
        launch.wait_for_signal()
        console.print("stopping …")


def urls(config: Config) -> list[str]:
    """Where the doors are, a line each."""
    server = config.server
    return [
        f"inference  http://{server.host}:{server.http_port}/v2",
        f"gRPC       grpc://{server.host}:{server.grpc_port}",
        f"metrics    http://{server.host}:{server.metrics_port}/metrics",
        f"admin      http://{server.host}:{server.admin_port}/docs",
        f"logs       {config.reports / 'logs'}",
    ]
