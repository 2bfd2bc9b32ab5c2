"""What can go wrong outside our own code, and what the user is told.

A wrong input is a `ValueError` (expected, got, remedy); a programmer's error is an `assert`.
Everything else that a night can meet is a child of `CompressionError`.
"""


class CompressionError(Exception):
    """The outside world failed us; `remedy` says what the user can do about it."""

    def __init__(self, message: str, remedy: str | None = None) -> None:
        super().__init__(message if remedy is None else f"{message}\n  {remedy}")


class StorageError(CompressionError):
    """The store is absent, full, refuses us, or returned other bytes than were written."""


class ClusterError(CompressionError):
    """Ray is absent, a worker died more often than it may, or a collective hung."""


class CorpusError(CompressionError):
    """A text source has nothing that can be used."""


class CheckpointError(CompressionError):
    """A model or training state does not load, or is not what its record says."""


class TrainingError(CompressionError):
    """Training went astray, for example to a loss that is not a number."""


class QualityGateError(CompressionError):
    """An export did not pass its gate."""
