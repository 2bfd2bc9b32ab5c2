"""Losses of classifiers, regressions, question answering and masked language models: the same
numbers and gradients as plain PyTorch makes of the models' own outputs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tasks.distill.blocks import Blocks
from tasks.distill.examples import IGNORED, Examples, read_examples
from tasks.distill.heads import check_heads
from tasks.distill.layers import map_layers
from tasks.distill.loading import still_attention
from tasks.distill.objective import Objective, build_objective
from tasks.distill.student_loss import StudentLoss
from tasks.distill.teaching import OnlineTeacher, no_teacher
from tasks.models.checkpoint import load_model
from tasks.models.initializer_context import InitializerContext
from tasks.plugins import load_plugin
from tests.unit.encoder_factory import SIZES, make_encoder, save_encoder

NUM, TOKENS = 6, 9
LENGTHS = torch.tensor([9, 7, 4, 9, 5, 8])


def make_blocks(labels: torch.Tensor, padding: int = 0) -> Blocks:
    """Six blocks of different lengths with random tokens, `padding` more than they need."""
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(TOKENS) < LENGTHS[:, None]).to(torch.uint8)
    ids = torch.randint(5, SIZES["vocab_size"], (NUM, TOKENS), generator=generator) * mask
    types = torch.zeros_like(mask)
    types[:, 3:] = mask[:, 3:]
    if labels.shape == ids.shape:
        labels = F.pad(labels, (0, padding), value=IGNORED)
    parts = (F.pad(part, (0, padding)) for part in (ids.int(), mask, types))
    ids, mask, types = parts
    return Blocks(ids, attention_mask=mask, token_type_ids=types, labels=labels)


def read(labels: torch.Tensor, padding: int = 0) -> Examples:
    return read_examples(make_blocks(labels, padding), torch.arange(NUM), "cpu")


def objective(*names: str, **options: Any) -> Objective:
    weights = dict(zip(names, (0.3, 0.7, 1.1, 0.5), strict=False))
    return build_objective(
        [{"name": n, "options": options.get(n, {}), "weight": w} for n, w in weights.items()]
    )


def means(student: Any, teacher: Any, mixed: Objective, examples: Examples) -> tuple[Any, Any]:
    """Return the objective, and each loss's mean, as a step makes them of its sums."""
    trained = StudentLoss(student, mixed, layer_map=map_layers(2, 2))
    shown = OnlineTeacher(teacher, mixed) if teacher else no_teacher
    with shown(torch.arange(NUM), examples) as lesson:
        total, sums = trained(examples, lesson)
    number = examples.rows.sum()
    return total / number, sums / number


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def forward(model: Any, examples: Examples) -> Any:
    return model(**examples.inputs, output_hidden_states=True)


def agree(student: Any, got: torch.Tensor, expected: torch.Tensor) -> None:
    """Hold loss and gradients against each other."""
    assert torch.allclose(got, expected, rtol=1e-5)
    mine, theirs = gradients(student, got), gradients(student, expected)
    assert mine.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert torch.allclose(mine[name], gradient, rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("family", ["Bert", "DistilBert", "Roberta"])
def test_a_classifier_learns_from_labels_soft_labels_and_layers(family: str) -> None:
    """Rows without a label teach through the teacher alone."""
    name = f"{family}ForSequenceClassification"
    student, teacher = make_encoder(name, num_labels=3), make_encoder(name, num_labels=3, seed=1)
    examples = read(torch.tensor([0, 2, IGNORED, 1, IGNORED, 2], dtype=torch.int32))
    if family != "Bert":  # which have no token types, or one
        del examples.inputs["token_type_ids"]
    mixed = objective(
        *("cross_entropy", "forward_kl", "logit_mse", "hidden_mse"), forward_kl={"temperature": 2.0}
    )
    loss, each = means(student, teacher, mixed, examples)
    own = forward(student, examples)
    with torch.no_grad():
        other = forward(teacher, examples)
    z, v = own.logits, other.logits
    seen = examples.inputs["attention_mask"].bool()
    hidden = [
        (h - g).square().mean(-1)[seen].mean()
        for h, g in zip(own.hidden_states[1:], other.hidden_states[1:], strict=True)
    ]
    expected = torch.stack(
        [
            F.cross_entropy(z, examples.labels),
            4 * F.kl_div((z / 2).log_softmax(1), (v / 2).softmax(1), reduction="batchmean"),
            F.mse_loss(z, v),
            torch.stack(hidden).mean(),
        ]
    )
    assert torch.allclose(each, expected, rtol=1e-4)
    agree(student, loss, expected @ torch.tensor(mixed.weights))


def test_a_regression_learns_scores() -> None:
    student, teacher = (make_encoder(num_labels=1, seed=seed) for seed in (0, 1))
    scores = torch.tensor([0.5, -1.0, torch.nan, 3.8, 0.0, torch.nan])
    examples = read(scores)
    mixed = objective("label_mse", "logit_mse")
    loss, _ = means(student, teacher, mixed, examples)
    z, v = (forward(model, examples).logits[:, 0] for model in (student, teacher))
    known = ~scores.isnan()
    hard, soft = F.mse_loss(z[known], scores[known]), F.mse_loss(z, v.detach())
    agree(student, loss, 0.3 * hard + 0.7 * soft)


def test_an_answer_is_two_distributions_over_the_positions_that_are_no_padding() -> None:
    name = "BertForQuestionAnswering"
    student, teacher = make_encoder(name), make_encoder(name, seed=1)
    spans = torch.tensor([[1, 2], [6, 6], [0, 0], [IGNORED] * 2, [2, 4], [5, 7]])
    examples = read(spans.int())
    mixed = objective("cross_entropy", "forward_kl", forward_kl={"temperature": 1.0})
    loss, _ = means(student, teacher, mixed, examples)
    pairs = [
        (model.start_logits, model.end_logits)
        for model in (forward(m, examples) for m in (student, teacher))
    ]
    hard, soft = [], []
    for row, length in enumerate(LENGTHS.tolist()):
        for which in (0, 1):
            z, v = (pair[which][row, :length] for pair in pairs)
            if spans[row, which] != IGNORED:
                hard.append(F.cross_entropy(z, spans[row, which]))
            soft.append(F.kl_div(z.log_softmax(0), v.detach().softmax(0), reduction="sum"))
    expected = 0.3 * torch.stack(hard).mean() + 0.7 * torch.stack(soft).mean()
    agree(student, loss, expected)


def test_the_triple_loss_looks_at_masked_tokens_at_all_tokens_and_at_hidden_states() -> None:
    """Reference: Sanh et al. 2019, arXiv 1910.01108, section 3, and the paper's code."""
    name = "BertForMaskedLM"
    student, teacher = make_encoder(name), make_encoder(name, seed=1)
    labels = torch.full((NUM, TOKENS), IGNORED)
    labels[0, 3], labels[2, 1], labels[5, 7] = 6, 8, 11
    examples = read(labels.int())
    mixed = objective("cross_entropy", "forward_kl", "hidden_cosine")
    loss, _ = means(student, teacher, mixed, examples)
    own = forward(student, examples)
    with torch.no_grad():
        other = forward(teacher, examples)
    seen, chosen = examples.inputs["attention_mask"].bool(), labels != IGNORED
    z, v = own.logits[seen] / 2, other.logits[seen] / 2
    angle = 1 - F.cosine_similarity(own.hidden_states[-1], other.hidden_states[-1], dim=-1)
    expected = (
        0.3 * F.cross_entropy(own.logits[chosen], labels[chosen])
        + 0.7 * 4 * F.kl_div(z.log_softmax(1), v.softmax(1), reduction="batchmean")
        + 1.1 * angle[seen].mean()
    )
    agree(student, loss, expected)


@pytest.mark.parametrize(
    ("architecture", "labels", "names"),
    [
        ("BertForSequenceClassification", torch.arange(NUM) % 2, ("cross_entropy", "reverse_kl")),
        ("BertForQuestionAnswering", torch.ones(NUM, 2), ("cross_entropy", "jsd")),
        ("BertForMaskedLM", torch.ones(NUM, TOKENS), ("cross_entropy", "forward_kl")),
    ],
)
def test_padding_and_the_split_into_passes_change_nothing(
    architecture: str, labels: torch.Tensor, names: tuple[str, ...]
) -> None:
    student, teacher = make_encoder(architecture), make_encoder(architecture, seed=1)
    for model in (student, teacher):
        model.set_attn_implementation("eager")
    mixed = objective(*names, "hidden_mse", "attention_maps")
    examples = read(labels.int())
    whole, each = means(student, teacher, mixed, examples)
    assert examples.inputs["input_ids"].shape == (NUM, TOKENS)
    assert torch.allclose(whole, means(student, teacher, mixed, read(labels.int(), 4))[0])
    trained = StudentLoss(student, mixed, layer_map=[0, 1])
    sums = torch.zeros_like(each)
    filled = examples.padded(8)  # as where the last passes are not full
    for part in (filled.take(slice(0, 4)), filled.take(slice(4, 8))):
        with OnlineTeacher(teacher, mixed)(torch.arange(4), part) as lesson:
            sums += trained(part, lesson)[1]
    assert torch.allclose(sums / examples.rows.sum(), each, rtol=1e-4)


def test_attention_that_is_compared_has_no_holes() -> None:
    student = make_encoder(attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.25)
    still_attention(student, objective("hidden_mse"))
    assert student.bert.encoder.layer[0].attention.self.dropout.p == 0.5
    still_attention(student, objective("attention_maps"))
    assert student.bert.encoder.layer[0].attention.self.dropout.p == 0
    assert student.bert.encoder.layer[0].attention.output.dropout.p == 0.25


@pytest.mark.parametrize("initializer", ["every_nth_layer", "first_layers", "fresh", "incoming"])
@pytest.mark.parametrize(
    "architecture",
    [
        "BertForSequenceClassification",
        "DistilBertForQuestionAnswering",
        "RobertaForSequenceClassification",
        "BertForMaskedLM",
    ],
)
def test_initializers_keep_the_head(architecture: str, initializer: str, tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "teacher", architecture, num_hidden_layers=4)
    context = InitializerContext(folder, torch.zeros(1, 4, dtype=torch.int32), 0, False)
    student = load_plugin("initializer", initializer)(context).model
    assert type(student).__name__ == architecture
    cut = initializer in ("every_nth_layer", "first_layers")
    assert student.config.num_hidden_layers == (2 if cut else 4)
    student.save_pretrained(tmp_path / "student")
    again = load_model(tmp_path / "student")
    own, loaded = student.state_dict(), again.state_dict()
    assert all(torch.equal(own[name], loaded[name]) for name in own)
    head = {"DistilBert": "qa_outputs", "Roberta": "classifier", "Bert": "classifier"}
    name = next((n for family, n in head.items() if architecture.startswith(family)), "")
    if cut and hasattr(student, name):  # the head is the teacher's
        taught = load_model(folder).get_submodule(name).state_dict()
        kept = student.get_submodule(name).state_dict()
        assert all(torch.equal(kept[key], taught[key]) for key in taught)


def learn(student: Any, teacher: Any, mixed: Objective, draw: Callable[[int], Examples]) -> None:
    trained = StudentLoss(student, mixed, layer_map=[1])
    shown = OnlineTeacher(teacher, mixed) if teacher else no_teacher
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    for step in range(60):
        examples = draw(step)
        with shown(torch.arange(len(examples.labels)), examples) as lesson:
            loss, _ = trained(examples, lesson)
        optimizer.zero_grad()
        (loss / examples.rows.sum()).backward()
        optimizer.step()


def test_half_the_layers_learn_a_toy_task_from_unlabelled_rows(tmp_path: Path) -> None:
    """A text is good where the word `good` stands in it; the teacher is told, the student shown."""

    def draw(step: int, labelled: bool = True) -> Examples:
        rng = np.random.default_rng(step)
        ids = torch.from_numpy(rng.integers(8, SIZES["vocab_size"], (32, 8)).astype(np.int32))
        ids[:, 0] = 1
        good = torch.arange(32) % 2
        ids[good == 1, int(rng.integers(1, 8))] = 5
        mask = torch.ones_like(ids, dtype=torch.uint8)
        labels = good if labelled else torch.full_like(good, IGNORED)
        blocks = Blocks(ids, attention_mask=mask, labels=labels.int())
        return read_examples(blocks, torch.arange(32), "cpu")

    def accuracy(model: Any) -> float:
        examples = draw(1000)
        with torch.no_grad():
            chosen = model(**examples.inputs).logits.argmax(1)
        return float((chosen == examples.labels).float().mean())

    folder = save_encoder(tmp_path / "teacher", "BertForSequenceClassification")
    teacher = load_model(folder)
    learn(teacher, None, objective("cross_entropy"), draw)
    assert accuracy(teacher) > 0.95
    teacher.save_pretrained(folder)
    context = InitializerContext(folder, torch.zeros(1, 4, dtype=torch.int32), 0, False)
    student = load_plugin("initializer", "first_layers")(context).model
    mixed = objective("forward_kl", "hidden_mse", hidden_mse={"layers": "last"})
    learn(student, teacher.eval(), mixed, lambda step: draw(step, labelled=False))
    assert student.config.num_hidden_layers == 1
    assert accuracy(student.eval()) > 0.95


def test_heads_that_do_not_go_together_are_refused() -> None:
    three, two = make_encoder(num_labels=3), make_encoder()
    answering = make_encoder("BertForQuestionAnswering")
    for model in (three, two, answering):
        model.config.architectures = [type(model).__name__]
    check_heads(three.config, three.config)
    with pytest.raises(ValueError, match="expected a student with the teacher's labels"):
        check_heads(two.config, three.config)
    with pytest.raises(ValueError, match="teacher's head, question_answering, got sequence"):
        check_heads(two.config, answering.config)
