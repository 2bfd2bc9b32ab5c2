"""A forward pass watched at every reader and writer, and what can be known of a model by one.

What a sublayer's output is added to is called the residual stream before it. Pre-norm decoders add
outputs as they are, so it is followed from each layer's input (`sum`); post-norm encoders read the
stream itself (`read`); where an output is normalised before it is added (gemma2) there is no
telling (`unknown`), and zero stands for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import nn

from tasks.prune.repair.feed_forward import Activation
from tasks.prune.repair.least_squares import Affine
from tasks.prune.units.families import matrix
from tasks.prune.units.units import Sublayer, find_layers

StreamKind = Literal["sum", "read", "unknown"]

ACTIVATION_NAMES = ("act_fn", "activation_fn", "act", "activation", "intermediate_act_fn")
"""Names that families give to the module between the readers and the writer."""


class Visitor(Protocol):
    """Called in the order of the pass; both may return another output, or None."""

    def read(
        self, position: int, index: int, x: torch.Tensor, before: torch.Tensor, output: torch.Tensor
    ) -> torch.Tensor | None:
        """See a reader's input [..., hidden], the stream before it and its output."""

    def write(
        self, position: int, x: torch.Tensor, before: torch.Tensor, output: torch.Tensor
    ) -> torch.Tensor | None:
        """See a writer's input [..., width], the stream before the sublayer and its output."""


def reader_paths(sublayer: Sublayer) -> list[str]:
    """Return the module paths of all layers that read the stream, fixed ones last."""
    return [path for path, _ in sublayer.readers] + list(sublayer.fixed)


def affine(model: Any, path: str) -> Affine:
    module = model.get_submodule(path)
    return Affine(matrix(module).detach(), None if module.bias is None else module.bias.detach())


@contextmanager
def watched(
    model: Any, sublayers: list[Sublayer], visitor: Visitor, kind: StreamKind
) -> Iterator[None]:
    """Show every reader's and writer's pass to the visitor for as long as the context lasts."""
    stream: dict[str, torch.Tensor] = {}

    def enter(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        stream["sum"] = inputs[0]

    def unfold(x: torch.Tensor) -> torch.Tensor:
        """Return [windows, tokens, ...]: opt's feed-forward layers see all tokens in one row."""
        return x if x.ndim == 3 else x.view(*stream["sum"].shape[:2], -1)

    def before(like: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(like) if kind == "unknown" else stream[kind]

    def read(position: int, index: int) -> Callable[..., torch.Tensor | None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> Any:
            x = unfold(inputs[0])
            stream["read"] = x
            changed = visitor.read(position, index, x, before(x), unfold(output))
            return None if changed is None else changed.view_as(output)

        return hook

    def write(position: int) -> Callable[..., torch.Tensor]:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            whole = unfold(output)
            changed = visitor.write(position, unfold(inputs[0]), before(whole), whole)
            whole = whole if changed is None else changed
            stream["sum"] = stream["sum"] + whole
            return whole.view_as(output)

        return hook

    layers: Any = model.get_submodule(find_layers(model))
    handles = [layer.register_forward_pre_hook(enter) for layer in layers]
    for position, sublayer in enumerate(sublayers):
        for index, path in enumerate(reader_paths(sublayer)):
            reader = model.get_submodule(path)
            handles.append(reader.register_forward_hook(read(position, index)))
        writer = model.get_submodule(sublayer.writer)
        handles.append(writer.register_forward_hook(write(position)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Head(NamedTuple):
    """What stands between the last layer's output and the logits."""

    norm: Any
    linear: Affine


class Anatomy(NamedTuple):
    """What one pass has proved about a model."""

    stream: StreamKind
    activations: list[Activation | None]
    """Per sublayer, for feed-forward ones of the form writer(activation(readers))."""
    head: Head | None
    """Where logits = linear(norm(stream after the last sublayer))."""


class _Record:
    """Looks at each sublayer as it comes by, and remembers the stream after it."""

    def __init__(self, model: Any, sublayers: list[Sublayer]) -> None:
        self.model, self.sublayers = model, sublayers
        self.first: torch.Tensor | None = None
        """What the first reader of all read."""
        self.read_outputs: dict[tuple[int, int], torch.Tensor] = {}
        self.activations: list[Activation | None] = [None] * len(sublayers)
        self.streams: list[torch.Tensor] = [torch.empty(0)] * len(sublayers)

    def read(
        self, position: int, index: int, x: torch.Tensor, before: torch.Tensor, output: torch.Tensor
    ) -> None:
        if (position, index) == (0, 0):
            self.first = x
        self.read_outputs[position, index] = output

    def write(
        self, position: int, x: torch.Tensor, before: torch.Tensor, output: torch.Tensor
    ) -> None:
        sublayer = self.sublayers[position]
        paths = reader_paths(sublayer)
        outputs = [self.read_outputs.pop((position, index)) for index in range(len(paths))]
        self.activations[position] = _find_activation(self.model, sublayer, outputs, x)
        self.streams[position] = before + output


def examine_anatomy(model: Any, sublayers: list[Sublayer], ids_S: torch.Tensor) -> Anatomy:
    """Run one window and hold what is assumed of a model against what it does."""
    seen = _Record(model, sublayers)
    with torch.no_grad(), watched(model, sublayers, seen, "sum"):
        answer = model(
            input_ids=ids_S[None].to(model.device), output_hidden_states=True, return_dict=True
        )
    states = answer.hidden_states
    ends = {s.layer: stream for s, stream in zip(sublayers, seen.streams, strict=True)}
    # The last hidden state has gone through the final norm, so it is left out.
    inner = [(ends[layer], states[layer + 1]) for layer in ends if layer + 2 < len(states)]
    if inner and all(_same(*pair) for pair in inner):
        head = _find_head(model, ends[max(ends)], answer.logits)
        return Anatomy("sum", seen.activations, head)
    reads_stream = seen.first is not None and torch.equal(seen.first, states[0])
    return Anatomy("read" if reads_stream else "unknown", seen.activations, None)


def _find_activation(
    model: Any, sublayer: Sublayer, outputs: list[torch.Tensor], written: torch.Tensor
) -> Activation | None:
    """Return what makes the writer's input of the readers' outputs, where a module does."""
    if sublayer.kind != "ffn":
        return None
    num_readers = len(sublayer.readers)
    parents = {path.rpartition(".")[0] for path in (*reader_paths(sublayer), sublayer.writer)}
    for parent in sorted(parents):
        for name in ACTIVATION_NAMES:
            function = getattr(model.get_submodule(parent), name, None)
            if not callable(function):
                continue
            activation = _gated(function) if num_readers == 2 else function
            if _same(activation(*outputs), written):
                return activation
    return None


def _gated(function: Callable[[torch.Tensor], torch.Tensor]) -> Activation:
    return lambda gate, up: function(gate) * up


def _find_head(model: Any, stream: torch.Tensor, logits: torch.Tensor) -> Head | None:
    linear = model.get_output_embeddings()
    layers = find_layers(model)
    if not isinstance(linear, nn.Linear):
        return None
    head = Affine(linear.weight.detach(), None if linear.bias is None else linear.bias.detach())
    for path, module in model.named_modules():
        is_norm = "norm" in type(module).__name__.lower() and not path.startswith(f"{layers}.")
        if is_norm and _same(head(module(stream)), logits):
            return Head(module, head)
    return None


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))
