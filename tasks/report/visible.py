"""How a model's text reads on a page: nothing in it is unseen, or steers what stands around it."""

from __future__ import annotations

BLANKS = {" ": "\N{OPEN BOX}", "\n": "\N{RETURN SYMBOL}", "\t": "\N{RIGHTWARDS ARROW TO BAR}"}


def show_text(text: str) -> str:
    """Write out what has no look of its own, such as control and direction characters."""
    return "".join(c if c.isprintable() or c in "\n\t" else rf"\u{ord(c):04x}" for c in text)


def show_token(text: str) -> str:
    """The same for a single token, whose white space must be seen."""
    return "".join(BLANKS.get(c) or show_text(c) for c in text)
