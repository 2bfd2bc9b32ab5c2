"""What a causal language model writes after prompts: sampled in batches, or searched with beams.

Prompts of different lengths share a batch, padded on the left. A token is drawn by the prompt's own
seed, so a neighbour in the batch can change it through the last bits of floating-point sums only.
Those depend on the size of a batch as much as on its padding, so batches of prompts of one length
would gain nothing; the caller sees to it that the same prompts always share a batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from tasks.corpus.generation import Prompt


class Writer(NamedTuple):
    """A worker's state."""

    model: Any
    tokenizer: Any
    ends: list[int]
    """Tokens that end a completion: end of text or turn, or the beginning of another text."""


class Written(NamedTuple):
    """What follows a prompt."""

    ids: list[int]
    """Without the token that ends it."""
    finished: bool


@torch.inference_mode()
def sample(writer: Writer, batch: list[tuple[list[int], Prompt]]) -> list[Written]:
    """Sample what follows each prompt's ids, all of them at once, until the last has ended."""
    if not batch:
        return []
    device = writer.model.device
    prompts = [prompt for _, prompt in batch]
    ids_BS, mask_BS = pad_left([ids for ids, _ in batch], device)
    positions_BS = (mask_BS.cumsum(-1) - 1).clamp(min=0)
    uniform_BT = draw_uniform(prompts).to(device)
    temperature_B1 = torch.tensor([[prompt.temperature] for prompt in prompts], device=device)
    written: list[list[int]] = [[] for _ in prompts]
    ended: dict[int, bool] = {}
    """Of each row that takes no more tokens, whether it finished."""
    cache = None
    for step in range(uniform_BT.shape[1]):
        out = writer.model(
            input_ids=ids_BS,
            attention_mask=mask_BS,
            position_ids=positions_BS,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
        ids_BS = choose(out.logits[:, -1], temperature_B1, uniform_BT[:, step : step + 1])
        for row, (token,) in enumerate(ids_BS.tolist()):
            if row in ended:
                continue
            if token in writer.ends:
                ended[row] = True
                continue
            written[row].append(token)
            if has_stop(writer.tokenizer, written[row], prompts[row].stop):
                ended[row] = True
            elif len(written[row]) == prompts[row].max_tokens:
                ended[row] = False
        if len(ended) == len(prompts):
            break
        mask_BS = torch.cat([mask_BS, torch.ones_like(ids_BS)], dim=1)
        positions_BS = positions_BS[:, -1:] + 1
    return [Written(ids, ended[row]) for row, ids in enumerate(written)]


def pad_left(encoded: list[list[int]], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask, both int64 [B, S]; padding is id 0, and masked."""
    width = max(len(ids) for ids in encoded)
    ids_BS = torch.tensor([[0] * (width - len(ids)) + ids for ids in encoded], device=device)
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in encoded]
    return ids_BS, torch.tensor(mask, device=device)


def draw_uniform(prompts: list[Prompt]) -> torch.Tensor:
    """Return what decides each prompt's tokens, float64 [B, T] in [0, 1), from its seed alone."""
    length = max(prompt.max_tokens for prompt in prompts)
    seeded = (torch.Generator().manual_seed(prompt.seed) for prompt in prompts)
    return torch.stack([torch.rand(length, generator=g, dtype=torch.float64) for g in seeded])


def choose(
    logits_BV: torch.Tensor, temperature_B1: torch.Tensor, uniform_B1: torch.Tensor
) -> torch.Tensor:
    """Return each row's next token, [B, 1]: the first whose cumulative probability exceeds the
    uniform number, or the likeliest where the temperature is 0."""
    greedy_B1 = temperature_B1 == 0
    scaled_BV = logits_BV.double() / temperature_B1.masked_fill(greedy_B1, 1.0)
    cumulative_BV = scaled_BV.softmax(-1).cumsum(-1)
    drawn_B1 = torch.searchsorted(cumulative_BV, uniform_B1 * cumulative_BV[:, -1:], right=True)
    return torch.where(greedy_B1, logits_BV.argmax(-1, keepdim=True), drawn_B1)


def has_stop(tokenizer: Any, ids: list[int], stops: tuple[str, ...]) -> bool:
    """Look for a stop at the end: as many tokens as it has bytes hold it, and a few more that may
    be part of one character."""
    if not stops:
        return False
    tail = ids[-(max(len(stop.encode()) for stop in stops) + 4) :]
    text = tokenizer.decode(tail, skip_special_tokens=True)
    return any(stop in text for stop in stops)


@torch.inference_mode()
def search(writer: Writer, ids: list[int], prompt: Prompt) -> Written:
    """Search with beams for what follows one prompt; the beams are the batch."""
    from transformers import GenerationConfig

    ids_1S = torch.tensor([ids], device=writer.model.device)
    config = GenerationConfig(
        num_beams=prompt.num_beams,
        do_sample=False,
        max_new_tokens=prompt.max_tokens,
        length_penalty=1.0,
        eos_token_id=writer.ends or None,
        pad_token_id=writer.ends[0] if writer.ends else 0,
    )
    out_1T = writer.model.generate(
        ids_1S, attention_mask=torch.ones_like(ids_1S), generation_config=config
    )
    after = out_1T[0, len(ids) :].tolist()
    end = next((at for at, token in enumerate(after) if token in writer.ends), None)
    return Written(after[:end], end is not None)
