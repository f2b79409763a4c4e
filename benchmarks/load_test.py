"""``make load``: the load test of ``locustfile`` against a service of its own with the digits models of the examples.

Arguments go to Locust, after the defaults: ``python -m benchmarks.load_test -u 50 -t 2m --slo-p95-ms 100``.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import yaml

from benchmarks.process import free_ports, running
from benchmarks.service import COMMAND

ROOT: Final = Path(__file__).parents[1]
MODELS: Final = ("digits", "digits-image")
DEFAULTS: Final = ("--headless", "--only-summary", "--users=20", "--spawn-rate=5", "--run-time=60s")


def main(arguments: Sequence[str]) -> int:
    """Start a service on free ports of the loopback, and load it; Locust's exit status.

    Raises:
        BenchmarkError: the service did not start.
    """
    with tempfile.TemporaryDirectory() as folder:
        http, grpc, metrics, admin = free_ports(4)
        config = Path(folder) / "config.yaml"
        shutil.copytree(ROOT / "examples" / "model_repository", Path(folder) / "model_repository")
        model = {"baseline": 1, "replicas": {"num_cpus": 0.1}, "comparator": {"output": "scores"}}
        settings = {
            "repository": "model_repository",
            "server": {"http_port": http, "grpc_port": grpc, "metrics_port": metrics, "admin_port": admin},
            "models": dict.fromkeys(MODELS, model),
        }
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        url = f"http://127.0.0.1:{http}"
        asked = ["--host", url, "--grpc-host", f"127.0.0.1:{grpc}", "--model", ",".join(MODELS)]
        with running([*COMMAND, str(config)], ready_url=f"{url}/v2/health/ready", log=Path(folder) / "serve.log"):
            command = [sys.executable, "-m", "locust", "-f", str(ROOT / "benchmarks" / "locustfile.py")]
            return subprocess.run([*command, *DEFAULTS, *asked, *arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
