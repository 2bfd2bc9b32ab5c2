"""Students from a model's own layers, and in low rank."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from tasks.models.checkpoint import load_model, save_model
from tasks.models.depth import keep_layers, spread_evenly
from tasks.models.initializer_context import InitializerContext, Student
from tasks.models.low_rank import factor_blocks, factor_weight, pick_rank
from tasks.plugins import load_plugin
from tasks.quantize.decoder_blocks import linear_weights

IDS = torch.randint(0, 256, (8, 32), generator=torch.Generator().manual_seed(0)).int()


def initialize(name: str, folder: Path, trusted: bool = False, **options: Any) -> Student:
    context = InitializerContext(folder, IDS, 0, trusted)
    student: Student = load_plugin("initializer", name)(context, **options)
    return student


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS.long()).logits
    return found


def test_layers_are_spread_as_distilbert_spreads_them() -> None:
    """scripts/extract_distilbert.py of the paper's code takes these six of BERT's twelve."""
    assert spread_evenly(6, 12).tolist() == [0, 2, 4, 7, 9, 11]
    assert spread_evenly(1, 12).tolist() == [0]


@given(st.integers(1, 80).flatmap(lambda whole: st.tuples(st.integers(1, whole), st.just(whole))))
def test_spread_layers_are_as_many_as_asked_and_ascend(numbers: tuple[int, int]) -> None:
    number, whole = numbers
    layers = spread_evenly(number, whole)
    assert len(set(layers)) == number and sorted(layers) == layers.tolist()
    assert layers[0] == 0 and layers[-1] == (whole - 1 if number > 1 else 0)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("every_nth_layer", {}, [0, 2, 4]),
        ("every_nth_layer", {"num_layers": 2}, [0, 4]),
        ("first_layers", {}, [0, 1, 2]),
        ("first_layers", {"num_layers": 5}, [0, 1, 2, 3, 4]),
    ],
)
def test_a_student_has_the_layers_that_it_says(
    name: str, options: dict[str, int], expected: list[int], make_llama: Callable[..., Path]
) -> None:
    folder = make_llama(num_hidden_layers=5)
    student = initialize(name, folder, **options)
    assert student.facts["layers_kept"] == " ".join(map(str, expected))
    assert student.model.config.num_hidden_layers == len(expected)
    teacher = load_model(folder)
    kept = teacher.model.layers
    teacher.model.layers = torch.nn.ModuleList(
        kept[number].__class__(teacher.config, new) for new, number in enumerate(expected)
    )
    for new, number in enumerate(expected):
        teacher.model.layers[new].load_state_dict(kept[number].state_dict())
    teacher.config.num_hidden_layers = len(expected)
    assert torch.equal(logits(student.model), logits(teacher))


def test_more_layers_than_there_are_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(ValueError, match=r"num_layers of at most 2.*got 3"):
        initialize("first_layers", tiny_llama, num_layers=3)


def test_a_classifier_keeps_its_head_and_every_other_layer() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    config = AutoConfig.for_model("bert", **sizes, vocab_size=99, num_hidden_layers=6, num_labels=3)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    student = keep_layers(model, np.array([0, 2, 5]), trust_remote_code=False)
    assert type(student) is type(model) and student.config.num_labels == 3
    assert torch.equal(student.classifier.weight, model.classifier.weight)
    for new, old in enumerate([0, 2, 5]):
        pairs = zip(
            student.bert.encoder.layer[new].parameters(),
            model.bert.encoder.layer[old].parameters(),
            strict=True,
        )
        assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 2**20), st.data())
def test_what_low_rank_misses_is_the_tail(
    rows: int, columns: int, seed: int, data: st.DataObject
) -> None:
    """||(W - W_r) X||^2 = sum of sigma_i^2 beyond r, sigma the singular values of W X."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    x = torch.randn(columns, 3 * columns, generator=generator, dtype=torch.float64)
    x *= torch.rand(columns, 1, generator=generator) + 0.1
    rank = data.draw(st.integers(1, min(rows, columns)))
    wide, thin, missed = factor_weight(weight, x @ x.T, rank)
    assert wide.shape == (rows, rank) and thin.shape == (rank, columns)
    sigma = torch.linalg.svdvals(weight @ x).square()
    error = float(((weight - wide @ thin) @ x).square().sum())
    assert error == pytest.approx(
        float(sigma[rank:].sum()), rel=1e-5, abs=1e-6 * float(sigma.sum())
    )
    assert missed == pytest.approx(error / float(sigma.sum()), rel=1e-5, abs=1e-6)


def test_with_fewer_tokens_than_inputs_it_misses_no_more_than_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 16, generator=generator, dtype=torch.float64)
    x = torch.randn(16, 4, generator=generator, dtype=torch.float64)
    wide, thin, missed = factor_weight(weight, x @ x.T, 4)
    error = ((weight - wide @ thin) @ x).square().sum() / (weight @ x).square().sum()
    assert torch.isfinite(wide).all() and torch.isfinite(thin).all()
    assert float(error) <= missed < 1e-6


@given(st.integers(3, 500), st.integers(3, 500), st.floats(0.01, 0.99))
def test_two_factors_are_smaller_than_the_weight(rows: int, columns: int, sparsity: float) -> None:
    rank = pick_rank((rows, columns), sparsity)
    assert rank * (rows + columns) < rows * columns
    assert rank == 1 or rank * (rows + columns) <= (1 - sparsity) * rows * columns + 1e-6


def test_a_weight_too_small_for_two_factors_is_refused() -> None:
    with pytest.raises(ValueError, match="got 2 x 2 and rank 1"):
        pick_rank((2, 2), 0.5)


def test_folded_and_factored_compute_the_same(tiny_llama: Path, tmp_path: Path) -> None:
    folded = initialize("low_rank", tiny_llama, sparsity=0.4)
    assert folded.facts["low_rank"] == "folded: no smaller than before"
    factored = initialize("low_rank", tiny_llama, True, sparsity=0.4, keep="factored")
    torch.testing.assert_close(logits(factored.model), logits(folded.model), atol=1e-4, rtol=1e-4)
    save_model(factored.model, tiny_llama, tmp_path)
    again = load_model(tmp_path, trust_remote_code=True)
    assert torch.equal(logits(again), logits(factored.model))

    def inside(model: Any) -> int:
        return sum(p.numel() for block in model.model.layers for p in block.parameters())

    norms = 2 * 2 * 32
    assert inside(again) - norms <= 0.6 * (inside(folded.model) - norms)


def test_factored_needs_trust(tiny_llama: Path) -> None:
    with pytest.raises(ValueError, match=r"expects .*trust_remote_code: true; .*keep: folded"):
        initialize("low_rank", tiny_llama, keep="factored")


def test_each_block_is_split_for_the_inputs_that_it_gets(tiny_llama: Path) -> None:
    """The last matrix read in the second block sees what the split ones before it make."""
    factors = factor_blocks(tiny_llama, IDS.long(), 0.5, trust_remote_code=False)
    model = load_model(tiny_llama)
    assert list(factors) == [n for b in model.model.layers for n in linear_weights(model, b)]
    with torch.no_grad():
        for name, (wide, thin, _) in factors.items():
            if ".0." in name:
                model.get_parameter(name).copy_(wide @ thin)
    seen: list[torch.Tensor] = []
    hook = model.model.layers[1].self_attn.q_proj.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].flatten(0, 1).double())
    )
    logits(model)
    hook.remove()
    name = "model.layers.1.self_attn.q_proj.weight"
    wide, thin, missed = factors[name]
    weight = model.get_parameter(name).detach().double()
    x_T = torch.cat(seen)
    error = ((weight - (wide.double() @ thin.double())) @ x_T.T).square().sum()
    assert float(error / (weight @ x_T.T).square().sum()) == pytest.approx(missed, rel=1e-3)


@pytest.mark.parametrize(
    ("family", "experts"),
    [("mixtral", {"num_local_experts": 4}), ("qwen3_moe", {"num_experts": 4})],
)
def test_the_mean_of_equal_experts_is_any_of_them(
    family: str, experts: dict[str, int], tmp_path: Path
) -> None:
    """Then the dense model computes what the mixture does, whose chosen experts' weights sum to
    1."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2}
    width = {"intermediate_size": 20, "moe_intermediate_size": 20, "norm_topk_prob": True}
    special = {"bos_token_id": 0, "eos_token_id": 0}
    config = AutoConfig.for_model(family, **sizes, **heads, **width, **special, **experts)
    mixture = AutoModelForCausalLM.from_config(config).eval()
    for layer in mixture.model.layers:
        for parameter in layer.mlp.experts.parameters():
            parameter.data[:] = parameter.data[0].clone()
    mixture.save_pretrained(tmp_path)
    student = initialize("dense_from_experts", tmp_path)
    assert student.facts["experts_averaged"] == 4
    assert not any("experts" in name for name, _ in student.model.named_parameters())
    torch.testing.assert_close(logits(student.model.eval()), logits(mixture), atol=1e-6, rtol=1e-5)


def test_a_dense_model_has_no_experts_to_average(tiny_llama: Path) -> None:
    with pytest.raises(ValueError, match=r"among \['mixtral', 'qwen3_moe'\], got llama"):
        initialize("dense_from_experts", tiny_llama)
