"""What the contract's suites share."""

from collections.abc import Iterator

import pytest

from serving.dataplane import DataPlane
from tests.contract.local_engine import Endpoint, LocalEngine, served
from tests.contract.repository import BACKENDS, SLOW_QUEUE, write_repository


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """An endpoint that serves the models of ``tests.contract.repository``."""
    repository = write_repository(tmp_path_factory.mktemp("repository"))
    engine = LocalEngine(repository, BACKENDS, {"slow": SLOW_QUEUE})
    with served(DataPlane(engine)) as running:
        yield running
    engine.close()
