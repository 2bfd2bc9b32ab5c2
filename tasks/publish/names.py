"""Names of recipes, exports and channels: what they look like, and what to say of unknown ones."""

from __future__ import annotations

import re
from difflib import get_close_matches

NAME = r"[a-z0-9][a-z0-9._-]{0,62}"
MAX_OFFERED = 12


def offer(name: str, names: list[str]) -> str:
    """Return the end of a message about a name that there is not."""
    if not names:
        return "there is none yet"
    close = get_close_matches(name, names, 1, cutoff=0.8)
    more = len(names) - MAX_OFFERED
    rest = f" and {more} more" if more > 0 else ""
    meant = f"did you mean {close[0]!r}? " if close else ""
    return f"{meant}choose from {names[:MAX_OFFERED]}{rest}"


def check_name(what: str, name: str) -> str:
    """Return the name of a recipe, an export or a channel. Raises: ValueError: it is none."""
    if re.fullmatch(NAME, name) is None:
        raise ValueError(
            f"expected the {what}'s name, lower-case letters, digits and ._- (63 at most), "
            f"got {name!r}"
        )
    return name
