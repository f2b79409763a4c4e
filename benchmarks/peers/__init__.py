"""Other servers beside Understudy: the same model, the closest form of the same request, the same load."""

from collections.abc import Mapping
from typing import Final

from benchmarks.peers.bentoml import BENTOML
from benchmarks.peers.contract import Peer
from benchmarks.peers.litserve import LITSERVE
from benchmarks.peers.mlserver import MLSERVER
from benchmarks.peers.rayserve import RAYSERVE
from benchmarks.peers.triton import TRITON

PEERS: Final[Mapping[str, Peer]] = {peer.name: peer for peer in (TRITON, MLSERVER, LITSERVE, BENTOML, RAYSERVE)}
