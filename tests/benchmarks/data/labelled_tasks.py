"""Real classifications on which training data are judged, and what is drawn of them for a seed."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.data.scale import Scale
from tests.benchmarks.subjects import ROOT

Case = dict[str, str]
"""`text` and `output`."""

SEEDS = {"full": (0, 1, 2), "smoke": (0,)}
TEST_ROWS = {"full": None, "smoke": 60}
"""At most; None: all."""
GOLD_ROWS = 300
"""Labelled by people: all that is known of the task, the generator's training text included."""
CEILING_ROWS = {"full": 1200, "smoke": 400}
UNLABELLED_ROWS = {"full": 5000, "smoke": 500}
AGNEWS_TEST_ROWS = 1500


class LabelledTask(NamedTuple):
    name: str
    own_entry: str
    """Of the catalogue, where it must not be found."""
    instruction: str
    labels: list[str]
    rules: str
    """Weak ones, written before the first measurement and not changed since."""
    shots: int
    """Examples of each label that a few-shot prompt shows."""
    max_tokens: int
    """Of a generated text."""
    cases_per_step: int
    """That the generator learns from at once: fewer where they are longer."""
    training: list[Case]
    test: list[Case]


class Trial(NamedTuple):
    """A task and a seed: the rows that are drawn, as files for the product's sources."""

    task: LabelledTask
    seed: int
    folder: Path
    gold: list[Case]
    ceiling: list[Case]
    unlabelled: list[Case]
    """With the labels that no labeller sees."""

    def first(self, label: str, number: int) -> list[Case]:
        """Return gold rows of a label."""
        return [case for case in self.gold if case["output"] == label][:number]

    def examples(self) -> list[Case]:
        """Return what the recipe's task shows: one gold row of each label."""
        return [case for label in self.task.labels for case in self.first(label, 1)]

    def path(self, name: str) -> Path:
        """Return the file of `gold`, `unlabelled`, `test` or `asked` rows."""
        return self.folder / f"{name}.jsonl"


def find_tasks(scale: Scale) -> list[LabelledTask]:
    """Return the tasks whose data are under $NIGHTPRESS_BENCH_DATA; none where it is not set."""
    data = os.environ.get("NIGHTPRESS_BENCH_DATA")
    if data is None:
        return []
    labelled, most = Path(data) / "data/labelled", TEST_ROWS[scale.name]
    news = load(labelled / "agnews/train.jsonl", [])
    sentiments = ["negative", "positive"]
    return [
        LabelledTask(
            name="SST-2",
            own_entry="sst2",
            instruction="Decide whether a movie review's sentiment is negative or positive.",
            labels=sentiments,
            rules=SENTIMENT_RULES,
            shots=4,
            max_tokens=48,
            cases_per_step=16,
            training=load(labelled / "sst2/train.jsonl", sentiments),
            test=load(labelled / "sst2/dev.jsonl", sentiments)[:most],
        ),
        LabelledTask(
            name="AG News",
            own_entry="agnews",
            instruction="Decide which topic a news article has: World, Sports, Business, Sci/Tech.",
            labels=["World", "Sports", "Business", "Sci/Tech"],
            rules=TOPIC_RULES,
            shots=1,
            max_tokens=96,
            cases_per_step=6,
            training=news[:-AGNEWS_TEST_ROWS],
            test=news[-AGNEWS_TEST_ROWS:][:most],
        ),
    ]


def load(path: Path, names: list[str]) -> list[Case]:
    """Return the rows of a file, a label that is a number by its name."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [{"text": r["text"], "output": names[r["label"]] if names else r["label"]} for r in rows]


def draw(task: LabelledTask, seed: int, scale: Scale) -> Trial:
    """Draw a seed's rows, no text twice and none of the test's, and write their files."""
    tested = {case["text"] for case in task.test}
    pool = list({c["text"]: c for c in task.training if c["text"] not in tested}.values())
    random.Random(f"{task.name} {seed}").shuffle(pool)
    apart = GOLD_ROWS + UNLABELLED_ROWS[scale.name]
    folder = ROOT / f".nightpress/bench/data-{scale.name}/trials/{task.own_entry}-{seed}"
    trial = Trial(
        task,
        seed,
        folder,
        pool[:GOLD_ROWS],
        pool[: CEILING_ROWS[scale.name]],
        pool[GOLD_ROWS:apart],
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(trial.path("gold"), trial.gold)
    write_rows(trial.path("unlabelled"), ({"text": c["text"]} for c in trial.unlabelled))
    write_rows(trial.path("test"), ({"text": c["text"]} for c in task.test))
    (folder / "catalogue.yaml").write_text(json.dumps(list_entries()))
    return trial


def write_rows(path: Path, rows: Iterable[Case]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def list_entries() -> list[dict[str, Any]]:
    """Return a catalogue of everything labelled that there is."""
    labelled = Path(os.environ["NIGHTPRESS_BENCH_DATA"]).resolve() / "data/labelled"
    return [
        {"name": name, "uri": str(labelled / uri), "description": description} | more
        for name, uri, description, more in ENTRIES
    ]


SENTIMENT_NAMES = {"label_names": ["negative", "positive"]}
ENTRIES: list[tuple[str, str, str, dict[str, Any]]] = [
    (
        "agnews",
        "agnews/train.jsonl",
        "News articles by topic: World, Sports, Business, Sci/Tech.",
        {},
    ),
    (
        "cola",
        "cola/train.jsonl",
        "English sentences from linguistics books, grammatical or not.",
        {},
    ),
    (
        "movie_reviews",
        "movie_reviews/all.jsonl",
        "Long movie reviews with the sentiment of the whole.",
        SENTIMENT_NAMES,
    ),
    ("mrpc", "mrpc/train.jsonl", "Pairs of sentences from online news, paraphrases or not.", {}),
    ("rte", "rte/train.jsonl", "Pairs of texts: whether the first entails the second.", {}),
    ("sst2", "sst2/train.jsonl", "Phrases of movie reviews with their sentiment.", SENTIMENT_NAMES),
    ("stsb", "stsb/train.jsonl", "Pairs of sentences and how similar their meaning is.", {}),
]
"""name, file, description, and what else an entry says."""

SENTIMENT_RULES = """
"funny" -> positive
"charming" -> positive
"entertaining" -> positive
"moving" -> positive
"best" -> positive
"bad" -> negative
"dull" -> negative
"boring" -> negative
"worst" -> negative
"fails" -> negative
"""
TOPIC_RULES = r"""
/\\b(Iraq|Baghdad|Palestinian|president|minister|troops)\\b/ -> World
/\\b(coach|season|game|team|Olympic|championship)\\b/ -> Sports
/\\b(oil prices|stocks|profit|shares|investors|economy)\\b/ -> Business
/\\b(Microsoft|software|internet|Internet|computer|scientists|NASA)\\b/ -> Sci/Tech
""".replace("\\\\", "\\")
