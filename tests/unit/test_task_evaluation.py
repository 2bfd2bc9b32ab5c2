"""Labelled rows, questions and masked text, scored through the evaluate stage on tiny models."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from infra.local_executor import LocalExecutor
from infra.storage import localize, open_store
from tasks.errors import CorpusError
from tasks.evaluate.items import read_items
from tasks.evaluate.labelled import LabelledRow, number_labels, read_labelled
from tasks.evaluate.predicting import fill_in
from tasks.evaluation_options import LabelledTask
from tasks.inputs import find_labelled
from tasks.models.checkpoint import describe_model, load_model
from tasks.quality_records import Metrics
from tasks.records import TextRef
from tasks.stage import Stage, run_stage

WINDOW = 24
WORDS = "the model learns to write short plain sentences about nights presses".split()


@pytest.fixture(scope="module")
def words_tokenizer() -> Any:
    """One token a word, with BERT's special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: number for number, token in enumerate([*special, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture(scope="module")
def make_bert(
    words_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Save a random BERT of one layer with a head: `SequenceClassification`, `MaskedLM`, ..."""

    def make(head: str, **overrides: Any) -> Path:
        import transformers

        settings = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
        settings |= {"num_hidden_layers": 1, "max_position_embeddings": 64}
        config = transformers.BertConfig(
            vocab_size=len(words_tokenizer), pad_token_id=0, **(settings | overrides)
        )
        torch.manual_seed(0)
        model = getattr(transformers, f"BertFor{head}")(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(8.0) if parameter.ndim == 2 else parameter
        folder = tmp_path_factory.mktemp("bert")
        model.save_pretrained(folder)
        words_tokenizer.save_pretrained(folder)
        return folder

    return make


def rows_of(
    num_rows: int, label: Callable[[int], Any], pairs: bool = False
) -> list[dict[str, Any]]:
    def words(seed: int, length: int) -> str:
        return " ".join(WORDS[(seed * 7 + k * k) % len(WORDS)] for k in range(length))

    return [
        {"text": words(i, 1 + i % 9), "label": label(i)}
        | ({"text_b": words(i + 1, 3)} if pairs else {})
        for i in range(num_rows)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluate(
    folder: Path, text: Path, tmp_path: Path, *tasks: LabelledTask, latency: Any = None
) -> tuple[Metrics, Any]:
    """Return the metrics and the store; latencies are off unless stated."""
    store = open_store(f"file://{tmp_path}/store")
    read = {f"task {t.name}": find_labelled("t", t.data, store) for t in tasks}
    stage = Stage(
        "evaluate",
        "tasks.evaluate.evaluation:evaluate_model",
        {
            "window": WINDOW,
            "stride": WINDOW,
            "tasks": [task.model_dump(exclude={"data"}) for task in tasks],
            "latency": latency,
            "trust_remote_code": False,
        },
        {
            "model": describe_model(folder, str(folder)),
            "text": TextRef(uri=str(text), digest="d" * 64, num_bytes=text.stat().st_size),
            **read,
        },
    )
    completion, _ = run_stage(
        stage, store, LocalExecutor(), lambda done, total: None, tmp_path / "scratch"
    )
    return Metrics(**completion.record), store


@pytest.mark.parametrize("pairs", [False, True])
def test_a_classifiers_nats_and_accuracy_are_those_of_single_rows(
    make_bert: Callable[..., Path], words_tokenizer: Any, tmp_path: Path, pairs: bool
) -> None:
    rows = rows_of(70, lambda i: i % 3, pairs)  # two units of work, batches of unequal lengths
    folder = make_bert("SequenceClassification", num_labels=3)
    text = write_rows(tmp_path / "rows.jsonl", rows)
    task = LabelledTask(name="own", data=str(text), metrics=["accuracy", "f1_macro"])
    metrics, store = evaluate(folder, text, tmp_path, task)

    model = load_model(folder)
    nats, right = [], []
    for row in rows:
        inputs = words_tokenizer(row["text"], row.get("text_b"), return_tensors="pt")
        with torch.inference_mode():
            logits = model(**inputs).logits[0]
        nats.append(float(F.cross_entropy(logits, torch.tensor(row["label"]))))
        right.append(int(logits.argmax()) == row["label"])
    documents = json.loads(localize(store, metrics.documents_uri).read_text())
    assert documents["nats"] == pytest.approx(nats, abs=1e-4)
    assert documents["tokens"] == [1] * 70
    assert metrics.nats_per_token == pytest.approx(sum(nats) / 70, abs=1e-5)
    score = metrics.tasks["own"]
    assert score.scores["accuracy"] == pytest.approx(sum(right) / 70)
    assert score.score == pytest.approx(sum(score.scores.values()) / 2) == metrics.task_average
    assert (score.num_items, metrics.num_documents) == (70, 70)
    assert read_items(store, score).gold == [i % 3 for i in range(70)]
    assert "nats/row" in metrics.protocol and metrics.tokens_per_s > 0


def test_the_load_gates_probe_has_the_logits_of_the_first_rows(
    make_bert: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_bert("SequenceClassification", num_labels=2)
    text = write_rows(tmp_path / "rows.jsonl", rows_of(6, lambda i: i % 2, pairs=True))
    metrics, store = evaluate(folder, text, tmp_path)
    uri = metrics.documents_uri.replace("documents.json", "probe.json")
    probe = json.loads(localize(store, uri).read_text())
    model = load_model(folder)
    ids, types = (torch.tensor([probe[k][1]]) for k in ("ids", "token_type_ids"))
    with torch.inference_mode():
        logits = model(input_ids=ids, token_type_ids=types).logits[0]
    assert probe["logits"][1] == pytest.approx(logits.tolist(), abs=1e-5)


def test_a_regression_is_judged_by_squared_error_and_correlation(
    make_bert: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_bert("SequenceClassification", num_labels=1)
    text = write_rows(tmp_path / "rows.jsonl", rows_of(20, lambda i: i / 4))
    task = LabelledTask(name="sts", data=str(text), metrics=["pearson", "spearman"])
    metrics, store = evaluate(folder, text, tmp_path, task)
    items = read_items(store, metrics.tasks["sts"])
    errors = [(g - p) ** 2 for g, p in zip(items.gold, items.predicted, strict=True)]
    assert metrics.nats_per_token == pytest.approx(sum(errors) / 20, rel=1e-5)
    assert "squared error" in metrics.protocol
    wrong = LabelledTask(name="acc", data=str(text))
    with pytest.raises(ValueError, match="is a regression, which accuracy is not for"):
        evaluate(folder, text, tmp_path, wrong)


def test_a_language_model_chooses_the_likeliest_verbalizer(
    tiny_llama: Path, text_file: Path, tokenizer: Any, tmp_path: Path
) -> None:
    rows = rows_of(30, lambda i: ["no", "yes", "maybe"][i % 3])
    data = write_rows(tmp_path / "rows.jsonl", rows)
    said = {"no": " no number", "yes": " y", "maybe": " nothing at all"}
    task = LabelledTask(name="q", data=str(data), prompt="{text}\nSo:", verbalizers=said)
    metrics, store = evaluate(tiny_llama, text_file, tmp_path, task)

    def likelihood(whole: str) -> float:
        ids = torch.tensor([tokenizer(whole).input_ids])
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, :-1]
        return -float(F.cross_entropy(logits, ids[0, 1:], reduction="sum"))

    model = load_model(tiny_llama)
    expected = [
        max(range(3), key=lambda k: likelihood(f"{row['text']}\nSo:{list(said.values())[k]}"))
        for row in rows
        if len(tokenizer(f"{row['text']}\nSo: nothing at all").input_ids) <= WINDOW
    ]
    items = read_items(store, metrics.tasks["q"])
    short = [
        predicted
        for row, predicted in zip(rows, items.predicted, strict=True)
        if len(tokenizer(f"{row['text']}\nSo: nothing at all").input_ids) <= WINDOW
    ]
    assert len(short) > 10 and short == expected
    assert metrics.tasks["q"].num_cut == 30 - len(short)
    assert items.gold == [i % 3 for i in range(30)]


def test_braces_in_a_text_are_no_places() -> None:
    row = LabelledRow("say {text_pair} and {0.__class__}", "twice", 0)
    assert fill_in("{text} | {text_pair}", row) == "say {text_pair} and {0.__class__} | twice"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": 1}, "expected a mapping with text"),
        ({"text": "a"}, "expected a label, a name or a number"),
        ([1], "expected a mapping"),
    ],
)
def test_a_row_without_text_or_label_is_named(tmp_path: Path, row: Any, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "\u2028", "label": 0}) + "\n" + json.dumps(row))
    with pytest.raises(CorpusError, match=rf"2: {message}"):
        read_labelled(path)


def test_an_unknown_label_is_named(make_bert: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_bert("SequenceClassification", num_labels=2)
    text = write_rows(tmp_path / "rows.jsonl", [{"text": "the model", "label": "good"}])
    with pytest.raises(CorpusError, match="label 'good' is none of"):
        evaluate(folder, text, tmp_path)
    task = LabelledTask(name="named", data=str(text), labels=["bad", "good"])
    rows = write_rows(tmp_path / "numbered.jsonl", rows_of(4, lambda i: i % 2))
    metrics, store = evaluate(folder, rows, tmp_path, task)
    assert read_items(store, metrics.tasks["named"]).gold == [1.0]


def test_labels_are_numbered_as_in_training() -> None:
    def number(label: str | float, labels: list[str]) -> list[float]:
        return number_labels([LabelledRow("", None, label)], labels, "rows")

    assert [number(label, ["bad", "good"]) for label in (1.0, 1, "1", "good")] == [[1.0]] * 4
    assert number("3.5", []) == number(3.5, []) == [3.5]
    with pytest.raises(CorpusError, match="rows: label '1' is more than one of"):
        number(1, ["1", "2"])
    with pytest.raises(CorpusError, match="rows: expected a finite number"):
        number("good", [])


def test_a_masked_model_scores_masked_tokens_alone(
    make_bert: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_bert("MaskedLM")
    text = write_rows(tmp_path / "text.jsonl", rows_of(40, lambda i: 0))
    first, _ = evaluate(folder, text, tmp_path / "a")
    again, _ = evaluate(folder, text, tmp_path / "b")
    assert first.nats_per_token == again.nats_per_token
    assert 0.1 < first.num_tokens / 280 < 0.2
    assert "15% of tokens masked" in first.protocol


def ask(context: str, answer: str | None) -> dict[str, Any]:
    """One row of SQuAD; of no answer the lists are empty."""
    texts = [] if answer is None else [answer]
    starts = [context.index(text) for text in texts]
    answers = {"text": texts, "answer_start": starts}
    return {"question": "about nights", "context": context, "answers": answers}


CONTEXT = "the model learns to write short plain sentences"


def test_questions_are_scored_by_where_the_answer_is(
    make_bert: Callable[..., Path], words_tokenizer: Any, tmp_path: Path
) -> None:
    cut = ask(" ".join([CONTEXT] * 3) + " presses", "presses")
    rows = [ask(CONTEXT, "write short"), cut, ask(CONTEXT, None), ask(CONTEXT, "plain")]
    del rows[3]["answers"]
    folder = make_bert("QuestionAnswering")
    text = write_rows(tmp_path / "rows.jsonl", rows)
    metrics, store = evaluate(folder, text, tmp_path)
    inputs = words_tokenizer("about nights", CONTEXT, return_tensors="pt")
    with torch.inference_mode():
        output = load_model(folder)(**inputs)
    place = words_tokenizer.convert_ids_to_tokens(inputs["input_ids"][0]).index("write")
    expected = [
        float(
            F.cross_entropy(output.start_logits, torch.tensor([first]))
            + F.cross_entropy(output.end_logits, torch.tensor([last]))
        )
        / 2
        for first, last in ((place, place + 1), (0, 0))
    ]
    documents = json.loads(localize(store, metrics.documents_uri).read_text())
    assert documents["tokens"] == [1, 0, 1, 0]
    assert documents["nats"] == pytest.approx([expected[0], 0, expected[1], 0], abs=1e-5)
    assert metrics.nats_per_token == pytest.approx(sum(expected) / 2, abs=1e-5)
    assert (metrics.num_tokens, metrics.num_documents) == (2, 4)
    assert "2 rows without an answer there not scored" in metrics.protocol


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ask(" ".join([CONTEXT] * 3) + " presses", "presses"), "no row has its answer inside"),
        (ask(CONTEXT, "plain") | {"context": CONTEXT[1:]}, "row 1: expected the answer 'plain'"),
        (ask(CONTEXT, "plain") | {"question": CONTEXT * 3}, "row 1: the question alone fills 24"),
        ({"text": CONTEXT}, "row 1: expected a question and its context"),
    ],
)
def test_a_text_without_a_question_to_score_is_refused(
    make_bert: Callable[..., Path], tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    text = write_rows(tmp_path / "rows.jsonl", [row])
    with pytest.raises(CorpusError, match=message):
        evaluate(make_bert("QuestionAnswering"), text, tmp_path)


def test_latency_has_a_row_for_each_batch_size(
    tiny_llama: Path, text_file: Path, make_bert: Callable[..., Path], tmp_path: Path
) -> None:
    asked = {"batch_sizes": [2, 1], "prompt_tokens": 8, "new_tokens": 3}
    metrics, _ = evaluate(tiny_llama, text_file, tmp_path / "llama", latency=asked)
    assert metrics.latency is not None
    assert [row.batch_size for row in metrics.latency.rows] == [1, 2]
    assert all(row.prefill_ms > 0 and row.peak_bytes > 0 for row in metrics.latency.rows)
    assert all(row.decode_ms is not None and row.decode_ms > 0 for row in metrics.latency.rows)
    rows = write_rows(tmp_path / "rows.jsonl", rows_of(5, lambda i: i % 2))
    folder = make_bert("SequenceClassification", num_labels=2)
    metrics, _ = evaluate(folder, rows, tmp_path / "bert", latency=asked)
    assert metrics.latency is not None
    assert [row.decode_ms for row in metrics.latency.rows] == [None, None]
    with pytest.raises(ValueError, match="come to 100, the model has 64 positions"):
        evaluate(folder, rows, tmp_path / "long", latency=asked | {"prompt_tokens": 100})
    assert math.isfinite(metrics.perplexity)
