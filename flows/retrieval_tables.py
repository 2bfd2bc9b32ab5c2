"""What the commands on models and data sets print for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from flows.tables import console
from tasks.report.wording import format_count

if TYPE_CHECKING:
    from tasks.corpus.retrieval.catalogue import DataSet
    from tasks.corpus.retrieval.starting_models import Candidate

TOKENIZERS = {True: "the teacher's", False: "another", None: "not stated"}


def print_candidates(found: list[Candidate]) -> None:
    out = console()
    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    for name in ("score", "parameters"):
        table.add_column(name, justify="right")
    for name in ("tokenizer", "licence"):
        table.add_column(name)
    for candidate in found:
        card = candidate.card
        table.add_row(
            card.name,
            f"{candidate.score:.2f}",
            format_count(card.num_parameters),
            TOKENIZERS[candidate.same_tokenizer],
            card.licence,
        )
    out.print(table)
    best = found[0]
    revision = f", revision: {best.card.revision}" if best.card.revision else ""
    out.print("\nproposed, for a distill step:", soft_wrap=True)
    out.print(f"  student: {{model: {best.model}{revision}}}", soft_wrap=True)
    if best.same_tokenizer is False:
        out.print("  its tokenizer is another than the teacher's: let cross_entropy alone teach it")


def print_data_sets(entries: list[DataSet]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("data set", "licence", "languages", "description"):
        table.add_column(name)
    for entry in entries:
        about = entry.description if len(entry.description) < 60 else entry.description[:57] + "..."
        table.add_row(entry.name, entry.licence, " ".join(entry.languages[:4]), about)
    console().print(table)
