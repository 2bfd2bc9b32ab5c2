"""Pack documents of any length into training blocks of one length."""

from collections.abc import Iterable

import torch

from tasks.corpus.text import Document
from tasks.errors import CorpusError


def pack_blocks(documents: Iterable[Document], block_tokens: int) -> dict[str, torch.Tensor]:
    """Join documents end to end and cut them; what does not fill the last block is left out.

    Returns:
        `ids` int32 and `loss_mask` uint8, both [num_blocks, block_tokens].

    Raises:
        CorpusError: all documents together are shorter than one block.
    """
    ids: list[int] = []
    loss_mask: list[int] = []
    for document in documents:
        ids += document.ids
        loss_mask += document.loss_mask
    num_blocks = len(ids) // block_tokens
    if num_blocks == 0:
        raise CorpusError(
            f"the corpus has {len(ids)} tokens, fewer than one block of {block_tokens}",
            "add a source, or lower corpus.block_tokens",
        )
    kept = num_blocks * block_tokens
    return {
        "ids": torch.tensor(ids[:kept], dtype=torch.int32).view(num_blocks, block_tokens),
        "loss_mask": torch.tensor(loss_mask[:kept], dtype=torch.uint8).view(num_blocks, -1),
    }
