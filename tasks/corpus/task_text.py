"""A task's rows as text: what a model is asked, and what it is to answer."""

from __future__ import annotations

import json
from typing import Any

from tasks.corpus.rows import Row
from tasks.corpus.text import Document, bos_id, tokenize_row
from tasks.corpus_options import Task


def render_prompt(task: Task | None, text: str, text_pair: str | None = None) -> str:
    """Return what a model reads before it answers; the answer follows after a space."""
    lines = [task.instruction.strip(), ""] if task else []
    lines.append(f"Input: {text}")
    if text_pair is not None:
        lines.append(f"Second input: {text_pair}")
    lines.append("Output:")
    return "\n".join(lines)


def tokenize(row: Row, tokenizer: Any, task: Task | None) -> Document:
    """Tokenise a row of the corpus; of one with an output, the output alone is learned.

    A model that chats is asked in its chat template.

    Raises:
        CorpusError: a chat, and the tokenizer has no chat template.
    """
    if row["chat"]:
        return tokenize_row({"messages": json.loads(row["text"])}, tokenizer)
    if row["output"] is None:
        return tokenize_row({"text": row["text"]}, tokenizer)
    prompt = render_prompt(task, row["text"], row["text_pair"])
    if tokenizer.chat_template:
        asked = {"role": "user", "content": prompt.removesuffix("\nOutput:")}
        answer = {"role": "assistant", "content": row["output"]}
        return tokenize_row({"messages": [asked, answer]}, tokenizer)
    before = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
    after = tokenizer(f" {row['output']}", add_special_tokens=False, verbose=False).input_ids
    begin, end = bos_id(tokenizer), tokenizer.eos_token_id
    if begin is not None:
        before = [begin, *before]
    if end is not None:
        after = [*after, end]
    return Document(before + after, [0] * len(before) + [1] * len(after))
