"""The fuzzer, for a moment: its targets, what it sends, and what it says of a server that misbehaves."""

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.fuzz.bodies import damage, grpc_bodies, heads, http_bodies
from benchmarks.fuzz.campaign import Campaign, over_grpc, over_http, over_http2, over_sockets
from benchmarks.fuzz.decoders import TARGETS, seeds, try_one
from benchmarks.fuzz.memory import Memory, processes_of, resident_mb
from benchmarks.fuzz.sessions import sessions
from models.repository import Repository
from serving.dataplane import DataPlane
from tests.contract.local_engine import Endpoint, LocalEngine, served

EXAMPLES = Path(__file__).parents[2] / "examples" / "model_repository"
FEW = 300


@pytest.fixture(scope="module")
def examples() -> Iterator[Endpoint]:
    assert Repository(EXAMPLES).models() == ["digits", "digits-image"]
    engine = LocalEngine(EXAMPLES, {}, {})
    with served(DataPlane(engine)) as running:
        yield running
    engine.close()


@pytest.mark.parametrize("name", TARGETS)
def test_a_decoder_takes_its_seeds_and_refuses_or_takes_what_is_near_them(name: str) -> None:
    assert all(try_one(name, seed) for seed in seeds(name))
    random = Random(0)
    for _ in range(FEW):
        try_one(name, damage(random, random.choice(seeds(name))))


def test_malformed_input_through_every_door(examples: Endpoint) -> None:
    for name, send in (
        ("http", over_http(examples.port, http_bodies(3))),
        ("grpc", over_grpc(examples.grpc_port, grpc_bodies(3))),
        ("sockets", over_sockets(examples.port, heads(3))),
        ("http2", over_http2(examples.grpc_port, sessions(3))),
    ):
        campaign = Campaign(name=name, refusals=FEW, send=send, port=examples.port)
        with campaign.send as sender:
            counts = sender(FEW)
        campaign.check(counts)
        assert counts.total() == FEW
        assert campaign.refused(counts) > FEW // 2


def test_the_same_seed_sends_the_same() -> None:
    for make in (http_bodies, grpc_bodies, heads, sessions):
        assert list(islice(make(5), 50)) == list(islice(make(5), 50)) != list(islice(make(6), 50))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 500 x\r\ncontent-type: application/json\r\ncontent-length: 13\r\n\r\n" + b'{"error":"x"}',
        b"HTTP/1.1 400 x\r\ncontent-type: text/plain\r\ncontent-length: 1\r\n\r\nx",
        b"",
    ],
)
def test_a_server_that_misbehaves_is_a_finding(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def misbehave() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 20)
                connection.sendall(answer)

        thread = threading.Thread(target=misbehave)
        thread.start()
        with over_http(listening.getsockname()[1], http_bodies(1)) as send, pytest.raises(BenchmarkError):
            send(1)
        thread.join()


def test_an_answer_that_blames_the_server_is_a_finding(examples: Endpoint) -> None:
    campaign = Campaign(name="x", refusals=1, send=over_sockets(examples.port, heads(1)), port=examples.port)
    campaign.check(Counter({"200": 1, "400": 1, "OK": 1, "closed": 1, "malformed": 1, "ended: PROTOCOL_ERROR": 1}))
    for answer in ("500", "503", "INTERNAL", "UNKNOWN", "ended: INTERNAL_ERROR"):
        with pytest.raises(BenchmarkError, match=answer):
            campaign.check(Counter({answer: 1}))


def test_memory_that_grows_is_seen(examples: Endpoint) -> None:
    processes = processes_of(examples.port)
    memory = Memory(processes)
    memory.begin()
    taken = bytearray(b"x" * (50 << 20))
    grown = memory.end()["router"]
    assert grown["growth_mb"] > 40
    assert grown["after_mb"] <= resident_mb(processes["router"]) + 1
    del taken
    with pytest.raises(BenchmarkError, match="port"):
        processes_of(1)
