"""A catalogue of data sets: what there is to retrieve, described in words.

- name: movie_reviews
  description: Long film reviews with the sentiment of the whole.
  uri: movie_reviews/all.jsonl        # beside the catalogue, absolute, s3:// or hf://
  licence: cc-by-4.0
  label_names: [negative, positive]   # of labels that are numbers
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

from pydantic import Field, ValidationError, field_validator

from tasks.corpus.retrieval.ranking import Ranking
from tasks.corpus.words import split_words
from tasks.recipe_parts import Config
from tasks.safe_yaml import parse_yaml

MAX_NODES = 10**6
"""Of a catalogue in YAML: values and keys; a larger one is JSONL."""

HUB_FILE = re.compile(r"hf://datasets/([^/@]+(?:/[^/@]+)?)@([0-9a-f]{40})/(.+)")


class Entry(Config):
    """What entries of every catalogue say."""

    name: Annotated[str, Field(min_length=1)]
    description: str = ""
    """What it is, and for what."""
    uri: str
    languages: list[str] = Field(default_factory=list)
    licence: str = "unknown"

    @property
    def searched(self) -> str:
        """The text in which a query's words are looked for."""
        return f"{self.name}\n{self.description}"


class DataSet(Entry):
    uri: str
    """A .jsonl, .json, .csv, .tsv or .parquet file or a folder of them; a file on the hub is
    hf://datasets/OWNER/NAME@COMMIT/PATH."""
    split: str | None = None
    """Of a folder, the files that have this word in their path."""
    columns: list[str] = Field(default_factory=list)
    rows: Annotated[int, Field(ge=0)] | None = None
    """How many there are, for the reader."""
    mapping: dict[str, str] = Field(default_factory=dict)
    """The columns that are the task's `text`, `text_pair` and `output`, where a rule would err."""
    label_names: list[str] = Field(default_factory=list)
    """Of labels that are numbers: the name of 0, of 1, ..."""
    labels: dict[str | int, str] = Field(default_factory=dict)
    """The task's label for each of the data set's own, where their names differ."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Of the file, or of a folder's listing as `tasks.digests` makes it. It is checked when the
    data set is read; without it, the data set is read already to find a run's keys."""

    @field_validator("uri")
    @classmethod
    def check_commit(cls, uri: str) -> str:
        if uri.startswith("hf://") and not HUB_FILE.fullmatch(uri):
            raise ValueError(
                "expected hf://datasets/OWNER/NAME@COMMIT/PATH with a commit of 40 hex digits, "
                "so that every night reads the same"
            )
        return uri

    @property
    def searched(self) -> str:
        return "\n".join([self.name, self.description, *self.columns, *self.label_names])


E = TypeVar("E", bound=Entry)


class Ranked(NamedTuple, Generic[E]):
    score: float
    """BM25."""
    entry: E


def read_catalogue(path: Path, entry_type: type[E]) -> list[E]:
    """Read a catalogue: a YAML list, or JSONL.

    Raises:
        ValueError: it is neither, it is empty, two entries have one name, or one is wrong.
    """
    raw = parse_entries(path)
    if not raw:
        raise ValueError(f"{path}: the catalogue has no entries; expected one or more")
    entries = []
    for number, fields in enumerate(raw, start=1):
        try:
            entries.append(entry_type(**fields))
        except (ValidationError, TypeError) as error:
            raise ValueError(f"{path}: entry {number}: {describe(error, entry_type)}") from None
    names = [entry.name for entry in entries]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: entries must have different names, got {doubled} twice")
    return entries


def parse_entries(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        raw = parse_yaml(text, "it", MAX_NODES) or []
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no catalogue: {error}") from None
    if not isinstance(raw, list):
        raise ValueError(f"{path}: expected a list of entries, got {type(raw).__name__}")
    return raw


def describe(error: Exception, entry_type: type[Entry]) -> str:
    if not isinstance(error, ValidationError):
        return f"expected a mapping with the keys {sorted(entry_type.model_fields)}"
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}; an entry's keys are {sorted(entry_type.model_fields)}"


def entry_uri(catalogue_uri: str, uri: str) -> str:
    """Return where an entry's data lie; a relative path begins in the catalogue's folder."""
    if "://" in uri or uri.startswith("/"):
        return uri
    return f"{catalogue_uri.rpartition('/')[0]}/{uri}"


def rank(entries: list[E], query: str) -> tuple[list[Ranked[E]], list[str]]:
    """Return the entries by how well they fit, the best first, and the words looked for.

    Where two fit equally well, their names decide.
    """
    ranking = Ranking(query)
    for entry in entries:
        ranking.add(split_words(entry.searched.replace("_", " ")))
    scored = [Ranked(float(s), e) for s, e in zip(ranking.scores(), entries, strict=True)]
    return sorted(scored, key=lambda found: (-found.score, found.entry.name)), ranking.words


def is_forbidden(licence: str, forbidden: list[str]) -> bool:
    """Say whether a licence is one of those, or a version or variant of it.

    `cc-by-nc` forbids `CC BY-NC 4.0`; `unknown` an entry that states none.
    """
    name = normalise(licence)
    return any(name == word or name.startswith(f"{word}-") for word in map(normalise, forbidden))


def normalise(licence: str) -> str:
    return re.sub(r"[\s_-]+", "-", licence.strip().casefold())
