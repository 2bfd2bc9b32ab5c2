"""A small picture: curves over wall time, in seconds on a logarithmic axis."""

from __future__ import annotations

import math
from pathlib import Path

WIDTH, HEIGHT, MARGIN = 640, 360, 56
COLOURS = ("#0b6e4f", "#b3541e")

Curve = list[tuple[float, float]]
"""(seconds, increase in nats/token)"""


def draw_curves(path: Path, title: str, curves: dict[str, Curve]) -> None:
    points = [point for curve in curves.values() for point in curve]
    first, last = (math.log10(f(seconds for seconds, _ in points)) for f in (min, max))
    top = max(value for _, value in points)
    low, high = math.floor(first), math.ceil(last)

    def place(seconds: float, value: float) -> str:
        x = MARGIN + (math.log10(seconds) - low) / max(high - low, 1) * (WIDTH - 2 * MARGIN)
        y = HEIGHT - MARGIN - value / top * (HEIGHT - 2 * MARGIN)
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="sans-serif" font-size="13">',
        f'<text x="{MARGIN}" y="24">{title}: increase in nats/token over seconds</text>',
    ]
    for power in range(low, high + 1):
        x = place(10.0**power, 0).split(",")[0]
        parts.append(f'<text x="{x}" y="{HEIGHT - 24}" text-anchor="middle">{10.0**power:g}</text>')
    for value in (0.0, top):
        y = place(10.0**low, value).split(",")[1]
        parts.append(f'<text x="{MARGIN - 8}" y="{y}" text-anchor="end">{value:.2f}</text>')
        parts.append(f'<path d="M{MARGIN},{y}H{WIDTH - MARGIN}" stroke="#ccc"/>')
    for (name, curve), colour in zip(curves.items(), COLOURS, strict=True):
        line = " ".join(place(*point) for point in curve)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = place(*curve[-1]).split(",")
        parts.append(f'<text x="{x}" y="{float(y) - 8:.1f}" fill="{colour}">{name}</text>')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*parts, "</svg>\n"]), encoding="utf-8")
