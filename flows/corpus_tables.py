"""What commands on data print for people: a corpus, some of its rows, a published data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from flows.run_rows import report_place, summarize_run
from flows.tables import console
from tasks.report.wording import format_bytes, list_accounts, list_contents

if TYPE_CHECKING:
    from tasks.corpus.rows import Row
    from tasks.publish.manifest import DataManifest
    from tasks.run_records import CorpusResult, RunRecord

SAMPLE_CHARACTERS = 300


def print_built(record: RunRecord) -> None:
    out = console()
    if record.corpus:
        print_corpus(record.corpus)
    out.print(f"\n{summarize_run(record)}", soft_wrap=True)
    if record.corpus and (published := record.corpus.published):
        out.print(f"{published.outcome} at {published.uri}", soft_wrap=True)
        out.print(
            f"  nightpress pull {record.recipe}/corpus@{record.channel} ./{record.recipe}-corpus",
            soft_wrap=True,
        )
    out.print(f"report: {report_place(record)}", soft_wrap=True)


def print_corpus(result: CorpusResult) -> None:
    """Say what came from where, what was left out and why, and what is in the rest."""
    out, corpus = console(), result.corpus
    table = Table(box=None, pad_edge=False)
    table.add_column("made by")
    for name in ("rows", "refused", "requests", "prompt tokens", "completion tokens"):
        table.add_column(name, justify="right")
    for step in result.steps:
        spent = (step.spent.get(n, 0) for n in ("requests", "prompt_tokens", "completion_tokens"))
        table.add_row(
            step.title,
            f"{step.num_rows:,}",
            f"{sum(step.refused.values()):,}",
            *(f"{number:,}" if number else "" for number in spent),
        )
    out.print(table)
    for line in list_accounts(result.steps, corpus):
        out.print(line, soft_wrap=True, markup=False)
    num_tokens = corpus.num_blocks * corpus.block_tokens
    out.print(
        f"\n{corpus.num_documents:,} rows kept: {corpus.num_blocks:,} blocks of "
        f"{corpus.block_tokens} tokens, {num_tokens:,} tokens; sha256 {corpus.digest[:12]}",
        soft_wrap=True,
    )
    contents = Table(box=None, pad_edge=False, show_header=False)
    contents.add_column()
    contents.add_column()
    contents.add_column(justify="right")
    contents.add_column(justify="right")
    for what, name, count in list_contents(corpus):
        contents.add_row(what, Text(name), f"{count:,}", f"{count / corpus.num_documents:.1%}")
    out.print(contents)


def print_samples(rows: list[Row]) -> None:
    out = console()
    for row in rows:
        origin = [f"source {row['source']}"]
        origin += [f"written by {row['generator']}"] if row["generator"] else []
        origin += [f"prompt {row['prompt_digest'][:12]}"] if row["prompt_digest"] else []
        origin += [f"seed {row['seed']}"] if row["seed"] is not None else []
        origin += [f"licence {row['licence'] or 'unknown'}"]
        out.print()
        out.print(Text(", ".join(origin), style="dim"), soft_wrap=True)
        for name in ("text", "text_pair", "output"):
            if (said := row.get(name)) is not None:
                out.print(Text(f"{name}: {shorten(str(said))}"), soft_wrap=True)


def shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SAMPLE_CHARACTERS else f"{line[:SAMPLE_CHARACTERS]} ..."


def print_data_manifest(manifest: DataManifest) -> None:
    out = console()
    out.print(f"{manifest.recipe_name}/{manifest.export}@sha256:{manifest.digest[:12]}")
    table = Table(box=None, pad_edge=False, show_header=False)
    rows = {
        "rows": f"{manifest.num_rows:,}",
        "shards": f"{len(manifest.files):,}",
        "bytes": f"{manifest.num_bytes:,} ({format_bytes(manifest.num_bytes)})",
        "created": manifest.provenance.created,
        "teacher": manifest.provenance.teacher.digest[:12],
        "parent": manifest.parent[:12] if manifest.parent else "none",
    }
    for what, name, count in list_contents(manifest.corpus):
        rows[f"{what} {name}"] = f"{count:,}"
    for name, value in rows.items():
        table.add_row(Text(name), value)
    out.print(table)
