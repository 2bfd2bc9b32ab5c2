"""Markdown tables, printed and put between two marks of docs/results.md."""

from __future__ import annotations

from typing import NamedTuple

from tests.benchmarks.subjects import ROOT

RESULTS = ROOT / "docs/results.md"


class Table(NamedTuple):
    title: str
    lines: list[str]


def table(title: str, header: list[str], rows: list[list[str]]) -> Table:
    return Table(
        title, ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    )


def as_text(tables: list[Table]) -> str:
    return "\n\n".join("\n".join([f"**{t.title}**", "", *t.lines]) for t in tables)


def write_tables(benchmark: str, part: str, tables: list[Table]) -> None:
    """Put a part's tables between its marks in the results.

    Raises:
        ValueError: the marks are not there.
    """
    begin, end = f"<!-- bench-{benchmark} {part} -->", f"<!-- end of {part} -->"
    page = RESULTS.read_text(encoding="utf-8")
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{RESULTS} has no lines `{begin}` and `{end}` to put the tables between")
    RESULTS.write_text(f"{before}{begin}\n{as_text(tables)}\n{end}{after}", encoding="utf-8")
