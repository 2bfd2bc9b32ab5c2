"""The corpus in training: its blocks, and the order in which every run reads them."""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file

from tasks.digests import digest_of


class Blocks(NamedTuple):
    """The corpus's blocks, mapped from the file: only what is read takes memory.

    Those of a causal language model are packed and have a `loss_mask`; an encoder's are padded on
    the right and have all that a forward pass takes.
    """

    ids: torch.Tensor
    """int32, [num_blocks, block_tokens]"""
    loss_mask: torch.Tensor | None = None
    """uint8, [num_blocks, block_tokens]: 1 where the token is to be learned."""
    attention_mask: torch.Tensor | None = None
    """uint8, [num_blocks, block_tokens]: 0 where there is padding."""
    token_type_ids: torch.Tensor | None = None
    """uint8, [num_blocks, block_tokens]: which of two texts; None where the model takes none."""
    labels: torch.Tensor | None = None
    """int32 with -100 where there is none: of a classifier [num_blocks], of question answering
    [num_blocks, 2], the first and the last token of the answer, of a masked language model
    [num_blocks, block_tokens]. A regression's are float32 [num_blocks], NaN where there is none."""


def load_blocks(folder: Path) -> Blocks:
    return Blocks(**load_file(folder / "blocks.safetensors"))


def next_tokens(
    ids_BT: torch.Tensor, loss_mask_BT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each position's label, and 1 where it is to be learned, both [B, T].

    The last position of a block has no token after it; it is masked rather than cut off.
    """
    learned_BT = loss_mask_BT.roll(-1, dims=1)
    learned_BT[:, -1] = 0
    return ids_BT.roll(-1, dims=1), learned_BT


def derive_seed(*parts: int) -> int:
    """Return a seed for a unit of work, unrelated to those of its neighbours."""
    return int(digest_of(list(parts))[:15], 16)


def batch_rows(step: int, batch_blocks: int, num_blocks: int, seed: int) -> torch.Tensor:
    """Return which blocks make up a step's global batch, [batch_blocks].

    Each epoch is a permutation fixed by (seed, epoch), and steps read one epoch after the other;
    the number of workers plays no part.
    """
    positions = range(step * batch_blocks, (step + 1) * batch_blocks)
    rows = [_permutation(num_blocks, seed, p // num_blocks)[p % num_blocks] for p in positions]
    return torch.stack(rows)


@lru_cache(maxsize=2)
def _permutation(num_blocks: int, seed: int, epoch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
    return torch.randperm(num_blocks, generator=generator)
