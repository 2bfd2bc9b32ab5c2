"""The first figure of a report: every model as bytes against held-out nats/token, and the Pareto
front of the exports of all nights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from tasks.report.pareto import cover, draw_earlier, draw_pareto, find_front, trace_front
from tasks.report.report_data import EarlierExport
from tasks.report.svg import Box, Scale, line, linear, nice_ticks, rect, svg, text
from tasks.report.wording import format_bytes, format_tick, shorten

GLYPH_PX = 6.6
"""Mean width of a letter at the figures' 12 px."""

FAR = 2.0
"""A limit farther above all models than this many times their range is out of the figure."""


class FrontPoint(NamedTuple):
    title: str
    kind: str
    """teacher, step, comparison, passed, refused"""
    num_bytes: int
    nats: float
    ends: tuple[float, float] | None
    """Interval of `nats`, where there is one."""


def decade_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times every power of ten, from `low` to `high`."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(m * 10**power) for power in powers for m in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


def draw_front(
    points: list[FrontPoint],
    earlier: Sequence[EarlierExport],
    nats_limit: float | None,
    bytes_limit: float | None,
    width: int,
    height: int,
    unit: str = "nats/token",
) -> str:
    """Draw every model as bytes (logarithmic) against held-out nats/token, with what may pass."""
    area = Box(52, 14, width - 14, height - 44)
    before = [(export.num_bytes, export.nats_per_token) for export in earlier]
    passed = before + [(p.num_bytes, p.nats) for p in points if p.kind == "passed"]
    sizes: list[float] = [*(p.num_bytes for p in points), *(size for size, _ in before)]
    nats = [p.nats for p in points] + [nats for _, nats in before]
    if nats_limit is not None and nats_limit > max(nats) + FAR * (max(nats) - min(nats)):
        nats_limit = None  # so far above all models that it would press them flat
    sizes += [bytes_limit] if bytes_limit else []
    nats += [nats_limit] if nats_limit else []
    x_low, x_high = math.log2(min(sizes)) - 0.35, math.log2(max(sizes)) + 0.45
    margin = 0.09 * ((max(nats) - min(nats)) or 1.0)
    y_low, y_high = min(nats) - margin, max(nats) + margin
    log_x = linear(x_low, x_high, area.left, area.right)
    y = linear(y_low, y_high, area.bottom, area.top)

    def x(num_bytes: float) -> float:
        return log_x(math.log2(num_bytes))

    parts = [*front_axes(area, x, y, (x_low, x_high), (y_low, y_high), unit)]
    taken = [
        Box(x(p.num_bytes) - 7, y(p.nats) - 7, x(p.num_bytes) + 7, y(p.nats) + 7) for p in points
    ]
    parts += front_limit_lines(area, x, y, nats_limit, bytes_limit, taken, unit)
    parts += draw_earlier(earlier, x, y)
    if corners := trace_front(find_front(passed) if earlier else [], area, x, y):
        parts.append(draw_pareto(corners))
        taken += cover(corners)
    parts += front_path(points, x, y)
    for point in points:
        parts += draw_point(point, x(point.num_bytes), y(point.nats), y)
    for point in points:
        parts.append(place_label(point, x(point.num_bytes), y(point.nats), area, taken))
    summary = "; ".join(f"{p.title}: {format_bytes(p.num_bytes)}, {p.nats:.3f}" for p in points)
    return svg(width, height, f"Bytes against held-out {unit}. {summary}", parts)


def front_axes(
    area: Box,
    x: Scale,
    y: Scale,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    unit: str,
) -> list[str]:
    parts = []
    for tick in nice_ticks(*y_range, 5):
        parts.append(line(area.left, y(tick), area.right, y(tick), "grid"))
        parts.append(text(area.left - 8, y(tick) + 4, format_tick(tick), "tick", "end"))
    room = 0.0
    low, high = 2 ** x_range[0], 2 ** x_range[1]
    ticks = decade_ticks(low, high)
    for tick in ticks if len(ticks) > 2 else nice_ticks(low, high, 5):
        if x(tick) >= room:
            parts.append(line(x(tick), area.bottom, x(tick), area.bottom + 4, "axis"))
            parts.append(
                text(x(tick), area.bottom + 18, shorten(format_bytes(tick)), "tick", "middle")
            )
            room = x(tick) + 56
    parts.append(line(area.left, area.bottom, area.right, area.bottom, "axis"))
    parts.append(text(area.right, area.bottom + 37, "size", "tick strong", "end"))
    parts.append(text(4, area.top + 2, unit, "tick strong"))
    return parts


def front_limit_lines(
    area: Box,
    x: Scale,
    y: Scale,
    nats_limit: float | None,
    bytes_limit: float | None,
    taken: list[Box],
    unit: str,
) -> list[str]:
    """Shade where an export may lie, and draw and name the limits."""
    if nats_limit is None and bytes_limit is None:
        return []
    right = area.right if bytes_limit is None else x(bytes_limit)
    top = area.top if nats_limit is None else y(nats_limit)
    parts = [rect(Box(area.left, top, right, area.bottom), "may-pass")]
    if nats_limit is not None:
        label = f"limit {nats_limit:.2f} {unit}"
        parts.append(line(area.left, top, area.right, top, "limit"))
        box = Box(area.right - GLYPH_PX * len(label), top - 16, area.right, top - 2)
        taken.append(box)
        parts.append(text(area.right, top - 5, label, "limit-label", "end"))
    if bytes_limit is not None:
        label = f"limit {format_bytes(bytes_limit)}"
        parts.append(line(right, area.top, right, area.bottom, "limit"))
        taken.append(Box(right + 4, area.top, right + 6 + GLYPH_PX * len(label), area.top + 14))
        parts.append(text(right + 6, area.top + 10, label, "limit-label"))
    return parts


def front_path(points: list[FrontPoint], x: Scale, y: Scale) -> list[str]:
    """Join teacher and steps in order, and the last of them with each export."""
    main = [p for p in points if p.kind in ("teacher", "step")]
    parts = [
        line(x(a.num_bytes), y(a.nats), x(b.num_bytes), y(b.nats), "path")
        for a, b in pairwise(main)
    ]
    ends = [p for p in points if p.kind in ("passed", "refused")] if main else []
    parts += [
        line(x(main[-1].num_bytes), y(main[-1].nats), x(p.num_bytes), y(p.nats), "path branch")
        for p in ends
    ]
    return parts


def draw_point(point: FrontPoint, x: float, y: float, scale: Scale) -> list[str]:
    parts = []
    if point.ends:
        low, high = scale(point.ends[0]), scale(point.ends[1])
        parts.append(line(x, low, x, high, f"whisker {point.kind}"))
    if point.kind == "teacher":
        parts.append(rect(Box(x - 5, y - 5, x + 5, y + 5), "point teacher", 1))
    elif point.kind in ("passed", "refused"):
        shape = f"M{x:.1f} {y - 7:.1f}l7 7-7 7-7-7z"
        parts.append(f'<path d="{shape}" class="point {point.kind}"/>')
    else:
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" class="point {point.kind}"/>')
    return parts


def place_label(point: FrontPoint, x: float, y: float, area: Box, taken: list[Box]) -> str:
    """Put a label beside its point where it hides least, and note the place as taken."""
    said = f"{point.title} {point.nats:.2f}"
    width = GLYPH_PX * len(said)
    places = [
        (x + 11, y + 4, "start", Box(x + 10, y - 7, x + 12 + width, y + 8)),
        (x - 11, y + 4, "end", Box(x - 12 - width, y - 7, x - 10, y + 8)),
        (x, y - 12, "middle", Box(x - width / 2, y - 24, x + width / 2, y - 8)),
        (x, y + 22, "middle", Box(x - width / 2, y + 9, x + width / 2, y + 25)),
    ]

    def cost(place: tuple[float, float, str, Box]) -> float:
        box = place[3]
        inside = box.overlap(Box(area.left, 0, area.right, area.bottom))
        outside = (box.right - box.left) * (box.bottom - box.top) - inside
        return 2 * outside + sum(box.overlap(other) for other in taken)

    best = min(places, key=cost)
    taken.append(best[3])
    return text(best[0], best[1], said, f"label {point.kind}", best[2])
