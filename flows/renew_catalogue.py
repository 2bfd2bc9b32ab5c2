"""Make the store's catalogue anew; where that fails, nothing else does."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from infra.redaction import redact
from tasks.errors import CompressionError
from tasks.report.catalogue import write_catalogue

if TYPE_CHECKING:
    from infra.storage import Store


def renew_catalogue(store: Store) -> None:
    """Write the catalogue; one artifact that cannot be read is a warning, never a failed night."""
    try:
        write_catalogue(store)
    except (CompressionError, OSError) as error:
        message = f"nightpress: warning: the catalogue was not renewed: {error}"
        print(redact(message), file=sys.stderr)
