"""Rows as padded examples, and blocks with hidden tokens: what the corpus of an encoder holds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from tokenizers import processors

from tasks.corpus.building import build_corpus
from tasks.corpus.examples import IGNORED, Labels, encode_rows, find_label, read_labels
from tasks.corpus.masking import Vocabulary, mask_blocks
from tasks.corpus.rows import Row, make_row, read_rows
from tasks.corpus.shards import write_shards
from tasks.errors import CorpusError
from tasks.models.checkpoint import describe_model
from tasks.records import RowsRef
from tests.unit.encoder_factory import make_tokenizer, save_encoder
from tests.unit.stage_space import make_space

CLASSES = Labels("sequence_classification", {"bad": 0, "good": 1}, are_scores=False)
SCORES = Labels("sequence_classification", {"LABEL_0": 0}, are_scores=True)
SPANS = Labels("question_answering", {}, are_scores=False)


def rows_of(*raw: dict[str, Any], head: Any = "sequence_classification") -> list[Row]:
    return [make_row(each, "test", None, head) for each in raw]


def test_an_example_is_what_the_tokenizer_makes_of_both_texts() -> None:
    tokenizer = make_tokenizer()
    rows = rows_of(
        {"text": "good film", "text_pair": "the plot is bad", "label": 1},
        {"text": "bad", "label": "bad"},
        {"text": "a film of a plot of a film of a plot"},
    )
    arrays = encode_rows(rows, tokenizer, CLASSES, 10)
    expected = tokenizer("good film", "the plot is bad")
    used = len(expected.input_ids)
    assert arrays["ids"].shape == (3, 10)
    assert arrays["ids"][0, :used].tolist() == expected.input_ids
    assert arrays["token_type_ids"][0, :used].tolist() == expected.token_type_ids
    assert arrays["attention_mask"].sum(1).tolist() == [used, 3, 10]  # the last one is cut
    assert not arrays["ids"][arrays["attention_mask"] == 0].any()
    assert arrays["labels"].tolist() == [1, 0, IGNORED]


def test_labels_are_names_or_numbers_and_never_guessed() -> None:
    assert [find_label(label, CLASSES) for label in ("good", "1", "bad", "0", None)] == [
        *(1, 1, 0, 0, IGNORED)
    ]
    stars = Labels("sequence_classification", {"1": 0, "2": 1}, are_scores=False)
    assert [find_label(label, stars) for label in ("0", "2", "0.0")] == [0, 1, 0]
    for label in ("fine", "2", "0.5", "nan"):
        with pytest.raises(ValueError, match="is none of the model's"):
            find_label(label, CLASSES)
    with pytest.raises(ValueError, match="'1' is more than one of the model's"):
        find_label("1", stars)


def test_scores_are_floats_and_absent_ones_nan() -> None:
    rows = rows_of({"text": "a", "label": 3.8}, {"text": "a"}, {"text": "a", "label": -1})
    labels = encode_rows(rows, make_tokenizer(), SCORES, 6)["labels"]
    assert labels.dtype == np.float32
    assert np.array_equal(labels, np.float32([3.8, np.nan, -1]), equal_nan=True)
    for label in ("good", float("inf")):
        with pytest.raises(CorpusError, match="expected a finite number"):
            encode_rows(rows_of({"text": "a", "label": label}), make_tokenizer(), SCORES, 6)


def test_an_output_wins_over_a_label_where_it_is_known() -> None:
    rows = rows_of(
        {"text": "a", "label": 0, "output": 1}, {"text": "a", "label": 0, "output": None}
    )
    assert [row["output"] for row in rows] == ["1", "0"]


def test_an_answer_is_its_first_and_last_token(tmp_path: Path) -> None:
    context = "the plot of the film is very good"
    found = {"text": ["very good", "good"], "answer_start": [context.index("very"), 29]}
    path = tmp_path / "rows.jsonl"
    spaced = {"text": [" plot "], "answer_start": [3]}
    asked = [
        {"question": "who wrote it", "context": context, "answers": found},
        {"question": "who", "context": context, "answers": spaced},
        {"question": "who", "context": context, "answers": {"text": [], "answer_start": []}},
        {"question": "who", "context": context},
        {"question": "who wrote it was it not", "context": context, "answers": found},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in asked))
    rows = rows_of(*read_rows(path), head="question_answering")
    arrays = encode_rows(rows, make_tokenizer(), SPANS, 14)
    labels = arrays["labels"].tolist()
    assert labels[2:] == [[0, 0], [IGNORED, IGNORED], [IGNORED, IGNORED]]  # the last is cut off
    spans = [arrays["ids"][row, first : last + 1] for row, (first, last) in enumerate(labels[:2])]
    assert [make_tokenizer().decode(span.tolist()) for span in spans] == ["very good", "plot"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"answers": {"text": ["bad"], "answer_start": [0]}}, "expected the answer 'bad'"),
        ({"answers": {"text": [" "], "answer_start": [4]}}, "expected the answer ' '"),
        *(
            ({"answers": answers}, "expected answers: {text")
            for answers in (
                ["good"],
                {"text": "good", "answer_start": 0},
                {"text": ["good"], "answer_start": ["0"]},
                {"text": ["good"], "answer_start": [-9]},
                {"text": ["good"], "answer_start": []},
            )
        ),
        ({"question": "who wrote it was it not very good"}, "the question alone fills"),
    ],
)
def test_a_wrong_question_says_what_is_wrong(raw: dict[str, Any], message: str) -> None:
    row = {"text": "who", "text_pair": "good film"} | raw
    row["text"] = raw.get("question", "who")
    with pytest.raises((CorpusError, ValueError), match=message):
        encode_rows(rows_of(row, head="question_answering"), make_tokenizer(), SPANS, 8)


@pytest.mark.parametrize("between", ["[SEP]", "[SEP] [SEP]"])
def test_a_question_leaves_room_for_a_token_of_its_context(between: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=f"[CLS] $A {between} $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    answers = {"text": ["good"], "answer_start": [0]}
    row = {"text": "who wrote it", "text_pair": "good film plot", "answers": answers}
    rows = rows_of(row, head="question_answering")
    fills = 3 + 2 + len(between.split())
    labels = encode_rows(rows, tokenizer, SPANS, fills + 1)["labels"]
    assert labels.tolist() == [[fills - 1, fills - 1]]
    with pytest.raises(CorpusError, match="the question alone fills"):
        encode_rows(rows, tokenizer, SPANS, fills)


def test_chats_are_no_examples() -> None:
    rows = rows_of({"messages": [{"role": "user", "content": "good"}]})
    with pytest.raises(CorpusError, match="expected a text, got a chat"):
        encode_rows(rows, make_tokenizer(), CLASSES, 8)


@pytest.mark.parametrize(
    ("raw", "texts"),
    [
        ({"text_a": "a", "text_b": "b"}, ("a", "b")),
        ({"sentence1": "a", "sentence2": "b"}, ("a", "b")),
        ({"sentence": "a"}, ("a", None)),
        ({"question": "a", "context": "b"}, ("a", "b")),
        ({"text": "a", "context": "b"}, ("a", None)),
    ],
)
def test_texts_go_by_several_names(
    raw: dict[str, str], texts: tuple[str, str | None], tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(raw))
    (row,) = read_rows(path)
    assert (row["text"], row.get("text_pair")) == texts


def test_the_teacher_s_head_decides_what_the_corpus_stage_writes(tmp_path: Path) -> None:
    raw = [{"text": f"film {n % 5} is good", "label": n % 2} for n in range(30)] + [{"text": "it"}]
    for architecture, names in (
        ("BertForSequenceClassification", {"ids", "labels", "attention_mask", "token_type_ids"}),
        ("BertForMaskedLM", {"ids", "labels", "attention_mask"}),
    ):
        place = tmp_path / architecture
        folder = save_encoder(place / "teacher", architecture)
        sizes = write_shards(rows_of(*raw), place / "source")
        space = make_space(place / "store", place / "scratch", prefix="stages/corpus/key")
        corpus = build_corpus(
            space,
            {"task": None, "filters": [], "block_tokens": 8, "seed": 0, "trust_remote_code": False},
            teacher=describe_model(folder, str(folder)),
            rows001=RowsRef(uri=str(place / "source"), digest="", num_rows=sizes),
        )
        blocks = load_file(space.out / "blocks.safetensors")
        assert blocks.keys() == names
        assert all(len(array) == corpus.num_blocks for array in blocks.values())
        if architecture == "BertForSequenceClassification":
            assert corpus.num_blocks == 31
            assert corpus.outputs == {"0": 15, "1": 15, "none": 1}
            assert read_labels(folder) == Labels(
                "sequence_classification", {"LABEL_0": 0, "LABEL_1": 1}, are_scores=False
            )


def test_hidden_tokens_are_those_of_bert_and_depend_on_the_block_alone() -> None:
    vocabulary = Vocabulary(mask_id=3, special_ids=np.int32([0, 1, 2, 3]), size=1000)
    ids = np.random.default_rng(0).integers(4, 1000, (400, 128)).astype(np.int32)
    ids[:, 0] = 1
    (whole,) = mask_blocks([{"ids": ids}], vocabulary, seed=7)
    parts = [*mask_blocks([{"ids": ids[:150]}, {"ids": ids[150:]}], vocabulary, seed=7)]
    for name, array in whole.items():
        assert np.array_equal(np.concatenate([part[name] for part in parts]), array)
    chosen = whole["labels"] != IGNORED
    assert np.array_equal(whole["labels"][chosen], ids[chosen])
    assert np.array_equal(whole["ids"][~chosen], ids[~chosen])
    assert not chosen[:, 0].any()
    assert abs(chosen[:, 1:].mean() - 0.15) < 0.01
    masked = (whole["ids"] == 3)[chosen].mean()
    kept = (whole["ids"] == ids)[chosen].mean()
    assert abs(masked - 0.8) < 0.02
    assert abs(kept - 0.1) < 0.02
