"""Rows as examples for a model that classifies, scores, or answers questions.

Each row is a block of its own: cut to the block's length, the longer of two texts first, or padded
to it. A row without a label has -100 in its place, or NaN where labels are scores; it can still be
learned from a teacher.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.corpus.arrays import Arrays
from tasks.corpus.rows import Row
from tasks.errors import CorpusError
from tasks.models.folder import read_config
from tasks.models.model_kind import HeadKind, config_kind

IGNORED = -100
"""The label of a row that has none."""


class Labels(NamedTuple):
    """What a model's config says of its labels."""

    kind: HeadKind
    ids: dict[str, int]
    """By name."""
    are_scores: bool
    """A regression's only output."""


def read_labels(folder: Path) -> Labels:
    config = read_config(folder)
    kind = config_kind(config)
    ids = {str(name): int(number) for name, number in config.label2id.items()}
    return Labels(kind, ids, kind == "sequence_classification" and config.num_labels == 1)


def find_label(output: str | None, labels: Labels) -> float:
    """Return the number of a label that is given by its name or its number; of a score, itself.

    Raises:
        ValueError: it is none of the model's labels, or its name is another one's number; or a
            score is not a finite number.
    """
    if output is None:
        return float("nan") if labels.are_scores else IGNORED
    try:
        number = float(output)
    except ValueError:
        number = float("nan")
    if labels.are_scores:
        if not math.isfinite(number):
            raise ValueError(f"expected a finite number as the label, got {output!r}")
        return number
    named = labels.ids.get(output)
    found = {known for known in labels.ids.values() if known in (named, number)}
    if len(found) != 1:
        raise ValueError(
            f"label {output!r} is {'more than one' if found else 'none'} of the model's "
            f"{labels.ids}, by name and by number"
        )
    return float(found.pop())


def check_tokenizer(tokenizer: Any, block_tokens: int = 0) -> None:
    """Raises: CorpusError: a tokenizer has no token to pad with, or is for shorter blocks."""
    if block_tokens > tokenizer.model_max_length:
        raise CorpusError(
            f"corpus: expected block_tokens of at most {tokenizer.model_max_length}, the teacher's "
            f"model_max_length, got {block_tokens}",
            "lower it; longer rows are cut",
        )
    if tokenizer.pad_token is None:
        raise CorpusError(
            "the teacher's tokenizer has no padding token",
            "set its pad_token, in the model's config pad_token_id, and save both again",
        )


def encode_rows(rows: Iterable[Row], tokenizer: Any, labels: Labels, block_tokens: int) -> Arrays:
    """Return blocks of the rows, each array [num_rows, block_tokens] but `labels`.

    Returns:
        `ids` int32, `attention_mask` uint8 and, where the tokenizer makes them, `token_type_ids`
        uint8. `labels` are int32 [num_rows], float32 where they are scores; of question answering
        int32 [num_rows, 2], the answer's first and last token.

    Raises:
        CorpusError: a row is a chat, or its label is none of the model's.
    """
    encoded, found = [], []
    for row in rows:
        try:
            encoding = encode(row, tokenizer, labels.kind, block_tokens)
            found.append(
                find_span(row, encoding)
                if labels.kind == "question_answering"
                else find_label(row["output"], labels)
            )
        except ValueError as error:
            raise CorpusError(f"a row of {row['source']}, {row['text'][:60]!r}: {error}") from None
        encoded.append(encoding)
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.array([e["input_ids"] for e in encoded], np.int32),
        "attention_mask": np.array([e["attention_mask"] for e in encoded], np.uint8),
        "labels": np.array(found, np.float32 if labels.are_scores else np.int32),
    }
    if "token_type_ids" in encoded[0]:
        types = [e["token_type_ids"] for e in encoded]
        arrays["token_type_ids"] = np.array(types, np.uint8)
    return arrays


def encode(row: Row, tokenizer: Any, kind: HeadKind, block_tokens: int, pad: bool = True) -> Any:
    """Return transformers' encoding of one row, cut to a block or padded to it on the right.

    Raises:
        ValueError: the row is a chat, a question without a context, or one as long as a block.
    """
    asks = kind == "question_answering"
    if row["chat"] or (asks and row["text_pair"] is None):
        expected = "a question and its context" if asks else "a text"
        raise ValueError(f"expected {expected}, got {'a chat' if row['chat'] else 'one text'}")
    if asks:
        question = tokenizer(row["text"], add_special_tokens=False, verbose=False).input_ids
        if len(question) + tokenizer.num_special_tokens_to_add(pair=True) >= block_tokens:
            raise ValueError(f"the question alone fills {block_tokens} tokens")
    return tokenizer(
        row["text"],
        row["text_pair"],
        truncation="only_second" if asks else "longest_first",
        max_length=block_tokens,
        padding="max_length" if pad else False,
        padding_side="right",
        verbose=False,
    )


def find_span(row: Row, encoding: Any) -> tuple[int, int]:
    """Return the first and the last token of a row's answer; of none the first token, twice, as
    models for questions without an answer are trained. An answer that is cut off is IGNORED.

    Raises:
        ValueError: the answer does not stand where the row says.
    """
    if row["output"] is None:
        return IGNORED, IGNORED
    if row["output"] == "":
        return 0, 0
    answer = json.loads(row["output"])
    start, text = answer["answer_start"], answer["text"]
    stands = (row["text_pair"] or "")[start : start + len(text)]
    if not text.strip() or stands != text:
        raise ValueError(f"expected the answer {text!r} at {start} of the context, got {stands!r}")
    # Spaces around an answer belong to no token.
    ends = start + len(text) - len(text.lstrip()), start + len(text.rstrip()) - 1
    first, last = (encoding.char_to_token(at, sequence_index=1) for at in ends)
    return (IGNORED, IGNORED) if None in (first, last) else (first, last)
