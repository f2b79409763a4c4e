import shutil

import pytest

from benchmarks.alternatives.__main__ import Plan, measure
from benchmarks.alternatives.channels import CHANNELS
from benchmarks.alternatives.doors import DOORS
from benchmarks.alternatives.grpc_doors import GRPC_DOORS


@pytest.mark.end_to_end
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk, which makes the load, is not installed")
@pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load, which makes the load over HTTP/2, is not installed")
def test_every_door_and_channel_is_measured_beside_ours() -> None:
    document, markdown = measure(Plan(rounds=1, seconds=0.3, trips=50, connections=(2,), sizes=(360,)))
    for figures, name, known in (
        ("doors_requests_per_s", "server", DOORS),
        ("grpc_doors_calls_per_s", "server", GRPC_DOORS),
    ):
        assert {each[name] for each in document[figures]} == set(known)
        assert all(each["values"][0] > 0 for each in document[figures])
    channels = {each["channel"]: each["values"] for each in document["channels_us"]}
    assert set(channels) == {name for name in CHANNELS if "arena" not in name}, "what is small is not put there"
    assert all(value > 0 for values in channels.values() for value in values)
    assert all(name in markdown for name in (*DOORS, *GRPC_DOORS, *CHANNELS))
