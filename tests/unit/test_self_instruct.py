from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.local_executor import LocalExecutor
from tasks.corpus.generation import Completion
from tasks.corpus.novelty import NoveltyPool, rouge_l
from tasks.corpus.prompts import Input, find_label, parse_input
from tasks.corpus.sources import self_instruct
from tasks.corpus_options import Task
from tasks.errors import CorpusError
from tests.unit.scripted_generator import FILMS, open_context, write_seeds

SUMS = Task(instruction="Add.", examples=[{"text": "one and two", "output": "three"}])


def invent(prompt: str, seed: int) -> str:
    """Write an input of words that no other has, and the label bad to every question for one."""
    if prompt.endswith("Output:"):
        return " bad" if "one of these" in prompt else f" sum {seed}"
    return " " + " ".join(f"w{seed}x{i}" for i in range(5))


TEXT = st.lists(st.sampled_from("a b c d".split()), max_size=8).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(TEXT, TEXT)
def test_rouge_l_is_its_formula(a: str, b: str) -> None:
    def longest(x: list[str], y: list[str]) -> int:
        if not (x and y):
            return 0
        if x[-1] == y[-1]:
            return 1 + longest(x[:-1], y[:-1])
        return max(longest(x[:-1], y), longest(x, y[:-1]))

    words = len(a.split()) + len(b.split())
    assert rouge_l(a, b) == pytest.approx(2 * longest(a.split(), b.split()) / words if words else 1)


def test_what_was_said_before_is_not_new() -> None:
    pool = NoveltyPool(["Write a poem about the sea"], 0.7)
    assert not pool.admit("write a POEM about the sea!")
    assert not pool.admit("Write a song about the sea")
    assert pool.admit("Name three colours")
    assert not pool.admit("Name three colours.")


def test_output_first_is_balanced_and_input_first_is_not(tmp_path: Path) -> None:
    context = open_context(tmp_path / "a", invent, FILMS)
    rows = list(self_instruct.read(context, num_rows=11, round_rows=4))
    assert Counter(row["output"] for row in rows) == {"bad": 6, "good": 5}
    assert not context.refused
    context = open_context(tmp_path / "b", invent, FILMS)
    rows = list(self_instruct.read(context, num_rows=11, order="input_first"))
    assert Counter(row["output"] for row in rows) == {"bad": 11}


def test_rows_say_who_wrote_them(tmp_path: Path) -> None:
    context = open_context(tmp_path, invent, SUMS)
    rows = list(self_instruct.read(context, num_rows=3, licence="CC0-1.0"))
    assert {(row["generator"], row["licence"]) for row in rows} == {("script", "CC0-1.0")}
    assert len({row["seed"] for row in rows}) == 3
    assert all(len(row["prompt_digest"]) == 64 for row in rows)
    assert all(row["output"].startswith("sum") for row in rows)
    assert context.spent == {"requests": 6, "prompt_tokens": 30, "completion_tokens": 12}


def test_prompts_show_what_was_written_before(tmp_path: Path) -> None:
    asked: list[str] = []

    def writes(prompt: str, seed: int) -> str:
        asked.append(prompt)
        return invent(prompt, seed)

    context = open_context(tmp_path, writes, FILMS)
    rows = list(self_instruct.read(context, num_rows=6, round_rows=3, num_examples=4))
    assert not any(row["text"] in prompt for row in rows for prompt in asked[:3])
    later = asked[3:]
    assert all(any(row["text"] in prompt for row in rows[:3]) for prompt in later)
    assert all(prompt.count("\n###\n") == 5 for prompt in later)  # four examples and the open one
    assert asked[0].endswith("\n###\nOutput: bad\nInput:")


def test_what_is_of_no_use_is_counted(tmp_path: Path) -> None:
    answers_in_turn = iter(
        [
            " Bright, from its first SCENE.",  # as a seed
            "  \n",
            Completion(" and so on and", 5, 256, False),
            Completion("", 0, 0, False, "past the budget of 9 tokens"),
            " a story of two brothers",
        ]
    )

    def writes(prompt: str, seed: int) -> str | Completion:
        return next(answers_in_turn)

    context = open_context(tmp_path, writes, FILMS)
    rows = list(self_instruct.read(context, num_rows=5, max_rounds=1))
    assert [row["text"] for row in rows] == ["a story of two brothers"]
    assert context.refused == {
        "too much like a row before": 1,
        "empty": 1,
        "cut off at max_tokens": 1,
        "past the budget of 9 tokens": 1,
        "asked for, and not written in all rounds": 4,
    }


def test_labels_outside_the_set_are_refused(tmp_path: Path) -> None:
    def writes(prompt: str, seed: int) -> str:
        return " splendid" if prompt.endswith("Output:") else invent(prompt, seed)

    context = open_context(tmp_path, writes, FILMS)
    rows = list(self_instruct.read(context, num_rows=2, order="input_first", max_rounds=3))
    assert not rows and context.refused["label outside the set"] == 6


def test_a_model_that_repeats_itself_comes_to_an_end(tmp_path: Path) -> None:
    context = open_context(tmp_path, lambda prompt, seed: " the same film again", FILMS)
    rows = list(self_instruct.read(context, num_rows=3, max_rounds=4))
    assert len(rows) == 1 and context.refused["too much like a row before"] == 2 + 3 * 2


def test_without_a_task_instructions_are_written(tmp_path: Path) -> None:
    seeds = write_seeds(
        tmp_path, [{"text": "Name a colour.", "output": "Blue."}, {"text": "Sing a song."}]
    )
    context = open_context(tmp_path, invent, None)
    rows = list(self_instruct.read(context, num_rows=2, seeds=seeds))
    assert [set(row) for row in rows] == [
        {"text", "text_pair", "output", "generator", "prompt_digest", "seed", "licence"}
    ] * 2


def test_inputs_of_two_texts_come_in_pairs(tmp_path: Path) -> None:
    example = {"text": "It rains.", "text_pair": "It is wet.", "output": "follows"}
    task = Task(
        instruction="Does the second follow?",
        kind="classification",
        labels=["follows", "not"],
        examples=[example],
    )

    def writes(prompt: str, seed: int) -> str:
        return f" {seed} a\nSecond input: {seed} b" if seed % 2 else " alone"

    context = open_context(tmp_path, writes, task)
    rows = list(self_instruct.read(context, num_rows=4, max_rounds=8))
    assert all(row["text"].endswith("a") and row["text_pair"].endswith("b") for row in rows)
    assert context.refused["without a second input"] > 0


def test_self_instruct_needs_something_to_start_from(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give the recipe a task, or the source seeds"):
        next(self_instruct.read(open_context(tmp_path, invent, None), num_rows=1))
    with pytest.raises(ValueError, match="output_first begins with a label"):
        read = self_instruct.read(
            open_context(tmp_path, invent, SUMS), num_rows=1, order="output_first"
        )
        next(read)
    seeds = write_seeds(tmp_path, [{"text": "a", "output": "awful"}])
    with pytest.raises(CorpusError, match=r"seed 1 of .*'awful' is none of"):
        next(self_instruct.read(open_context(tmp_path, invent, FILMS), num_rows=1, seeds=seeds))


def test_completions_are_read_with_patience() -> None:
    assert parse_input(" Input: a film ", False) == Input("a film", None)
    assert find_label(' Output: "Good".\nBecause', ["bad", "good"]) == "good"
    assert find_label("good or bad", ["bad", "good"]) is None


class Killed(RuntimeError):
    pass


class CountingExecutor(LocalExecutor):
    """Runs units until it has run `last`, then dies as a killed process does: at once."""

    def __init__(self, last: int | None = None) -> None:
        super().__init__()
        self.last = last
        self.done = 0

    def map(self, fn: Any, units: Any, state: Any, num_workers: int | None = None) -> Iterator[Any]:
        for unit in units:
            if self.done == self.last:
                raise Killed
            yield fn(state(), unit)
            self.done += 1


@pytest.mark.parametrize("order", ["output_first", "input_first"])
def test_a_killed_source_goes_on_where_it_was(order: Any, tmp_path: Path) -> None:
    options = {"num_rows": 20, "round_rows": 8, "order": order}
    whole = CountingExecutor()
    expected = list(
        self_instruct.read(open_context(tmp_path / "a", invent, FILMS, whole), **options)
    )
    first, rest = CountingExecutor(last=3), CountingExecutor()
    with pytest.raises(Killed):
        list(self_instruct.read(open_context(tmp_path / "b", invent, FILMS, first), **options))
    context = open_context(tmp_path / "b", invent, FILMS, rest)
    assert list(self_instruct.read(context, **options)) == expected
    assert first.done == 3 and rest.done == whole.done - 3
