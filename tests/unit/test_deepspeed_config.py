"""The arithmetic of batches, steps, learning rates and data order; DeepSpeed's configuration."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.distill.blocks import batch_rows
from tasks.distill.deepspeed_config import (
    Batch,
    check_precision,
    count_steps,
    deepspeed_config,
    frozen_config,
    learning_rate_at,
    split_batch,
)
from tasks.distill_options import DistillOptions


def make_options(**overrides: Any) -> dict[str, Any]:
    losses = [{"name": "cross_entropy"}]
    return DistillOptions(losses=losses, num_tokens=1000, **overrides).model_dump()  # type: ignore[arg-type]


sizes = st.integers(1, 8)


@settings(max_examples=50, deadline=None)
@given(micro=sizes, num_accumulated=sizes, world=sizes)
def test_ranks_and_passes_cover_the_batch_once(
    micro: int, num_accumulated: int, world: int
) -> None:
    batch = split_batch(micro * num_accumulated * world, micro, world)
    assert batch.num_accumulated == num_accumulated
    seen = [
        position
        for rank in range(world)
        for part in batch.micro_batches(rank)
        for position in range(batch.num_blocks)[part]
    ]
    assert sorted(seen) == list(range(batch.num_blocks))


@settings(max_examples=50, deadline=None)
@given(num_blocks=st.integers(1, 64), micro=sizes, world=sizes)
def test_any_number_of_ranks_takes_the_whole_batch(num_blocks: int, micro: int, world: int) -> None:
    """Where it does not come out even, less than one round of passes is over."""
    batch = Batch(num_blocks, micro, world)
    places = [
        place
        for rank in range(world)
        for part in batch.micro_batches(rank)
        for place in range(batch.num_places)[part]
    ]
    assert sorted(places) == list(range(batch.num_places))
    assert num_blocks <= batch.num_places < num_blocks + micro * world


@settings(max_examples=50, deadline=None)
@given(batch=st.integers(1, 64), micro=sizes, world=sizes)
def test_a_batch_that_does_not_divide_says_what_would(batch: int, micro: int, world: int) -> None:
    if batch % (micro * world) == 0:
        assert split_batch(batch, micro, world).num_blocks == batch
        return
    with pytest.raises(ValueError, match=f"got {batch}; ") as caught:
        split_batch(batch, micro, world)
    remedies = dict(
        pair.split(": ")
        for pair in str(caught.value).partition("; ")[2].removesuffix(" would do").split(" or ")
    )
    split_batch(int(remedies["batch_blocks"]), micro, world)
    if "micro_batch_blocks" in remedies:
        split_batch(batch, int(remedies["micro_batch_blocks"]), world)


def test_steps_reach_the_tokens_asked_for() -> None:
    assert count_steps(300_000, 16, 256) == 74  # 73.2 steps
    assert count_steps(4096, 16, 256) == 1
    assert count_steps(1, 16, 256) == 1


def test_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    rates = [learning_rate_at(step, 100, 1e-3, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([1e-4 * (i + 1) for i in range(10)])
    assert max(rates) == rates[9] == rates[10] == 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(1e-4)
    assert learning_rate_at(0, 1, 1e-3, 0.05) == 1e-3


def test_data_order_is_fixed_by_seed_and_epoch() -> None:
    steps = [batch_rows(step, 4, 10, seed=3) for step in range(5)]
    joined = torch.cat(steps).tolist()
    assert sorted(joined[:10]) == sorted(joined[10:]) == list(range(10))
    assert joined[:10] != joined[10:]
    assert joined == torch.cat([batch_rows(step, 2, 10, seed=3) for step in range(10)]).tolist()
    assert joined != torch.cat([batch_rows(step, 4, 10, seed=4) for step in range(5)]).tolist()


def test_deepspeed_config_states_the_recipe() -> None:
    options = make_options(batch_blocks=16, micro_batch_blocks=2, zero_stage=2, clip_norm=0.5)
    config = deepspeed_config(options, split_batch(16, 2, 2))
    assert config["train_batch_size"] == 16
    assert config["train_micro_batch_size_per_gpu"] == 2
    assert config["gradient_accumulation_steps"] == 4
    assert config["gradient_clipping"] == 0.5
    assert config["zero_optimization"]["stage"] == 2
    assert config["bf16"] == {"enabled": False}


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_what_is_partitioned_by_need(zero_stage: int) -> None:
    """16 bits and offload need ZeRO 1 at least; only the chosen type is on."""
    batch = split_batch(16, 8, 2)
    for how in ({}, {"dtype": "bfloat16"}, {"dtype": "float16"}, {"offload": "cpu"}):
        config = deepspeed_config(make_options(zero_stage=zero_stage, **how), batch)
        zero = config["zero_optimization"]
        assert zero["stage"] == max(zero_stage, 1 if how else 0)
        assert ("offload_optimizer" in zero) == ("offload" in how)
        assert config["bf16"]["enabled"] == (how.get("dtype") == "bfloat16")
        assert config["fp16"]["enabled"] == (how.get("dtype") == "float16")
    assert frozen_config(make_options(), batch)["zero_optimization"]["stage"] == 3


def test_float16_is_refused_on_a_cpu() -> None:
    with pytest.raises(ValueError, match=r"gpus_per_worker: 0; use bfloat16"):
        check_precision("float16", "cpu")
    check_precision("float16", "cuda")
    check_precision("bfloat16", "cpu")


def test_four_bits_are_not_spread() -> None:
    with pytest.raises(ValueError, match="got trainable: qlora"):
        make_options(zero_stage=3, trainable="qlora")


def test_deepspeed_compiles_nothing_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a private table: were it gone, training would start a compiler, or fail."""
    if torch.cuda.is_available():
        pytest.skip("for machines without a GPU")
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    from tasks.distill.engine import import_deepspeed

    import_deepspeed()
    from deepspeed.comm.torch import build_shm_op

    assert build_shm_op() is None
