"""MLServer with an ONNX model; runs in an environment of its own and imports nothing of ours."""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import onnxruntime as ort

_QUIET = {"version": 1, "disable_existing_loggers": False, "root": {"level": "ERROR"}}


def main() -> None:
    """Write its configuration and become the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--max-batch-size", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--grpc-port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--settings", type=json.loads, required=True)
    options = parser.parse_args()
    folder = options.folder / "mlserver"
    folder.mkdir()
    shutil.copy(Path(__file__).with_name("runtime.py"), folder)
    (folder / "settings.json").write_text(json.dumps(_server(options)), encoding="utf-8")
    (folder / "model-settings.json").write_text(json.dumps(_model(options)), encoding="utf-8")
    os.chdir(options.folder)  # it leaves files of its metrics where it runs
    start = Path(__file__).with_name("start.py")
    os.execv(sys.executable, [sys.executable, str(start), "start", str(folder)])


def _server(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": options.port,
        "grpc_port": options.grpc_port,
        "parallel_workers": options.settings["workers"],
        "metrics_endpoint": None,
        "gzip_enabled": False,
        "logging_settings": _QUIET,
    }


def _model(options: argparse.Namespace) -> dict[str, Any]:
    session = ort.InferenceSession(str(options.model), providers=["CPUExecutionProvider"])
    (given,), (returned,) = session.get_inputs(), session.get_outputs()
    return {
        "name": options.name,
        "implementation": "runtime.OnnxModel",
        "parameters": {"uri": str(options.model), "version": "1"},
        "inputs": [{"name": given.name, "datatype": "FP32", "shape": [-1, *given.shape[1:]]}],
        "outputs": [{"name": returned.name, "datatype": "FP32", "shape": [-1, *returned.shape[1:]]}],
        "max_batch_size": options.max_batch_size,
        "max_batch_time": options.settings["max_batch_time_s"],
    }


if __name__ == "__main__":
    main()
