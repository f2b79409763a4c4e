"""One decoder under atheris: ``python -m benchmarks.fuzz.guided NAME CORPUS RUNS SEED``; new inputs stay in CORPUS."""

import sys
from typing import Final

import atheris

with atheris.instrument_imports(include=["serving", "models"]):  # what is imported here tells the fuzzer its way
    from benchmarks.fuzz.decoders import try_one

_MAX_BYTES: Final = 4096
_LARGEST_RSS_MB: Final = 2048


def main(name: str, corpus: str, runs: str, seed: str) -> None:
    """Fuzz until the runs are done or something is found; ends the process."""
    limits = (f"-max_len={_MAX_BYTES}", f"-rss_limit_mb={_LARGEST_RSS_MB}", f"-artifact_prefix={corpus}/crash-")

    def attempt(data: bytes) -> None:
        try_one(name, data)

    atheris.Setup([sys.argv[0], f"-runs={runs}", f"-seed={seed}", *limits, corpus], attempt)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
