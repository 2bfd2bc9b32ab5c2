"""Figures of what was learned on the way: predicted utility, methods, training loss."""

from __future__ import annotations

from itertools import pairwise

from tasks.report.svg import Box, line, linear, nice_ticks, svg, text
from tasks.report.wording import format_count, format_tick, shorten

CURVE_POINTS = 240


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


def draw_methods(dense: float, methods: dict[str, float], chosen: str, width: int = 420) -> str:
    """Draw what each method's cut costs on the calibration text: nats/token from the dense model's.

    The methods' cuts are of one size, so the shorter line is the better method.
    """
    row, top = 26.0, 24.0
    left, right = 130.0, width - 64.0
    x = linear(min(dense, *methods.values()), max(dense, *methods.values()), left, right)
    bottom = top + row * (1 + len(methods))
    parts = [text(0, 13, "nats/token on the calibration text", "tick")]
    parts.append(line(x(dense), top, x(dense), bottom - 6, "axis"))
    for number, (name, nats) in enumerate({"dense": dense, **methods}.items()):
        y = top + row * number + 10
        label = f"{name}, chosen" if name == chosen else name
        kind = "point step" if name == chosen else "point comparison"
        parts.append(text(0, y + 4, label, "strong" if name == chosen else "tick"))
        parts.append(line(x(dense), y, x(nats), y, "path"))
        mark = "point teacher" if name == "dense" else kind
        parts.append(f'<circle cx="{x(nats):.1f}" cy="{y:.1f}" r="5" class="{mark}"/>')
        parts.append(text(x(nats) + 12, y + 4, f"{nats:.3f}", "tick"))
    said = ", ".join(f"{name} {nats:.3f}" for name, nats in methods.items())
    return svg(width, bottom, f"Calibration nats/token: dense {dense:.3f}, {said}", parts)


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
