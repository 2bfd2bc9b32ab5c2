"""Keep secrets out of what a person or another program is told."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

NAMES = re.compile(r"SECRET|PASSWORD|TOKEN|CREDENTIAL|WEBHOOK|(^|_)KEY(_ID)?$")
PLACES = re.compile(r"_(PATH|FILE|URI)$|^NIGHTPRESS_SIGNING_KEY$")
"""Variables that say where a secret is, and are none."""
MIN_CHARACTERS = 6
"""Shorter values are words of any text."""


def redact(text: str, names: Iterable[str] = ()) -> str:
    """Put `[NAME]` in place of the value of each environment variable that holds a secret.

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
    return text
