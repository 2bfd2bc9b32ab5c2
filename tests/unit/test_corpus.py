import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from infra.local_executor import LocalExecutor
from infra.storage import localize, open_store
from tasks.corpus.filters import exact_dedup, length
from tasks.corpus.packing import pack_blocks
from tasks.corpus.rows import read_rows
from tasks.corpus.sources.teacher_samples import split_at
from tasks.corpus.text import Document, calibration_windows, tokenize_row
from tasks.errors import CorpusError
from tasks.inputs import find_inputs
from tasks.recipe_file import load_recipe
from tasks.records import CorpusRef
from tasks.stage import run_stage
from tasks.stages import corpus_stage


def build(recipe_file: Path, store_folder: Path, *overrides: str) -> tuple[CorpusRef, Path]:
    recipe = load_recipe(recipe_file, list(overrides))
    store = open_store(f"file://{store_folder}")
    inputs = find_inputs(recipe, store)
    stage = corpus_stage(recipe, inputs.teacher, inputs.texts)
    completion, _ = run_stage(
        stage, store, LocalExecutor(), lambda done, total: None, store_folder / "scratch"
    )
    corpus = CorpusRef(**completion.record)
    return corpus, localize(store, corpus.uri)


def test_the_corpus_is_packed_and_accounted_for(recipe_file: Path, tmp_path: Path) -> None:
    corpus, folder = build(recipe_file, tmp_path / "a")
    blocks = load_file(folder / "blocks.safetensors")
    assert tuple(blocks["ids"].shape) == (corpus.num_blocks, 32)
    assert blocks["ids"].shape == blocks["loss_mask"].shape
    assert corpus.sources["local_text"] == 40 and corpus.sources["teacher_samples"] > 8
    assert corpus.num_documents == sum(corpus.sources.values())


def test_the_same_recipe_gives_the_same_bytes_and_another_seed_others(
    recipe_file: Path, tmp_path: Path
) -> None:
    first, _ = build(recipe_file, tmp_path / "a")
    again, _ = build(recipe_file, tmp_path / "b")
    other, _ = build(recipe_file, tmp_path / "c", "seed=1")
    assert first.digest == again.digest != other.digest


def test_duplicates_are_dropped_and_counted(
    recipe_file: Path, text_file: Path, tmp_path: Path
) -> None:
    doubled = tmp_path / "doubled.jsonl"
    doubled.write_text(text_file.read_text() * 2)
    source = {"name": "local_text", "options": {"path": str(doubled)}}
    corpus, _ = build(recipe_file, tmp_path / "a", f"corpus.sources={json.dumps([source])}")
    assert corpus.num_documents == 40 and corpus.dropped == {"exact duplicate": 40}


def test_moving_a_text_changes_no_key(recipe_file: Path, text_file: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(text_file.read_bytes())
    store = open_store(f"file://{tmp_path}/store")
    keys = set()
    for path in (text_file, moved):
        recipe = load_recipe(recipe_file, [f"corpus.sources.1.options.path={path}"])
        inputs = find_inputs(recipe, store)
        keys.add(corpus_stage(recipe, inputs.teacher, inputs.texts).key)
    assert len(keys) == 1


def test_filters_say_why() -> None:
    assert list(exact_dedup.keep(["a", "b", "a"])) == [None, None, "exact duplicate"]
    reasons = list(length.keep(["a", "abc", "abcdef"], min_characters=2, max_characters=4))
    assert reasons == ["shorter than 2 characters", None, "longer than 4 characters"]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=30), min_size=1, max_size=10),
    st.integers(1, 7),
)
def test_packing_keeps_every_token_in_order(documents: list[list[int]], block: int) -> None:
    joined = [i for ids in documents for i in ids]
    if len(joined) < block:
        with pytest.raises(CorpusError, match="fewer than one block"):
            pack_blocks([Document(ids, [1] * len(ids)) for ids in documents], block)
        return
    blocks = pack_blocks([Document(ids, [1] * len(ids)) for ids in documents], block)
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
