"""Errors of this package."""

from models.errors import UnderstudyError


class ShadowError(UnderstudyError):
    """Something about pairs, evidence or labels."""


class EvidenceError(ShadowError):
    """Evidence on disk that is damaged, cut, or not what the journal recorded."""
