"""What a preflight finds: good news as well, so that its reader sees what was looked at."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    level: Literal["ok", "warning", "error"]
    name: str
    """What was looked at, in a word or two."""
    message: str
    remedy: str | None = None
    """What to do about it, where it is not ok."""
