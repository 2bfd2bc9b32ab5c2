"""nightpress's own layout on disk, for what no other format expresses; docs/format.md has it.

`nightpress.safetensors` holds the packed parts of every parameter, `nightpress.json` says how each
is read. No file is called model.safetensors, so plain transformers refuses the folder.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from tasks.errors import CheckpointError
from tasks.models.folder import PACKED_ABOUT
from tasks.models.model_kind import auto_class
from tasks.models.quantized.integer import IntegerTensor
from tasks.models.quantized.plain import PlainTensor
from tasks.models.quantized_linear import PACKED_BITS, make_linear, make_packed_linear
from tasks.models.quantized_tensor import QuantizedTensor, pack_all, unpack_one
from tasks.models.spreading import pick_device

VERSION = 1
WEIGHTS = "nightpress.safetensors"
MAX_BITS = 8
"""Of a code."""
UNREADABLE = (
    OSError,
    SafetensorError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What reading a damaged file may raise."""


def save_packed(out: Path, tensors: Mapping[str, QuantizedTensor]) -> None:
    """Write both files; equal tensors give equal bytes."""
    packed = pack_all(tensors)
    said = {
        name: about
        | {
            "shape": list(tensors[name].shape),
            "parts": {part: describe(packed.parts[f"{name}.{part}"]) for part in about["parts"]},
        }
        for name, about in packed.about.items()
    }
    save_file(packed.parts, out / WEIGHTS)
    whole = {"version": VERSION, "tensors": said}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    (out / PACKED_ABOUT).write_text(text + "\n", encoding="utf-8")


def describe(part: torch.Tensor) -> dict[str, Any]:
    return {"dtype": str(part.dtype).removeprefix("torch."), "shape": list(part.shape)}


def load_packed(
    folder: Path, dtype: torch.dtype | str, trust_remote_code: bool, packed: bool | None = None
) -> Any:
    """Read a model in evaluation mode into the CPU's memory.

    A layer whose input is quantized, too, is replaced by one that does so; any other computes with
    the dequantized weight, unless its codes stay packed.

    Args:
        dtype: A torch dtype, or `auto` for the one that config.json names.
        packed: Keep linear weights of few bits packed. None: where there is a GPU, whose product
            with packed weights reads less memory, and the dtype is `auto`; whoever asks for a dtype
            wants weights in it, to train or to cut them.

    Raises:
        CheckpointError: a file is not what the other says, or not the model of config.json.
    """
    from transformers import AutoConfig

    tensors = read_packed(folder)
    if packed is None:
        packed = dtype == "auto" and pick_device() == "cuda"
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        stored_as: torch.dtype = config.dtype if isinstance(dtype, str) else dtype
        with torch.device("meta"):
            empty = auto_class(config).from_config(config, trust_remote_code=trust_remote_code)
        stay = find_packed(empty, tensors) if packed else frozenset[str]()
        state = {
            name: torch.empty((), dtype=stored_as).expand(tensor.shape)  # one element in memory
            if name in stay
            else as_parameter(tensor, stored_as)
            for name, tensor in tensors.items()
        }
        model, found = type(empty).from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=stored_as,
            output_loading_info=True,
        )
        wrong = [name for kind in found.values() for name in kind]
        if wrong:
            raise ValueError(f"{len(wrong)} weights are not those of config.json: {wrong[0]}")
        replace_linears(model, tensors, stay)
    except UNREADABLE as error:
        raise CheckpointError(f"{folder} does not load: {type(error).__name__}: {error}") from error
    return model.eval()


def as_parameter(tensor: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what the model is given, in its dtype."""
    value = tensor.value if isinstance(tensor, PlainTensor) else tensor.dequantize()
    return value.to(dtype) if value.is_floating_point() else value


def find_packed(model: nn.Module, tensors: Mapping[str, QuantizedTensor]) -> frozenset[str]:
    """Return the names of the weights that can stay packed: those of plain linear layers."""
    return frozenset(
        name
        for name, tensor in tensors.items()
        if isinstance(tensor, IntegerTensor)
        and tensor.bits in PACKED_BITS
        and tensor.activations is None
        and name.endswith(".weight")
        and type(model.get_submodule(name.removesuffix(".weight"))) is nn.Linear
    )


def replace_linears(
    model: nn.Module, tensors: Mapping[str, QuantizedTensor], packed: Collection[str] = ()
) -> None:
    """Put layers that quantize their input where the encodings ask for it.

    Args:
        packed: Names of the weights that stay packed.

    Raises:
        ValueError: an encoding asks for it of a parameter that is no linear layer's weight; or
            what is packed contradicts itself.
    """
    for name, tensor in tensors.items():
        module_name, _, parameter = name.rpartition(".")
        module = model.get_submodule(module_name)
        bias = getattr(module, "bias", None)
        if name in packed:
            assert isinstance(tensor, IntegerTensor)
            model.set_submodule(module_name, make_packed_linear(tensor, bias))
            continue
        layer = make_linear(tensor, bias)
        if layer is None:
            continue
        if not isinstance(module, nn.Linear) or parameter != "weight":
            raise ValueError(f"{name}: expected a linear layer's weight behind a quantized input")
        model.set_submodule(module_name, layer)


def read_packed(folder: Path) -> dict[str, QuantizedTensor]:
    """Read all parameters by name, each held against what nightpress.json says of it.

    Raises:
        CheckpointError: the files contradict each other or themselves.
    """
    try:
        said = read_about(folder)
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            parts = {part: file.get_tensor(part) for part in file.keys()}  # noqa: SIM118
        expected = {f"{name}.{part}" for name, about in said.items() for part in about["parts"]}
        if parts.keys() != expected:
            raise ValueError(f"{WEIGHTS} and {PACKED_ABOUT} name different parts")
        return {name: read_one(name, parts, about) for name, about in said.items()}
    except UNREADABLE as error:
        raise CheckpointError(
            f"{folder} does not load: {type(error).__name__}: {error}",
            "the files are damaged, or were not written by nightpress; export the model again",
        ) from error


def read_about(folder: Path) -> dict[str, Any]:
    """Return what nightpress.json says of each parameter.

    Raises:
        ValueError: another version, or no JSON.
    """
    said = json.loads((folder / PACKED_ABOUT).read_text(encoding="utf-8"))
    if said["version"] != VERSION:
        raise ValueError(
            f"expected version {VERSION} of the layout, got {said['version']!r}; "
            "load it with the nightpress that wrote it"
        )
    tensors: dict[str, Any] = said["tensors"]
    return tensors


def read_one(name: str, parts: Mapping[str, torch.Tensor], about: Any) -> QuantizedTensor:
    """Return one parameter, its parts held against what is said of them.

    Raises:
        ValueError: a part has another dtype or shape, or the whole has another shape.
    """
    for part, expected in about["parts"].items():
        found = describe(parts[f"{name}.{part}"])
        if found != expected:
            raise ValueError(f"{name}.{part}: expected {expected}, got {found}")
    if about["about"].get("bits", 1) not in range(1, MAX_BITS + 1):
        raise ValueError(f"{name}: expected 1 to {MAX_BITS} bits, got {about['about']['bits']!r}")
    tensor = unpack_one(name, parts, about)
    if list(tensor.shape) != about["shape"]:
        raise ValueError(f"{name}: expected shape {about['shape']}, got {list(tensor.shape)}")
    return tensor
