"""Errors of the benchmarks."""

from models.errors import UnderstudyError


class BenchmarkError(UnderstudyError):
    """A benchmark cannot run here, or what it measured is not what it claims to measure."""
