"""Which of a student's parameters are trained, and how what was added is merged away again.

LoRA adds to a frozen linear layer: y = W x + (alpha / r) B A x, A [r, in], B [out, r], B = 0 at
the start. QLoRA does so to W in NF4.

Reference: Hu et al. 2021, arXiv 2106.09685, equation 3; Dettmers et al. 2023, arXiv 2305.14314.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tasks.models.blocks import list_blocks
from tasks.models.nf4_linear import hold_in_nf4

ADAPTER = "default"
"""peft's name for the only adapter."""


def make_trainable(
    student: Any, trainable: dict[str, Any], seed: int
) -> dict[str, str | int | float]:
    """Freeze what is not to be trained, and add what is to be trained instead, in place.

    Args:
        trainable: Of the recipe, `Trainable` of tasks/distill_options.py.
        seed: Of the A of all adapters.

    Returns:
        For the stage's record: what is trained, how many parameters, and their share of the
        student's own.

    Raises:
        ValueError: the student has not what is to be trained; or qlora on a GPU without
            bitsandbytes.
    """
    whole = sum(parameter.numel() for parameter in student.parameters())
    if trainable["kind"] == "top_layers":
        keep_top(student, trainable["num_layers"])
    elif trainable["kind"] in ("lora", "qlora"):
        add_adapters(student, trainable, seed)
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    return {
        "trainable": trainable["kind"],
        "trainable_parameters": trained,
        "trainable_share": round(trained / whole, 6),
    }


def merge(student: Any, reload: Callable[[], Any]) -> Any:
    """Return the student as a stock model, adapters merged: W + (alpha / r) B A.

    The weights must be whole, not partitioned. A student without adapters is returned as it is.

    Args:
        reload: Makes the student as it was before `make_trainable`. Called for qlora alone, whose
            4-bit weights are given up for those.
    """
    from peft.tuners.lora import LoraLayer

    adapted = [(name, m) for name, m in student.named_modules() if isinstance(m, LoraLayer)]
    held = any(not isinstance(m.get_base_layer(), nn.Linear | Conv1D) for _, m in adapted)
    whole = reload() if held else student
    for name, layer in adapted:
        if not held:
            put_module(student, name, layer.get_base_layer())
        weight = whole.get_submodule(name).weight
        weight.data += layer.get_delta_weight(ADAPTER).detach().to(weight)
    return whole.requires_grad_(True)


def keep_top(student: Any, num_layers: int) -> None:
    """Train the last blocks and what runs after them: the final norm and the head.

    What runs before them, too, stays frozen: above all a head that is the embedding.

    Raises:
        ValueError: there are not as many blocks.
    """
    blocks = list_blocks(student)
    if num_layers > len(blocks):
        raise ValueError(
            f"trainable: top_layers: expected num_layers of at most {len(blocks)}, which the "
            f"student has, got {num_layers}"
        )
    below, above = split_by_pass(student, blocks[-num_layers])
    student.requires_grad_(False)
    for parameter in above - below:
        parameter.requires_grad_(True)


@torch.no_grad()
def split_by_pass(student: Any, block: nn.Module) -> tuple[set[nn.Parameter], set[nn.Parameter]]:
    """Return the parameters that a forward pass reads before a block begins, and from there on."""
    read: tuple[set[nn.Parameter], set[nn.Parameter]] = (set(), set())
    begun: list[nn.Module] = []

    def note(module: nn.Module, *_: Any) -> None:
        if module is block:
            begun.append(module)
        read[len(begun)].update(module.parameters(recurse=False))

    hooks = [module.register_forward_pre_hook(note) for module in student.modules()]
    student(input_ids=torch.zeros(1, 2, dtype=torch.long, device=student.device))
    for hook in hooks:
        hook.remove()
    return read


def add_adapters(student: Any, trainable: dict[str, Any], seed: int) -> None:
    """Put a peft adapter around each linear layer that is to have one; all else is frozen.

    Raises:
        ValueError: there is no such layer, or one that cannot be held in 4 bits.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    linears = find_linears(student, trainable["target_modules"])
    transposed = [name for name, module in linears.items() if isinstance(module, Conv1D)]
    if transposed and trainable["kind"] == "qlora":
        raise ValueError(
            f"trainable: qlora: expected linear layers [out, in], got the transposed "
            f"{transposed[0]} of {student.config.model_type}; say trainable: lora"
        )
    config = LoraConfig(
        r=trainable["rank"],
        lora_alpha=trainable["alpha"],
        target_modules=list(linears),
        fan_in_fan_out=bool(transposed),
    )
    torch.manual_seed(seed)
    inject_adapter_in_model(config, student, ADAPTER)
    if trainable["kind"] == "qlora":
        for layer in [m for m in student.modules() if isinstance(m, LoraLayer)]:
            layer.base_layer = hold_in_nf4(layer.get_base_layer())


def find_linears(student: Any, targets: list[str] | None) -> dict[str, nn.Module]:
    """Return the linear layers of the blocks, by name.

    Args:
        targets: Last parts of the names of those that are meant; None means all.

    Raises:
        ValueError: there are none, or none of a name.
    """
    inside = {module for block in list_blocks(student) for module in block.modules()}
    found = {
        name: module
        for name, module in student.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module in inside
    }
    own = {name.rpartition(".")[2] for name in found}
    if not found or (targets is not None and not own.issuperset(targets)):
        raise ValueError(
            f"trainable: expected target_modules among the linear layers of the blocks, "
            f"{sorted(own)}, got {targets}"
        )
    return {n: m for n, m in found.items() if targets is None or n.rpartition(".")[2] in targets}


def put_module(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
