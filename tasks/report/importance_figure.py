"""The figure of what each unit is worth: a heat map, a row per layer, kept and cut told apart."""

from __future__ import annotations

from html import escape
from itertools import groupby, pairwise

from tasks.report.svg import Box, Scale, line, linear, rect, svg, text
from tasks.report.wording import name_kind

LEVELS = 12
"""Shades of importance."""
COLUMNS = 64
"""Cells in a row; wider layers are averaged in neighbouring ranks."""


def draw_importance(
    kind: str,
    importance: list[list[float]],
    kept: list[int],
    kept_units: list[list[int]] | None = None,
    width: int = 420,
) -> str:
    """Draw the units of one kind, a row per group, darker where they are worth more.

    A row's units stand from the most to the least important, so the kept ones are on the left.
    A few units of the whole network (layers) stay in their own order. Equal shades in a row are
    one rectangle, so the size does not grow with the model's width.

    Args:
        importance: [group][unit]; a kind has a group per layer, or one for the network.
        kept: [group], how many units stay.
        kept_units: [group], which.
    """
    in_order = kept_units is not None and len(importance) == 1 and len(importance[0]) <= COLUMNS
    order = "first to last" if in_order else "most important first"
    left, top = 64.0, 22.0
    row = max(5.0, min(18.0, 360 / len(importance)))
    every = max(1, -(-14 // int(row)))
    title = escape(f"{name_kind(kind)}, {order}: ")
    parts = [
        f'<text x="{left:.1f}" y="13.0" class="tick">{title}<tspan class="kept-ink">kept</tspan>, '
        f'<tspan class="cut-ink">cut</tspan></text>'
    ]
    shades = shade(importance)
    for number, layer in enumerate(importance):
        y = top + number * row
        if number % every == 0:
            label = f"layer {number}" if len(importance) > 1 else "network"
            parts.append(text(left - 8, y + row / 2 + 4, label, "tick", "end"))
        x = linear(0, len(layer), left, width - 4)
        if in_order and kept_units is not None:
            stays = [unit in set(kept_units[number]) for unit in range(len(layer))]
            cells = list(zip(layer, stays, strict=True))
            edges = [float(unit) for unit in range(len(layer) + 1)]
        else:
            cells, edges = rank_cells(layer, kept[number])
        levels = [
            (min(LEVELS, max(0, round(shades(value)))), stays, place if in_order else None)
            for place, (value, stays) in enumerate(cells)
        ]
        start = 0
        for (level, stay, _), run in groupby(levels):
            stop = start + len(list(run))
            gap = 1.5 if in_order else 0.0
            box = Box(x(edges[start]), y, x(edges[stop]) - gap, y + row - 1)
            parts.append(rect(box, f"heat h{level}{'' if stay else ' off'}"))
            if in_order and not stay:
                parts.append(rect(box, "off-frame"))
            start = stop
        if not in_order:
            cut = x(kept[number])
            parts.append(line(cut, y - 0.5, cut, y + row - 0.5, "cut"))
    label = f"Importance of {name_kind(kind)}, {sum(kept)} of {sum(map(len, importance))} kept"
    return svg(width, top + row * len(importance) + 4, label, parts)


def shade(importance: list[list[float]]) -> Scale:
    """Map importance to levels: nothing and less is white, the highest 2% are the darkest."""
    values = sorted(value for layer in importance for value in layer)
    low, high = max(values[0], 0.0), values[int(0.98 * (len(values) - 1))]
    return linear(low, max(high, low + 1e-12), 0, LEVELS)


def rank_cells(values: list[float], kept: int) -> tuple[list[tuple[float, bool]], list[float]]:
    """Sort a group's units and average them into cells, those that are kept and those that are cut.

    Returns:
        (mean importance, whether kept) per cell; and the cells' edges in units, one more.
    """
    ranked = sorted(values, reverse=True)
    cells: list[tuple[float, bool]] = []
    edges = [0.0]
    for part, stays in ((ranked[:kept], True), (ranked[kept:], False)):
        count = max(1, round(COLUMNS * len(part) / len(ranked)))
        means = average_cells(part, count)
        cells += [(mean, stays) for mean in means]
        begin = edges[-1]
        edges += [begin + (i + 1) * len(part) / len(means) for i in range(len(means))]
    return cells, edges


def average_cells(values: list[float], count: int) -> list[float]:
    """Average consecutive values into at most `count` cells of equal width."""
    if len(values) <= count:
        return values
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
