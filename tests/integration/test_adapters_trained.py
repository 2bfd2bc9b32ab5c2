"""Adapters on real Ray and DeepSpeed: the trained student is a stock model of merged weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from infra.ray_cluster import RayExecutor
from tasks.models.checkpoint import load_model
from tests.integration.distill_driver import run_distill

pytestmark = pytest.mark.integration


def test_qlora_on_two_workers(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    """Of a student of half the layers: only the blocks' linear weights have moved."""
    teacher = make_llama(seed=1, num_hidden_layers=4)
    ids = torch.randint(300, (40, 32), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.uint8)
    (tmp_path / "corpus").mkdir()
    save_file({"ids": ids.int(), "loss_mask": mask}, tmp_path / "corpus/blocks.safetensors")
    options: dict[str, Any] = {
        "initializer": {"name": "every_nth_layer", "options": {}},
        "trainable": "qlora",
        "num_tokens": 6 * 8 * 32,
        "batch_blocks": 8,
        "micro_batch_blocks": 2,
        "checkpoint_steps": 3,
    }
    executor = RayExecutor("local", 2, 0, 1, tmp_path / "scratch")
    store = f"file://{tmp_path}/store"
    record, space = run_distill(executor, store, teacher, teacher, tmp_path / "corpus", **options)
    executor.close()

    assert record.facts["layers_kept"] == "0 3" and record.facts["layers_incoming"] == 4
    adapters = 2 * 8 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    assert record.facts["trainable"] == "qlora"
    assert record.facts["trainable_parameters"] == adapters
    trained, whole = load_model(space.out), load_model(teacher)
    assert trained.config.num_hidden_layers == 2
    for new, old in enumerate([0, 3]):
        pairs = zip(
            trained.model.layers[new].named_parameters(),
            whole.model.layers[old].parameters(),
            strict=True,
        )
        for (name, now), before in pairs:
            assert torch.equal(now, before) == ("norm" in name), name
    assert torch.equal(trained.model.embed_tokens.weight, whole.model.embed_tokens.weight)
