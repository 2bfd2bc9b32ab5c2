"""JSON documents of a store, which anybody who can write to it may have written."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from tasks.errors import StorageError

T = TypeVar("T", bound=BaseModel)

MAX_BYTES = 2**26
"""The manifest of a model of ten thousand files has two million."""


def parse_document(
    schema: type[T], data: bytes, version: int, origin: str, remedy: str | None = None
) -> T:
    """Read a document of this major version, whatever keys a newer writer has added.

    Args:
        version: The newest `schema_version` that this reader knows.
        origin: Begins the message of an error.
        remedy: Of a document that is damaged.

    Raises:
        StorageError: it is damaged, hostile, or newer than this reader.
    """
    document = parse_json(data, origin, remedy)
    said = document.get("schema_version") if isinstance(document, dict) else None
    if isinstance(said, int) and said > version:
        raise StorageError(
            f"{origin} has a schema version above {version}, the newest that this reader knows",
            "use a newer nightpress",
        )
    try:
        return schema.model_validate_json(data, extra="ignore")
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part)[:100] for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise StorageError(f"{origin}: {f'{where}: ' if where else ''}{message}", remedy) from None


def parse_json(data: bytes, origin: str, remedy: str | None = None) -> Any:
    """Raises: StorageError: it is too large, no JSON, or nested more deeply than anybody writes."""
    if len(data) > MAX_BYTES:
        raise StorageError(
            f"{origin}: expected {MAX_BYTES:,} bytes at most, got {len(data):,}", remedy
        )
    try:
        return from_json(data)
    except ValueError as error:
        raise StorageError(f"{origin} is no JSON: {error}", remedy) from None
