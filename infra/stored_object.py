"""What a listing says of an object."""

from typing import NamedTuple


class StoredObject(NamedTuple):
    num_bytes: int
    modified: float
    """When it was written, by the store's own clock; seconds since the epoch."""
