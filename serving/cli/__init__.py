"""The ``understudy`` command. Exit status: 0 done, 1 a gate or check said no, 2 wrong use."""

import sys

import typer
from typer._click.exceptions import ClickException, NoArgsIsHelpError  # typer's own copy of click

from models.errors import UnderstudyError
from serving.cli import demo as demo_commands
from serving.cli import evidence, labels, rollout
from serving.cli import models as models_commands
from serving.cli import profile as profile_commands
from serving.cli import report as report_commands
from serving.cli import serve as serve_commands
from serving.cli import shadow as shadow_commands

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Serve vision models, rehearse the next version on live traffic, promote it or roll it back.",
)
app.command("serve")(serve_commands.serve)
app.command("demo")(demo_commands.demo)
app.add_typer(rollout.app, name="rollout")
app.command("report")(report_commands.report)
app.add_typer(labels.app, name="labels")
app.add_typer(evidence.app, name="evidence")
app.add_typer(shadow_commands.app, name="shadow")
app.add_typer(models_commands.app, name="models")
app.command("schema-diff")(models_commands.schema_diff)
app.command("profile")(profile_commands.profile)


def main() -> None:
    """Run a command; whatever is wrong with its use, or its files, is one line on standard error and exit status 2."""
    try:
        sys.exit(app(prog_name="understudy", standalone_mode=False))
    except NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except ClickException as error:
        print(f"understudy: {' '.join(error.format_message().split())}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (UnderstudyError, OSError) as error:
        print(f"understudy: {error}", file=sys.stderr)
        sys.exit(2)
