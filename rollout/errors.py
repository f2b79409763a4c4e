"""Errors of this package."""

from models.errors import UnderstudyError


class RolloutError(UnderstudyError):
    """A rollout command that cannot be carried out as things stand."""


class PolicyError(RolloutError):
    """A policy file that is wrong; names file and field."""


class JournalError(RolloutError):
    """A journal whose hash chain does not hold."""


class StaleControllerError(RolloutError):
    """This controller's epoch is over: another one has taken the database, and this one must stop."""
