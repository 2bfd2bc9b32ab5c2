"""Repair: side-by-side scoring, every family's stream, and what it gains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from tasks.prune.loss import loss_nats
from tasks.prune.repair.repair import Repaired, as_tensors, repair_submodels
from tasks.prune.repair.stream import examine_anatomy
from tasks.prune.shapes.stock_config import config_of_cut
from tasks.prune.units.groups import find_units
from tasks.prune.units.slicing import build_sliced, slice_weights
from tasks.prune.units.units import Kept, Units, list_sublayers

WIDTHS = ("kv_groups", "ffn")


@pytest.fixture
def model(make_llama: Callable[..., Path]) -> Any:
    return AutoModelForCausalLM.from_pretrained(make_llama(seed=3)).eval()


def windows(num_windows: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(300, (num_windows, 24), generator=torch.Generator().manual_seed(seed))


def halve(groups: list[Units], seed: int = 0) -> Kept:
    rng = np.random.default_rng(seed)
    return [rng.permutation(g.num_units) < (g.num_units + 1) // 2 for g in groups]


def repair(model: Any, groups: list[Units], cuts: list[Kept], **given: Any) -> list[Repaired]:
    anatomy = examine_anatomy(model, list_sublayers(groups), windows(1)[0])
    given = {"fit_ids_FS": windows(40)} | given
    return repair_submodels(model, groups, anatomy, cuts, **given)[0]


def cut(model: Any, groups: list[Units], kept: Kept, repaired: Repaired) -> Any:
    state = slice_weights(model, groups, kept, as_tensors(model, repaired))
    return build_sliced(config_of_cut(model, groups, kept), state, trust_remote_code=False)


def divergence(model: Any, smaller: Any) -> float:
    """KL(dense || smaller) in nats/token, on windows that no test fits on."""
    ids = windows(8, seed=1)
    with torch.no_grad():
        log_q, log_p = smaller(ids).logits.log_softmax(-1), model(ids).logits.log_softmax(-1)
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


@pytest.mark.parametrize("refine", [0, 2])
def test_a_model_that_keeps_all_is_left_as_it_is(model: Any, refine: int) -> None:
    groups = find_units(model, WIDTHS)
    everything = [np.ones(g.num_units, dtype=bool) for g in groups]
    (repaired,) = repair(model, groups, [everything], refine=refine)
    for name, tensor in as_tensors(model, repaired).items():
        torch.testing.assert_close(tensor, model.get_parameter(name), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kinds", [WIDTHS, (*WIDTHS, "layers")])
def test_the_score_is_that_of_the_model_cut_and_repaired(model: Any, kinds: Any) -> None:
    """Sub-models scored side by side do not see each other, nor the windows that score them."""
    groups = find_units(model, kinds)
    submodels = [halve(groups, seed) for seed in range(3)]
    fit_ids, score_ids = windows(6), windows(3, seed=1)
    anatomy = examine_anatomy(model, list_sublayers(groups), fit_ids[0])
    found, losses = repair_submodels(model, groups, anatomy, submodels, fit_ids, score_ids)
    for kept, repaired, loss in zip(submodels, found, losses, strict=True):
        with torch.no_grad():
            logits = cut(model, groups, kept, repaired)(score_ids).logits
        assert loss == pytest.approx(loss_nats(logits, score_ids), abs=1e-4)
    _, (alone,) = repair_submodels(model, groups, anatomy, submodels[1:2], fit_ids, score_ids)
    assert alone == pytest.approx(losses[1], abs=1e-5)


def test_hidden_dimensions_that_are_cut_are_off_in_the_repair(model: Any) -> None:
    groups = find_units(model, (*WIDTHS, "hidden"))
    kept = halve(groups)
    fit_ids, score_ids = windows(40), windows(3, seed=1)
    anatomy = examine_anatomy(model, list_sublayers(groups), fit_ids[0])
    (repaired,), (loss,) = repair_submodels(model, groups, anatomy, [kept], fit_ids, score_ids)
    with torch.no_grad():
        logits = cut(model, groups, kept, repaired)(score_ids).logits
    assert loss == pytest.approx(loss_nats(logits, score_ids), abs=1e-4)


def test_repair_and_refinement_bring_the_output_nearer_to_the_dense_models(model: Any) -> None:
    with torch.no_grad():
        for layer in model.model.layers:  # let the feed-forward sublayers matter
            for linear in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
                linear.weight.mul_(4)
    groups = find_units(model, WIDTHS)
    kept = halve(groups)
    plain = divergence(model, cut(model, groups, kept, {}))
    (repaired,) = repair(model, groups, [kept])
    (refined,) = repair(model, groups, [kept], refine=3)
    linear = divergence(model, cut(model, groups, kept, repaired))
    whole = divergence(model, cut(model, groups, kept, refined))
    assert linear < 0.9 * plain
    assert whole < 0.96 * linear


SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 8}


@pytest.mark.parametrize(
    ("family", "sizes", "stream", "whole", "to_logits"),
    [
        ("llama", GROUPED, "sum", True, True),
        ("qwen3", GROUPED | {"attention_bias": True}, "sum", True, True),
        ("phi", GROUPED, "sum", True, True),
        ("gpt2", SIZES, "sum", True, True),
        ("opt", SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 32}, "sum", True, True),
        ("gpt_neox", SIZES, "sum", True, True),
        ("gemma2", GROUPED, "unknown", True, False),
        ("bert", SIZES, "read", True, False),
        ("distilbert", SIZES | {"hidden_dim": 64}, "read", True, False),
    ],
)
def test_every_familys_anatomy_is_found_and_repaired(
    family: str, sizes: dict[str, Any], stream: str, whole: bool, to_logits: bool
) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **sizes)
    encoder = stream == "read"
    model = (AutoModelForMaskedLM if encoder else AutoModelForCausalLM).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) * parameter.std().nan_to_num(0.1))
    groups = find_units(model, WIDTHS)
    anatomy = examine_anatomy(model, list_sublayers(groups), windows(1)[0])
    assert anatomy.stream == stream
    assert (anatomy.head is not None) == to_logits
    found = [a is not None for a in anatomy.activations]
    assert found == [g.kind == "ffn" and whole for g in groups]

    rng = np.random.default_rng(0)
    kept = [rng.permutation(g.num_units) < g.num_units // (1 + (g.kind == "ffn")) for g in groups]
    plain = divergence(model, cut(model, groups, kept, {}))
    (repaired,) = repair(model, groups, [kept], refine=2)
    assert divergence(model, cut(model, groups, kept, repaired)) < 0.8 * plain
