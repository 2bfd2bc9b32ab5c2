"""What each fault came to, from the tests' own output into the table of docs/faults.md.

python -m tests.integration.faults.ledger ROWS.json
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "faults.md"
BEGIN, END = "<!-- faults -->", "<!-- end of faults -->"
COLUMNS = (
    "fault",
    "what happens",
    "exit, and what is said",
    "lost at the most",
    "seconds to go on",
)


@dataclass(frozen=True)
class Row:
    fault: str
    happens: str
    code: int
    """Exit code of the night that the fault met."""
    said: str
    lost: str
    seconds: float
    """From the fault, or from the start of the same command again, to the published models."""


class Ledger:
    """Keeps rows in a JSON file by fault, so that tests of one file can be run again alone."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def add(self, row: Row) -> None:
        print(row)
        if self.path is None:
            return
        rows = json.loads(self.path.read_text()) if self.path.exists() else {}
        rows[row.fault] = asdict(row)
        self.path.write_text(json.dumps(rows, indent=1))


def as_table(rows: list[Row]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "| " + " | ".join(["---"] * len(COLUMNS)) + " |"]
    for row in rows:
        said = f"{row.code}: {row.said}".replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| {row.fault} | {row.happens} | {said} | {row.lost} | {row.seconds:.0f} |")
    return "\n".join(lines)


def write_page(rows: list[Row]) -> None:
    """Put the table between its marks. Raises: ValueError: they are not there."""
    before, found, rest = PAGE.read_text().partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"{PAGE} has no lines {BEGIN!r} and {END!r} to put the table between")
    PAGE.write_text(f"{before}{BEGIN}\n{as_table(rows)}\n{END}{after}")


if __name__ == "__main__":
    found = json.loads(Path(sys.argv[1]).read_text())
    write_page([Row(**row) for row in found.values()])
