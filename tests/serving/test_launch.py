"""What the launcher refuses before anything is started."""

import socket
import warnings
from pathlib import Path

import pytest

from serving.door import bind
from serving.errors import LaunchError
from tests.serving.control_room import write_version
from tests.serving.stage import config_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ray's own, as it is imported
    from serving.launch import check

PORTS = ("http_port", "grpc_port", "metrics_port", "admin_port")


@pytest.mark.parametrize("field", PORTS)
@pytest.mark.parametrize("routers", [1, 2])
def test_a_port_of_somebody_else_is_refused_though_he_would_share_it(tmp_path: Path, field: str, routers: int) -> None:
    config = config_of(tmp_path)
    write_version(config.repository, 1)
    free = [bind("127.0.0.1", 0) for _ in PORTS]
    ports = dict(zip(PORTS, (each.getsockname()[1] for each in free), strict=True))
    for each in free:
        each.close()
    server = config.server.model_copy(update={**ports, "routers": routers})
    config = config.model_copy(update={"server": server})
    check(config)
    with bind("127.0.0.1", ports[field], reuse_port=True) as theirs:
        theirs.listen()
        with pytest.raises(LaunchError, match=rf"server\.{field}: port {ports[field]} on 127\.0\.0\.1 cannot be used"):
            check(config)
        with socket.create_connection(("127.0.0.1", ports[field])):
            pass  # they are still there
