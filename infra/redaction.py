"""Keep secrets out of what a person or another program is told."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

NAMES = re.compile(
    r"SECRET|PASSWORD|TOKEN|CREDENTIAL|WEBHOOK|AUTH_STRING|CONNECTION_URL|(^|_)KEY(_ID)?$"
)
PLACES = re.compile(r"_(PATH|FILE|URI)$|^NIGHTPRESS_SIGNING_KEY$")
"""Variables that say where a secret is, and are none."""
USER_OF_URL = re.compile(r"(?<=://)[^/\s@]+:[^/\s@]*@")
"""User and password of a URL, whichever variable or library it comes from."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""A terminal obeys these; newline and tab are text."""
MIN_CHARACTERS = 6
"""Shorter values are words of any text."""


def redact(text: str, names: Iterable[str] = ()) -> str:
    """Put `[NAME]` in place of the value of each environment variable that holds a secret.

    The password of a URL goes, too, and a control character, which a stranger's text may bring
    along, is shown as its escape.

    Args:
        names: Variables that hold one, whatever they are called.
    """
    named = set(names)
    held = {
        value: name
        for name, value in os.environ.items()
        if len(value) >= MIN_CHARACTERS
        and (name in named or (NAMES.search(name) and not PLACES.search(name)))
    }
    for value in sorted(held, key=len, reverse=True):  # one may contain another
        text = text.replace(value, f"[{held[value]}]")
    text = USER_OF_URL.sub("[user]@", text)
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)
