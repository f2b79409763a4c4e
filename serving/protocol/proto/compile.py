"""Compiles the .proto files beside it: ``make proto``, or ``python -m serving.protocol.proto.compile``.

Needs grpcio-tools, which is among the development dependencies; a running server does not.
"""

import sys
import tempfile
from pathlib import Path
from typing import Final

from serving.protocol.proto import DESCRIPTORS

SOURCES: Final = ("inference.proto", "health.proto")


def compiled() -> bytes:
    """The sources' descriptor set, as ``protoc`` writes it."""
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / DESCRIPTORS.name
        options = [f"--proto_path={DESCRIPTORS.parent}", f"--descriptor_set_out={target}"]
        if protoc.main(["protoc", *options, *SOURCES]) != 0:
            sys.exit(1)  # protoc has said why
        return target.read_bytes()


if __name__ == "__main__":
    DESCRIPTORS.write_bytes(compiled())
