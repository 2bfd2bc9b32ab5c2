"""What pruning holds at a time: one block's tensors, not the model's."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.models.checkpoint import load_model
from tasks.prune.criteria import reconstruction
from tasks.prune.repair.repair import repair_submodels
from tasks.prune.repair.stream import examine_anatomy
from tasks.prune.unit_statistics import calibrate
from tasks.prune.units.groups import find_units
from tasks.prune.units.units import find_layers, list_sublayers

NUM_LAYERS = 6


@pytest.fixture
def model(make_llama: Callable[..., Path]) -> Any:
    return load_model(make_llama(num_hidden_layers=NUM_LAYERS, tie_word_embeddings=False))


def live_bytes() -> int:
    gc.collect()
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in gc.get_objects()
        if isinstance(tensor, torch.Tensor)
    }
    return sum(storages.values())


def watch_repair(model: Any, keep_weights: bool) -> list[int]:
    """Return the bytes of all tensors as each layer begins, during the repair of one cut."""
    groups = find_units(model, ("kv_groups", "ffn"))
    ids = torch.randint(300, (4, 16), generator=torch.Generator().manual_seed(0))
    anatomy = examine_anatomy(model, list_sublayers(groups), ids[0])
    half = [np.arange(group.num_units) < group.num_units // 2 for group in groups]
    seen: list[int] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, __: seen.append(live_bytes()))
        for layer in model.get_submodule(find_layers(model))
    ]
    repair_submodels(model, groups, anatomy, [half], ids, refine=1, keep_weights=keep_weights)
    for hook in hooks:
        hook.remove()
    return seen


def test_a_repair_lets_go_of_each_block(model: Any) -> None:
    block = sum(p.nbytes for p in model.get_submodule(find_layers(model))[0].parameters())
    freed, kept = watch_repair(model, keep_weights=False), watch_repair(model, keep_weights=True)
    assert len(freed) == len(kept) == NUM_LAYERS
    assert abs(freed[-1] - freed[1]) < 0.1 * block
    assert kept[-1] - kept[1] > 0.9 * block * (NUM_LAYERS - 2)


@pytest.mark.parametrize("room", [1, 4 * (32**2 + 64**2)])
def test_the_criterion_in_parts_is_the_criterion(
    model: Any, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """One sublayer at a time, and one layer at a time."""
    groups = find_units(model, ("kv_groups", "ffn"))
    ids = torch.randint(300, (4, 16), generator=torch.Generator().manual_seed(0))
    calibrated, _ = calibrate(model, groups, ids, [group.num_units // 2 for group in groups])
    whole = reconstruction.score(calibrated)
    assert len(list(reconstruction.parts(list_sublayers(groups)))) == 1
    monkeypatch.setattr(reconstruction, "GRAM_BYTES", room)
    expected = 2 * NUM_LAYERS if room == 1 else NUM_LAYERS
    assert len(list(reconstruction.parts(list_sublayers(groups)))) == expected
    assert all(map(torch.equal, reconstruction.score(calibrated), whole))
