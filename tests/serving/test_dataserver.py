"""The data plane's thread: what its host hears of its health."""

import time
from pathlib import Path

import pytest

from serving import dataserver
from serving.board import Board
from serving.config import Config, Server
from serving.dataserver import DataServer
from serving.directory import Directory
from tests.end_to_end.service import free_ports
from tests.serving.stage import config_of

pytestmark = pytest.mark.timeout(30)


def config(folder: Path) -> Config:
    names = ("http_port", "grpc_port", "metrics_port", "admin_port")
    server = Server.model_validate({"host": "127.0.0.1", **dict(zip(names, free_ports(4), strict=True))})
    return config_of(folder).model_copy(update={"server": server})


def test_a_data_plane_whose_loop_no_longer_comes_round_is_not_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataserver, "_STUCK_S", 0.3)
    server = DataServer(config(tmp_path), Directory(tmp_path / "replicas"), Board(tmp_path / "routers"))
    server.start()
    try:
        time.sleep(0.5)
        assert server.alive
        assert server._loop is not None
        server._loop.call_soon_threadsafe(time.sleep, 1.0)
        time.sleep(0.6)
        assert not server.alive
        time.sleep(0.8)
        assert server.alive
    finally:
        server.stop()
    assert not server.alive
