import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from flows.make_corpus import make_corpus
from infra.local_executor import LocalExecutor
from infra.storage import localize, open_store
from tasks.corpus.arrays import write_arrays
from tasks.corpus.filtering import Filter
from tasks.corpus.filters import exact_dedup, length
from tasks.corpus.packing import Tokens, cut_blocks, join_documents
from tasks.corpus.rows import make_row, read_rows
from tasks.corpus.shards import read_shard
from tasks.corpus.sources.teacher_samples import split_at
from tasks.corpus.task_text import tokenize
from tasks.corpus.text import Document, calibration_windows, tokenize_row
from tasks.corpus_options import Task
from tasks.corpus_stages import source_stage
from tasks.errors import CorpusError
from tasks.inputs import find_inputs
from tasks.recipe_file import load_recipe
from tasks.records import CorpusRef
from tasks.stage import Stage, run_stage


class Built(NamedTuple):
    corpus: CorpusRef
    folder: Path
    computed: list[str]
    """Titles of the stages that were not stored."""


def build(recipe_file: Path, store_folder: Path, *overrides: str) -> Built:
    recipe = load_recipe(recipe_file, list(overrides))
    store = open_store(f"file://{store_folder}")
    inputs = find_inputs(recipe, store)
    computed: list[str] = []

    def complete(title: str, stage: Stage, record_type: type[Any]) -> Any:
        completion, cached = run_stage(
            stage, store, LocalExecutor(), lambda done, total: None, store_folder / "scratch"
        )
        computed.extend([] if cached else [title])
        return record_type(**completion.record)

    corpus = make_corpus(recipe, inputs, inputs.teacher, complete)
    return Built(corpus, localize(store, corpus.uri), computed)


def test_the_corpus_is_packed_and_accounted_for(recipe_file: Path, tmp_path: Path) -> None:
    corpus, folder, _ = build(recipe_file, tmp_path / "a")
    blocks = load_file(folder / "blocks.safetensors")
    assert tuple(blocks["ids"].shape) == (corpus.num_blocks, 32)
    assert blocks["ids"].shape == blocks["loss_mask"].shape
    assert corpus.sources["local_text"] == 40 and corpus.sources["teacher_samples"] > 8
    assert corpus.num_documents == sum(corpus.sources.values())


def test_the_same_recipe_gives_the_same_bytes_and_another_seed_others(
    recipe_file: Path, tmp_path: Path
) -> None:
    first = build(recipe_file, tmp_path / "a").corpus
    again = build(recipe_file, tmp_path / "b").corpus
    other = build(recipe_file, tmp_path / "c", "seed=1").corpus
    assert first.digest == again.digest != other.digest


def test_another_filter_generates_nothing_again(recipe_file: Path, tmp_path: Path) -> None:
    first = build(recipe_file, tmp_path / "a")
    assert first.computed == ["source 1 teacher_samples", "source 2 local_text", "corpus"]
    filters = "corpus.filters=[{name: length, options: {min_characters: 40}}]"
    assert build(recipe_file, tmp_path / "a", filters).computed == ["corpus"]


def test_rows_keep_where_they_came_from(recipe_file: Path, tmp_path: Path) -> None:
    _, folder, _ = build(recipe_file, tmp_path / "a", "corpus.sources.1.options.licence=CC0-1.0")
    rows = read_shard(folder / "rows/00000.parquet")
    assert {row["source"] for row in rows} == {"teacher_samples"}
    assert all(row["generator"] and row["seed"] is not None for row in rows)
    rows = read_shard(folder / "rows/00001.parquet")
    assert {(row["source"], row["licence"]) for row in rows} == {("local_text", "CC0-1.0")}


def test_of_a_task_only_the_output_is_learned(tokenizer: Any) -> None:
    task = Task(instruction="Say it again.")
    row = make_row({"text": "the model", "output": "numbers"}, "local_text", task)
    document = tokenize(row, tokenizer, task)
    learned = [i for i, m in zip(document.ids, document.loss_mask, strict=True) if m]
    assert "numbers" in tokenizer.decode(learned) and "model" not in tokenizer.decode(learned)


def test_labels_are_the_tasks_own(recipe_file: Path, tmp_path: Path) -> None:
    task = "task={instruction: Judge., kind: classification, labels: [bad, good]}"
    rows = tmp_path / "rows.jsonl"
    lines = [{"text": f"the number {i} of rows", "label": i % 2} for i in range(20)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = [{"name": "local_text", "options": {"path": str(rows)}}]
    overrides = [task, f"corpus.sources={json.dumps(source)}"]
    corpus = build(recipe_file, tmp_path / "a", *overrides).corpus
    assert corpus.outputs == {"bad": 10, "good": 10}
    rows.write_text(json.dumps({"text": "the number", "label": "awful"}) + "\n")
    with pytest.raises(CorpusError, match=r"row 1 .*'awful' is none of \['bad', 'good'\]"):
        build(recipe_file, tmp_path / "b", *overrides)


def test_duplicates_are_dropped_and_counted(
    recipe_file: Path, text_file: Path, tmp_path: Path
) -> None:
    doubled = tmp_path / "doubled.jsonl"
    doubled.write_text(text_file.read_text() * 2)
    source = {"name": "local_text", "options": {"path": str(doubled)}}
    corpus, *_ = build(recipe_file, tmp_path / "a", f"corpus.sources={json.dumps([source])}")
    assert corpus.num_documents == 40 and corpus.dropped == {"exact duplicate": 40}


def test_moving_a_text_changes_no_key(recipe_file: Path, text_file: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(text_file.read_bytes())
    store = open_store(f"file://{tmp_path}/store")
    keys = set()
    for path in (text_file, moved):
        recipe = load_recipe(recipe_file, [f"corpus.sources.1.options.path={path}"])
        inputs = find_inputs(recipe, store)
        keys.add(source_stage(recipe, 2, inputs.teacher, inputs.sources[1]).key)
    assert len(keys) == 1


def judge(built: Filter, texts: list[str]) -> list[str | None]:
    rows = [make_row({"text": text}, "local_text", None) for text in texts]
    return list(built.judge(built.measure(None, rows)))


def test_filters_say_why() -> None:
    context: Any = None
    assert judge(exact_dedup.keep(context), ["a", "b", "a"]) == [None, None, "exact duplicate"]
    lengths = length.keep(context, min_characters=2, max_characters=4)
    reasons = judge(lengths, ["a", "abc", "abcdef"])
    assert reasons == ["shorter than 2 characters", None, "longer than 4 characters"]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=30), min_size=1, max_size=10),
    st.integers(1, 7),
)
def test_packing_keeps_every_token_in_order(documents: list[list[int]], block: int) -> None:
    joined = [i for ids in documents for i in ids]
    parts = [join_documents([Document(ids, [1] * len(ids))]) for ids in documents]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "blocks.safetensors"
        if len(joined) < block:
            with pytest.raises(CorpusError, match="fewer than one block"):
                list(cut_blocks(parts, block))
            return
        decoded = (Tokens.decode(part.encode()) for part in parts)
        num_blocks = write_arrays(cut_blocks(decoded, block), path)
        blocks = load_file(path)
        assert tuple(blocks["ids"].shape) == tuple(blocks["loss_mask"].shape) == (num_blocks, block)
        flat = blocks["ids"].flatten().tolist()
    assert flat == joined[: len(flat)] and len(joined) - len(flat) < block


def test_splitting_at_a_mark() -> None:
    assert split_at([0, 1, 2, 0, 0, 3], 0) == [[1, 2], [3]]


def test_text_begins_with_bos_once(tokenizer: Any) -> None:
    document = tokenize_row({"text": "the model"}, tokenizer)
    assert document.ids[0] == 0 and document.ids.count(0) == 1
    assert document.loss_mask == [1] * len(document.ids)


def test_of_a_chat_only_the_assistants_part_is_learned(tokenizer: Any) -> None:
    messages = [
        {"role": "user", "content": "write numbers"},
        {"role": "assistant", "content": "small numbers"},
        {"role": "user", "content": "more"},
        {"role": "assistant", "content": "plain sentences"},
    ]
    document = tokenize_row({"messages": messages}, tokenizer)
    learned = [i for i, m in zip(document.ids, document.loss_mask, strict=True) if m]
    assert tokenizer.decode(learned) == "small numbers<s>plain sentences<s>"
    assert tokenizer.decode(document.ids).startswith("[user]write numbers")


def test_a_chat_needs_a_template(tokenizer: Any) -> None:
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(CorpusError, match="no chat template"):
        tokenize_row({"messages": [{"role": "user", "content": "hi"}]}, bare)


def test_rows_that_are_none_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"label": 1}\n')
    with pytest.raises(CorpusError, match=r"rows\.jsonl:2"):
        list(read_rows(path))


def test_calibration_text_may_be_too_short(text_file: Path, tokenizer: Any) -> None:
    assert tuple(calibration_windows(text_file, tokenizer, 4, 16).shape) == (4, 16)
    with pytest.raises(CorpusError, match="at most num_windows"):
        calibration_windows(text_file, tokenizer, 10_000, 64)
