"""Other servers beside Understudy: the same model, the closest form of the same request, the same load."""

from collections.abc import Mapping
from typing import Final

from benchmarks.peers.contract import Peer
from benchmarks.peers.litserve import LITSERVE

PEERS: Final[Mapping[str, Peer]] = {peer.name: peer for peer in (LITSERVE,)}
