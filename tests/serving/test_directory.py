from dataclasses import replace
from pathlib import Path

import pytest

from rollout.traffic import Priority
from serving.directory import Directory, Replica
from tests.serving.doubler import spec_of

REPLICA = Replica(
    id="m-1-normal-1",
    model="m",
    version=1,
    priority=Priority.NORMAL,
    address="/tmp/x.sock",
    pid=1,
    spec=spec_of().to_json(),
)


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return Directory(tmp_path / "replicas")


def test_what_one_process_announces_another_one_finds(directory: Directory) -> None:
    shadow = replace(REPLICA, id="other", priority=Priority.SHADOW)
    directory.announce(REPLICA)
    directory.announce(shadow)
    assert Directory(directory.folder).replicas() == {REPLICA.id: REPLICA, "other": shadow}


def test_a_replica_that_withdrew_is_gone_and_may_come_back(directory: Directory) -> None:
    directory.announce(REPLICA)
    assert directory.replicas()
    directory.withdraw(REPLICA.id)
    directory.withdraw(REPLICA.id)
    assert directory.replicas() == {}
    directory.announce(REPLICA)
    assert directory.replicas() == {REPLICA.id: REPLICA}


def test_announcing_again_leaves_the_file_alone(directory: Directory) -> None:
    directory.announce(REPLICA)
    (file,) = directory.folder.iterdir()
    before = file.stat()
    directory.announce(REPLICA)
    assert file.stat().st_ino == before.st_ino


def test_files_that_are_no_announcements_are_overlooked(directory: Directory) -> None:
    directory.announce(REPLICA)
    (directory.folder / "m.sock").touch()
    (directory.folder / "half.new").write_text("{")
    assert list(directory.replicas()) == [REPLICA.id]


def test_only_the_owner_may_look_into_the_folder(directory: Directory) -> None:
    assert directory.folder.stat().st_mode & 0o077 == 0


def test_a_replica_of_the_longest_name_fits_into_a_socket_s_path(directory: Directory) -> None:
    name = "m" * 64
    address = Directory(Path("/tmp/understudy-abcdefgh/replicas")).socket_address(f"{name}-1000000-normal-0a1b2c3d")
    assert len(address) < 108  # sun_path of unix(7), with its closing zero
    assert directory.socket_address("a") != directory.socket_address("b")
