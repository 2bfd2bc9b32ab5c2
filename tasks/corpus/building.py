"""The corpus stage: sources -> filters -> shuffled documents -> packed blocks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from datasets import Dataset, concatenate_datasets, disable_progress_bars
from safetensors.torch import save_file

from tasks.corpus.packing import pack_blocks
from tasks.corpus.source_context import SourceContext
from tasks.corpus.text import Document, tokenize_row
from tasks.digests import digest_folder
from tasks.errors import CorpusError
from tasks.models.checkpoint import load_tokenizer
from tasks.plugins import load_plugin
from tasks.records import CorpusRef, ModelRef, TextRef

if TYPE_CHECKING:
    from tasks.stage import StageSpace


def build_corpus(
    space: StageSpace, options: dict[str, Any], *, teacher: ModelRef, **texts: TextRef
) -> CorpusRef:
    """Write `rows.parquet` (every kept row with its source) and `blocks.safetensors`.

    Args:
        texts: The files that sources read, by `source<index>_<option>`.
    """
    disable_progress_bars()
    rows = concatenate_datasets(
        [
            read_source(space, index, source, options, teacher, texts)
            for index, source in enumerate(options["sources"])
        ]
    )
    rows, dropped = apply_filters(rows, options["filters"])
    if len(rows) == 0:
        raise CorpusError(f"the filters dropped every document: {dropped}")
    rows = rows.shuffle(seed=options["seed"])
    rows.to_parquet(space.out / "rows.parquet")

    tokenizer = load_tokenizer(space.local(teacher.uri))
    documents = (tokenize_row(as_row(row), tokenizer) for row in rows)
    blocks = pack_blocks(not_empty(documents), options["block_tokens"])
    save_file(blocks, space.out / "blocks.safetensors")
    num_blocks, block_tokens = blocks["ids"].shape
    return CorpusRef(
        uri=space.output_uri(),
        digest=digest_folder(space.out),
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        num_documents=len(rows),
        dropped=dropped,
        sources=dict(Counter(rows["source"])),
    )


def read_source(
    space: StageSpace,
    index: int,
    source: dict[str, Any],
    options: dict[str, Any],
    teacher: ModelRef,
    texts: dict[str, TextRef],
) -> Dataset:
    """Read one source into rows of `text` (a chat as JSON), `chat` and `source`."""
    prefix = f"source{index}_"
    uris = {k.removeprefix(prefix): ref.uri for k, ref in texts.items() if k.startswith(prefix)}
    context = SourceContext(
        space=space,
        teacher=teacher,
        trust_remote_code=options["trust_remote_code"],
        seed=options["seed"] * 1009 + index,
        name=f"{index}-{source['name']}",
    )
    read = load_plugin("source", source["name"])
    rows = [
        {
            "text": json.dumps(row["messages"]) if "messages" in row else row["text"],
            "chat": "messages" in row,
            "source": source["name"],
        }
        for row in read(context, **(source["options"] | uris))
    ]
    if not rows:
        raise CorpusError(f"corpus.sources.{index} ({source['name']}) yielded no rows")
    return Dataset.from_list(rows)


def as_row(row: dict[str, Any]) -> dict[str, Any]:
    """Undo what `read_source` did to a chat."""
    return {"messages": json.loads(row["text"])} if row["chat"] else row


def apply_filters(rows: Dataset, filters: list[dict[str, Any]]) -> tuple[Dataset, dict[str, int]]:
    """Return the rows that every filter keeps, and how many were dropped for which reason."""
    dropped: Counter[str] = Counter()
    for chosen in filters:
        reasons = list(load_plugin("filter", chosen["name"])(rows["text"], **chosen["options"]))
        dropped.update(reason for reason in reasons if reason)
        rows = rows.select([i for i, reason in enumerate(reasons) if reason is None])
    return rows, dict(sorted(dropped.items()))


def not_empty(documents: Iterator[Document]) -> Iterator[Document]:
    return (document for document in documents if any(document.loss_mask))
