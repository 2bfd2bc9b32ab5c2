"""Labellers of a corpus: what they say, what they learn, and when they say nothing."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from infra.local_executor import LocalExecutor
from infra.storage import open_store
from tasks.corpus.context import CorpusContext
from tasks.corpus.label_model import count_majority, fit_accuracies, weigh_votes
from tasks.corpus.labelling import fill_in
from tasks.corpus.labels import pseudo_labels, rules, self_training
from tasks.corpus.rows import make_row
from tasks.corpus.scoring import load_scorer, token_nats
from tasks.corpus.shards import Rows, Shard, shard_name, write_shards
from tasks.corpus.task_text import tokenize
from tasks.corpus_options import Task
from tasks.errors import CorpusError
from tasks.models.checkpoint import load_model
from tasks.models.teacher import find_model
from tasks.recipe_parts import NamedModel
from tasks.stage_space import StageSpace

TASK = Task(instruction="Judge.", kind="classification", labels=["bad", "good"])


def write_rows(folder: Path, raw: list[dict[str, Any]]) -> Rows:
    sizes = write_shards((make_row(each, "local_text", TASK) for each in raw), folder)
    shards = [Shard(str(folder / shard_name(n)), size) for n, size in enumerate(sizes)]
    return Rows(shards, lambda uri: Path(uri))


def context(task: Task | None = TASK, space: Any = None, teacher: Any = None) -> CorpusContext:
    return CorpusContext(space=space, seed=0, name="test", task=task, teacher=teacher)


def plant_votes(accuracies: list[float], coverage: float, num_rows: int) -> Counter[Any]:
    """Count what voters of these accuracies say of rows of two labels, alike frequent."""
    rng = random.Random(0)
    patterns: Counter[Any] = Counter()
    for _ in range(num_rows):
        truth = rng.randrange(2)
        votes = tuple(
            (truth if rng.random() < accuracy else 1 - truth) if rng.random() < coverage else None
            for accuracy in accuracies
        )
        if any(vote is not None for vote in votes):
            patterns[votes] += 1
    return patterns


def test_planted_accuracies_are_recovered() -> None:
    planted = [0.95, 0.85, 0.75, 0.6, 0.55]
    found = fit_accuracies(plant_votes(planted, 0.7, 20_000), 2)
    assert found == pytest.approx(planted, abs=0.03)


def test_a_voter_that_is_mostly_wrong_is_not_heard() -> None:
    found = fit_accuracies(plant_votes([0.9, 0.85, 0.8, 0.2], 0.8, 20_000), 2)
    assert found[3] == 0.5
    assert weigh_votes((None, None, None, 1), found, 2).tolist() == [0.5, 0.5]


def test_rules_that_contradict_each_other_do_not_all_follow_one_side() -> None:
    # Rules 0 and 1 say label 1 and agree at times; rule 2 says label 0 and meets them seldom.
    patterns: Counter[Any] = Counter(
        {(1, None, None): 200, (None, 1, None): 200, (None, None, 0): 200}
        | {(1, 1, None): 30, (1, None, 0): 10, (None, 1, 0): 10}
    )
    found = fit_accuracies(patterns, 2)
    assert min(found) > 0.6 and weigh_votes((None, None, 0), found, 2).argmax() == 0


def test_of_two_against_one_the_majority_wins_and_the_good_one_otherwise() -> None:
    assert count_majority((0, 0, 1, None), 2).tolist() == pytest.approx([2 / 3, 1 / 3])
    assert weigh_votes((0, 0, 1), [0.6, 0.6, 0.95], 2).argmax() == 1
    even = weigh_votes((0, None), [0.7, 0.7], 4)
    assert even.tolist() == pytest.approx([0.7, 0.1, 0.1, 0.1])


RULES = '"awesome" -> good\n"AWFUL" -> bad\n\n/\\bnot awesome\\b/ -> bad\n'


def test_rules_label_and_abstain(tmp_path: Path) -> None:
    texts = ["Awesome film", "an awful one", "a film", "awful but awesome", "not awesome, awful"]
    rows = write_rows(tmp_path, [{"text": text} for text in texts])
    by_count = list(rules.label(context(), rows, rules=RULES))
    assert by_count == ["good", "bad", None, None, "bad"]
    sure = rules.label(context(), rows, rules=RULES, min_confidence=0.7)
    assert list(sure) == ["good", "bad", None, None, None]


def test_the_label_model_finds_the_rule_that_errs(tmp_path: Path) -> None:
    # "fine" meets both words that agree with each other, and is wrong each time but one.
    texts = ["bad poor fine"] * 20 + ["good fine nice"] * 1 + ["bad poor"] * 9 + ["good nice"] * 10
    given = '"bad" -> bad\n"poor" -> bad\n"good" -> good\n"nice" -> good\n"fine" -> good'
    rows = write_rows(tmp_path, [{"text": text} for text in [*texts, "poor fine"]])
    weighed = rules.label(context(), rows, rules=given, resolve="dawid_skene")
    assert list(weighed)[-1] == "bad"
    assert list(rules.label(context(), rows, rules=given))[-1] is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "expected lines such as"),
        ("awesome -> good", 'expected "text" -> label'),
        ('"awesome" -> great', r"'great' is none of \['bad', 'good'\]"),
        ("/(/ -> good", "not a regular expression"),
    ],
)
def test_rules_that_are_none_are_named(given: str, message: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path, [{"text": "a"}])
    with pytest.raises(ValueError, match=message):
        list(rules.label(context(), rows, rules=given))
    with pytest.raises(ValueError, match=r"expected task\.kind"):
        list(rules.label(context(None), rows, rules=RULES))


def make_space(folder: Path) -> StageSpace:
    return StageSpace(
        store=open_store(f"file://{folder}"),
        executor=LocalExecutor(),
        prefix="stages/label/test",
        attempt="test",
        scratch=folder / "scratch",
        progress=lambda done, total: None,
    )


def test_pseudo_labels_are_the_teachers_likeliest(
    tiny_llama: Path, texts: list[str], tmp_path: Path
) -> None:
    space = make_space(tmp_path / "store")
    teacher = find_model("teacher.model", NamedModel(model=str(tiny_llama)), space.store)
    raw: list[dict[str, Any]] = [{"text": text[:40]} for text in texts[:7]]
    raw[2]["output"] = "good"
    raw[4]["text"] = texts[4] * 20
    rows = write_rows(tmp_path, raw)
    asked = context(space=space, teacher=teacher)
    found = list(pseudo_labels.label(asked, rows, min_confidence=0, max_tokens=128, batch_rows=3))
    assert found[2] is None and found[4] is None
    assert asked.refused == {"pseudo_labels: longer than max_tokens": 1}
    assert asked.spent["requests"] == 5 and asked.spent["prompt_tokens"] > 0

    model, scorer = (
        load_model(tiny_llama),
        load_scorer(lambda uri: Path(uri), str(tiny_llama), False),
    )
    for index in (0, 1, 3, 5, 6):
        sums = []
        for answer in TASK.labels:
            row = cast(Any, dict(list(rows)[index]) | {"output": answer})
            ids, mask = tokenize(row, scorer.tokenizer, TASK)
            ids, mask = ids[:-1], mask[:-1]  # the mark that ends the text is no part of the label
            logs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            sums.append(sum(float(logs[t - 1, ids[t]]) for t in range(len(ids)) if mask[t]))
        assert found[index] == TASK.labels[sums.index(max(sums))]
    sure = list(
        pseudo_labels.label(
            context(space=make_space(tmp_path / "b"), teacher=teacher),
            rows,
            min_confidence=1.0,
            max_tokens=128,
        )
    )
    assert sure == [None] * 7


def test_padding_changes_no_score(tiny_llama: Path) -> None:
    scorer = load_scorer(lambda uri: Path(uri), str(tiny_llama), False)
    both = token_nats(scorer, [[0, 5, 6, 7, 8, 9], [0, 5, 6, 11]], 3)
    alone = token_nats(scorer, [[0, 5, 6, 11]], 3)
    assert [len(nats) for nats in both] == [3, 1]
    torch.testing.assert_close(both[1], alone[0])


def reviews(num_rows: int, seed: int) -> list[tuple[str, str]]:
    """Return (text, label): each text has a few of its label's words among common ones."""
    rng = random.Random(seed)
    found = []
    for _ in range(num_rows):
        which = rng.randrange(2)
        own = rng.choices([f"{TASK.labels[which]}{i}" for i in range(30)], k=4)
        found.append(
            (" ".join(own + rng.choices(["film", "plot", "the", "a"], k=4)), TASK.labels[which])
        )
    return found


def test_self_training_spreads_labels_in_balance(tmp_path: Path) -> None:
    truth = reviews(400, 0)
    raw = [
        {"text": text} | ({"output": label} if i < 20 else {})
        for i, (text, label) in enumerate(truth)
    ]
    rows = write_rows(tmp_path, raw)
    asked = context()
    found = list(self_training.label(asked, rows, min_confidence=0.7, rows_per_label=40))
    new = [i for i in range(20, 400) if found[i]]
    assert len(new) > 150 and sum(found[i] == truth[i][1] for i in new) > 0.97 * len(new)
    counts = Counter(found[i] for i in new)
    assert counts["good"] == counts["bad"]
    assert len(asked.spent) > 1 and sum(asked.spent.values()) == len(new)
    assert max(asked.spent.values()) <= 80
    again = list(self_training.label(context(), rows, min_confidence=0.7, rows_per_label=40))
    assert again == found


def test_self_training_needs_every_label_to_begin_with(tmp_path: Path) -> None:
    rows = write_rows(tmp_path, [{"text": "a", "output": "good"}, {"text": "b"}])
    with pytest.raises(CorpusError, match="no row is labelled 'bad' to begin with"):
        list(self_training.label(context(), rows))


def test_self_training_ends_when_all_is_labelled(tmp_path: Path) -> None:
    rows = write_rows(tmp_path, [{"text": n, "output": n} for n in TASK.labels])
    assert list(self_training.label(context(), rows)) == TASK.labels


def test_an_output_stays(tmp_path: Path) -> None:
    rows = write_rows(tmp_path, [{"text": "awesome", "output": "bad"}, {"text": "awesome"}])
    outputs = rules.label(context(), rows, rules=RULES)
    assert [row["output"] for row in fill_in(rows, outputs)] == ["bad", "good"]


def test_rows_without_a_label_reach_no_training(recipe_file: Path, tmp_path: Path) -> None:
    from tests.unit.test_corpus import build

    path = tmp_path / "rows.jsonl"
    texts = [f"{'awesome' if i % 3 else 'quiet'} night number {i}" for i in range(30)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    corpus = build(
        recipe_file,
        tmp_path / "store",
        "task={instruction: Judge., kind: classification, labels: [bad, good]}",
        f"corpus.sources=[{{name: local_text, options: {{path: {path}}}}}]",
        f"corpus.labels={json.dumps([{'name': 'rules', 'options': {'rules': RULES}}])}",
    ).corpus
    assert corpus.dropped == {"unlabelled": 10} and corpus.outputs == {"good": 20}
