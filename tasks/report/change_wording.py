"""How it reads what a night did otherwise than the one before it."""

from __future__ import annotations

from tasks.quality_records import Difference
from tasks.report.report_data import Changes, ExportChange
from tasks.report.wording import join_words, judge, signed

SIZE_SHOWN, SPEED_SHOWN = 0.0005, 0.02
"""Smallest relative differences that are told of; prefill times vary by a few percent."""


def summarise(changes: Changes, unit: str = "nats/token") -> str:
    """Say in one paragraph what a reader wants to know first."""
    exports = "; ".join(f"{change.name} {describe(change, unit)}" for change in changes.exports)
    causes = []
    if changes.recipe:
        causes.append(f"{count(len(changes.recipe), 'key')} of the recipe")
    causes += [change.name for change in changes.data]
    said = [f"Since {changes.started}: {exports or 'no export of the same name'}."]
    if causes:
        said.append(f"Changed: {join_words(causes)}.")
    if changes.other_stages:
        said.append(f"{len(changes.other_stages)} of {count(changes.num_stages, 'stage')} differ.")
    if changes.num_ended_early:
        said.append(f"{count(changes.num_ended_early, 'night')} between ended early.")
    return " ".join(said)


def describe(change: ExportChange, unit: str) -> str:
    """Say how an export differs from the one before it, as far as it was measured alike."""
    if change.is_same:
        return "is the same model"
    said = [describe_nats(change.nats, unit)] if change.nats else []
    size = change.num_bytes / change.bytes_before - 1
    if abs(size) >= SIZE_SHOWN:
        said.append(f"{abs(size):.1%} {'larger' if size > 0 else 'smaller'}")
    if change.speed and abs(change.speed - 1) >= SPEED_SHOWN:
        said.append(f"{change.speed:.2f}\N{MULTIPLICATION SIGN} as fast")
    return ", ".join(said) or "is another model of the same size"


def describe_nats(difference: Difference, unit: str) -> str:
    verdict = judge(difference)
    if verdict in ("better", "worse"):
        return f"{abs(difference.figure):.3f} {unit} {verdict}"
    return f"no difference shown ({signed(difference.figure)} {unit})"


def count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
