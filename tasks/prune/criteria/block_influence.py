"""How far a unit turns the residual stream; of a whole layer, ShortGPT's block influence."""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from tasks.prune.loss import measure_loss
from tasks.prune.repair.stream import examine_anatomy, watched
from tasks.prune.unit_statistics import Calibrated, read_written
from tasks.prune.units.units import Sublayer, find_layers


def score(calibrated: Calibrated) -> list[torch.Tensor]:
    """Return the importance [num_units] of each unit, per group.

    1 - cos(residual stream after the sublayer, the same without what the unit adds to it), the
    mean over all tokens; of layers, what `score_layers` returns.

    Raises:
        ValueError: sublayers do not add to the stream as they are, or the units are of a kind
            that adds nothing to it by itself.

    Reference: Men et al. 2024, arXiv 2403.03853, equation 1, there of whole layers.
    """
    model, ids = calibrated.model, calibrated.ids_WS
    groups = [group for group in calibrated.groups if group.kind != "layers"]
    of_sublayers = iter(score_sublayers(calibrated._replace(groups=groups)) if groups else [])
    return [
        score_layers(model, ids) if group.kind == "layers" else next(of_sublayers)
        for group in calibrated.groups
    ]


def score_sublayers(calibrated: Calibrated) -> list[torch.Tensor]:
    model, sublayers, ids = calibrated.model, calibrated.sublayers, calibrated.ids_WS
    if examine_anatomy(model, sublayers, ids[0]).stream != "sum":
        raise ValueError(
            f"block_influence: the sublayers with units in {model.config.model_type} do not add "
            "up to its residual stream; choose another criterion, or units in every sublayer"
        )
    turns = Turns(
        model,
        sublayers,
        totals=[torch.zeros(s.num_units, dtype=torch.float64) for s in sublayers],
    )
    with watched(model, sublayers, turns, "sum"):
        measure_loss(model, ids)
    return [total / ids.numel() for total in turns.totals]


class Turns(NamedTuple):
    """Adds up how far every unit turns the stream."""

    model: Any
    sublayers: list[Sublayer]
    totals: list[torch.Tensor]
    """[num_units] fp64 each."""

    def read(self, *_: Any) -> None:
        return None

    def write(
        self, position: int, x: torch.Tensor, before: torch.Tensor, output: torch.Tensor
    ) -> None:
        weight_UwD = read_written(self.model, self.sublayers[position])
        x_TUw = x.reshape(-1, *weight_UwD.shape[:2])
        turned_TU = turn(x_TUw, weight_UwD, (before + output).flatten(0, -2))
        self.totals[position] += turned_TU.double().sum(0).cpu()


def turn(x_TUw: torch.Tensor, weight_UwD: torch.Tensor, after_TD: torch.Tensor) -> torch.Tensor:
    """Return 1 - cos(a, a - c) [tokens, num_units], c being a unit's part of the stream a.

    From products alone, so that no [tokens, num_units, hidden] is needed. For an angle below 90
    degrees as sin^2 / (1 + cos), since 1 - cos would round away what a single neuron does:

        sin^2(a, a - c) = (|a|^2 |c|^2 - (a.c)^2) / (|a|^2 |a - c|^2)
    """
    gram_Uwv = weight_UwD @ weight_UwD.mT
    cc = (torch.einsum("tuw,uwv->tuv", x_TUw, gram_Uwv) * x_TUw).sum(-1)
    ac = (torch.einsum("td,uwd->tuw", after_TD, weight_UwD) * x_TUw).sum(-1)
    aa = after_TD.square().sum(-1, keepdim=True)
    bb = (aa - 2 * ac + cc).clamp_min(1e-30)
    cos = ((aa - ac) / (aa * bb).sqrt().clamp_min(1e-30)).clamp(-1, 1)
    sin2 = ((aa * cc - ac.square()) / (aa * bb).clamp_min(1e-30)).clamp(0, 1)
    return torch.where(cos > 0, sin2 / (1 + cos), 1 - cos)


def score_layers(model: Any, ids_WS: torch.Tensor) -> torch.Tensor:
    """Return 1 - cos(stream before a layer, stream after it), the mean over tokens, [num_layers].

    Reference: Men et al. 2024, arXiv 2403.03853, equation 1.
    """
    layers = model.get_submodule(find_layers(model))
    assert isinstance(layers, nn.ModuleList)
    totals = torch.zeros(len(layers), dtype=torch.float64)

    def hook(index: int) -> Any:
        def compare(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            after = output[0] if isinstance(output, tuple) else output
            cosines = F.cosine_similarity(inputs[0].double(), after.double(), dim=-1)
            totals[index] += (1 - cosines).sum().cpu()

        return compare

    handles = [layer.register_forward_hook(hook(i)) for i, layer in enumerate(layers)]
    try:
        measure_loss(model, ids_WS)
    finally:
        for handle in handles:
            handle.remove()
    return totals / ids_WS.numel()
