"""Duplicates and evaluation items, planted: which are found, what else is dropped, and how fast.

Near duplicates are judged by the exact Jaccard similarity of rows' sets of word 5-grams, computed
for all pairs:

    recall    = of rows that have an earlier kept row at the threshold or above, those dropped
    precision = of rows dropped, those that have one
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import scipy.sparse

from infra.storage import FileStore
from tasks.corpus.context import CorpusContext
from tasks.corpus.filtering import Filter
from tasks.corpus.filters import (
    decontaminate,
    exact_dedup,
    length,
    minhash_dedup,
    novelty,
    perplexity,
    quality,
)
from tasks.corpus.rows import Row, make_row, read_rows
from tasks.corpus.words import hash_ngrams, hash_words, split_words
from tasks.records import ModelRef
from tests.benchmarks.cells import Cell, Cells
from tests.benchmarks.data.scale import Scale
from tests.benchmarks.subjects import Subject
from tests.benchmarks.tables import Table, table
from tests.benchmarks.workbench import make_space

THRESHOLD = 0.8
EDITS = (0.005, 0.01, 0.02, 0.05, 0.2)
"""Of a document's words, those replaced."""
PARTS = ("a whole item", "40 words of an item", "13 words of an item", "12 words of an item")
REPEATS = 3


class Planted(NamedTuple):
    rows: list[Row]
    kinds: list[str]
    """Of each row: `text` where it was there before."""


def run(subjects: list[Subject], scale: Scale) -> list[Table]:
    cells = Cells("data", "dedup", scale.name)
    tables = []
    for subject in subjects:
        duplicates, items, speeds = (
            cells.compute(subject.name, name, measure=partial(measure, subject, scale))
            for name, measure in (
                ("duplicates", measure_duplicates),
                ("contamination", measure_contamination),
                ("speed", measure_speed),
            )
        )
        num_rows = duplicates["num_rows"]
        tables += [
            table(
                f"{subject.name}'s text: {num_rows} rows with duplicates planted among them; "
                f"near: J of word 5-grams at {THRESHOLD} or above, exactly or by 128 permutations",
                ["planted", "rows", "J, median", "exact_dedup drops", "minhash_dedup drops"],
                duplicates["planted"],
            ),
            table(
                f"{subject.name}'s text: near duplicates, all pairs compared",
                ["near duplicates in truth", "recall", "rows dropped", "precision"],
                [duplicates["overall"]],
            ),
            table(
                f"{subject.name}'s text: parts of the held-out text planted into other rows, in "
                "capitals and without punctuation",
                ["planted", "rows", "decontaminate drops"],
                items["planted"],
            ),
            table(
                f"{subject.name}'s text: rows a second, one thread, median of {REPEATS} (least "
                f"to most); {speeds['num_rows']} rows of {speeds['characters']:.0f} characters "
                "in the mean",
                ["filter", "measured on workers", "judged in one place"],
                speeds["rates"],
            ),
        ]
    return tables


def says(row: Row, text: str) -> Row:
    """Return the row with another text."""
    return row | {"text": text}


def load(path: Path, most: int | None) -> list[Row]:
    return [make_row(raw, "benchmark", None) for raw in read_rows(path)][:most]


def judge(built: Filter, rows: list[Row]) -> list[bool]:
    return [reason is not None for reason in built.judge(built.measure(built.state(), rows))]


def context(subject: Subject, scratch: Path) -> CorpusContext:
    teacher = ModelRef(
        uri=str(subject.folder), digest="", architecture="", num_parameters=0, num_bytes=0
    )
    space = make_space(FileStore(f"file://{scratch}/store"), scratch, "corpus")
    heldout = str(subject.heldout)
    return CorpusContext(space, seed=0, name="bench", teacher=teacher, evaluation_uri=heldout)


def plant_duplicates(rows: list[Row], number: int) -> Planted:
    """Put copies of documents, as they are and with words replaced, at random places after them."""
    rng = random.Random(0)
    vocabulary = split_words(" ".join(row["text"] for row in rows[:200]))
    wide = [row for row in rows if len(row["text"].split()) >= 100]
    copies = [("exact", rng.choice(rows)) for _ in range(number)]
    for edit in EDITS:
        for row in rng.choices(wide, k=number):
            words = row["text"].split()
            places = rng.sample(range(len(words)), max(1, round(edit * len(words))))
            for place in places:
                words[place] = rng.choice(vocabulary)
            copies.append((f"{edit:.1%} of words replaced", says(row, " ".join(words))))
    rng.shuffle(copies)
    return Planted(
        rows + [row for _, row in copies], ["text"] * len(rows) + [kind for kind, _ in copies]
    )


def similarities(rows: list[Row]) -> scipy.sparse.csr_matrix:
    """Return J of all pairs of rows that share a 5-gram, [num_rows, num_rows]."""
    sets = []
    for row in rows:
        words = hash_words(split_words(row["text"]))
        sets.append(np.unique(hash_ngrams(words, min(5, max(1, len(words))))))
    sizes = np.array([len(each) for each in sets])
    _, columns = np.unique(np.concatenate(sets), return_inverse=True)
    pointers = np.concatenate([[0], sizes.cumsum()])
    found = scipy.sparse.csr_matrix((np.ones(len(columns), np.int32), columns, pointers))
    shared = (found @ found.T).tocoo()
    union = sizes[shared.row] + sizes[shared.col] - shared.data
    return scipy.sparse.csr_matrix((shared.data / union, (shared.row, shared.col)))


def measure_duplicates(subject: Subject, scale: Scale) -> Cell:
    planted = plant_duplicates(load(subject.training, scale.max_rows), scale.num_planted)
    nothing = cast(Any, None)
    exactly = judge(exact_dedup.keep(nothing), planted.rows)
    nearly = judge(minhash_dedup.keep(nothing, threshold=THRESHOLD), planted.rows)
    pairs = similarities(planted.rows)
    nearest = np.zeros(len(planted.rows))
    """J with the most similar row before it that is kept."""
    for row in range(len(planted.rows)):
        part = slice(pairs.indptr[row], pairs.indptr[row + 1])
        for other, similarity in zip(pairs.indices[part], pairs.data[part], strict=True):
            if other < row and not nearly[other]:
                nearest[row] = max(nearest[row], similarity)
    kinds = ["text", "exact", *(f"{edit:.1%} of words replaced" for edit in EDITS)]
    lines = []
    for kind in kinds:
        which = [index for index, each in enumerate(planted.kinds) if each == kind]
        lines.append(
            [
                "nothing" if kind == "text" else kind,
                str(len(which)),
                f"{np.median(nearest[which]):.2f}",
                f"{np.mean([exactly[i] for i in which]):.1%}",
                f"{np.mean([nearly[i] for i in which]):.1%}",
            ]
        )
    truth, dropped = nearest >= THRESHOLD, np.array(nearly)
    both = int((truth & dropped).sum())
    overall = [
        str(int(truth.sum())),
        f"{both / truth.sum():.2%}",
        str(int(dropped.sum())),
        f"{both / dropped.sum():.2%}",
    ]
    return {"num_rows": len(planted.rows), "planted": lines, "overall": overall}


def measure_contamination(subject: Subject, scale: Scale) -> Cell:
    rows, items = load(subject.training, scale.max_rows), load(subject.heldout, None)
    rng = random.Random(0)
    hosts = [row for row in rows if len(split_words(row["text"])) >= 100]
    documents = [words for item in items if len(words := split_words(item["text"])) >= 60]
    sizes = dict(zip(PARTS, (None, 40, 13, 12), strict=True))
    planted = Planted(list(rows), ["text"] * len(rows))
    for kind, size in sizes.items():
        for _ in range(scale.num_planted):
            words = rng.choice(documents)
            start = rng.randrange(len(words) - (size or len(words)) + 1)
            part = " ".join(words[start : start + (size or len(words))]).upper()
            host = rng.choice(hosts)
            cut = host["text"].index(" ", len(host["text"]) // 2)
            text = f"{host['text'][:cut]} {part} {host['text'][cut:]}"
            planted.rows.append(says(host, text))
            planted.kinds.append(kind)
    state = decontaminate.load_items(Path, str(subject.heldout), 13)
    reasons = decontaminate.find_contaminated(state, planted.rows)
    said = [split_words(item["text"]) for item in items]
    held = {tuple(words[i : i + 13]) for words in said for i in range(len(words) - 12)}
    truly = [any_run(split_words(row["text"]), held) for row in rows]
    clean_hosts = {row["text"][:40] for row, is_so in zip(rows, truly, strict=True) if not is_so}
    lines = []
    for kind in ("text", *PARTS):
        which = [i for i, each in enumerate(planted.kinds) if each == kind]
        if kind != "text":
            which = [i for i in which if planted.rows[i]["text"][:40] in clean_hosts]
        share = np.mean([reasons[i] is not None for i in which])
        name = f"nothing ({np.mean(truly):.1%} hold 13 words of it)" if kind == "text" else kind
        lines.append([name, str(len(which)), f"{share:.1%}"])
    return {"planted": lines}


def any_run(words: list[str], runs: set[tuple[str, ...]]) -> bool:
    return any(tuple(words[i : i + 13]) in runs for i in range(len(words) - 12))


def measure_speed(subject: Subject, scale: Scale) -> Cell:
    rows = load(subject.training, scale.max_rows)
    with tempfile.TemporaryDirectory() as folder:
        given = context(subject, Path(folder))
        builds: dict[str, tuple[Callable[[], Filter], int]] = {
            "length": (lambda: length.keep(given), len(rows)),
            "exact_dedup": (lambda: exact_dedup.keep(given), len(rows)),
            "minhash_dedup": (lambda: minhash_dedup.keep(given), len(rows)),
            "quality": (lambda: quality.keep(given), len(rows)),
            "decontaminate": (lambda: decontaminate.keep(given), len(rows)),
            "perplexity, window 256": (lambda: perplexity.keep(given, max_nats=9.0), 100),
            "novelty, first 300 characters": (lambda: novelty.keep(given), len(rows)),
        }
        lines = []
        for name, (build, most) in builds.items():
            some = rows[:most]
            if name.startswith("novelty"):
                some = [says(row, row["text"][:300]) for row in some]
            lines.append([name, *time_filter(build(), some)])
    characters = float(np.mean([len(row["text"]) for row in rows]))
    return {"num_rows": len(rows), "characters": characters, "rates": lines}


def time_filter(built: Filter, rows: list[Row]) -> list[str]:
    """Return rows a CPU second, measured and judged."""
    state = built.state()
    seconds: list[tuple[float, float]] = []
    for _ in range(REPEATS):
        began = time.process_time()
        measured = built.measure(state, rows)
        between = time.process_time()
        list(built.judge(measured))
        seconds.append((between - began, time.process_time() - between))
    return [
        describe_rates([len(rows) / max(s, 1e-6) for s in each])
        for each in zip(*seconds, strict=True)
    ]


def describe_rates(rates: list[float]) -> str:
    least, middle, most = (min(rates), float(np.median(rates)), max(rates))
    if least > 100_000:
        return "over 100,000"
    return f"{middle:,.0f} ({least:,.0f} to {most:,.0f})"
