"""Publishing: the load gate, the order of writes, the channel's history, who wins a race."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from infra.storage import FileStore
from tasks.errors import CheckpointError, QualityGateError, StorageError
from tasks.models.checkpoint import describe_model
from tasks.publish.channels import (
    append_entry,
    promote,
    read_history,
    read_newest,
    rollback,
)
from tasks.publish.listing import list_artifacts
from tasks.publish.load_check import Probe, check_loads
from tasks.publish.manifest import Manifest, parse_manifest, read_manifest
from tasks.publish.model_card import write_model_card
from tasks.publish.provenance import find_licence
from tasks.publish.publishing import Release, advance_channel, publish_export
from tasks.publish.references import parse_reference, show
from tasks.quality_records import GateCheck, GateReport
from tasks.records import ArtifactRef
from tasks.run_records import StageResult
from tests.unit.artifact_factory import (
    metrics,
    passed_gate,
    provenance,
    store_artifact,
    write_files,
)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(f"file://{tmp_path / 'store'}")


@pytest.fixture(scope="module")
def probe(tiny_llama: Path) -> Probe:
    """Two windows, scored by the model in this process."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    ids = torch.arange(64).view(2, 32) % 300
    with torch.inference_mode():
        logits = model(ids).logits[:, :-1].flatten(0, 1)
    nats = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
    return Probe(ids=ids.tolist(), nats_per_token=nats.item())


def no_regate(champion: ArtifactRef) -> GateReport:
    raise AssertionError(f"gated again against {champion.digest}")


def release_of(folder: Path) -> Release:
    return Release(
        export="int4",
        model=describe_model(folder, str(folder)),
        metrics=metrics(),
        gate=passed_gate(),
        champion=None,
        stages=[
            StageResult(
                title="prune", stage="prune", key="f" * 64, outcome="computed", seconds=3, nodes=[]
            )
        ],
        provenance=provenance(folder),
    )


def publish(store: FileStore, release: Release, probe: Probe) -> str:
    return publish_export(
        store, release, probe, "<p>report</p>", "nightly", "night 7", "passed", no_regate
    ).outcome


def test_publish_writes_a_whole_artifact_once(
    store: FileStore, tiny_llama: Path, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    release = release_of(tiny_llama)
    assert publish(store, release, probe) == "published"
    manifest = show(store, "tiny")
    assert manifest.digest == release.model.digest
    assert manifest.num_bytes == sum(store.sizes(f"{manifest.prefix}/files").values())
    assert manifest.load_check.nats_per_token == pytest.approx(probe.nats_per_token, rel=1e-4)
    assert manifest.stages == release.stages
    assert manifest.provenance.recipe["exports"][0]["name"] == "int4"
    everything = b"".join(store.read(key) for key in store.list(f"{manifest.prefix}/"))
    assert b"hunter2" not in everything
    assert store.read(f"{manifest.prefix}/report.html") == b"<p>report</p>"
    newest = read_newest(store, "tiny", "int4", "nightly")
    assert newest is not None
    assert (newest.n, newest.previous, newest.by) == (1, None, "night 7")
    keys = store.list("")
    assert publish(store, release, Probe(ids=[], nats_per_token=0)) == "unchanged"  # no load
    assert store.list("") == keys


def test_what_does_not_load_is_not_published(
    store: FileStore, make_llama: Callable[..., Path], probe: Probe
) -> None:
    folder = make_llama(seed=3, num_hidden_layers=1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(CheckpointError, match=r"9 missing weights, model\.layers\.1"):
        publish(store, release_of(folder), probe)
    assert store.list("") == []


def test_other_results_than_in_memory_are_not_published(
    make_llama: Callable[..., Path], probe: Probe
) -> None:
    folder = make_llama(seed=4)
    with pytest.raises(CheckpointError, match="nats/token as in memory"):
        check_loads(folder, describe_model(folder, str(folder)), probe)


def test_a_model_that_needs_its_own_code_is_refused(
    make_llama: Callable[..., Path], probe: Probe
) -> None:
    folder = make_llama(seed=5)
    config = json.loads((folder / "config.json").read_text())
    remote = {"model_type": "odd", "auto_map": {"AutoModelForCausalLM": "odd.Odd"}}
    (folder / "config.json").write_text(json.dumps(config | remote))
    with pytest.raises(CheckpointError, match="plain transformers cannot load it"):
        check_loads(folder, describe_model(folder, str(folder)), probe)


def test_a_file_that_lost_bytes_in_the_store_is_uploaded_again(
    store: FileStore, tiny_llama: Path, probe: Probe
) -> None:
    release = release_of(tiny_llama)
    publish(store, release, probe)
    manifest = show(store, "tiny")
    weights, config = (f"{manifest.prefix}/files/{n}" for n in ("model.safetensors", "config.json"))
    whole = store.read(weights)
    store.write(weights, whole[:-100])
    store.delete(config)
    assert publish(store, release, Probe(ids=[], nats_per_token=0)) == "unchanged"
    assert store.read(weights) == whole and store.exists(config)
    assert show(store, "tiny") == manifest


def test_half_an_upload_is_no_artifact(store: FileStore, tmp_path: Path) -> None:
    manifest = store_artifact(store, write_files(tmp_path / "a", "a"), channel=None)
    store.delete(f"{manifest.prefix}/manifest.json")
    assert list_artifacts(store) == []
    with pytest.raises(ValueError, match="has no artifact"):
        show(store, f"tiny/int4@sha256:{manifest.digest[:12]}")


def test_the_manifest_survives_json_and_knows_its_version(store: FileStore, tmp_path: Path) -> None:
    manifest = store_artifact(store, write_files(tmp_path / "a", "a"))
    assert parse_manifest(manifest.to_json(), "here") == manifest
    raw = json.loads(manifest.to_json())
    raw["metrics"]["from_a_newer_minor"] = raw["unknown"] = 1
    assert parse_manifest(json.dumps(raw).encode(), "here") == manifest
    with pytest.raises(StorageError, match="use a newer nightpress"):
        parse_manifest(json.dumps(raw | {"schema_version": 2}).encode(), "here")
    with pytest.raises(StorageError, match="do not add up"):
        parse_manifest(json.dumps(raw | {"digest": "0" * 64}).encode(), "here")
    schema = Manifest.model_json_schema()
    assert "sorted by path" in schema["properties"]["digest"]["description"]
    assert set(raw) - {"unknown"} <= set(schema["properties"])
    with pytest.raises(ValidationError):
        Manifest.model_validate(raw | {"files": {"../x": raw["files"]["part-0.bin"]}})


def test_history_rolls_back_step_by_step(store: FileStore, tmp_path: Path) -> None:
    a, b, c = (store_artifact(store, write_files(tmp_path / x, x)) for x in "abc")
    assert show(store, "tiny/int4") == c
    assert rollback(store, "tiny", "int4", "nightly", "ann", "odd output").digest == b.digest
    assert rollback(store, "tiny", "int4", "nightly", "ann", "still odd").digest == a.digest
    with pytest.raises(ValueError, match="no earlier artifact"):
        rollback(store, "tiny", "int4", "nightly", "ann", "again")
    # The nightly run makes c and b again: a person turned them away, a person lets them in.
    for turned_away in (b, c):
        outcome = advance_channel(
            store, turned_away, a.digest, "nightly", "night", "passed", no_regate
        )
        assert outcome == "held"
    promote(store, c, "nightly", "ann", "it was the client")
    assert show(store, "tiny/int4@nightly") == c
    with pytest.raises(ValueError, match="already"):
        promote(store, c, "nightly", "ann", "twice")
    history = read_history(store, "tiny", "int4", "nightly")
    assert [entry.n for entry in history] == [6, 5, 4, 3, 2, 1]
    assert [entry.digest for entry in history[1:]] == [entry.previous for entry in history[:-1]]
    assert store.list("channels/tiny/int4/nightly/")[-1].endswith("/99999998.json")


def test_promotion_to_another_channel(store: FileStore, tmp_path: Path) -> None:
    manifest = store_artifact(store, write_files(tmp_path / "a", "a"))
    with pytest.raises(ValueError, match=r"nothing on channel 'stable'; choose from \['nightly'\]"):
        show(store, "tiny/int4@stable")
    promote(store, manifest, "stable", "ann", "a week of nightly")
    assert show(store, "tiny@stable") == manifest
    assert list_artifacts(store)[0].channels == ["nightly", "stable"]


def refusal() -> GateReport:
    check = GateCheck(
        name="champion.max_nats_increase",
        against="c" * 64,
        limit=0.01,
        figure=0.2,
        passed=False,
        reason="+0.2000 nats/token",
        protocol="bootstrap",
    )
    return GateReport(passed=False, checks=[check], notes=[])


def test_a_publisher_that_finds_another_champion_is_gated_again(
    store: FileStore, tmp_path: Path
) -> None:
    candidate = store_artifact(store, write_files(tmp_path / "a", "a"), channel=None)
    other = store_artifact(store, write_files(tmp_path / "b", "b"))
    seen = []

    def passes(champion: ArtifactRef) -> GateReport:
        seen.append(champion.digest)
        return passed_gate()

    with pytest.raises(QualityGateError, match=r"new champion .* \+0\.2000 nats/token"):
        advance_channel(store, candidate, None, "nightly", "n", "passed", lambda _: refusal())
    assert show(store, "tiny/int4") == other
    outcome = advance_channel(store, candidate, None, "nightly", "n", "passed", passes)
    assert (outcome, seen) == ("published", [other.digest])
    newest = read_newest(store, "tiny", "int4", "nightly")
    assert newest is not None
    assert newest.why == f"passed; gated again, against sha256:{other.digest[:12]}"


def test_racing_publishers_all_get_in_one_after_the_other(store: FileStore, tmp_path: Path) -> None:
    """Eight at once: nobody's entry is lost, and each was gated against the one it replaced."""
    manifests = [
        store_artifact(store, write_files(tmp_path / str(i), str(i)), channel=None)
        for i in range(8)
    ]
    gated: dict[str, str] = {}

    def race(manifest: Manifest) -> None:
        def regate(champion: ArtifactRef) -> GateReport:
            gated[manifest.digest] = champion.digest
            return passed_gate()

        advance_channel(store, manifest, None, "nightly", "n", "passed", regate)

    threads = [threading.Thread(target=race, args=(manifest,)) for manifest in manifests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    history = read_history(store, "tiny", "int4", "nightly")
    assert [entry.n for entry in history] == list(range(8, 0, -1))
    assert {entry.digest for entry in history} == {m.digest for m in manifests}
    for entry in history[:-1]:
        assert gated[entry.digest] == entry.previous


def test_an_entry_is_appended_by_one_only(store: FileStore) -> None:
    def append(digest: str) -> bool:
        entry = append_entry(store, "tiny", "int4", "nightly", None, digest, "publish", "n", "")
        return entry is not None

    assert append("a" * 64)
    assert not append("b" * 64)
    newest = read_newest(store, "tiny", "int4", "nightly")
    assert newest is not None
    assert newest.digest == "a" * 64


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("docs-lm", ("docs-lm", None, "nightly", None)),
        ("docs-lm/int4@stable", ("docs-lm", "int4", "stable", None)),
        ("docs-lm@sha256:0123456789ab", ("docs-lm", None, "nightly", "0123456789ab")),
    ],
)
def test_references(text: str, expected: tuple[str | None, ...]) -> None:
    reference = parse_reference(text)
    got = (reference.recipe, reference.export, reference.channel, reference.digest)
    assert got == expected


@pytest.mark.parametrize(
    "text", ["", "A", "a/b/c", "a@sha256:0123", "a@", "../a", "a@sha256:zzzzzzzzzzzz", "a/../b"]
)
def test_no_references(text: str) -> None:
    with pytest.raises(ValueError, match="expected RECIPE"):
        parse_reference(text)


def test_the_default_export_is_the_first_of_the_newest_recipe(
    store: FileStore, tmp_path: Path
) -> None:
    int8 = store_artifact(store, write_files(tmp_path / "8", "8"), export="int8")
    with pytest.raises(ValueError, match=r"'int4', was never published there; .*int8"):
        show(store, "tiny")
    int4 = store_artifact(store, write_files(tmp_path / "4", "4"), export="int4")
    assert show(store, "tiny") == int4
    assert show(store, f"tiny@sha256:{int8.digest[:12]}") == int8
    with pytest.raises(ValueError, match=r"no artifacts of recipe 'big' .*\['tiny'\]"):
        show(store, "big")
    with pytest.raises(ValueError, match=r"no export 'int2'; choose from \['int4', 'int8'\]"):
        show(store, "tiny/int2")
    assert [(x.export, x.channels) for x in list_artifacts(store, "tiny")] == [
        ("int4", ["nightly"]),
        ("int8", ["nightly"]),
    ]


def test_a_channel_that_names_a_lost_artifact_says_so(store: FileStore, tmp_path: Path) -> None:
    manifest = store_artifact(store, write_files(tmp_path / "a", "a"))
    store.delete(f"{manifest.prefix}/manifest.json")
    with pytest.raises(StorageError, match="no such artifact"):
        show(store, "tiny/int4")
    other = store_artifact(store, write_files(tmp_path / "b", "b"), channel=None)
    store.write(f"{manifest.prefix}/manifest.json", other.to_json())
    with pytest.raises(StorageError, match="describes another artifact"):
        read_manifest(store, "tiny", "int4", manifest.digest)


def test_the_model_card_reads_on_the_hub(store: FileStore, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "a", "a")
    (folder / "LICENSE").write_text("Apache License")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# The teacher\n")
    manifest = store_artifact(store, folder)
    card = write_model_card(manifest, store.uri)
    assert card == write_model_card(manifest, store.uri)
    _, matter, body = card.split("---\n", 2)
    assert yaml.safe_load(matter) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "acme/teacher",
        "license": "apache-2.0",
        "tags": ["nightpress", "pruned", "distilled", "quantized", "gptq", "compressed-tensors"],
    }
    assert f"nightpress pull tiny/int4@sha256:{manifest.digest[:12]} DEST" in body
    assert "| bytes | 12" not in matter
    assert "50% of ffn, 25% of kv_groups" in body
    assert "no serving speedup" in body
    assert "\n\n\n" not in body
    assert find_licence(folder).files == ["LICENSE"]
