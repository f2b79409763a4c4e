"""Which batches are mirrored."""

from hashlib import blake2b

from shadow.errors import ShadowError

_SPAN = 1 << 64


class Sampler:
    """Takes a fraction of the batches, by a salted hash of the batch's first request id.

    The choice is made from the id alone, so it cannot depend on the answer; the same salt and id give the same choice,
    and what a smaller fraction takes, a larger one takes too.

    Raises:
        ShadowError: the fraction is not within [0, 1].
    """

    def __init__(self, fraction: float, salt: str) -> None:
        if not 0 <= fraction <= 1:
            raise ShadowError(f"mirror.sample: expected a fraction from 0 to 1, got {fraction!r}")
        self._bound = round(fraction * _SPAN)
        self._salt = blake2b(salt.encode(), digest_size=16).digest()

    def takes(self, first_request_id: str) -> bool:
        """Whether the batch that begins with this request is mirrored."""
        if self._bound in (0, _SPAN):
            return self._bound == _SPAN
        name = first_request_id.encode(errors="surrogatepass")
        return int.from_bytes(blake2b(name, key=self._salt, digest_size=8).digest()) < self._bound
