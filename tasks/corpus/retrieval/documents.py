"""Documents in a file or folder, and the passages that they are cut into."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tasks.corpus.rows import read_rows
from tasks.corpus.words import WORD
from tasks.digests import list_files
from tasks.errors import CorpusError

SUFFIXES = (".jsonl", ".md", ".txt")
PIECE = re.compile(r".+?(?:\n\s*\n|(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])\s*|$)", re.DOTALL)
"""A sentence or the rest of a paragraph, with the space after it."""


class Document(NamedTuple):
    text: str
    language: str | None = None
    """As a row states it, in ISO 639-1."""
    licence: str | None = None


def find_documents(path: Path) -> list[Path]:
    """Return the files of text in a folder, sorted by their names, or the file itself.

    Raises:
        CorpusError: there is none.
    """
    if path.is_file():
        return [path]
    files = [path / name for name in list_files(path) if name.endswith(SUFFIXES)]
    if not files:
        raise CorpusError(f"{path} holds no file that ends in {', '.join(SUFFIXES)}")
    return files


def read_documents(path: Path) -> Iterator[Document | None]:
    """Yield a file's documents: the rows of a JSONL file, else the whole file as one.

    None stands for a row that is a chat. Bytes that are not UTF-8 become U+FFFD.
    """
    if path.suffix != ".jsonl":
        yield Document(path.read_text(encoding="utf-8", errors="replace"))
        return
    for row in read_rows(path):
        if isinstance(row.get("text"), str):
            yield Document(row["text"], row.get("language"), row.get("licence"))
        else:
            yield None


def cut_passages(text: str, num_words: int) -> Iterator[str]:
    """Cut a text at the ends of sentences and paragraphs, into passages of about `num_words`.

    A passage has at most that many words; a sentence with more is cut after a word.
    """
    begin = end = held = 0
    for piece in PIECE.finditer(text):
        size = len(WORD.findall(text, piece.start(), piece.end()))
        if held and held + size > num_words:
            yield text[begin:end].strip()
            begin, held = end, 0
        if size > num_words:
            ends = [word.end() for word in WORD.finditer(text, piece.start(), piece.end())]
            for last in ends[num_words - 1 : -1 : num_words]:
                yield text[begin:last].strip()
                begin, size = last, size - num_words
        end, held = piece.end(), held + size
    if held:
        yield text[begin:end].strip()
