"""Retrieval: ranking, passages, data sets of a catalogue, the hub, starting models."""

import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from infra.local_executor import LocalExecutor
from infra.storage import localize, open_store
from tasks.corpus.context import CorpusContext
from tasks.corpus.retrieval.catalogue import DataSet, entry_uri, is_forbidden, rank, read_catalogue
from tasks.corpus.retrieval.columns import Columns, choose_columns
from tasks.corpus.retrieval.documents import cut_passages
from tasks.corpus.retrieval.hub import search_hub
from tasks.corpus.retrieval.languages import detect_language
from tasks.corpus.retrieval.outputs import output_finder
from tasks.corpus.retrieval.quotas import read_quotas, share_equally, share_out
from tasks.corpus.retrieval.ranking import Ranking, query_words, stem
from tasks.corpus.retrieval.sampling import sample_rows
from tasks.corpus.retrieval.starting_models import propose_students
from tasks.corpus.retrieval.tables import read_records
from tasks.corpus.shards import Rows, list_shards
from tasks.corpus.sources import data_sets, passages
from tasks.corpus.words import split_words
from tasks.corpus_options import Example, Task
from tasks.corpus_stages import source_stage
from tasks.digests import digest_file
from tasks.errors import CorpusError
from tasks.inputs import find_catalogue, find_inputs
from tasks.recipe_file import load_recipe
from tasks.records import RowsRef
from tasks.stage import run_stage

SENTIMENT = Task(
    instruction="Decide whether a movie review's sentiment is positive or negative",
    kind="classification",
    labels=["negative", "positive"],
)
SUMMARY = Task(instruction="Summarize a report.")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def context_of(task: Task | None = SENTIMENT, seed: int = 0) -> CorpusContext:
    space: Any = type("Space", (), {"local": staticmethod(lambda uri: Path(uri))})()
    return CorpusContext(space=space, seed=seed, name="1-x", task=task)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    """Three data sets: film reviews with numbers for labels, topics of news, pairs."""
    films = [{"review": f"the film number {i} was so so", "label": i % 2} for i in range(40)]
    write_jsonl(tmp_path / "films/all.jsonl", films)
    news = [{"text": f"report {i}", "label": ("World", "Sports")[i % 2]} for i in range(40)]
    write_jsonl(tmp_path / "news.jsonl", news)
    pairs = [{"text_a": f"one {i}", "text_b": f"two {i}", "label": i % 2} for i in range(40)]
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    entries = [
        {
            "name": "films",
            "description": "Movie reviews with their sentiment, positive or negative.",
            "uri": "films/all.jsonl",
            "licence": "cc-by-nc-4.0",
            "label_names": ["negative", "positive"],
        },
        {"name": "news", "description": "News by topic.", "uri": "news.jsonl", "licence": "mit"},
        {"name": "pairs", "description": "Paraphrases.", "uri": str(tmp_path / "pairs.jsonl")},
    ]
    path = tmp_path / "catalogue.yaml"
    path.write_text(yaml.safe_dump(entries))
    return path


def draw(catalogue: Path, task: Task | None = SENTIMENT, **options: Any) -> list[dict[str, Any]]:
    settings = {"rows_per_data_set": 10} | options
    return list(data_sets.read(context_of(task), catalogue=str(catalogue), **settings))


def change(catalogue: Path, number: int, **fields: Any) -> None:
    entries = yaml.safe_load(catalogue.read_text())
    entries[number] |= fields
    catalogue.write_text(yaml.safe_dump(entries))


def test_bm25_equals_the_formula() -> None:
    """Robertson and Zaragoza 2009 with Lucene's idf, by hand."""
    texts = ["red fox", "red red dog barks at night", "a fox and a dog"]
    ranking = Ranking("red fox")
    for text in texts:
        ranking.add(split_words(text))
    lengths = [len(text.split()) for text in texts]
    mean = sum(lengths) / 3

    def weight(tf: int, df: int, length: int) -> float:
        idf = math.log(1 + (3 - df + 0.5) / (df + 0.5))
        return idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * length / mean))

    expected = [
        weight(1, 2, lengths[0]) * 2,
        weight(2, 2, lengths[1]),
        weight(1, 2, lengths[2]),
    ]
    assert ranking.scores().tolist() == pytest.approx(expected, rel=1e-5)


def test_words_of_a_query() -> None:
    found = query_words("Decide whether the movies' movie is one of 2 reviews")
    assert found == {"movy": "movie", "one": "one", "review": "reviews"}
    stems = [stem(word) for word in ("classes", "bus", "glass", "queries", "query", "cats", "is")]
    assert stems == ["classe", "bus", "glass", "query", "query", "cat", "is"]
    assert Ranking("the of and").scores().tolist() == []


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("the press prints what it is given, and so it was with this night", "en"),
        ("die Presse druckt, was sie bekommt, und das ist auch in der Nacht so", "de"),
        ("la presse imprime ce que l'on lui donne, et elle le fait dans la nuit", "fr"),
        ("la prensa imprime lo que se le da y no para en la noche", "es"),
        ("这 是 一个 关于 电影 的 评论", "zh"),
        ("これは映画のレビューです", "ja"),
        ("이것은 영화 리뷰입니다", "ko"),
        ("это не то что мы на самом деле видели в кино", "ru"),
        ("x = [1, 2, 3]; print(sorted(x))", "unknown"),
        ("", "unknown"),
    ],
)
def test_languages(text: str, language: str) -> None:
    assert detect_language(split_words(text)) == language


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab .!\n。字", max_size=200), st.integers(1, 9))
def test_passages_lose_no_word_and_keep_their_size(text: str, size: int) -> None:
    parts = list(cut_passages(text, size))
    assert [word for part in parts for word in split_words(part)] == split_words(text)
    assert all(0 < len(split_words(part)) <= size for part in parts)


def test_passages_end_with_sentences() -> None:
    text = "One two three. Four five.\n\nSix seven eight nine. Ten"
    assert list(cut_passages(text, 5)) == ["One two three. Four five.", "Six seven eight nine. Ten"]


@pytest.fixture
def texts_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    rows = [
        {"text": "Ein Film und das ist auch die Rezension, die nicht lang ist.", "licence": "mit"},
        {"text": "Un film", "language": "fr"},
        {"messages": [{"role": "user", "content": "film"}]},
    ]
    write_jsonl(folder / "rows.jsonl", rows)
    (folder / "films.md").write_text("This is the film that was on at night. It is a film.")
    (folder / "deep").mkdir()
    (folder / "deep/bread.txt").write_text("How to bake bread in the oven, and what it is.")
    (folder / "image.png").write_bytes(b"\x89PNG film")
    return folder


def test_the_passages_that_fit_come_best_first(texts_folder: Path) -> None:
    context = context_of(None)
    options = {"path": str(texts_folder), "query": "films", "licence": "CC0-1.0"}
    rows = list(passages.read(context, num_rows=2, **options))
    assert [row["text"][:7] for row in rows] == ["Un film", "This is"]
    rows = list(passages.read(context, num_rows=9, **options))
    assert len(rows) == 3 and {row["licence"] for row in rows} == {"CC0-1.0", "mit"}
    assert context.refused == {"chat, where passages of text were looked for": 2}


def test_quotas_by_language(texts_folder: Path) -> None:
    context = context_of(None)
    rows = list(
        passages.read(
            context, path=str(texts_folder), num_rows=4, query="film", quotas="en=0.5,de=0.5"
        )
    )
    assert sorted(row["text"][:3] for row in rows) == ["Ein", "Thi"]
    assert context.refused["wanted in de, and not found"] == 1
    with pytest.raises(CorpusError, match=r"none is in \['it'\]; they are in \['de', 'en', 'fr'\]"):
        list(passages.read(context, path=str(texts_folder), num_rows=4, query="film",
                           quotas="it=1"))  # fmt: skip
    for wrong in ("en", "en=2", "en=0.5,en=0.5", "", "en=x", "en=-1,de=1"):
        with pytest.raises(CorpusError, match="quotas: expected"):
            read_quotas(wrong)


def test_nothing_found_says_what_was_searched(texts_folder: Path, tmp_path: Path) -> None:
    context = context_of(None)
    told = r"none of 4 passages in 3 files .* min_score: 0.0 for the words zebras; the best .* 0.00"
    with pytest.raises(CorpusError, match=told):
        list(passages.read(context, path=str(texts_folder), num_rows=1, query="zebras"))
    with pytest.raises(CorpusError, match="no task, and the source no query"):
        list(passages.read(context, path=str(texts_folder), num_rows=1))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="holds no file that ends in"):
        list(passages.read(context, path=str(tmp_path / "empty"), num_rows=1, query="a film"))


@given(
    st.dictionaries(st.sampled_from("abcde"), st.integers(0, 20), min_size=1), st.integers(0, 60)
)
def test_equal_shares(sizes: dict[str, int], total: int) -> None:
    shares = share_equally(sizes, total)
    assert sum(shares.values()) == min(total, sum(sizes.values()))
    assert all(shares[name] <= sizes[name] for name in sizes)
    short = [shares[name] for name in sizes if shares[name] < sizes[name]]
    assert not short or max(shares.values()) - min(short) <= 1


def test_shares_by_largest_remainder() -> None:
    assert share_out(read_quotas("en=0.7,de=0.3"), 11) == {"en": 8, "de": 3}
    assert share_out(read_quotas("en=1/3,de=1/3,fr=1/3"), 10) == {"en": 3, "de": 4, "fr": 3}


def test_the_data_set_that_fits_is_drawn_and_balanced(catalogue: Path) -> None:
    rows = draw(catalogue)
    assert Counter(row["output"] for row in rows) == {"negative": 5, "positive": 5}
    assert {(row["data_set"], row["licence"]) for row in rows} == {("films", "cc-by-nc-4.0")}
    assert all(int(r["text"].split()[3]) % 2 == (r["output"] == "positive") for r in rows)
    assert rows == draw(catalogue)
    other = data_sets.read(context_of(seed=1), catalogue=str(catalogue), rows_per_data_set=10)
    assert list(other) != rows


def test_every_entry_above_the_threshold_is_ranked(catalogue: Path) -> None:
    ranked, looked_for = rank(read_catalogue(catalogue, DataSet), SENTIMENT.instruction)
    assert looked_for == ["movie", "review", "sentiment", "positive", "negative"]
    assert [found.entry.name for found in ranked] == ["films", "news", "pairs"]
    assert ranked[0].score > 1 and ranked[1].score == 0


def test_no_match_says_what_was_searched(catalogue: Path) -> None:
    told = r"none of 3 data sets in .* above min_score: 50.0 for the words movie, .*\(films\)"
    with pytest.raises(CorpusError, match=told):
        draw(catalogue, min_score=50.0)
    with pytest.raises(CorpusError, match="none of 2 data sets"):
        draw(catalogue, exclude="films")
    with pytest.raises(CorpusError, match=r"no entry \['film'\].*'films'"):
        draw(catalogue, exclude="film, news")


def test_forbidden_licences_are_passed_over(catalogue: Path) -> None:
    context = context_of()
    query = "news paraphrases"
    options: dict[str, Any] = {"rows_per_data_set": 4, "num_data_sets": 3, "query": query}
    change(catalogue, 1, labels={"World": "negative", "Sports": "positive"})
    rows = list(
        data_sets.read(
            context, catalogue=str(catalogue), forbid_licences="CC BY-NC,unknown", **options
        )
    )
    assert {row["data_set"] for row in rows} == {"news"}
    assert context.refused == {
        "data set of the forbidden licence cc-by-nc-4.0": 1,
        "data set of the forbidden licence unknown": 1,
    }
    with pytest.raises(CorpusError, match=r"licence that the recipe forbids: films \(cc-by-nc-4"):
        draw(catalogue, forbid_licences="cc-by-nc")
    assert not is_forbidden("cc-by-4.0", ["cc-by-nc"]) and is_forbidden("CC BY 4.0", ["cc-by"])


def test_labels_outside_the_set_are_counted(catalogue: Path) -> None:
    films = [{"review": f"film {i}", "label": i % 3} for i in range(30)]
    write_jsonl(catalogue.parent / "films/all.jsonl", films)
    context = context_of()
    read = data_sets.read(context, catalogue=str(catalogue), rows_per_data_set=100)
    assert Counter(row["output"] for row in read) == {"negative": 10, "positive": 10}
    assert context.refused == {"films: output that is none of the task's": 10}
    change(catalogue, 0, label_names=["awful", "dull", "fine"])
    told = r"column label is one of \['negative', 'positive'\]; it has \['0', '1', '2'\]"
    with pytest.raises(CorpusError, match=told):
        draw(catalogue)


def test_numbers_are_labels_in_order_only_where_it_is_said(catalogue: Path) -> None:
    change(catalogue, 0, label_names=[])
    with pytest.raises(CorpusError, match="none of its outputs"):
        draw(catalogue)
    assert Counter(row["output"] for row in draw(catalogue, labels_in_order=True)) == {
        "negative": 5,
        "positive": 5,
    }


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("Positive", "positive"),
        ("pos", "positive"),
        ("NEG.", "negative"),
        ("ne", None),
        ("neutral", None),
        ("bad", "negative"),
        (1, "positive"),
        ("1", "positive"),
        (1.0, "positive"),
        (0.5, None),
        (7, None),
        (None, None),
        (["positive"], None),
    ],
)
def test_names_of_labels(value: Any, found: str | None) -> None:
    entry = DataSet(
        name="x", uri="x", label_names=["negative", "positive"], labels={"bad": "negative"}
    )
    assert output_finder(SENTIMENT, entry, in_order=False)(value) == found


ABOUT_TWO = SENTIMENT.model_copy(
    update={"examples": [Example(text="a", text_pair="b", output="positive")]}
)
ABOUT_ONE = SENTIMENT.model_copy(update={"examples": [Example(text="a", output="positive")]})
LONG = "so long a text that it is prose"


@pytest.mark.parametrize(
    ("record", "task", "columns"),
    [
        ({"id": "x", "Sentence": "a", "label": 1}, SENTIMENT, Columns("Sentence", None, "label")),
        ({"question1": "a", "question2": "b", "label": 1}, ABOUT_TWO,
         Columns("question1", "question2", "label")),
        ({"code": "x", "remark": LONG, "sentiment": "pos"}, SENTIMENT,
         Columns("remark", None, "sentiment")),
        ({"document": LONG, "summary": "short"}, SUMMARY, Columns("document", None, "summary")),
        ({"report": LONG, "gist": "short"}, SUMMARY, Columns("report", None, "gist")),
        ({"text": LONG, "stars": 5}, None, Columns("text")),
    ],
)  # fmt: skip
def test_the_rule_for_columns(record: dict[str, Any], task: Task | None, columns: Columns) -> None:
    assert choose_columns([record], task, "x") == columns


def test_an_output_may_be_found_by_its_values() -> None:
    rows = [{"text": f"t {i}", "a": i, "b": i % 2} for i in range(9)]
    assert choose_columns(rows, SENTIMENT, "x").output == "b"
    with pytest.raises(CorpusError, match=r"output\. Found: text \(text, about 2 words, 9 values"):
        choose_columns([row | {"c": row["b"]} for row in rows], SENTIMENT, "x")


@pytest.mark.parametrize(
    ("record", "task", "told"),
    [
        ({"one": LONG, "two": LONG, "label": 1}, SENTIMENT, "no one column is sure to be the text"),
        ({"text_a": "a", "text_b": "b", "label": 1}, ABOUT_ONE, "rows have two texts, .* one"),
        ({"text": "a", "label": 1}, ABOUT_TWO, "rows have one text, .* two"),
        ({"text": "a", "answers": {"text": ["b"]}}, SUMMARY, r"answers \(other, 0 values\)"),
        ({"label": 1}, SENTIMENT, "sure to be the text"),
    ],
)
def test_columns_that_cannot_be_mapped(record: dict[str, Any], task: Task, told: str) -> None:
    with pytest.raises(CorpusError, match=told) as caught:
        choose_columns([record], task, "data set x")
    assert "columns: text=COLUMN,output=COLUMN" in str(caught.value)


def test_a_user_may_name_the_columns(catalogue: Path) -> None:
    change(catalogue, 0, mapping={"text": "label", "output": "review"})
    with pytest.raises(CorpusError, match="it has no rows with text in the column label"):
        draw(catalogue)
    assert len(draw(catalogue, columns="text=review, output=label")) == 10
    assert draw(catalogue, columns="text=review")[0]["output"] is None
    for wrong, told in [
        ("text=critique", r"no column \['critique'\]; its columns are \['label', 'review'\]"),
        ("output=label", "expected text"),
        ("text=review,labels=label", "expected text"),
        ("text", "expected columns: such as"),
    ]:
        with pytest.raises(CorpusError, match=told):
            draw(catalogue, columns=wrong)


def test_formats_hold_the_same_records(tmp_path: Path) -> None:
    rows = [{"text": 'a "quoted",\nline', "label": "pos"}, {"text": "b", "label": "neg"}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps({"data": rows}))
    Dataset.from_list(rows).to_csv(tmp_path / "a.csv", index=False)
    (tmp_path / "a.tsv").write_text('text\tlabel\n"a ""quoted"",\nline"\tpos\nb\tneg\n')
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for suffix in ("jsonl", "json", "csv", "tsv", "parquet"):
        assert list(read_records(tmp_path / f"a.{suffix}")) == rows, suffix
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    (tmp_path / "split").mkdir()
    Dataset.from_list([{"text": "a", "label": 1}], features).to_parquet(
        tmp_path / "split/train-0.parquet"
    )
    write_jsonl(tmp_path / "split/test-0.jsonl", [{"text": "t"}])
    assert list(read_records(tmp_path / "split", "train")) == [{"text": "a", "label": "pos"}]
    with pytest.raises(CorpusError, match="no file of the split dev that ends in"):
        list(read_records(tmp_path / "split", "dev"))
    for name, content in [
        ("b.jsonl", "{"),
        ("b.json", "3"),
        ("b.parquet", "x"),
        ("c.jsonl", "1"),
        ("b.csv", "a\n1,2\n"),
    ]:
        (tmp_path / name).write_text(content)
        with pytest.raises(CorpusError, match=rf"{name} is not {name[2:]}"):
            list(read_records(tmp_path / name))


def test_sampling_is_seeded_and_keeps_the_order() -> None:
    rows = [{"text": str(i), "output": "ab"[i % 10 == 0]} for i in range(100)]
    drawn = sample_rows(iter(rows), 30, "0", by_output=True)
    assert Counter(row["output"] for row in drawn) == {"a": 20, "b": 10}
    assert drawn == sorted(drawn, key=lambda row: int(row["text"]))
    assert drawn == sample_rows(iter(rows), 30, "0", by_output=True)
    assert len(sample_rows(iter(rows), 30, "0", by_output=False)) == 30
    counts = Counter(
        row["text"] for n in range(300) for row in sample_rows(rows[:10], 3, str(n), False)
    )
    assert all(60 < counts[str(i)] < 120 for i in range(10))  # 90, sd 8


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[]", "the catalogue has no entries"),
        ("", "the catalogue has no entries"),
        ("a: 1", "expected a list of entries, got dict"),
        ("- [", "is no catalogue"),
        ("- 3", "entry 1: expected a mapping"),
        ("- {name: a, urn: b}", "entry 1: uri: Field required; an entry's keys are"),
        ("- {name: a, uri: b}\n- {name: a, uri: c}", r"different names, got \['a'\]"),
        ("- {name: a, uri: 'hf://datasets/a/b@main/c.parquet'}", "commit of 40 hex digits"),
        ("- {name: a, uri: absent.jsonl}", "catalogue: entry a: no file or folder"),
    ],
)
def test_a_wrong_catalogue_is_refused_before_anything_runs(
    tmp_path: Path, content: str, told: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=told):
        find_catalogue("catalogue", str(path), open_store(f"file://{tmp_path}"))


def test_the_digest_covers_what_the_entries_lead_to(catalogue: Path, tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}")
    first = find_catalogue("c", str(catalogue), store).digest
    assert find_catalogue("c", str(catalogue), store).digest == first
    write_jsonl(catalogue.parent / "news.jsonl", [{"text": "other", "label": "World"}])
    assert find_catalogue("c", str(catalogue), store).digest != first


def test_a_stated_sha256_stands_for_the_data_and_is_checked(catalogue: Path) -> None:
    data = catalogue.parent / "films/all.jsonl"
    change(catalogue, 0, sha256=digest_file(data))
    assert len(draw(catalogue)) == 10
    change(catalogue, 0, sha256="0" * 64)
    with pytest.raises(CorpusError, match=r"has the sha256 .*, its entry says 000"):
        draw(catalogue)
    data.unlink()
    find_catalogue("c", str(catalogue), open_store(f"file://{catalogue.parent}"))
    with pytest.raises(CorpusError, match="data set films: no file or folder"):
        draw(catalogue)


def test_data_sets_in_a_recipe(recipe_file: Path, catalogue: Path, tmp_path: Path) -> None:
    source = {"name": "data_sets", "options": {"catalogue": "catalogue.yaml",
                                               "rows_per_data_set": 6}}  # fmt: skip
    assert catalogue.parent == recipe_file.parent
    recipe = load_recipe(
        recipe_file,
        [f"task={SENTIMENT.model_dump_json()}", f"corpus.sources={json.dumps([source])}"],
    )
    store = open_store(f"file://{tmp_path}/store")
    inputs = find_inputs(recipe, store)
    stage = source_stage(recipe, 1, inputs.teacher, inputs.sources[0])
    completion, _ = run_stage(
        stage, store, LocalExecutor(), lambda done, total: None, tmp_path / "scratch"
    )
    found = Rows(list_shards(RowsRef(**completion.record)), lambda uri: localize(store, uri))
    assert {row["source"] for row in found} == {"data_sets/films"} and len(found) == 6


@pytest.fixture
def hub() -> Iterator[Callable[[dict[str, Any]], str]]:
    """Serve a few of the hub's answers from loopback: {path: document}; return its address."""
    servers = []

    def serve(answers: dict[str, Any]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                word = parse_qs(parts.query).get("search", [""])[0]
                found = answers.get(unquote(parts.path) + (f"?{word}" if word else ""))
                if parts.path == "/api/datasets":
                    found = found or []
                body = json.dumps(found if found is not None else {"error": "absent"}).encode()
                self.send_response(404 if found is None else 200)
                if found is None:
                    self.send_header("X-Error-Code", "RevisionNotFound")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_hub_is_searched_and_pinned(hub: Callable[[dict[str, Any]], str]) -> None:
    from huggingface_hub import HfApi

    def card(name: str, **fields: Any) -> dict[str, Any]:
        return {
            "id": name,
            "private": False,
            "gated": False,
            "disabled": False,
            "tags": [],
        } | fields

    films = card(
        "stars/films",
        description="Movie   reviews",
        tags=["license:mit", "language:en", "task_ids:sentiment-classification", "size:1K"],
    )
    file = {"size": 9, "lfs": {"sha256": "a" * 64, "size": 9, "pointerSize": 1}}
    files = [
        {"rfilename": "default/test/0000.parquet"},
        {"rfilename": "default/train/0000.parquet", **file},
    ]
    address = hub(
        {
            "/api/datasets?movie": [films, card("a/closed", gated="manual")],
            "/api/datasets?review": [films, card("b/movie-scripts")],
            "/api/datasets/stars/films/revision/refs/convert/parquet": card(
                "stars/films", sha=COMMIT, siblings=files
            ),
        }
    )
    (entry,) = search_hub(HfApi(endpoint=address), SENTIMENT.instruction, limit=5)
    assert entry.uri == f"hf://datasets/stars/films@{COMMIT}/default/train/0000.parquet"
    assert (entry.licence, entry.languages, entry.sha256) == ("mit", ["en"], "a" * 64)
    assert entry.description == "Movie reviews sentiment-classification"
    with pytest.raises(CorpusError, match="no public data set in Parquet for the words"):
        search_hub(HfApi(endpoint=address), "zebras", limit=5)


def test_a_hub_that_does_not_answer() -> None:
    import httpx2

    class Api:
        def list_datasets(self, **asked: Any) -> Any:
            raise httpx2.ConnectError("refused")

    with pytest.raises(CorpusError, match="the hub did not answer: refused"):
        search_hub(Api(), "films", limit=5)


def test_students_are_proposed_by_task_then_size(tmp_path: Path) -> None:
    def card(name: str, about: str, size: int, **fields: Any) -> dict[str, Any]:
        return {"name": name, "description": about, "uri": name, "num_parameters": size} | fields

    cards = [
        card("teacher", "chat", 1000, tokenizer="t"),
        card("poet", "writes poems", 100, tokenizer="u"),
        card("small", "general", 100, tokenizer="t"),
        card("medium", "general", 500, tokenizer="u"),
        card("large", "writes poems", 5000),
        card("encoder", "poems", 10, task="fill-mask"),
    ]
    path = tmp_path / "models.yaml"
    path.write_text(yaml.safe_dump(cards))
    (tmp_path / "poet").mkdir()
    found = propose_students(path, "Write a poem.", "teacher")
    assert [c.card.name for c in found] == ["poet", "small", "medium"]
    assert [c.same_tokenizer for c in found] == [False, True, False]
    assert found[0].model == str(tmp_path / "poet") and found[1].model == "small"
    others = propose_students(path, "Write a poem.", "elsewhere", max_parameters=500)
    assert [c.card.name for c in others] == ["poet", "medium", "small"]
    with pytest.raises(ValueError, match="has at most 50 parameters; the smallest has 100"):
        propose_students(path, "Write a poem.", "teacher", max_parameters=50)


def test_a_file_of_the_hub_is_asked_for_by_its_commit(
    catalogue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[Any] = []

    def download(repository: str, file: str, **where: str) -> str:
        asked.append((repository, file, where))
        return str(catalogue.parent / "films/all.jsonl")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    change(catalogue, 0, uri=f"hf://datasets/stars/films@{COMMIT}/default/train/0000.parquet")
    find_catalogue("c", str(catalogue), open_store(f"file://{catalogue.parent}"))
    assert asked == []
    assert len(draw(catalogue)) == 10
    where = {"repo_type": "dataset", "revision": COMMIT}
    assert asked == [("stars/films", "default/train/0000.parquet", where)]


def test_where_entries_lead() -> None:
    assert entry_uri("s3://bucket/data/c.yaml", "films.jsonl") == "s3://bucket/data/films.jsonl"
    assert entry_uri("/data/c.yaml", "films/a.csv") == "/data/films/a.csv"
    assert entry_uri("/data/c.yaml", "/b.csv") == "/b.csv"
    assert entry_uri("/data/c.yaml", "s3://bucket/b.csv") == "s3://bucket/b.csv"


def test_the_commands(recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.retrieval_commands import app

    monkeypatch.setenv("NIGHTPRESS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cards = tmp_path / "models.yaml"
    card = {"name": "poet", "description": "Film reviews.", "uri": "a/b", "num_parameters": 99}
    cards.write_text(yaml.safe_dump([card]))
    task = ["--set", f"task={SENTIMENT.model_dump_json()}"]
    options = ["models", str(recipe_file), "--catalogue", str(cards), *task]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0 and "student: {model: a/b}" in done.stdout
    done = CliRunner().invoke(app, [*options, "--json"])
    assert json.loads(done.stdout)["models"][0]["card"]["name"] == "poet"
    entry = DataSet(name="films", description="Film reviews.", uri="films.jsonl")
    monkeypatch.setattr("tasks.corpus.retrieval.hub.search_hub", lambda api, query, limit: [entry])
    made = tmp_path / "hub.yaml"
    options = ["catalogue", str(recipe_file), "--output", str(made), *task]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0 and read_catalogue(made, DataSet) == [entry]
    done = CliRunner().invoke(app, options)
    assert "is there already" in str(done.exception)
