"""Which version answers a request: the salted hash of its routing key against the candidate's weight."""

from hashlib import blake2b

from shadow.pair import Arm

_SPAN = 1 << 64


def position(salt: str, key: str) -> float:
    """Where a key lies in [0, 1): uniform over keys, fixed for one salt."""
    digest = blake2b(key.encode(), digest_size=8, key=salt.encode()[:64]).digest()
    return int.from_bytes(digest, "little") / _SPAN


def arm(salt: str, key: str, weight: float) -> Arm:
    """The side that answers ``key`` when the candidate has ``weight`` percent.

    Monotone: a key that has moved to the candidate stays there as the weight grows.
    """
    return Arm.CANDIDATE if weight > 0 and position(salt, key) * 100 < weight else Arm.BASELINE
