"""Makes the environments of the clients that do not fit beside ours."""

import subprocess
import sys

from tests.contract.foreign import CLIENTS, is_made, python_of, requirements

for client in CLIENTS:
    if is_made(client):
        continue
    folder = python_of(client).parents[1]
    print(f"installing {client}'s client into {folder}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(python_of(client)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--requirement", str(requirements(client))], check=True)
    (folder / ".complete").touch()
