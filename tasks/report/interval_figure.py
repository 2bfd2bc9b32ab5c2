"""A figure and its interval on a line, against zero and the limit."""

from __future__ import annotations

from tasks.quality_records import GateCheck
from tasks.report.svg import Box, line, linear, rect, svg
from tasks.report.wording import signed


def draw_interval(
    figure: float,
    lower: float | None,
    upper: float | None,
    limit: float | None,
    kind: str,
    width: int = 320,
) -> str:
    """Draw a figure and its interval on a line with zero and, where there is one, the limit."""
    values = [0.0, figure, *(v for v in (lower, upper, limit) if v is not None)]
    low, high = min(values), max(values)
    margin = 0.06 * ((high - low) or 1.0)
    x = linear(low - margin, high + margin, 6, width - 6)
    middle = 14.0
    parts = [line(6, middle, width - 6, middle, "grid")]
    if limit is not None:
        parts.append(rect(Box(6, middle - 7, x(limit), middle + 7), "may-pass", 2))
        parts.append(line(x(limit), 3, x(limit), 25, "limit"))
    parts.append(line(x(0), middle - 7, x(0), middle + 7, "axis"))
    if lower is not None and upper is not None:
        parts.append(rect(Box(x(lower), middle - 3, x(upper), middle + 3), f"interval {kind}", 3))
    parts.append(f'<circle cx="{x(figure):.1f}" cy="{middle:g}" r="4.5" class="point {kind}"/>')
    return svg(width, 28, f"figure {signed(figure)}", parts)


def draw_check(check: GateCheck) -> str:
    kind = "passed" if check.passed else "refused"
    if check.difference is None:
        return draw_interval(check.figure, None, None, check.limit, kind)
    return draw_interval(
        check.figure, check.difference.lower, check.difference.upper, check.limit, kind
    )
