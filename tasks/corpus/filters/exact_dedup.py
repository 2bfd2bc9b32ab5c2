"""Drop a document whose text was seen before."""

import hashlib
from collections.abc import Iterable, Iterator


def keep(texts: Iterable[str]) -> Iterator[str | None]:
    """Yield for each text None where it is kept, or why it is dropped.

    Texts are compared by sha256, so memory is 32 bytes a document whatever their length.
    """
    seen: set[bytes] = set()
    for text in texts:
        digest = hashlib.sha256(text.encode()).digest()
        yield "exact duplicate" if digest in seen else None
        seen.add(digest)
