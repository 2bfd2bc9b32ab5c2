"""The student's forward pass that ends in losses: the same numbers as over the model's own logits,
in every family, and what it is held against."""

import logging
from typing import Any

import pytest
import torch
import transformers

from kernels.chunked_kd import naive
from tasks.distill.blocks import next_tokens
from tasks.distill.examples import predict_next
from tasks.distill.heads import take_apart
from tasks.distill.layers import make_projection, map_layers
from tasks.distill.objective import Objective, build_objective
from tasks.distill.student_loss import StudentLoss
from tasks.distill.teaching import OnlineTeacher, no_teacher

VOCAB = 41
IDS = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(5))
MASK = (torch.arange(18).view(2, 9) % 5 > 0).to(torch.uint8)
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {"tie_word_embeddings": True},
    "Qwen3": {"head_dim": 8},
    "Mistral": {},
    "Gemma2": {"final_logit_softcapping": 0.5, "head_dim": 8},
    "Granite": {"logits_scaling": 3.0},
    "Cohere": {"logit_scale": 0.25},
    "Phi": {},
    "OPT": {"ffn_dim": 24, "word_embed_proj_dim": 12},
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "GPTNeoX": {},
}


def make(family: str, seed: int = 0, **overrides: Any) -> Any:
    config = getattr(transformers, f"{family}Config")(**(SMALL | FAMILIES[family] | overrides))
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # large, so that no part of the head is too weak to be seen
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


def objective(*names: str) -> Objective:
    weights = dict(zip(names, (0.3, 0.7, 1.1), strict=False))
    return build_objective([{"name": n, "options": {}, "weight": w} for n, w in weights.items()])


def losses(student: StudentLoss, teacher: Any, ids: torch.Tensor = IDS) -> Any:
    examples = predict_next(ids, MASK)
    with teacher(torch.arange(2), examples) as lesson:
        return student(examples, lesson)


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_losses_over_the_model_s_own_logits(family: str) -> None:
    student, teacher = make(family), make(family, seed=1)
    mixed = objective("cross_entropy", "forward_kl", "logit_mse")
    trained, shown = StudentLoss(student, mixed), OnlineTeacher(teacher, mixed)
    assert trained.parts is not None
    assert shown.parts is not None
    loss, sums = losses(trained, shown)
    got = gradients(student, loss)
    labels, learned = next_tokens(IDS, MASK)
    terms = [each.term for each in mixed.losses if each.term]
    with torch.no_grad():
        theirs = teacher(input_ids=IDS).logits.flatten(0, 1)
    per_token = naive.losses(
        student(input_ids=IDS).logits.flatten(0, 1), theirs, labels.flatten(), terms
    )
    expected = (per_token * learned.flatten()).sum(dim=1)
    assert torch.allclose(sums, expected, rtol=1e-4)
    wanted = gradients(student, expected @ torch.tensor(mixed.weights))
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        error = (got[name] - gradient).norm()
        assert error <= 1e-3 * max(gradient.norm(), 1e-2), name


def test_no_logits_are_ever_whole() -> None:
    """A forward pass over many tokens holds no tensor of that many rows and the whole vocabulary,
    of either model."""
    mixed = objective("cross_entropy", "forward_kl")
    student, teacher = make("Llama", vocab_size=5000), make("Llama", 1, vocab_size=5000)
    trained, shown = StudentLoss(student, mixed), OnlineTeacher(teacher, mixed)
    heads = [m.lm_head for m in (student, teacher)]
    seen: list[torch.Size] = []
    for head in heads:
        head.register_forward_hook(lambda *args: seen.extend(o.shape for o in args[2]))
    losses(trained, shown)
    assert seen == [torch.Size([]), torch.Size([2])]  # the student's loss, and its terms


def test_a_head_that_cannot_be_taken_apart_makes_whole_logits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Odd(transformers.LlamaForCausalLM):  # type: ignore[misc, name-defined]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 3
            return output

    plain, mixed = make("Llama"), objective("cross_entropy", "forward_kl")
    odd = Odd(plain.config).eval()
    odd.load_state_dict(plain.state_dict())
    with caplog.at_level(logging.WARNING):
        assert take_apart(odd) is None
    assert caplog.text.count("whole logits") == 1
    scaled = make("Cohere", logit_scale=3.0)  # any teacher whose head can be taken apart
    for student, teacher in ((odd, scaled), (plain, odd), (odd, odd)):
        _, sums = losses(StudentLoss(student, mixed), OnlineTeacher(teacher, mixed))
        labels, learned = next_tokens(IDS, MASK)
        logits = [m(input_ids=IDS).logits.flatten(0, 1) for m in (student, teacher)]
        terms = [each.term for each in mixed.losses if each.term]
        per_token = naive.losses(*logits, labels.flatten(), terms)
        assert torch.allclose(sums, (per_token * learned.flatten()).sum(1).detach(), rtol=1e-4)


def test_padded_vocabularies_are_cut_to_the_tokenizer_s() -> None:
    student = make("Llama", vocab_size=VOCAB + 7, tie_word_embeddings=False)
    teacher = make("Llama", 1)
    mixed = objective("forward_kl")
    trained = StudentLoss(student, mixed, vocab_size=VOCAB)
    loss, sums = losses(trained, OnlineTeacher(teacher, mixed))
    own = student(input_ids=IDS).logits[..., :VOCAB].flatten(0, 1)
    theirs = teacher(input_ids=IDS).logits.flatten(0, 1)
    labels, learned = next_tokens(IDS, MASK)
    term = mixed.losses[0].term
    assert term
    per_token = naive.losses(own, theirs, labels.flatten(), [term])
    assert torch.allclose(sums, (per_token * learned.flatten()).sum(1).detach(), rtol=1e-4)
    assert not gradients(student, loss)["lm_head.weight"][VOCAB:].any()


@pytest.mark.parametrize("names", [("hidden_mse", "hidden_cosine"), ("attention_maps",)])
def test_identical_models_have_nothing_to_learn(names: tuple[str, ...]) -> None:
    model, mixed = make("Llama"), objective(*names)
    model.set_attn_implementation("eager")
    trained = StudentLoss(model, mixed, layer_map=map_layers(2, 2))
    _, sums = losses(trained, OnlineTeacher(model, mixed))
    assert sums.abs().max() < 1e-4


def test_layers_of_another_width_are_projected_and_matched() -> None:
    mixed = objective("hidden_mse", "cross_entropy", "attention_maps")
    student = make("Llama")
    teacher = make("Llama", 1, hidden_size=24, num_hidden_layers=4, num_attention_heads=4)
    for model in (student, teacher):
        model.set_attn_implementation("eager")
    projection = make_projection(16, 24, seed=0)
    assert projection is not None
    layer_map = map_layers(2, 4)
    trained = StudentLoss(student, mixed, projection, layer_map)
    loss, sums = losses(trained, OnlineTeacher(teacher, mixed))
    own = student(input_ids=IDS, output_hidden_states=True).hidden_states[1:]
    theirs = teacher(input_ids=IDS, output_hidden_states=True).hidden_states[1:]
    _, learned = next_tokens(IDS, MASK)
    squares = [
        (projection(own[i]) - theirs[layer]).square().mean(-1) for i, layer in enumerate([1, 3])
    ]
    assert float(sums[0]) == pytest.approx(float((sum(squares) / 2 * learned).sum()), rel=1e-4)
    grown = gradients(trained, loss)
    assert grown["projection.weight"].norm() > 0
    assert set(grown) == {name for name, _ in trained.named_parameters()}


def test_padding_changes_nothing() -> None:
    """What stands at positions that nothing is learned from, after all others."""
    model, teacher = make("Llama"), make("Llama", 1)
    mixed = objective("forward_kl", "hidden_cosine", "attention_maps")
    for each in (model, teacher):
        each.set_attn_implementation("eager")
    trained = StudentLoss(model, mixed, layer_map=map_layers(2, 2))
    mask = torch.ones_like(IDS)
    mask[:, 6:] = 0
    changed = IDS.clone()
    changed[:, 6:] = 1
    sums = []
    for ids in (IDS, changed):
        examples = predict_next(ids, mask)
        with OnlineTeacher(teacher, mixed)(torch.arange(2), examples) as lesson:
            sums.append(trained(examples, lesson)[1])
    assert torch.allclose(*sums, rtol=1e-6)


def test_activation_checkpointing_changes_no_gradient() -> None:
    mixed = objective("cross_entropy", "hidden_mse", "attention_maps")
    teacher, got = make("Llama", 1), []
    teacher.set_attn_implementation("eager")
    for checkpointed in (False, True):
        student = make("Llama").train()
        student.set_attn_implementation("eager")
        if checkpointed:
            student.activation_checkpointing_enable()
        trained = StudentLoss(student, mixed, layer_map=map_layers(2, 2))
        loss, _ = losses(trained, OnlineTeacher(teacher, mixed))
        got.append(gradients(student, loss))
    assert got[0].keys() == got[1].keys()
    assert all(torch.allclose(got[0][name], got[1][name], atol=1e-6) for name in got[0])


def test_the_head_is_itself_again_afterwards() -> None:
    student, mixed = make("Llama"), objective("cross_entropy")
    before = student(input_ids=IDS).logits
    losses(StudentLoss(student, mixed), no_teacher)
    assert torch.equal(student(input_ids=IDS).logits, before)
