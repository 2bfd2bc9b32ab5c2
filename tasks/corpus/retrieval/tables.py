"""Records in files: JSONL, JSON, CSV, TSV and Parquet, one record in memory at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from tasks.digests import list_files
from tasks.errors import CorpusError

Record = dict[str, Any]


def read_records(path: Path, split: str | None = None) -> Iterator[Record]:
    """Yield the records of a file, or of a folder's files in the order of their names.

    Args:
        split: Of a folder, the files alone that have this word in their path.

    Raises:
        CorpusError: there is no such file, or one is not what its name says.
    """
    for file in find_tables(path, split):
        try:
            yield from READERS[file.suffix](file)
        except (ValueError, pyarrow.ArrowException, csv.Error) as error:
            raise CorpusError(f"{file} is not {file.suffix[1:]}: {error}") from None


def find_tables(path: Path, split: str | None) -> list[Path]:
    files = [path]
    if path.is_dir():
        names = [name for name in list_files(path) if split is None or split in name]
        files = [path / name for name in names if Path(name).suffix in READERS]
    if not files or files[0].suffix not in READERS:
        of_split = f" of the split {split}" if split else ""
        raise CorpusError(f"{path}: no file{of_split} that ends in {', '.join(READERS)}")
    return files


def read_jsonl(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield check_record(json.loads(line), f"line {number}")


def read_json(path: Path) -> Iterator[Record]:
    """Read a list of records, or a mapping that has one under `data` or `rows`."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(raw, dict):
        raw = raw.get("data", raw.get("rows"))
    if not isinstance(raw, list):
        raise ValueError("expected a list of records, or one under `data` or `rows`")
    for number, record in enumerate(raw, start=1):
        yield check_record(record, f"record {number}")


def check_record(record: Any, where: str) -> Record:
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a mapping, got {type(record).__name__}")
    return record


def read_csv(path: Path) -> Iterator[Record]:
    """Read a table whose first line names its columns; every value is text."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        for record in reader:
            if None in record:
                raise ValueError(f"line {reader.line_num} has more values than there are columns")
            yield record


def read_parquet(path: Path) -> Iterator[Record]:
    """Read a table; classes that `datasets` has numbered become their names again."""
    with pyarrow.parquet.ParquetFile(path) as file:
        names = class_names(file.schema_arrow)
        for batch in file.iter_batches():
            for record in batch.to_pylist():
                for column, classes in names.items():
                    number = record[column]
                    known = number is not None and 0 <= number < len(classes)
                    record[column] = classes[number] if known else None
                yield record


def class_names(schema: Any) -> dict[str, list[str]]:
    """Return the names of the classes of each ClassLabel column, as `datasets` stores them."""
    stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = stored.get("info", {}).get("features", {})
    return {
        column: feature["names"]
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
}
