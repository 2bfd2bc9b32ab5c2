"""The stage that runs the teacher over the corpus once, for every later student."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tasks.digests import digest_folder
from tasks.distill.blocks import Blocks, load_blocks, next_tokens
from tasks.distill.teacher_logits.encoding import choose_encoding, select_entries
from tasks.distill.teacher_logits.shard import (
    Header,
    Origin,
    digest_vocabulary,
    shard_name,
    write_shard,
)
from tasks.models.checkpoint import load_model, load_tokenizer
from tasks.models.folder import load_config
from tasks.records import CorpusRef, ModelRef, TeacherLogitsRef

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tasks.stage_space import StageSpace

SHARD_FLOPS = {"cpu": 2e11, "cuda": 1e15}
"""Of the teacher's forward passes for one shard: about ten seconds of a core or a GPU."""
SHARD_TOKENS = 2**16
"""Most positions in a shard."""
FORWARD_LOGITS = 2**24
"""Logits in one forward pass, but for a single block that has more."""


class Teacher(NamedTuple):
    """A worker's state."""

    model: Any
    blocks: Blocks
    header: Header


def store_teacher_logits(
    space: StageSpace, options: dict[str, Any], *, teacher: ModelRef, corpus: CorpusRef
) -> TeacherLogitsRef:
    """Write the teacher's distribution at every learned position of the corpus to `space.out`.

    Each shard is a unit of work. The driver holds one shard at a time.

    Raises:
        CheckpointError: the teacher does not load.
    """
    folder = space.local(teacher.uri)
    tokenizer = load_tokenizer(folder)
    vocab_size = min(load_config(folder)["vocab_size"], len(tokenizer))
    header = Header(
        origin=Origin(teacher.digest, digest_vocabulary(tokenizer), corpus.digest),
        encoding=choose_encoding(vocab_size, options["k"]),
        num_blocks=corpus.num_blocks,
        shard_blocks=size_shard(teacher, corpus, options["device"]),
    )
    begins = list(range(0, header.num_blocks, header.shard_blocks))
    state = partial(
        load_teacher,
        space.localizer,
        teacher.uri,
        corpus.uri,
        options["trust_remote_code"],
        header,
    )
    num_bytes = 0
    for number, shard in enumerate(space.stream_units(encode_blocks, begins, state, "shards")):
        (space.out / shard_name(number)).write_bytes(shard)
        num_bytes += len(shard)
    return TeacherLogitsRef(
        uri=space.output_uri(),
        digest=digest_folder(space.out),
        vocab_size=vocab_size,
        num_shards=len(begins),
        num_bytes=num_bytes,
        bytes_per_token=round(num_bytes / (corpus.num_blocks * corpus.block_tokens), 2),
    )


def size_shard(teacher: ModelRef, corpus: CorpusRef, device: str) -> int:
    """Return the blocks in a shard: some seconds of work, whatever the number of workers."""
    affordable = SHARD_FLOPS[device] / (2 * teacher.num_parameters)
    return max(1, int(min(affordable, SHARD_TOKENS)) // corpus.block_tokens)


def load_teacher(
    localize: Callable[[str], Path],
    teacher_uri: str,
    corpus_uri: str,
    trust_remote_code: bool,
    header: Header,
) -> Teacher:
    model = load_model(localize(teacher_uri), "auto", trust_remote_code)
    return Teacher(model, load_blocks(localize(corpus_uri)), header)


def encode_blocks(teacher: Teacher, begin: int) -> bytes:
    """Return the shard that begins with the given block."""
    header = teacher.header
    end = min(begin + header.shard_blocks, header.num_blocks)
    ids_BT = teacher.blocks.ids[begin:end].long()
    assert teacher.blocks.loss_mask is not None
    _, learned_BT = next_tokens(ids_BT, teacher.blocks.loss_mask[begin:end])
    per_forward = max(1, FORWARD_LOGITS // (ids_BT.shape[1] * header.encoding.vocab_size))
    entries = []
    with torch.inference_mode():
        for first in range(0, len(ids_BT), per_forward):
            part = slice(first, first + per_forward)
            ids = ids_BT[part].to(teacher.model.device)
            logits_BTV = teacher.model(input_ids=ids, use_cache=False).logits
            learned = learned_BT[part].to(logits_BTV.device)
            entries += [
                select_entries(logits_TV, learned_T, header.encoding)
                for logits_TV, learned_T in zip(logits_BTV, learned, strict=True)
            ]
    return write_shard(header, entries)
