"""BentoML with an ONNX model; runs in an environment of its own and imports nothing of ours."""

import argparse
import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Become the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--max-batch-size", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--settings", type=json.loads, required=True)
    options, _ = parser.parse_known_args()
    told = {"model": options.model, "max_batch_size": options.max_batch_size, **options.settings}
    environment = {
        **os.environ,
        "PEER_OPTIONS": json.dumps(told),
        "BENTOML_HOME": str(options.folder / "home"),
        "BENTOML_DO_NOT_TRACK": "true",
    }
    command = [sys.executable, "-m", "bentoml", "serve", "service:OnnxService", "--quiet"]
    command += ["--host", "127.0.0.1", "--port", str(options.port), "--timeout-graceful-shutdown", "2"]
    command += ["--working-dir", str(Path(__file__).parent)]
    os.chdir(options.folder)
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    main()
