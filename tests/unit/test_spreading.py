"""Blocks over several devices. There is no card here: which block goes where, and that inputs go
with it, is tested on the devices `cpu` and `meta`; that cards compute the same is not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.models.blocks import list_blocks
from tasks.models.checkpoint import load_model
from tasks.models.spreading import assign_blocks, count_bytes, spread_blocks

IDS = torch.arange(12).view(2, 6)


def cards(number: int) -> list[torch.device]:
    return [torch.device("cuda", index) for index in range(number)]


@pytest.mark.parametrize("number", [2, 3, 4])
@pytest.mark.parametrize("outside", [0, 50, 400])
def test_cards_hold_about_the_same_and_the_last_blocks_are_beside_the_head(
    number: int, outside: int
) -> None:
    """Besides the blocks the first card holds the embeddings and the head."""
    sizes = [100] * 24
    places = assign_blocks(sizes, sum(sizes) + outside, cards(number))
    order = [place.index for place in places]
    assert order == sorted(order, key=lambda index: index or number)
    held = [100 * order.count(index) + (outside if index == 0 else 0) for index in range(number)]
    assert max(held) - min(held) <= 100
    assert order[-1] == 0


def test_everything_fits_on_the_cards_before_the_first_one_is_asked_for_blocks() -> None:
    """The head alone is more than a card's share."""
    places = assign_blocks([10] * 4, 1000, cards(2))
    assert [place.index for place in places] == [1, 1, 1, 1]


def test_a_block_gets_its_inputs_where_its_weights_are(make_llama: Callable[..., Path]) -> None:
    """Up to where the pass would come back from `meta`, from which nothing does."""
    model = load_model(make_llama(num_hidden_layers=4))
    spread_blocks(model, [torch.device("cpu"), torch.device("meta")])
    blocks = list_blocks(model)
    own = [{p.device.type for p in block.parameters()} for block in blocks]
    assert own == [{"meta"}, {"meta"}, {"meta"}, {"cpu"}]
    outside = {p.device.type for n, p in model.named_parameters() if ".layers." not in n}
    assert outside == {"cpu"}
    seen: list[set[str]] = []

    def look(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [*args, *kwargs["position_embeddings"]]
        seen.append({x.device.type for x in given})

    for block in blocks:
        block.register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad(), pytest.raises(NotImplementedError, match="meta"):
        model(input_ids=IDS, use_cache=False)
    assert seen == own[:3]


def test_on_one_device_nothing_changes(tiny_llama: Path) -> None:
    plain, spread = load_model(tiny_llama), load_model(tiny_llama)
    spread_blocks(spread, [torch.device("cpu"), torch.device("cpu")])
    with torch.no_grad():
        assert torch.equal(spread(input_ids=IDS).logits, plain(input_ids=IDS).logits)
    assert count_bytes(spread) == count_bytes(plain)
