"""The Pareto front of the exports of all nights."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from tasks.report.report_data import EarlierExport
from tasks.report.svg import Box, Scale
from tasks.report.wording import format_bytes


def find_front(models: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return the (bytes, nats/token) that no other is at least as good as in both, by bytes."""
    front: list[tuple[int, float]] = []
    for num_bytes, nats in sorted(set(models)):
        if not front or nats < front[-1][1]:
            front.append((num_bytes, nats))
    return front


def trace_front(
    front: list[tuple[int, float]], area: Box, x: Scale, y: Scale
) -> list[tuple[float, float]]:
    """Return the corners of the border of what was reached: a step at each model of the front."""
    if not front:
        return []
    corners = [(x(front[0][0]), area.top), (x(front[0][0]), y(front[0][1]))]
    for (_, above), (num_bytes, nats) in pairwise(front):
        corners += [(x(num_bytes), y(above)), (x(num_bytes), y(nats))]
    return [*corners, (area.right, y(front[-1][1]))]


def draw_pareto(corners: list[tuple[float, float]]) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    return f'<polyline points="{places}" class="pareto"/>'


def cover(corners: list[tuple[float, float]]) -> list[Box]:
    """Return the room that the border's lines take, for labels to keep off."""
    return [
        Box(min(x1, x2) - 2, min(y1, y2) - 2, max(x1, x2) + 2, max(y1, y2) + 2)
        for (x1, y1), (x2, y2) in pairwise(corners)
    ]


def draw_earlier(earlier: Sequence[EarlierExport], x: Scale, y: Scale) -> list[str]:
    return [
        f'<circle cx="{x(export.num_bytes):.1f}" cy="{y(export.nats_per_token):.1f}" r="3.5" '
        f'class="earlier"><title>{escape(export.title)}, {escape(export.started)}: '
        f"{format_bytes(export.num_bytes)}, {export.nats_per_token:.3f}</title></circle>"
        for export in earlier
    ]
