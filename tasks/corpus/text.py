"""Rows and their tokens: how a JSONL file becomes documents, and documents windows."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from tasks.corpus.rows import read_rows
from tasks.errors import CorpusError


class Document(NamedTuple):
    """One tokenised row. The first id is BOS where the tokenizer has one."""

    ids: list[int]
    loss_mask: list[int]
    """1 where the token is learned or scored: all of a text, the assistant's part of a chat."""


def tokenize_row(row: dict[str, Any], tokenizer: Any) -> Document:
    """Tokenise one row; `messages` go through the model's chat template.

    Only assistant turns are learned: each turn's span is found by rendering the conversation
    with and without it, so templates need no `{% generation %}` marks.

    Raises:
        CorpusError: messages, and the tokenizer has no chat template.
    """
    if "messages" not in row:
        ids = tokenizer(row["text"], verbose=False).input_ids
        begin = bos_id(tokenizer)
        if begin is not None and ids[:1] != [begin]:
            ids = [begin, *ids]
        return Document(ids, [1] * len(ids))
    if not tokenizer.chat_template:
        raise CorpusError(
            "a row has messages but the teacher's tokenizer has no chat template",
            "give rows with text, or a teacher with a chat template",
        )

    def render(turns: list[Any], prompt: bool) -> list[int]:
        rendered = tokenizer.apply_chat_template(
            turns, tokenize=True, add_generation_prompt=prompt, return_dict=True
        )
        return list(rendered["input_ids"])

    messages = row["messages"]
    ids = render(messages, prompt=False)
    mask = [0] * len(ids)
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            start = len(render(messages[:index], prompt=True))
            end = len(render(messages[: index + 1], prompt=False))
            mask[start:end] = [1] * (end - start)
    return Document(ids, mask)


def bos_id(tokenizer: Any) -> int | None:
    """Return the id that begins a document: BOS, or EOS where there is no BOS, or None."""
    begin: int | None = tokenizer.bos_token_id
    end: int | None = tokenizer.eos_token_id
    return end if begin is None else begin


def tokenize_file(path: Path, tokenizer: Any) -> list[Document]:
    """Tokenise all rows of a file.

    Raises:
        CorpusError: the file has no rows.
    """
    documents = [tokenize_row(row, tokenizer) for row in read_rows(path)]
    if not documents:
        raise CorpusError(f"{path} has no rows")
    return documents


def calibration_windows(path: Path, tokenizer: Any, num_windows: int, window: int) -> torch.Tensor:
    """Return the first windows of the joined documents, [num_windows, window].

    Raises:
        CorpusError: the text is shorter than that.
    """
    ids: list[int] = []
    for row in read_rows(path):
        ids += tokenize_row(row, tokenizer).ids
        if len(ids) >= num_windows * window:
            return torch.tensor(ids[: num_windows * window]).view(num_windows, window)
    raise CorpusError(
        f"{path} holds {len(ids)} tokens, {num_windows} windows of {window} were asked for",
        f"give more text, or at most num_windows: {len(ids) // window}",
    )
