"""Rows shared out: by a recipe's quotas, or as equally as there are rows."""

from __future__ import annotations

from fractions import Fraction

from tasks.errors import CorpusError


def read_quotas(text: str) -> dict[str, Fraction]:
    """Return the shares in `en=0.7,de=0.3`.

    Raises:
        CorpusError: it is not of that form, or the shares exceed 1.
    """
    try:
        parts = [part.split("=") for part in text.split(",")]
        shares = {name.strip(): Fraction(share.strip()) for name, share in parts}
    except (ValueError, ZeroDivisionError):
        shares = {}
    total = sum(shares.values(), Fraction(0))
    if not shares or len(shares) < len(parts) or min(shares.values()) < 0 or not 0 < total <= 1:
        raise CorpusError(
            f"quotas: expected shares of different languages that come to 1 or less, got {text!r}",
            "write for example quotas: en=0.7,de=0.3",
        )
    return shares


def share_out(shares: dict[str, Fraction], total: int) -> dict[str, int]:
    """Return whole numbers in the proportion of the shares, by largest remainders."""
    counts = {name: int(share * total) for name, share in shares.items()}
    rest = round(sum(shares.values(), Fraction(0)) * total) - sum(counts.values())
    by_remainder = sorted(shares, key=lambda name: (counts[name] - shares[name] * total, name))
    return counts | {name: counts[name] + 1 for name in by_remainder[:rest]}


def share_equally(sizes: dict[str, int], total: int) -> dict[str, int]:
    """Return how many to take of each group: equally many, as far as a group has them."""
    shares = {}
    for taken, name in enumerate(sorted(sizes, key=lambda name: (sizes[name], name))):
        shares[name] = min(sizes[name], total // (len(sizes) - taken))
        total -= shares[name]
    return shares
