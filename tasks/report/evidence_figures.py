"""Figures of what was learned on the way: importance, predicted utility, training loss."""

from __future__ import annotations

from itertools import groupby, pairwise

from tasks.report.svg import Box, line, linear, nice_ticks, rect, svg, text
from tasks.report.wording import format_count, format_tick, shorten

LEVELS = 12
"""Shades of importance."""
COLUMNS = 64
"""Cells in a row of the importance map; wider layers are averaged in neighbouring ranks."""
CURVE_POINTS = 240


def draw_importance(
    title: str, importance: list[list[float]], kept: list[int], width: int = 420
) -> str:
    """Draw one row per layer: its units from the most to the least important, and the cut.

    Equal shades in a row are one rectangle, so the size does not grow with the model's width.
    """
    ranked = [sorted(layer, reverse=True) for layer in importance]
    values = sorted(value for layer in ranked for value in layer)
    low, high = max(values[0], 0.0), values[int(0.98 * (len(values) - 1))]
    shade = linear(low, max(high, low + 1e-12), 0, LEVELS)
    left, top = 64.0, 22.0
    row = max(5.0, min(18.0, 360 / len(ranked)))
    parts = [text(left, 13, f"{title}: most important on the left, cut at the mark", "tick")]
    every = max(1, -(-14 // int(row)))
    for number, layer in enumerate(ranked):
        y = top + number * row
        if number % every == 0:
            parts.append(text(left - 8, y + row / 2 + 4, f"layer {number}", "tick", "end"))
        x = linear(0, len(layer), left, width - 4)
        cells = average_cells(layer, COLUMNS)
        levels = [min(LEVELS, max(0, round(shade(value)))) for value in cells]
        step, start = len(layer) / len(cells), 0
        for level, run in groupby(levels):
            stop = start + len(list(run))
            box = Box(x(start * step), y, x(stop * step), y + row - 1)
            parts.append(rect(box, f"heat h{level}"))
            start = stop
        cut = x(kept[number])
        parts.append(line(cut, y - 0.5, cut, y + row - 0.5, "cut"))
    return svg(width, top + row * len(ranked) + 4, f"Importance of {title} by layer", parts)


def average_cells(values: list[float], count: int) -> list[float]:
    """Average consecutive values into at most `count` cells of equal width."""
    if len(values) <= count:
        return values
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]


def draw_scatter(predicted: list[float], measured: list[float], width: int = 340) -> str:
    """Draw predicted against measured utility of held-out sub-models; the diagonal is truth."""
    values = predicted + measured
    low, high = min(values), max(values)
    margin = 0.05 * ((high - low) or 1.0)
    low, high = low - margin, high + margin
    area = Box(50, 10, width - 10, width - 60)
    x, y = linear(low, high, area.left, area.right), linear(low, high, area.bottom, area.top)
    parts = []
    for tick in nice_ticks(low, high, 4):
        parts.append(line(area.left, y(tick), area.right, y(tick), "grid"))
        parts.append(text(area.left - 8, y(tick) + 4, format_tick(tick), "tick", "end"))
        parts.append(text(x(tick), area.bottom + 18, format_tick(tick), "tick", "middle"))
    parts.append(line(x(low), y(low), x(high), y(high), "limit"))
    parts += [
        f'<circle cx="{x(p):.1f}" cy="{y(m):.1f}" r="3.5" class="dot"/>'
        for p, m in zip(predicted, measured, strict=True)
    ]
    parts.append(text(area.right, area.bottom + 38, "predicted utility", "tick strong", "end"))
    parts.append(text(area.left + 6, area.top + 8, "measured", "tick strong"))
    return svg(width, width - 16, f"Utility of {len(predicted)} held-out sub-models", parts)


def draw_loss(tokens: list[int], loss: list[float], width: int = 420, height: int = 220) -> str:
    """Draw a training loss over tokens: neighbouring points averaged, their range behind."""
    count = min(CURVE_POINTS, len(loss))
    edges = [round(i * len(loss) / count) for i in range(count + 1)]
    spans = list(pairwise(edges))
    means = [sum(loss[a:b]) / (b - a) for a, b in spans]
    area = Box(50, 12, width - 24, height - 42)  # room for half of the last label
    low, high = min(means), max(means)
    margin = 0.06 * ((high - low) or 1.0)
    low, high = low - margin, high + margin
    y = linear(low, high, area.bottom, area.top)
    x = linear(0, tokens[-1], area.left, area.right)
    parts = []
    for tick in nice_ticks(low, high, 4):
        parts.append(line(area.left, y(tick), area.right, y(tick), "grid"))
        parts.append(text(area.left - 8, y(tick) + 4, format_tick(tick), "tick", "end"))
    parts += [
        text(x(tick), area.bottom + 18, shorten(format_count(tick)), "tick", "middle")
        for tick in nice_ticks(0, tokens[-1], 4)
    ]
    parts.append(line(area.left, area.bottom, area.right, area.bottom, "axis"))
    places = [f"{x(tokens[b - 1]):.1f},{y(m):.1f}" for (_, b), m in zip(spans, means, strict=True)]
    parts.append(f'<polyline points="{" ".join(places)}" class="curve"/>')
    parts.append(text(area.right, area.bottom + 36, "tokens", "tick strong", "end"))
    parts.append(text(area.left + 6, area.top + 6, "training loss", "tick strong"))
    return svg(width, height, f"Training loss from {loss[0]:.2f} to {loss[-1]:.2f}", parts)
