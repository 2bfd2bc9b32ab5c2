"""A corpus built, looked at and published: what is said of it, and what others may rely on."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml

from flows.compress_model import compress
from flows.corpus_tables import print_built, print_corpus, print_data_manifest, print_samples
from flows.make_corpus import make_corpus, read_corpus
from flows.planning import make_plan
from flows.tables import print_artifacts
from infra.local_executor import LocalExecutor
from infra.storage import FileStore
from tasks.corpus import shards
from tasks.corpus.rows import make_row
from tasks.corpus.samples import sample_rows
from tasks.errors import CorpusError, StorageError
from tasks.inputs import find_inputs
from tasks.publish.channels import append_entry, read_newest
from tasks.publish.data_publishing import check_rows, publish_data
from tasks.publish.listing import list_artifacts
from tasks.publish.manifest import DataManifest, Manifest, parse_manifest, read_model_manifest
from tasks.publish.provenance import gather_provenance
from tasks.publish.pulling import pull
from tasks.publish.references import show
from tasks.recipe import Recipe
from tasks.recipe_file import load_recipe
from tasks.report.gathering import gather_report
from tasks.report.report import write_report
from tasks.run_records import CorpusResult, PublishedCorpus, RunRecord, StageResult
from tasks.stage import Stage, run_stage

NIGHTPRESS = str(Path(sys.executable).with_name("nightpress"))

TASK = "task={instruction: Judge it., kind: classification, labels: [bad, good]}"


@dataclass
class Built:
    recipe: Recipe
    store: FileStore
    result: CorpusResult
    stages: list[StageResult] = field(default_factory=list)


def build(recipe: Recipe, folder: Path) -> Built:
    store = FileStore(f"file://{folder}")
    inputs = find_inputs(recipe, store)
    stages: list[StageResult] = []

    def complete(title: str, stage: Stage, record_type: type[Any]) -> Any:
        done, _ = run_stage(
            stage, store, LocalExecutor(), lambda done, total: None, folder / "scratch"
        )
        stages.append(
            StageResult(
                title=title,
                stage=stage.name,
                key=stage.key,
                outcome="computed",
                seconds=1,
                nodes=[],
            )
        )
        return record_type(**done.record)

    make_corpus(recipe, inputs, inputs.teacher, complete)
    return Built(recipe, store, read_corpus(recipe, inputs, store), stages)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, shared_recipe: Path) -> Built:
    """Labelled rows from a file, ten of them twice, and one that is too short."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = [{"text": f"the number {i % 30} of these rows", "label": i % 2} for i in range(40)]
    rows = folder / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps(line) + "\n" for line in [*lines, {"text": "a", "label": 0}])
    )
    source = {"name": "local_text", "options": {"path": str(rows), "licence": "CC0-1.0"}}
    filters = [{"name": "exact_dedup"}, {"name": "length", "options": {"min_characters": 5}}]
    overrides = [
        TASK,
        f"corpus.sources={json.dumps([source])}",
        f"corpus.filters={json.dumps(filters)}",
    ]
    return build(load_recipe(shared_recipe, overrides), folder / "store")


def publish(built: Built, channel: str = "nightly") -> PublishedCorpus:
    inputs = find_inputs(built.recipe, built.store)
    provenance = gather_provenance(
        built.recipe, inputs.teacher, Path(inputs.teacher.uri), None, {"evaluation": "b" * 64}
    )
    return publish_data(
        built.store, built.result, built.stages, provenance, "<p>report</p>", channel, "me", "test"
    )


def test_a_corpus_is_read_back_from_what_is_stored(built: Built) -> None:
    corpus, (step,) = built.result.corpus, built.result.steps
    assert (step.title, step.num_rows) == ("source 1 local_text", 41)
    assert corpus.dropped == {"exact duplicate": 10, "shorter than 5 characters": 1}
    assert corpus.outputs == {"bad": 15, "good": 15}
    assert corpus.licences == {"CC0-1.0": 30} and corpus.generators == {}


def test_what_is_not_stored_is_named(built: Built, tmp_path: Path) -> None:
    empty = FileStore(f"file://{tmp_path}/empty")
    with pytest.raises(LookupError, match="source 1 local_text"):
        read_corpus(built.recipe, find_inputs(built.recipe, empty), empty)


def test_a_run_and_its_corpus_alone_have_the_same_stages(built: Built) -> None:
    inputs, names = find_inputs(built.recipe, built.store), ("source", "label", "corpus")
    alone = make_plan(built.recipe, inputs, built.store, corpus_alone=True)
    assert [stage.outcome for stage in alone.stages] == ["cached", "cached"]
    keys: list[str] = []

    def look_up(title: str, stage: Stage, record_type: type[Any]) -> Any:
        if stage.name in names:
            keys.append(stage.key)
        if stage.name == "corpus":
            raise InterruptedError
        return record_type.model_construct(digest="unknown", num_rows=[1])

    with pytest.raises(InterruptedError):
        compress(built.recipe, inputs, look_up, models=[])
    assert keys[0] == built.stages[0].key


def test_samples_come_from_all_over_and_are_the_same_each_time(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = sample_rows(built.store, built.result.corpus, 3)
    assert [row["text"] for row in rows] == [f"the number {i} of these rows" for i in (0, 10, 20)]
    assert rows == sample_rows(built.store, built.result.corpus, 3)
    assert len(sample_rows(built.store, built.result.corpus, 99)) == 30
    assert sample_rows(built.store, built.result.corpus, 0) == []


def test_a_data_set_is_published_listed_and_pulled_like_a_model(
    built: Built, tmp_path: Path
) -> None:
    first, again = publish(built), publish(built)
    assert (first.outcome, again.outcome) == ("published", "unchanged")
    manifest = show(built.store, "tiny/corpus")
    assert isinstance(manifest, DataManifest)
    assert manifest.digest == first.digest and manifest.num_rows == first.num_rows == 30
    assert manifest.corpus == built.result.corpus and manifest.steps == built.result.steps
    assert {stage.stage for stage in manifest.stages} == {"source", "corpus"}
    (listed,) = list_artifacts(built.store)
    assert (listed.num_rows, listed.num_parameters, listed.channels) == (30, None, ["nightly"])
    dest = tmp_path / "rows"
    assert pull(built.store, "tiny/corpus@nightly", dest) == manifest
    assert set(manifest.files) == {"rows/00000.parquet"}
    rows = pyarrow.parquet.read_table(dest / "rows/00000.parquet").to_pylist()
    assert len(rows) == 30 and rows[0]["source"] == "local_text"


def test_the_digest_is_that_of_the_rows_alone(built: Built, tmp_path: Path) -> None:
    other = built.recipe.model_copy(
        update={"corpus": built.recipe.corpus.model_copy(update={"block_tokens": 16})}
    )
    blocks = build(other, tmp_path / "store")
    assert blocks.result.corpus.digest != built.result.corpus.digest
    assert publish(blocks).digest == publish(built).digest


def test_the_card_says_how_to_load_and_what_is_in_it(built: Built) -> None:
    uri = publish(built).uri
    card = (Path(uri.removeprefix("file://")) / "README.md").read_text()
    matter = yaml.safe_load(card.split("---\n")[1])
    assert matter["task_categories"] == ["text-classification"]
    assert matter["license"] == "CC0-1.0" and matter["tags"] == ["nightpress"]
    for said in [
        'load_dataset("parquet", data_files="DEST/rows/*.parquet"',
        "| source 1 local_text | 41 | 0 |",
        "filters dropped 10: exact duplicate",
        "| label bad | 15 | 50.0% |",
        "exact_dedup and length (min_characters 5)",
        "nightpress pull tiny/corpus@sha256:",
    ]:
        assert said in card, said


def test_a_person_who_rolled_back_is_not_overruled(built: Built) -> None:
    digest = publish(built, "weekly").digest
    for action, to in [("publish", "a" * 64), ("rollback", digest), ("publish", digest)]:
        newest = read_newest(built.store, "tiny", "corpus", "weekly")
        assert append_entry(
            built.store,
            "tiny",
            "corpus",
            "weekly",
            newest,
            to,
            action,  # type: ignore[arg-type]
            "me",
            "why",
        )
    newest = read_newest(built.store, "tiny", "corpus", "weekly")
    assert append_entry(
        built.store, "tiny", "corpus", "weekly", newest, "a" * 64, "rollback", "me", "why"
    )
    assert publish(built, "weekly").outcome == "held"


def test_readers_of_models_refuse_a_data_set_and_newer_ones(built: Built) -> None:
    digest = publish(built).digest
    with pytest.raises(StorageError, match="is a data set, expected a model"):
        read_model_manifest(built.store, "tiny", "corpus", digest)
    raw = show(built.store, "tiny/corpus").model_dump(mode="json")
    assert raw["schema_version"] == 2 and raw["kind"] == "dataset"
    with pytest.raises(StorageError, match="schema version above 2"):
        parse_manifest(json.dumps(raw | {"schema_version": 3}).encode(), "here")
    with pytest.raises(StorageError, match="kind"):
        parse_manifest(json.dumps(raw | {"kind": "image"}).encode(), "here")
    assert "kind" not in Manifest.model_json_schema()["required"]  # earlier ones do not have it


def test_shards_that_do_not_hold_what_is_counted_are_not_published(
    built: Built, tmp_path: Path
) -> None:
    folder = Path(built.result.corpus.uri.replace("store://", f"{built.store.root}/")) / "rows"
    with pytest.raises(CorpusError, match=r"expected 31 rows .* got 30"):
        check_rows(folder, 31)
    (tmp_path / "00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorpusError, match="not a shard of rows"):
        check_rows(tmp_path, 1)


def test_an_export_may_not_take_the_data_sets_name(shared_recipe: Path) -> None:
    taken = ["corpus.publish=true", "exports.0.name=corpus"]
    with pytest.raises(ValueError, match="the name 'corpus' is the data set's"):
        load_recipe(shared_recipe, taken)
    assert load_recipe(shared_recipe, taken[1:]).exports[0].name == "corpus"


def test_tables_say_all_of_it(built: Built, capsys: pytest.CaptureFixture[str]) -> None:
    published = publish(built)
    record = RunRecord(
        recipe="tiny",
        run_id="1",
        started="2026-11-20T02:00:00+00:00",
        seconds=3,
        status="done",
        store_uri=built.store.uri,
        channel="nightly",
        stages=built.stages,
        models=[],
        exports=[],
        corpus=built.result.model_copy(update={"published": published}),
    )
    report = write_report(gather_report(built.store, built.recipe, record, {}))
    assert "Built a corpus of 30 rows." in report and "What it learned from" in report
    print_built(record)
    print_corpus(built.result)
    print_samples(sample_rows(built.store, built.result.corpus, 1))
    print_data_manifest(show(built.store, "tiny/corpus"))  # type: ignore[arg-type]
    print_artifacts(list_artifacts(built.store))
    said = capsys.readouterr().out
    for line in [
        "filters dropped 10: exact duplicate",
        "2 of 2 stages computed",
        "nightpress pull tiny/corpus@nightly",
        "source local_text, licence CC0-1.0",
        "output: bad",
        "tiny/corpus@sha256:",
    ]:
        assert line in said, line


def test_long_rows_make_smaller_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_CHARACTERS", 100)
    rows = [make_row({"text": "x" * length}, "s", None) for length in (60, 40, 1, 300, 5)]
    assert shards.write_shards(rows, tmp_path) == [2, 1, 1, 1]
    stored = [
        row for path in sorted(tmp_path.rglob("*.parquet")) for row in shards.read_shard(path)
    ]
    assert stored == rows


def test_show_before_build_is_bad_input(shared_recipe: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [NIGHTPRESS, "corpus", "show", str(shared_recipe), "--set", "seed=3"],
        env=os.environ | {"NIGHTPRESS_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert "not built yet, source 1 teacher_samples is not stored" in done.stderr
    assert f"`nightpress corpus build {shared_recipe} --set seed=3`" in done.stderr
