"""The corpus stage: rows of all sources -> filters -> blocks, packed or a row in each.

A shard of rows is a unit of work, so a corpus may be larger than any machine's memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load, save

from tasks.corpus.arrays import Arrays, write_arrays
from tasks.corpus.context import CorpusContext, add_up
from tasks.corpus.examples import Labels, check_tokenizer, encode_rows, read_labels
from tasks.corpus.filtering import Filter, Looked, apply_filter, kept_rows, kept_table
from tasks.corpus.masking import mask_blocks, read_vocabulary
from tasks.corpus.packing import Tokens, cut_blocks, join_documents
from tasks.corpus.rows import Row
from tasks.corpus.shards import list_shards, write_table
from tasks.corpus.task_text import tokenize
from tasks.corpus_options import Task
from tasks.digests import digest_folder
from tasks.errors import CorpusError
from tasks.models.checkpoint import load_tokenizer
from tasks.models.model_kind import head_kind
from tasks.plugins import load_plugin
from tasks.records import CorpusRef, ModelRef, RowsRef, TextRef

if TYPE_CHECKING:
    from tasks.stage_space import StageSpace


def build_corpus(
    space: StageSpace,
    options: dict[str, Any],
    *,
    teacher: ModelRef,
    evaluation: TextRef | None = None,
    **rows: RowsRef,
) -> CorpusRef:
    """Write `rows/*.parquet` (every kept row with where it came from) and `blocks.safetensors`.

    Of a language model blocks are packed, masked where the teacher is a masked one, and rows of a
    classification that no source or labeller has labelled are dropped before all filters. Of a
    classifier, a regression or a question-answering model each row is a block, padded, labelled or
    not (tasks/corpus/examples.py).

    Args:
        evaluation: The text that decides the gate, where a filter looks at it.
        rows: In the order of their names.

    Raises:
        CorpusError: nothing is left, or it does not fill one block.
    """
    refs = [ref for _, ref in sorted(rows.items())]
    shards = [shard for ref in refs for shard in list_shards(ref)]
    task = options["task"] and Task(**options["task"])
    kept = [np.ones(shard.num_rows, dtype=bool) for shard in shards]
    dropped: Counter[str] = Counter()
    classifies = task is not None and task.kind == "classification"
    head = head_kind(teacher.architecture)
    if classifies and head in ("causal_lm", "masked_lm"):
        dropped.update(
            apply_filter(space, shards, kept, Filter(find_unlabelled, iter), "0-labelled")
        )
    for number, chosen in enumerate(options["filters"], start=1):
        context = CorpusContext(
            space=space,
            seed=options["seed"],
            name=f"{number}-{chosen['name']}",
            task=task,
            head=head,
            teacher=teacher,
            trust_remote_code=options["trust_remote_code"],
            evaluation_uri=evaluation.uri if evaluation else None,
        )
        built = load_plugin("filter", chosen["name"])(context, **chosen["options"])
        dropped.update(apply_filter(space, shards, kept, built, context.name))
    if not any(mask.any() for mask in kept):
        raise CorpusError(f"the filters dropped every row: {dict(dropped)}")
    units = [Looked(*unit) for unit in zip(shards, kept, strict=True) if unit[1].any()]
    labelled = classifies or (
        head == "sequence_classification" and not read_labels(space.local(teacher.uri)).are_scores
    )
    counts = write_rows(space, units, ["source", "licence", "generator", *["output"] * labelled])
    num_blocks = write_arrays(
        make_blocks(space, options, units, teacher, task),
        space.out / "blocks.safetensors",
    )
    return CorpusRef(
        uri=space.output_uri(),
        digest=digest_folder(space.out),
        num_blocks=num_blocks,
        block_tokens=options["block_tokens"],
        num_documents=sum(counts["source"].values()),
        dropped=dict(sorted(dropped.items())),
        sources=counts["source"],
        outputs=counts.get("output", {}),
        licences=counts["licence"],
        generators=counts["generator"],
        refused=add_up([ref.refused for ref in refs]),
        spent=add_up([ref.spent for ref in refs]),
    )


def find_unlabelled(state: None, rows: list[Row]) -> list[str | None]:
    unlabelled = (row["output"] is None and not row["chat"] for row in rows)
    return ["unlabelled" if is_so else None for is_so in unlabelled]


ABSENT = {"licence": "unknown", "output": "none"}
"""How rows without a value are counted; without a generator, they are not."""


def write_rows(
    space: StageSpace, units: list[Looked], columns: list[str]
) -> dict[str, dict[str, int]]:
    """Write the kept rows, a shard in memory at a time; count the values of some columns.

    Args:
        columns: With few different values.
    """
    counts: dict[str, Counter[str]] = {name: Counter() for name in columns}
    for number, unit in enumerate(units):
        table = kept_table(space.localizer, unit)
        write_table(table, space.out, number)
        for name, counter in counts.items():
            for found in table[name].value_counts().to_pylist():
                value = ABSENT.get(name) if found["values"] is None else found["values"]
                if value is not None:
                    counter[value] += found["counts"]
    return {name: dict(sorted(counted.items())) for name, counted in counts.items()}


def make_blocks(
    space: StageSpace,
    options: dict[str, Any],
    units: list[Looked],
    teacher: ModelRef,
    task: Task | None,
) -> Iterator[Arrays]:
    """Return the corpus's blocks as the teacher's head takes them."""
    head, block_tokens = head_kind(teacher.architecture), options["block_tokens"]
    if head in ("sequence_classification", "question_answering"):
        state = partial(open_encoder, space.localizer, teacher.uri)
        work = partial(encode_unit, space.localizer, block_tokens)
        return map(load, space.stream_units(work, units, state, group="examples"))
    packed = cut_blocks(tokenize_shards(space, units, teacher, task), block_tokens)
    if head == "causal_lm":
        return packed
    vocabulary = read_vocabulary(load_tokenizer(space.local(teacher.uri)))
    return mask_blocks(packed, vocabulary, options["seed"])


def tokenize_shards(
    space: StageSpace, units: list[Looked], teacher: ModelRef, task: Task | None
) -> Iterator[Tokens]:
    state = partial(open_tokenizer, space.localizer, teacher.uri)
    work = partial(tokenize_unit, space.localizer, task)
    for data in space.stream_units(work, units, state, group="tokens"):
        yield Tokens.decode(data)


def open_tokenizer(localize: Callable[[str], Path], uri: str) -> Any:
    return load_tokenizer(localize(uri))


def tokenize_unit(
    localize: Callable[[str], Path], task: Task | None, tokenizer: Any, unit: Looked
) -> bytes:
    documents = (tokenize(row, tokenizer, task) for row in kept_rows(localize, unit))
    return join_documents(d for d in documents if any(d.loss_mask)).encode()


def open_encoder(localize: Callable[[str], Path], uri: str) -> tuple[Any, Labels]:
    tokenizer = load_tokenizer(localize(uri))
    check_tokenizer(tokenizer)
    return tokenizer, read_labels(localize(uri))


def encode_unit(
    localize: Callable[[str], Path], block_tokens: int, encoder: tuple[Any, Labels], unit: Looked
) -> bytes:
    data: bytes = save(dict(encode_rows(kept_rows(localize, unit), *encoder, block_tokens)))
    return data
