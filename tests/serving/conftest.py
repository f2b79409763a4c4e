"""What the suites of this package share."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.serving.control_room import Office, write_version
from tests.serving.stage import Stage, config_of

settings.register_profile("no deadline", deadline=None)  # a busy machine is no finding
settings.load_profile("no deadline")


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """A router without replicas and without a table."""
    playing = Stage(tmp_path)
    yield playing
    playing.close()


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    """The control side with versions 1 to 3 of ``m``, and 4, whose output has another name."""
    for version, output in ((1, "y"), (2, "y"), (3, "y"), (4, "z")):
        write_version(tmp_path / "repository", version, output=output)
    opened = Office(config_of(tmp_path), tmp_path)
    yield opened
    opened.close()
