"""Mixed precision: the budget is kept, the program finds the optimum, and measurements are true."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.models.checkpoint import load_model
from tasks.quantize.block_work import BlockWork, Part
from tasks.quantize.calibration import enter_model
from tasks.quantize.decoder_blocks import find_layout
from tasks.quantize.methods import absmax
from tasks.quantize.mixed_precision import (
    Measured,
    check_room,
    measure_block,
    read_measured,
    solve_widths,
    stored_bits,
)
from tasks.recipe import Export, MixedPrecision


def test_bits_on_disk_are_those_of_the_tensor() -> None:
    weight = torch.randn(6, 96)
    for bits, group_size, symmetric in itertools.product((2, 3, 4, 8), (None, 32), (True, False)):
        done = absmax.round_weight(weight, torch.float16, bits, group_size, symmetric)
        expected = stored_bits((6, 96), bits, group_size, torch.float16, symmetric)
        assert expected == done.num_bits


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=5))
def test_the_program_finds_the_best_widths(rises: list[list[float]]) -> None:
    widths = (2, 3, 4)
    groups = [
        Measured((f"{n}.a", f"{n}.b"), dict(zip(widths, values, strict=True)))
        for n, values in enumerate(rises)
    ]
    costs = {name: {b: 100 * b for b in widths} for group in groups for name in group.names}
    room = 200 * 3 * len(groups)
    found = solve_widths(groups, costs, room)
    assert sum(costs[name][found[g.names]] for g in groups for name in g.names) <= room

    def total(choice: tuple[int, ...]) -> float:
        return sum(group.rises[bits] for group, bits in zip(groups, choice, strict=True))

    allowed = (c for c in itertools.product(widths, repeat=len(groups)) if 200 * sum(c) <= room)
    best = min(map(total, allowed))
    assert total(tuple(found[group.names] for group in groups)) == pytest.approx(best, abs=1e-6)


def test_a_budget_below_the_smallest_says_both() -> None:
    costs = {"w": {2: 16_000, 4: 32_000}}
    with pytest.raises(ValueError, match=r"bytes is 2,500, .* at 2 bits take 3,000.*1,000 are not"):
        check_room(8 * 1_500, costs, 1_000)
    check_room(8 * 2_000, costs, 1_000)


def test_a_width_that_the_method_lacks() -> None:
    with pytest.raises(ValueError, match="bits"):
        Export(
            name="x",
            method="absmax",
            format="safetensors",
            mixed_precision=MixedPrecision(bytes=1, bits=[2, 5]),  # type: ignore[list-item]
        )


def test_rises_are_those_of_one_group_quantized_alone(tiny_llama: Path) -> None:
    ids = torch.arange(4 * 32).view(4, 32)
    layout = find_layout(tiny_llama, trust_remote_code=False)
    options = {"group_size": 16, "symmetric": True}
    parts = [[Part(tuple(block), options)] for block in layout.blocks]
    work = BlockWork(Path, str(tiny_llama), "absmax", parts, torch.float32, None, "")  # type: ignore[arg-type]
    prefix = enter_model(Path, str(tiny_llama), ids, trust_remote_code=False)
    answer = measure_block(work, [2, 4], ids, prefix, 1)
    assert answer == measure_block(work, [2, 4], ids, prefix, 1)  # the weights came back

    measured = [read_measured(entry) for entry in json.loads(answer)]
    layer = "model.layers.1"
    attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
    assert [set(group.names) for group in measured] == [
        {f"{attention}.{part}_proj.weight" for part in "qkv"},
        {f"{attention}.o_proj.weight"},
        {f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight"},
        {f"{mlp}.down_proj.weight"},
    ]
    model = load_model(tiny_llama)
    with torch.no_grad():
        dense = model(input_ids=ids).logits.log_softmax(-1)
        for name in measured[2].names:
            weight = model.get_parameter(name)
            weight.copy_(absmax.round_weight(weight, torch.float32, 2, 16).dequantize())
        changed = model(input_ids=ids).logits.log_softmax(-1)
    kl = (dense.exp() * (dense - changed)).sum(-1)[:, :-1].mean()
    assert measured[2].rises[2] == pytest.approx(float(kl), rel=1e-3)
    assert all(0 < group.rises[4] < group.rises[2] for group in measured)
