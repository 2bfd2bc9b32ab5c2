"""What a manifest says of where an artifact comes from."""

from pathlib import Path

from tasks.digests import digest_file
from tasks.publish.manifest import Manifest
from tasks.publish.provenance import LOCK, gather_provenance
from tasks.records import CorpusRef, ModelRef
from tests.unit.artifact_factory import RECIPE, metrics


def test_the_lock_and_the_corpus_are_named(tmp_path: Path) -> None:
    teacher = ModelRef(
        uri=str(tmp_path), digest="e" * 64, architecture="L", num_parameters=1, num_bytes=4
    )
    corpus = CorpusRef(
        uri="store://corpus",
        digest="c" * 64,
        num_blocks=1,
        block_tokens=32,
        num_documents=3,
        dropped={},
        sources={"local_text": 3},
        licences={"CC0-1.0": 2, "unknown": 1},
    )
    found = gather_provenance(RECIPE, teacher, tmp_path, metrics(), {}, corpus)
    assert found.lock_digest == digest_file(LOCK)
    assert found.corpus_digest == "c" * 64
    assert found.corpus_licences == {"CC0-1.0": 2, "unknown": 1}
    assert (found.seed, found.recipe["name"]) == (RECIPE.seed, "tiny")


def test_the_schema_has_costs_and_efforts_of_each_stage() -> None:
    schema = Manifest.model_json_schema()
    stage = schema["$defs"]["StageResult"]["properties"]
    assert {"seconds", "operations", "effort", "cost", "nodes", "peak_bytes"} <= stage.keys()
    assert {"joules", "meters", "devices"} <= schema["$defs"]["Effort"]["properties"].keys()
    assert {"price", "energy_kwh"} <= schema["$defs"]["Cost"]["properties"].keys()
    assert "lock_digest" in schema["$defs"]["Provenance"]["properties"]
