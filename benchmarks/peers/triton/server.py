"""Triton with an ONNX model in its Python backend; runs in an environment of its own and imports nothing of ours.

Writes a model repository and becomes the server that nvidia-pytriton's wheel carries. Its Python stub embeds the
interpreter whose shared library it finds, with paths that follow from PYTHONHOME alone: PYTHONPATH does not reach it.
But the current folder is first on its path, and so that is where the packages are.
"""

import argparse
import json
import os
import shutil
import sys
import sysconfig
from pathlib import Path

import onnxruntime as ort

_CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: {max_batch_size}
input [{{ name: "{input}" data_type: TYPE_FP32 dims: {input_dims} }}]
output [{{ name: "{output}" data_type: TYPE_FP32 dims: {output_dims} }}]
instance_group [{{ count: {instances} kind: KIND_CPU }}]
dynamic_batching {{ max_queue_delay_microseconds: {max_queue_delay_us} }}
"""


def main() -> None:
    """Become the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--max-batch-size", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--grpc-port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--settings", type=json.loads, required=True)
    options = parser.parse_args()
    packages = Path(sysconfig.get_path("purelib"))
    home = packages / "pytriton" / "tritonserver"
    library = Path(sysconfig.get_config_var("LIBDIR"))
    if not (library / f"libpython{_version()}.so.1.0").exists():
        sys.exit(f"triton: expected libpython{_version()}.so.1.0 in {library}: its Python stub links it")
    _install_stub(home)
    repository = options.folder / "repository"
    _write_repository(repository, options)
    command = [str(home / "bin" / "tritonserver"), f"--model-repository={repository}"]
    command += [f"--backend-directory={home / 'backends'}", "--http-address=127.0.0.1", "--grpc-address=127.0.0.1"]
    command += [f"--http-port={options.port}", f"--grpc-port={options.grpc_port}", "--allow-metrics=false"]
    command += [f"--http-thread-count={options.settings['http_threads']}"]
    command += ["--log-info=false", "--log-warning=false"]
    os.chdir(packages)
    environment = {**os.environ, "PYTHONHOME": sys.base_prefix, "LD_LIBRARY_PATH": str(library)}
    os.execve(command[0], command, environment)


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _install_stub(home: Path) -> None:
    """Put the stub of this version of Python where the backend looks for it."""
    stub = home / "backends" / "python" / "triton_python_backend_stub"
    if not stub.exists():
        stub.symlink_to(home / "python_backend_stubs" / _version() / stub.name)


def _write_repository(repository: Path, options: argparse.Namespace) -> None:
    session = ort.InferenceSession(str(options.model), providers=["CPUExecutionProvider"])
    (given,), (returned,) = session.get_inputs(), session.get_outputs()
    version = repository / options.name / "1"
    version.mkdir(parents=True)
    shutil.copy(options.model, version / "model.onnx")
    shutil.copy(Path(__file__).with_name("model.py"), version / "model.py")
    text = _CONFIG.format(
        name=options.name,
        max_batch_size=options.max_batch_size,
        input=given.name,
        input_dims=given.shape[1:],
        output=returned.name,
        output_dims=returned.shape[1:],
        **options.settings,
    )
    (version.parent / "config.pbtxt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
