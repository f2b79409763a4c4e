"""``understudy models …`` and ``understudy schema-diff``: look at models without serving them."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.backends import open_backend
from models.errors import ModelError, SpecError
from models.preprocess import open_preprocess
from models.repository import find_versions, identify, open_version, write_hash
from models.schema_diff import SchemaDiff, diff
from models.signature import check_outputs
from models.spec import MODEL_FILE, ModelSpec, load_spec
from models.tensor import Array
from models.warm_up import zeros

app = typer.Typer(no_args_is_help=True, help="Check, hash and describe models in a repository.")

_Directory = Annotated[
    Path,
    typer.Argument(metavar="DIR", help="The folder of a version, a model or a repository.", show_default=False),
]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """One version's check; ``problem`` is "" if all is well. Times are the backend's for one batch of zeros.

    ``preprocess`` names each input that a step takes, with the step's kind.
    """

    model: str
    version: int
    backend: str
    preprocess: str
    problem: str
    one_ms: float | None = None
    full_batch_size: int | None = None
    full_batch_ms: float | None = None


@app.command()
def check(
    directory: _Directory,
    backend: Annotated[
        list[str] | None,
        typer.Option("--backend", metavar="NAME=PACKAGE.MODULE:CLASS", help="A backend of your own. Repeatable."),
    ] = None,
    preprocess: Annotated[
        list[str] | None,
        typer.Option("--preprocess", metavar="NAME=PACKAGE.MODULE:CLASS", help="A step of your own. Repeatable."),
    ] = None,
    as_json: _AsJson = False,
) -> None:
    """Verify model.yaml and sha256, load the model, and run a batch of zeros of size 1 and of the largest size.

    Exit status 1 if a version fails.
    """
    backends = _parse_plugins(backend or [], "--backend")
    steps = _parse_plugins(preprocess or [], "--preprocess")
    results = [check_version(path, backends, steps) for path in find_versions(directory)]
    if as_json:
        typer.echo(json.dumps([asdict(result) for result in results]))
    else:
        _print_results(results)
    if any(result.problem for result in results):
        raise typer.Exit(1)


@app.command("hash")
def write_hashes(directory: _Directory, as_json: _AsJson = False) -> None:
    """Write the sha256 of each version's files into its model.yaml, and nothing else."""
    digests = {path: write_hash(path) for path in find_versions(directory)}
    if as_json:
        typer.echo(json.dumps({str(path): digest for path, digest in digests.items()}))
        return
    for path, digest in digests.items():
        typer.echo(f"{digest}  {path}")


@app.command()
def schema(directory: _Directory) -> None:
    """Print a version's schema as the JSON that schema-diff reads."""
    typer.echo(json.dumps(_read_schema(directory).to_json(), indent=2))


def schema_diff(
    baseline: Annotated[Path, typer.Option(help="A version's folder, or its schema as JSON.", show_default=False)],
    candidate: Annotated[Path, typer.Option(help="A version's folder, or its schema as JSON.", show_default=False)],
    as_json: _AsJson = False,
) -> None:
    """Compare the schemas of baseline and candidate. Exit status 1 if they are incompatible."""
    found = diff(_read_schema(baseline), _read_schema(candidate))
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        _print_diff(found)
    if not found.compatible:
        raise typer.Exit(1)


def check_version(directory: Path, backends: Mapping[str, str], steps: Mapping[str, str]) -> CheckResult:
    """Verify, load and try one version; whatever is wrong with it becomes the result's ``problem``."""
    name, number = identify(directory)
    backend_name, preprocess = "?", ""
    try:
        version = open_version(directory)
        backend_name = version.spec.backend
        preprocess = ", ".join(f"{step.input}: {step.kind}" for step in version.spec.preprocess)
        open_preprocess(version, steps)
        backend = open_backend(version, backends)
        try:
            backend.load()
            spec = version.spec.for_backend()
            one_ms = _try_batch(backend.run, spec, 1)
            full = max(1, spec.max_batch_size)
            full_ms = _try_batch(backend.run, spec, full)
        finally:
            backend.close()
    except ModelError as error:
        return CheckResult(model=name, version=number, backend=backend_name, preprocess=preprocess, problem=str(error))
    return CheckResult(
        model=name,
        version=number,
        backend=backend_name,
        preprocess=preprocess,
        problem="",
        one_ms=one_ms,
        full_batch_size=full,
        full_batch_ms=full_ms,
    )


def _try_batch(run: Callable[[Mapping[str, Array]], dict[str, Array]], spec: ModelSpec, rows: int) -> float:
    """Milliseconds that one batch of zeros took."""
    inputs = zeros(spec, rows)
    started_s = time.perf_counter()
    outputs = run(inputs)
    took_ms = (time.perf_counter() - started_s) * 1e3
    check_outputs(spec, outputs, rows)
    return took_ms


def _parse_plugins(options: list[str], hint: str) -> dict[str, str]:
    plugins: dict[str, str] = {}
    for option in options:
        name, separator, target = option.partition("=")
        if not (name and separator and target):
            raise typer.BadParameter(f"expected NAME=PACKAGE.MODULE:CLASS, got {option!r}", param_hint=hint)
        plugins[name] = target
    return plugins


def _read_schema(path: Path) -> ModelSpec:
    if path.is_dir():
        name, version = identify(path)
        return load_spec(path, name=name, version=version)
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise SpecError(path, "file", f"a schema as JSON, or a folder with a {MODEL_FILE}") from error
    except (OSError, ValueError) as error:
        raise SpecError(path, "document", "JSON", str(error)) from error
    return ModelSpec.from_json(document, file=path)


def _print_results(results: list[CheckResult]) -> None:
    table = Table("model", "version", "backend", "one item", "full batch", "result")
    for result in results:
        one = "" if result.one_ms is None else f"{result.one_ms:.2f} ms"
        full = "" if result.full_batch_ms is None else f"{result.full_batch_ms:.2f} ms of {result.full_batch_size}"
        verdict = "[red]failed[/red]" if result.problem else "[green]ok[/green]"
        texts = (result.model, str(result.version), f"{result.backend}\n{result.preprocess}".strip())
        table.add_row(*map(escape, texts), one, full, verdict)
    console = Console()
    console.print(table)
    for result in results:
        if result.problem:
            console.print(f"{result.model} {result.version}: {result.problem}", markup=False, soft_wrap=True)


def _print_diff(found: SchemaDiff) -> None:
    console = Console()
    if found.differences:
        table = Table("field", "baseline", "candidate", "verdict", "reason")
        for difference in found.differences:
            verdict = "[green]compatible[/green]" if difference.compatible else "[red]incompatible[/red]"
            sides = (escape(str(difference.baseline)), escape(str(difference.candidate)))
            table.add_row(escape(difference.field), *sides, verdict, escape(difference.reason))
        console.print(table)
    verdict = "compatible" if found.compatible else "incompatible"
    console.print(f"{verdict}: {len(found.differences)} of {found.compared} fields differ", highlight=False)
